//! The spin budget inside a Linux kernel: found by disassembly, checked, written.
//!
//! The budget is a constant of the kernel's source, so it can only be changed in the compiled code. Owns
//! the recognition of the two loops that have it (a waiter behind the head, and the head), and the
//! measurement of what one of their turns takes. What is not recognised is refused: a number is never
//! written to a place that only looks right.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use goblin::elf::Elf;
use goblin::elf::program_header::{PF_X, PT_LOAD, ProgramHeader};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use serde::{Deserialize, Serialize};

use super::Budget;

/// Turns of a waiter in Linux as it ships.
pub const STOCK: u32 = 1 << 15;

/// Bytes of code that are read from a loop's counter on; both loops of Debian's kernels end within 40.
const WINDOW: usize = 256;

/// The two loops are parts of one function, which is not longer.
const FUNCTION: u64 = 4096;

/// The longest turn that is taken for one of a spin loop, in instructions.
const LONGEST_TURN: u32 = 16;

/// A place in a kernel's file where the budget stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Offset of the 4 bytes in the file.
    pub offset: u64,
    /// Its address in the kernel, for messages.
    pub address: u64,
    /// Instructions of one turn of the loop, PAUSE among them.
    pub turn: u32,
}

/// Finds the places in an uncompressed kernel.
///
/// Each is `mov r32, 2^15` before a loop that pauses and counts this register down to zero by one, and the two
/// stand within one function's length of each other.
///
/// # Errors
///
/// If there are not exactly two of them: another kernel, or one that this check does not know.
pub fn find(kernel: &[u8]) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for segment in code_segments(kernel)? {
        let code = kernel.get(segment.file_range()).context("the Linux kernel is cut off")?;
        for at in memmem(code, &STOCK.to_le_bytes()) {
            // B8+r: mov r32, imm32.
            let Some(begin) = at.checked_sub(1).filter(|&begin| code[begin] & 0xf8 == 0xb8) else {
                continue;
            };
            let address = segment.p_vaddr + begin as u64;
            let window = &code[begin..code.len().min(begin + WINDOW)];
            if let Some(turn) = turn_of(window, address) {
                places.push(Place { offset: segment.p_offset + at as u64, address, turn });
            }
        }
    }
    match &places[..] {
        [one, other] if one.address.abs_diff(other.address) < FUNCTION => Ok(places),
        found => bail!(
            "the spin budget of this Linux kernel is not where it is known to be ({} places look like it, 2 are \
             needed): leave out linux-Nus and linux-Nturns, or use another kernel",
            found.len()
        ),
    }
}

/// The segments of an uncompressed kernel that are code.
///
/// # Errors
///
/// If it is no ELF file.
pub(crate) fn code_segments(kernel: &[u8]) -> Result<Vec<ProgramHeader>> {
    let elf = Elf::parse(kernel).context("the Linux kernel is no ELF file")?;
    let mut segments = elf.program_headers;
    segments.retain(|segment| segment.p_type == PT_LOAD && segment.p_flags & PF_X != 0);
    Ok(segments)
}

fn memmem<'a>(code: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    code.windows(wanted.len())
        .enumerate()
        .filter(move |(_, bytes)| *bytes == wanted)
        .map(|(at, _)| at)
}

/// The length in instructions of the loop that counts down what the first instruction of `code` loads, if it is
/// a spin loop.
fn turn_of(code: &[u8], address: u64) -> Option<u32> {
    let all: Vec<Instruction> =
        Decoder::with_ip(64, code, address, DecoderOptions::NONE).into_iter().collect();
    let first = all.first()?;
    if first.code() != Code::Mov_r32_imm32 || first.immediate32() != STOCK {
        return None;
    }
    let counter = first.op0_register();
    // `pause; sub counter, 1; je` (or `dec`), as neighbours.
    let pause = all.windows(3).position(|three| {
        three[0].mnemonic() == Mnemonic::Pause
            && counts_down(&three[1], counter)
            && matches!(three[2].mnemonic(), Mnemonic::Je | Mnemonic::Jne)
    })?;
    // Round the loop, the shortest way back to the PAUSE.
    let after = match all[pause + 2].mnemonic() {
        Mnemonic::Je => all[pause + 3..].first()?.ip(),
        _ => all[pause + 2].near_branch_target(),
    };
    let back = way(&all, after, all[pause].ip())?;
    Some(back + 3)
}

fn counts_down(instruction: &Instruction, counter: Register) -> bool {
    if instruction.op0_kind() != OpKind::Register || instruction.op0_register() != counter {
        return false;
    }
    match instruction.mnemonic() {
        Mnemonic::Dec => true,
        Mnemonic::Sub => instruction.immediate(1) == 1,
        _ => false,
    }
}

