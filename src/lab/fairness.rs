//! Does the emulator share virtual time fairly between pCPUs in repeatable mode?
//!
//! QEMU before 8.1 lets the first pCPU take a whole budget of instructions and gives the next none:
//! a pCPU that never pauses starves its neighbour. Runs then repeat exactly, and are exactly wrong.
//! So before the first repeatable run two pCPUs without a single PAUSE count against each other,
//! in a machine that holds nothing but the few instructions below.

use std::arch::global_asm;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::process::Leashed;
use super::qemu::{self, Emulator};
use super::{Error, Lab, Mode, Repeatable};
use crate::interrupt;

/// Written to the lab's folder once its emulator has passed.
const STAMP: &str = "fair";
/// The other pCPU's turns for a hundred of the first one's; a fair emulator gives 95 to 105.
const EVEN: std::ops::RangeInclusive<u64> = 70..=140;
/// Turns of the first pCPU, three instructions each: some hundred slices of 100 us.
const TURNS: u32 = 4_000_000;
/// The program is the firmware, so it is as large as the smallest firmware, and ends at 1 MiB.
const FIRMWARE: usize = 64 << 10;
/// Where a pCPU begins after reset, in the firmware.
const RESET: usize = 0xfff0;
/// It needs a second; more than this and the emulator is stuck.
const LIMIT: Duration = Duration::from_secs(60);

// The firmware sits at F000:0000. A SIPI with vector F0 starts the other pCPU at its first byte.
// RAM: 0x1000 the other's turns, 0x1004 its turns when the race began.
global_asm!(
    ".pushsection .rodata.pvlab_fairness, \"a\"",
    ".global pvlab_fairness_begin, pvlab_fairness_first, pvlab_fairness_end",
    ".code16",
    "pvlab_fairness_begin:",
    // The other pCPU: three instructions a turn, like the first.
    "  xor %ax, %ax",
    "  mov %ax, %ds",
    "1:",
    "  incl 0x1000",
    "  dec %ecx",
    "  jmp 1b",
    "pvlab_fairness_first:",
    "  cli",
    // Segments of 4 GiB in real mode, to reach the local APIC at 0xfee00000.
    "  lgdtl %cs:(4f - pvlab_fairness_begin)",
    "  mov %cr0, %eax",
    "  or $1, %al",
    "  mov %eax, %cr0",
    "  mov $8, %bx",
    "  mov %bx, %ds",
    "  and $0xfe, %al",
    "  mov %eax, %cr0",
    "  xor %ax, %ax",
    "  mov %ax, %ds",
    // Enable the APIC, then INIT and SIPI to all but self.
    "  mov $0xfee00000, %edi",
    "  movl $0x1ff, %ds:0xf0(%edi)",
    "  movl $0xc4500, %ds:0x300(%edi)",
    "  mov $1000000, %ecx",
    "1:",
    "  dec %ecx",
    "  jnz 1b",
    "  movl $0xc46f0, %ds:0x300(%edi)",
    // Wait for its first turn, without PAUSE; give up after as many turns as the race has.
    "  mov ${turns}, %ecx",
    "1:",
    "  cmpl $0, 0x1000",
    "  jne 2f",
    "  dec %ecx",
    "  jnz 1b",
    "2:",
    "  mov 0x1000, %eax",
    "  mov %eax, 0x1004",
    "  mov ${turns}, %ecx",
    "1:",
    "  incl 0x1008",
    "  dec %ecx",
    "  jnz 1b",
    "  mov 0x1000, %eax",
    "  sub 0x1004, %eax",
    // Eight hexadecimal digits and a newline to the debug console.
    "  mov $8, %cx",
    "1:",
    "  rol $4, %eax",
    "  mov %eax, %ebx",
    "  and $0xf, %al",
    "  add $0x30, %al",
    "  cmp $0x3a, %al",
    "  jb 2f",
    "  add $0x27, %al",
    "2:",
    "  out %al, $0xe9",
    "  mov %ebx, %eax",
    "  loop 1b",
    "  mov $10, %al",
    "  out %al, $0xe9",
    // The exit device: the emulator ends with status 2 * 0 + 1.
    "  xor %eax, %eax",
    "  out %eax, $0xf4",
    "1:",
    "  hlt",
    "  jmp 1b",
    // Descriptor table: none, data of 4 GiB; and the pointer to it, in linear addresses.
    ".balign 8",
    "3:",
    "  .quad 0, 0x00cf92000000ffff",
    "4:",
    "  .word 15",
    "  .long 0xf0000 + 3b - pvlab_fairness_begin",
    "pvlab_fairness_end:",
    ".code64",
    ".popsection",
    turns = const TURNS,
    options(att_syntax),
);

