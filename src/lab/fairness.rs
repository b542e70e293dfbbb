//! Does the emulator let every pCPU run in every slice of repeatable mode?
//!
//! QEMU before 8.1 lets one pCPU take a whole slice, then another: with three pCPUs a pCPU waits two or
//! three slices, and one that never pauses can starve its neighbour. Runs then repeat exactly, and
//! are exactly wrong. So before the first repeatable run three pCPUs without a single PAUSE count
//! against each other, in a machine that holds nothing but the few instructions below, and each
//! notes the longest time it had to wait. The same start shows whether lockstep finds the thread it
//! must hold the main loop back for. Measured, in slices: QEMU 10.0 0.56 to 0.78, QEMU 7.2 2 to 3.

use std::arch::global_asm;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::process::follow;
use super::qemu::{self, Emulator};
use super::{Error, Lab, Mode, Repeatable, lockstep};
use crate::leash::Leashed;

/// Written to the lab's folder once its emulator has passed.
const STAMP: &str = "fair-2";
/// Turns of the first pCPU: some two thousand slices.
const TURNS: u32 = 2_000_000;
/// pCPUs in the race.
const PCPUS: u32 = 3;
/// The program is the firmware, so it is as large as the smallest firmware, and ends at 1 MiB.
const FIRMWARE: usize = 64 << 10;
/// Where a pCPU begins after reset, in the firmware.
const RESET: usize = 0xfff0;
/// It needs a second, on a machine with time for it; more than this and the emulator is stuck.
const LIMIT: Duration = Duration::from_secs(300);

// The firmware sits at F000:0000. A SIPI with vector F0 starts another pCPU at its first byte.
// RAM: 0x1000 pCPUs that are up; from 0x1100, 16 bytes a pCPU: turns, longest gap.
global_asm!(
    ".pushsection .rodata.pvlab_fairness, \"a\"",
    ".global pvlab_fairness_begin, pvlab_fairness_first, pvlab_fairness_end",
    ".code16",
    "pvlab_fairness_begin:",
    "  xor %ax, %ax",
    "  mov %ax, %ds",
    "  call 5f",
    "1:",
    "  call 6f",
    "  jmp 1b",
    // Take a place: %di is its address, %esi the time of the last turn.
    "5:",
    "  mov $1, %edi",
    "  lock xadd %edi, 0x1000",
    "  shl $4, %edi",
    "  add $0x1100, %edi",
    "  rdtsc",
    "  mov %eax, %esi",
    "  ret",
    // A turn: the gap since the last one, the longest so far, one more.
    "6:",
    "  rdtsc",
    "  mov %eax, %ebx",
    "  sub %esi, %eax",
    "  mov %ebx, %esi",
    "  cmp 4(%di), %eax",
    "  jbe 1f",
    "  mov %eax, 4(%di)",
    "1:",
    "  incl (%di)",
    "  ret",
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
    "  mov %ax, %ss",
    "  mov $0x8000, %sp",
    "  call 5b",
    // Enable the APIC, then INIT and SIPI to all but self.
    "  mov $0xfee00000, %ebp",
    "  movl $0x1ff, %ds:0xf0(%ebp)",
    "  movl $0xc4500, %ds:0x300(%ebp)",
    "  mov $1000000, %ecx",
    "1:",
    "  dec %ecx",
    "  jnz 1b",
    "  movl $0xc46f0, %ds:0x300(%ebp)",
    // Wait for the others, without PAUSE; give up after as many turns as the race has.
    "  mov ${turns}, %ecx",
    "1:",
    "  cmpl ${pcpus}, 0x1000",
    "  je 2f",
    "  dec %ecx",
    "  jnz 1b",
    "2:",
    "  xor %eax, %eax",
    "  mov %eax, 0x1104",
    "  mov %eax, 0x1114",
    "  mov %eax, 0x1124",
    "  mov %eax, 0x1110",
    "  mov %eax, 0x1120",
    "  rdtsc",
    "  mov %eax, %esi",
    "  mov ${turns}, %ecx",
    "1:",
    "  call 6b",
    "  dec %ecx",
    "  jnz 1b",
    "  mov $0x1100, %si",
    "  mov ${pcpus}, %bp",
    "1:",
    "  lodsl",
    "  call 7f",
    "  lodsl",
    "  call 7f",
    "  add $8, %si",
    "  dec %bp",
    "  jnz 1b",
    // The exit device: the emulator ends with status 2 * 0 + 1.
    "  xor %eax, %eax",
    "  out %eax, $0xf4",
    "1:",
    "  hlt",
    "  jmp 1b",
    // Eight hexadecimal digits and a newline to the debug console.
    "7:",
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
    "  ret",
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
    pcpus = const PCPUS,
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

/// What a pCPU noted during the race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Noted {
    turns: u32,
    /// The longest time between two turns, in nanoseconds of virtual time.
    gap: u32,
}