/// How many instructions lie on the shortest way from one address to another, breadth first.
fn way(all: &[Instruction], from: u64, to: u64) -> Option<u32> {
    let at = |ip: u64| all.iter().find(|instruction| instruction.ip() == ip);
    let mut reached = vec![from];
    for steps in 0..=LONGEST_TURN {
        if reached.contains(&to) {
            return Some(steps);
        }
        let mut next = Vec::new();
        for instruction in reached.iter().filter_map(|&ip| at(ip)) {
            if instruction.is_jcc_short_or_near() {
                next.extend([instruction.near_branch_target(), instruction.next_ip()]);
            } else if instruction.is_jmp_short_or_near() {
                next.push(instruction.near_branch_target());
            } else {
                next.push(instruction.next_ip());
            }
        }
        reached = next;
    }
    None
}

/// Writes `budget` into the kernel's file (for `None` the one it shipped with) and answers the turns written, in
/// the order of `places`. `pause` says whether its loops have their PAUSE.
///
/// # Errors
///
/// If there are no places, if what stands there is no number that this function wrote, or at an I/O error.
pub fn write(
    kernel: &Path,
    places: &[Place],
    budget: Option<Budget>,
    pause: bool,
) -> Result<Vec<u32>> {
    if places.is_empty() {
        match budget {
            None => return Ok(Vec::new()),
            Some(_) => bail!("the spin budget of this Linux kernel was not recognised"),
        }
    }
    let cannot = || format!("cannot set the spin budget in {}", kernel.display());
    let mut file = File::options().read(true).write(true).open(kernel).with_context(cannot)?;
    let mut written = Vec::new();
    for place in places {
        let turns = match budget {
            None => STOCK,
            Some(Budget::Turns(turns)) => turns,
            Some(Budget::Time { us }) => turns_in(place.turn, us, pause)?,
        };
        // The instruction in front of the number is still the one that was recognised.
        let mut opcode = [0];
        file.seek(SeekFrom::Start(place.offset - 1)).with_context(cannot)?;
        file.read_exact(&mut opcode).with_context(cannot)?;
        if opcode[0] & 0xf8 != 0xb8 {
            bail!(
                "{}: {:#x} is not the place that was recognised",
                kernel.display(),
                place.address
            );
        }
        file.write_all(&turns.to_le_bytes()).with_context(cannot)?;
        written.push(turns);
    }
    Ok(written)
}

/// Turns of a spin loop of `instructions` (an even number from 6, one of them a PAUSE, or without
/// `pause` a NOP) that take `us` microseconds on this pCPU while nobody disturbs it.
///
/// # Errors
///
/// If this host is too busy to measure it.
pub fn turns_in(instructions: u32, us: u32, pause: bool) -> Result<u32> {
    const TURNS: u32 = 1000;
    // A PAUSE may cost a hundred times the rest, so the loop has exactly one; the rest are as many looks at a word.
    let time = || {
        let begin = Instant::now();
        match pause {
            true => spin(TURNS, instructions),
            false => spin_without(TURNS, instructions),
        }
        begin.elapsed().as_nanos() as f64 / f64::from(TURNS)
    };
    let mut times: Vec<f64> = (0..200).map(|_| time()).collect();
    times.sort_by(f64::total_cmp);
    // The fastest have seen no disturbance, if they agree.
    let (fastest, third) = (times[0], times[2]);
    if third > fastest * 1.05 {
        bail!(
            "the spin budget cannot be measured: a turn took {fastest:.1} ns, and in no two more of {} tries less \
             than {third:.1} ns; try again on a quiet host, or give it in turns",
            times.len()
        );
    }
    Ok((f64::from(us) * 1000.0 / fastest).round().clamp(1.0, f64::from(u32::MAX)) as u32)
}

/// A loop of turns with this instruction in each, as a function.
macro_rules! spin_loop {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        fn $name(turns: u32, instructions: u32) {
            // SAFETY: it counts two registers down to zero; it reads and writes no memory and no
            // stack.
            unsafe {
                core::arch::asm!(
                    "2:",
                    $instruction,
                    "mov {left:e}, {inner:e}",
                    "3:",
                    "sub {left:e}, 1",
                    "jnz 3b",
                    "dec {turns:e}",
                    "jnz 2b",
                    turns = inout(reg) turns.max(1) => _,
                    inner = in(reg) (instructions.saturating_sub(4) / 2).max(1),
                    left = out(reg) _,
                    options(nomem, nostack),
                );
            }
        }
    };
}