unsafe extern "C" {
    // SAFETY: three labels of the section above, which is constant data; only their addresses count.
    safe static pvlab_fairness_begin: u8;
    safe static pvlab_fairness_first: u8;
    safe static pvlab_fairness_end: u8;
}

/// The firmware image.
fn firmware() -> Vec<u8> {
    let begin = &raw const pvlab_fairness_begin;
    let length = (&raw const pvlab_fairness_end).addr() - begin.addr();
    let first = (&raw const pvlab_fairness_first).addr() - begin.addr();
    // SAFETY: the labels bound one section of initialized constant bytes of this program, which
    // nothing writes to and which live as long as the program.
    let program = unsafe { std::slice::from_raw_parts(begin, length) };
    let mut image = vec![0xf4; FIRMWARE];
    image[..length].copy_from_slice(program);
    // jmp rel16, counted from the instruction's end.
    let distance = (first as u16).wrapping_sub(RESET as u16 + 3).to_le_bytes();
    image[RESET..RESET + 3].copy_from_slice(&[0xe9, distance[0], distance[1]]);
    image
}

/// Fails unless the lab's emulator is fair. Measured once; the result is kept with the lab.
pub(super) fn require(lab: &Lab, settings: Repeatable) -> Result<(), Error> {
    let stamp = lab.part(STAMP);
    if stamp.exists() {
        return Ok(());
    }
    let folder = lab.cache.run_folder()?;
    let percent = measure(Emulator { root: &lab.root() }.command(), folder.path(), settings)?;
    judge(percent, &lab.parts.qemu)?;
    fs::write(&stamp, format!("{percent} turns for 100\n")).map_err(Error::file("write", &stamp))
}

fn judge(percent: u64, version: &str) -> Result<(), Error> {
    if EVEN.contains(&percent) {
        return Ok(());
    }
    let detail = format!("while one pCPU took 100 turns, the other took {percent}");
    Err(Error::Unfair { version: version.into(), detail })
}

/// How many turns the other pCPU takes while the first takes a hundred.
fn measure(mut command: Command, folder: &Path, settings: Repeatable) -> Result<u64, Error> {
    let bios = folder.join("fairness.bin");
    fs::write(&bios, firmware()).map_err(Error::file("write", &bios))?;
    let answer = folder.join("fairness.txt");
    let words = folder.join("fairness.err");
    let stderr = File::create(&words).map_err(Error::file("create", &words))?;
    command.args(qemu::timing(Mode::Repeatable(settings)));
    command.args(
        "-machine q35 -cpu qemu64 -smp 2 -m 16M -nodefaults -no-user-config -display none"
            .split(' '),
    );
    command.args("-bios fairness.bin -debugcon file:fairness.txt".split(' '));
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    let begun = Instant::now();
    let mut emulator =
        Leashed::spawn(&mut command).map_err(Error::file("start", command.get_program()))?;
    let status = loop {
        if let Some(status) =
            emulator.child().try_wait().map_err(Error::file("wait for", command.get_program()))?
        {
            break status;
        }
        interrupt::check()?;
        if begun.elapsed() > LIMIT {
            return Err(Error::Unfair {
                version: "its version aside".into(),
                detail: "it did not come to an end".into(),
            });
        }
        thread::sleep(Duration::from_millis(20));
    };
    let text = fs::read_to_string(&answer).unwrap_or_default();
    match u64::from_str_radix(text.trim(), 16) {
        Ok(turns) => Ok((turns * 100).div_ceil(u64::from(TURNS))),
        Err(_) => Err(Error::Emulator {
            status: status.to_string(),
            words: fs::read_to_string(&words).unwrap_or_default(),
            command: bios,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firmware_begins_with_a_jump_to_the_first_pcpus_code() {
        let image = firmware();
        assert_eq!(image.len(), FIRMWARE);
        assert_eq!(image[RESET], 0xe9);
        let distance = u16::from_le_bytes([image[RESET + 1], image[RESET + 2]]);
        let target = usize::from((RESET as u16 + 3).wrapping_add(distance));
        // cli
        assert_eq!(image[target], 0xfa);
        // The other pCPU's first instruction: xor %ax, %ax.
        assert!(matches!(image[..2], [0x31 | 0x33, 0xc0]));
    }

    #[test]
    fn an_emulator_that_starves_a_pcpu_is_refused() {
        assert!(judge(100, "10.0").is_ok());
        for percent in [0, 1, 69, 141, 5000] {
            let error = judge(percent, "7.2").unwrap_err().to_string();
            assert!(error.contains("7.2") && error.contains("8.1 or later"), "{error}");
        }
    }
}