/// Fails unless the lab's emulator is fair. Measured once; the result is kept with the lab.
pub(super) fn require(lab: &Lab) -> Result<(), Error> {
    let stamp = lab.part(STAMP);
    if stamp.exists() {
        return Ok(());
    }
    let folder = lab.cache.run_folder()?;
    let settings = Repeatable::default();
    let mode = Mode::Repeatable(settings);
    lockstep::lay_out(folder.path(), mode)?;
    let emulator = Emulator { root: &lab.root() }.command(mode);
    let noted = race(emulator, folder.path(), settings, &lab.parts.qemu)?;
    judge(&noted, settings, &lab.parts.qemu)?;
    fs::write(&stamp, format!("{noted:?}\n")).map_err(Error::file("write", &stamp))
}

fn judge(noted: &[Noted], settings: Repeatable, version: &str) -> Result<(), Error> {
    let unfair = |detail: String| Err(Error::Unfair { version: version.into(), detail });
    for (pcpu, noted) in noted.iter().enumerate() {
        if noted.turns == 0 {
            return unfair(format!("pCPU {pcpu} never ran"));
        }
        let gap = Duration::from_nanos(noted.gap.into());
        if gap > settings.slice {
            return unfair(format!("pCPU {pcpu} waited {gap:?}, a slice is {:?}", settings.slice));
        }
    }
    Ok(())
}

/// Runs the race and reads what the pCPUs noted.
fn race(
    mut command: Command,
    folder: &Path,
    settings: Repeatable,
    version: &str,
) -> Result<Vec<Noted>, Error> {
    let bios = folder.join("fairness.bin");
    fs::write(&bios, firmware()).map_err(Error::file("write", &bios))?;
    let words = folder.join("fairness.err");
    let stderr = File::create(&words).map_err(Error::file("create", &words))?;
    command.args(qemu::timing(Mode::Repeatable(settings)));
    command.args(
        "-machine q35 -cpu qemu64 -m 16M -nodefaults -no-user-config -display none".split(' '),
    );
    command.args(["-smp", &PCPUS.to_string()]);
    command.args("-bios fairness.bin -debugcon file:fairness.txt".split(' '));
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    let said = || fs::read_to_string(&words).unwrap_or_default();
    let failed = |status: String| Error::Emulator {
        status,
        words: said(),
        during: "the fairness check".into(),
    };
    let begun = Instant::now();
    let mut emulator =
        Leashed::spawn(&mut command).map_err(Error::file("start", command.get_program()))?;
    let status = follow(&mut emulator, &mut || match begun.elapsed() {
        late if late > LIMIT => Err(failed(format!("nothing within {} s", LIMIT.as_secs()))),
        _ => Ok(()),
    })?;
    if !lockstep::held(&said()) {
        return Err(Error::NotHeld { version: version.into() });
    }
    let text = fs::read_to_string(folder.join("fairness.txt")).unwrap_or_default();
    parse(&text).ok_or_else(|| failed(status.to_string()))
}

/// Two hexadecimal numbers a pCPU, a line each.
fn parse(text: &str) -> Option<Vec<Noted>> {
    let numbers: Option<Vec<u32>> =
        text.lines().map(|line| u32::from_str_radix(line, 16).ok()).collect();
    let numbers = numbers.filter(|numbers| numbers.len() == 2 * PCPUS as usize)?;
    Some(numbers.chunks(2).map(|pair| Noted { turns: pair[0], gap: pair[1] }).collect())
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
        // The other pCPUs' first instruction: xor %ax, %ax.
        assert!(matches!(image[..2], [0x31 | 0x33, 0xc0]));
    }

    #[test]
    fn reads_what_the_firmware_prints() {
        let text = "001e8480\n00012d58\n001bde8f\n00012ec0\n0029326c\n0000d958\n";
        let noted = parse(text).unwrap();
        assert_eq!(noted[0], Noted { turns: 2_000_000, gap: 77_144 });
        assert_eq!(noted.len(), 3);
        assert_eq!(parse(&text[..text.len() - 9]), None);
        assert_eq!(parse("not a number\n"), None);
    }

    #[test]
    fn an_emulator_that_makes_a_pcpu_wait_for_several_slices_is_refused() {
        let noted = |gaps: [u32; 3]| gaps.map(|gap| Noted { turns: 1, gap });
        let judge = |noted: &[Noted]| judge(noted, Repeatable::default(), "7.2");
        // Measured at 100 us: QEMU 10.0.2, then QEMU 7.2.
        assert!(judge(&noted([77_144, 77_504, 55_640])).is_ok());
        let error = judge(&noted([200_088, 200_080, 300_072])).unwrap_err().to_string();
        assert!(
            error.contains("7.2")
                && error.contains("pCPU 0 waited 200.088")
                && error.contains("8.1 or later"),
            "{error}"
        );
        let never = [Noted { turns: 1, gap: 1 }, Noted { turns: 0, gap: 0 }];
        assert!(judge(&never).unwrap_err().to_string().contains("pCPU 1 never ran"));
    }
}