spin_loop! {
    /// `turns` turns of `instructions` each (an even number from 6), one of them a PAUSE.
    spin, "pause"
}
spin_loop! {
    /// The same, with a NOP for the PAUSE.
    spin_without, "nop"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two spin loops as compilers write them, with `turns` as their budget: 6 and 8 instructions a turn.
    fn code(turns: u32) -> Vec<u8> {
        let head: &[u8] = &[
            0x41, 0xc6, 0x45, 0x01, 0x01, // mov byte [r13+1], 1
            0xeb, 0x0b, // jmp to the look
            0xf3, 0x90, // pause
            0x83, 0xea, 0x01, // sub edx, 1
            0x0f, 0x84, 0x10, 0x02, 0x00, 0x00, // je out
            0x41, 0x0f, 0xb6, 0x45, 0x00, // movzx eax, byte [r13]
            0x84, 0xc0, // test al, al
            0x75, 0xec, // jne pause
        ];
        let behind: &[u8] = &[
            0xeb, 0x13, // jmp to the look
            0x84, 0xc0, 0x75, 0x08, // test al, al; jne pause
            0x0f, 0xb6, 0x55, 0x14, 0x84, 0xd2, 0x75, 0x4b, // movzx; test; jne out
            0xf3, 0x90, // pause
            0x83, 0xe8, 0x01, // sub eax, 1
            0x74, 0x44, // je out
            0x41, 0x8b, 0x56, 0x08, // mov edx, [r14+8]
            0x85, 0xd2, // test edx, edx
            0x74, 0xe5, // je to the test of al
        ];
        let mut code = vec![0xba];
        code.extend(turns.to_le_bytes());
        code.extend(head);
        code.extend([0x90; 64]);
        code.push(0xb8);
        code.extend(turns.to_le_bytes());
        code.extend(behind);
        code.extend([0x90; 64]);
        code
    }

    /// An ELF file with one executable segment.
    fn kernel(code: &[u8]) -> Vec<u8> {
        let mut elf = vec![0; 0x1000];
        elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &2u16.to_le_bytes()); // ET_EXEC
        put(18, &62u16.to_le_bytes()); // x86-64
        put(20, &1u32.to_le_bytes());
        put(32, &64u64.to_le_bytes()); // e_phoff
        put(52, &64u16.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &1u16.to_le_bytes());
        put(64, &PT_LOAD.to_le_bytes());
        put(68, &(PF_X | 4).to_le_bytes());
        put(72, &0x1000u64.to_le_bytes()); // p_offset
        put(80, &0xffff_ffff_8100_0000u64.to_le_bytes());
        put(96, &(code.len() as u64).to_le_bytes());
        put(104, &(code.len() as u64).to_le_bytes());
        elf.extend(code);
        elf
    }

    #[test]
    fn both_loops_are_found_with_the_length_of_a_turn() {
        let places = find(&kernel(&code(STOCK))).unwrap();
        assert_eq!(places.iter().map(|place| place.turn).collect::<Vec<_>>(), [6, 8]);
        assert_eq!(places[0].offset, 0x1001);
    }

    #[test]
    fn a_foreign_budget_is_refused() {
        // Another kernel's constant, one loop only, and a third that looks the same.
        for bad in [
            code(1 << 14),
            code(STOCK)[..60].to_vec(),
            [code(STOCK), code(STOCK)].concat(),
            vec![0x90; 500],
        ] {
            let error = find(&kernel(&bad)).unwrap_err().to_string();
            assert!(error.contains("2 are needed"), "{error}");
        }
    }

    #[test]
    fn a_budget_is_written_and_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vmlinux");
        let whole = kernel(&code(STOCK));
        std::fs::write(&file, &whole).unwrap();
        let places = find(&whole).unwrap();
        let written = write(&file, &places, Some(Budget::Turns(777)), true).unwrap();
        assert_eq!(written, [777, 777]);
        assert_eq!(std::fs::read(&file).unwrap()[0x1001..0x1005], 777u32.to_le_bytes());
        write(&file, &places, None, true).unwrap();
        assert!(std::fs::read(&file).unwrap() == whole);
    }

    #[test]
    fn a_place_that_has_changed_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vmlinux");
        let places = find(&kernel(&code(STOCK))).unwrap();
        std::fs::write(&file, [0; 0x2000]).unwrap();
        assert!(
            write(&file, &places, None, true).unwrap_err().to_string().contains("not the place")
        );
        assert!(std::fs::read(&file).unwrap() == [0; 0x2000]);
    }

    #[test]
    fn without_places_only_the_stock_budget_can_be_had() {
        assert!(write(Path::new("/nowhere"), &[], None, true).unwrap().is_empty());
        assert!(write(Path::new("/nowhere"), &[], Some(Budget::Turns(5)), true).is_err());
    }
}
