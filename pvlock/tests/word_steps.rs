//! The machine code of the steps on the lock word, interleaved instruction by instruction.
//!
//! The models run the portable word; on x86-64 the steps on a part of the word are inline assembly.
//! Here they are compiled as kernels are, and two virtual CPUs run their instructions on one word
//! in every order. What a pair of steps returns and leaves must be what the one after the other, in
//! one order or the other, returns and leaves. An instruction that reads and writes memory without
//! a `lock` is two: another CPU may come between.
//!
//! Not seen here: the store buffer of a CPU, and what the compiler may do with the code around a
//! block.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register,
};
use object::{Object, ObjectSection, ObjectSymbol};

/// The steps, as functions of the word; what they return, in 64 bits.
const STEPS: &[(&str, &str)] = &[
    ("try_acquire", "word.try_acquire().map_or_else(|seen| 1 << 32 | bits(seen), |()| 0)"),
    (
        "try_release_unqueued",
        "word.try_release_unqueued().map_or_else(|seen| 1 << 32 | bits(seen), |()| 0)",
    ),
    ("release", "{ word.release(); 0 }"),
    ("try_release", "word.try_release().map_or_else(|seen| 1 << 32 | u64::from(seen), |()| 0)"),
    ("exchange_pending", "bits(word.exchange_pending())"),
    ("try_take_pending", "word.try_take_pending().into()"),
    ("locked", "word.locked().into()"),
    ("try_take_byte", "word.try_take_byte().map_or(2, u64::from)"),
    ("is_waited_for", "word.is_waited_for().into()"),
    ("exchange_tail", "word.exchange_tail(Tail::new(4, 1)).map_or(0, |tail| tail.bits().into())"),
    ("try_clear_tail", "word.try_clear_tail(Tail::new(2, 1)).into()"),
    ("try_take_alone", "word.try_take_alone(word::probe(0x000d_0000)).into()"),
    ("set_locked", "{ word.set_locked(); 0 }"),
    ("try_steal", "word.try_steal().into()"),
    ("try_take_as_head", "word.try_take_as_head().into()"),
    (
        "try_release_reserved",
        "word.try_release_reserved().map_or_else(|seen| 1 << 32 | u64::from(seen), |()| 0)",
    ),
    ("release_reserved", "{ word.release_reserved(); 0 }"),
    ("clear_pending", "{ word.clear_pending(); 0 }"),
    ("exchange_slow", "word.exchange_slow().into()"),
    ("set_slow", "{ word.set_slow(); 0 }"),
    ("slow_to_locked", "{ word.slow_to_locked(); 0 }"),
];

/// Steps that look before they act, and what may come between: the look is a hint, or the callers
/// exclude each other.
const LOOKS_FIRST: &[(&str, &str)] = &[
    // The fields beside pending are of a moment later; a hand-over in between is one of both.
    ("exchange_pending", "try_take_pending"),
    ("exchange_pending", "try_take_as_head"),
    // Each may see the other. Then the newcomer gives the byte back, and the pending waiter has it
    // next, as after a short critical section.
    ("exchange_pending", "try_take_byte"),
    // Who clears the tail owns the lock, and nobody else has the byte then.
    ("try_take_byte", "try_clear_tail"),
    // Never on one lock: the one is of native mode, the other of PV mode.
    ("exchange_pending", "release_reserved"),
    ("try_take_byte", "try_release_reserved"),
    ("try_take_byte", "release_reserved"),
    // A reservation between the look and the step makes the step fail; the head looks again.
    ("try_take_as_head", "release_reserved"),
    // Only the head clears pending.
    ("try_take_as_head", "clear_pending"),
];

/// Words to begin with: each state of the table in `word.rs`, and a tail of the steps' own.
const BEGINS: [u32; 12] = [
    0x0000_0000,
    0x0000_0001,
    0x0000_0101,
    0x0000_0100,
    0x000d_0101,
    0x000d_0100,
    0x000d_0000,
    0x000d_0001,
    0x000d_0003,
    0x000d_0103,
    0x0010_0001,
    0x0010_0000,
];

/// The lock's sources: those of this package, or of a copy with a break in it.
fn sources() -> PathBuf {
    std::env::var_os("PVLOCK_SOURCES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), PathBuf::from)
}

/// The steps as an object file.
fn object_file() -> Vec<u8> {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("steps-{}", std::process::id()));
    std::fs::create_dir_all(copy.join("word")).expect("a folder");
    let files = ["sync.rs", "word.rs", "word/x86_64.rs", "word/steps.rs", "word/portable.rs"];
    for file in files {
        if let Ok(text) = std::fs::read_to_string(sources().join(file)) {
            std::fs::write(copy.join(file), text).expect("a copy");
        }
    }
    // Snapshots are made by steps alone; one of these takes one.
    let mut word = std::fs::read_to_string(copy.join("word.rs")).expect("the word");
    word.push_str("\npub(crate) const fn probe(bits: u32) -> Snapshot { Snapshot(bits) }\n");
    std::fs::write(copy.join("word.rs"), word).expect("a copy");
    let mut probe = String::from(
        "#![no_std]\n#![allow(warnings)]\nmod sync;\nmod word;\nuse word::*;\n\
         fn bits(seen: Snapshot) -> u64 {\n    u64::from(seen.locked()) | u64::from(seen.pending()) << 8\n\
             | u64::from(seen.tail().map_or(0, Tail::bits)) << 16\n}\n",
    );
    for (name, step) in STEPS {
        probe.push_str(&format!(
            "#[unsafe(no_mangle)]\npub extern \"C\" fn step_{name}(word: &'static u32) -> u64 {{\n    \
             let word: &'static Word = unsafe {{ core::mem::transmute(word) }};\n    {step}\n}}\n"
        ));
    }
    std::fs::write(copy.join("lib.rs"), probe).expect("the probe");
    let object = copy.join("steps.o");
    let build = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
        .args(["--edition=2024", "--crate-type=lib", "-O", "-Cpanic=abort", "-Ccodegen-units=1"])
        .args(["-Crelocation-model=static", "--emit=obj", "-o"])
        .args([&object, &copy.join("lib.rs")])
        .output()
        .expect("rustc can be started");
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    let data = std::fs::read(&object).expect("the object file");
    std::fs::remove_dir_all(&copy).expect("the folder goes");
    data
}

/// The instructions of one step, by address.
type Code = BTreeMap<u64, Instruction>;

fn code_of(file: &object::File<'_>, step: &str) -> Code {
    let symbol = file.symbol_by_name(&format!("step_{step}")).expect("the function");
    let section = file.section_by_index(symbol.section_index().expect("defined")).expect("section");
    let from = symbol.address() as usize;
    let bytes = &section.data().expect("code")[from..from + symbol.size() as usize];
    assert_eq!(section.relocations().count(), 0, "{step} calls nothing");
    Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).iter().map(|i| (i.ip(), i)).collect()
}

/// Where the word is, and where a CPU's stack begins.
const WORD: u64 = 0x1000;
const STACK: u64 = 0x2000;

/// A CPU on its way through a step.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Cpu {
    /// By the number of the full register.
    registers: [u64; 16],
    zero: bool,
    carry: bool,
    sign: bool,
    overflow: bool,
    ip: u64,
    /// What an instruction that is under way has read, and is going to write in a step of its own.
    read: Option<u64>,
    done: bool,
}

impl Cpu {
    fn new() -> Self {
        let mut registers = [0xdead_beef_dead_beef; 16];
        registers[Register::RDI.number()] = WORD;
        registers[Register::RSP.number()] = STACK;
        Self {
            registers,
            zero: false,
            carry: false,
            sign: false,
            overflow: false,
            ip: 0,
            read: None,
            done: false,
        }
    }

    fn register(&self, register: Register) -> u64 {
        let value = self.registers[register.full_register().number()];
        let high = matches!(register, Register::AH | Register::BH | Register::CH | Register::DH);
        if high { value >> 8 & 0xff } else { value & mask(register.size()) }
    }

    fn set_register(&mut self, register: Register, value: u64) {
        let full = &mut self.registers[register.full_register().number()];
        let high = matches!(register, Register::AH | Register::BH | Register::CH | Register::DH);
        *full = match register.size() {
            _ if high => *full & !0xff00 | (value & 0xff) << 8,
            // 32 bits clear the upper half, fewer keep the rest.
            4 => value & mask(4),
            size => *full & !mask(size) | value & mask(size),
        };
    }

    fn set_flags(&mut self, result: u64, size: usize) {
        self.zero = result & mask(size) == 0;
        self.sign = result >> (size * 8 - 1) & 1 != 0;
        (self.carry, self.overflow) = (false, false);
    }

    fn compare(&mut self, left: u64, right: u64, size: usize) {
        self.set_flags(left.wrapping_sub(right), size);
        self.carry = left & mask(size) < right & mask(size);
        let top = 1 << (size * 8 - 1);
        self.overflow = (left ^ right) & (left ^ left.wrapping_sub(right)) & top != 0;
    }

    fn condition(&self, code: ConditionCode) -> bool {
        match code {
            ConditionCode::e => self.zero,
            ConditionCode::ne => !self.zero,
            ConditionCode::b => self.carry,
            ConditionCode::ae => !self.carry,
            ConditionCode::be => self.carry || self.zero,
            ConditionCode::a => !self.carry && !self.zero,
            ConditionCode::s => self.sign,
            ConditionCode::ns => !self.sign,
            other => panic!("the interpreter knows no condition {other:?}"),
        }
    }

    /// The address of the memory operand; it must lie in the word.
    fn address(&self, i: &Instruction) -> u64 {
        let part = |register| if register == Register::None { 0 } else { self.register(register) };
        let index = part(i.memory_index()).wrapping_mul(i.memory_index_scale().into());
        part(i.memory_base()).wrapping_add(index).wrapping_add(i.memory_displacement64())
    }

    fn operand(&self, i: &Instruction, number: u32, word: u32) -> u64 {
        match i.op_kind(number) {
            OpKind::Register => self.register(i.op_register(number)),
            OpKind::Memory => {
                self.read.unwrap_or_else(|| read(word, self.address(i), size(i, number)))
            }
            _ => i.immediate(number),
        }
    }

    fn set_operand(&mut self, i: &Instruction, number: u32, value: u64, word: &mut u32) {
        match i.op_kind(number) {
            OpKind::Register => self.set_register(i.op_register(number), value),
            OpKind::Memory => write(word, self.address(i), size(i, number), value),
            other => panic!("the interpreter writes no {other:?}"),
        }
    }

    /// Does the next instruction, or one half of it.
    fn step(&mut self, code: &Code, word: &mut u32) {
        let i = &code[&self.ip];
        let memory = (0..i.op_count()).find(|&number| i.op_kind(number) == OpKind::Memory);
        if let Some(number) = memory.filter(|_| i.mnemonic() != Mnemonic::Lea) {
            let mut info = InstructionInfoFactory::new();
            let access = info.info(i).op_access(number);
            let both = matches!(access, OpAccess::ReadWrite | OpAccess::ReadCondWrite);
            let atomic = i.has_lock_prefix() || i.mnemonic() == Mnemonic::Xchg;
            if both && !atomic && self.read.is_none() {
                self.read = Some(read(*word, self.address(i), size(i, number)));
                return;
            }
        }
        let bytes = if i.op_count() > 0 { size(i, 0) } else { 0 };
        let mut next = i.next_ip();
        match i.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx => {
                let value = self.operand(i, 1, *word);
                self.set_operand(i, 0, value, word);
            }
            Mnemonic::Lea => {
                let value = self.address(i);
                self.set_operand(i, 0, value, word);
            }
            Mnemonic::Xchg => {
                let (left, right) = (self.operand(i, 0, *word), self.operand(i, 1, *word));
                self.set_operand(i, 0, right, word);
                self.set_operand(i, 1, left, word);
            }
            Mnemonic::Cmpxchg => {
                let was = self.operand(i, 0, *word);
                let accumulator = match bytes {
                    1 => Register::AL,
                    2 => Register::AX,
                    4 => Register::EAX,
                    _ => Register::RAX,
                };
                self.compare(self.register(accumulator), was, bytes);
                if self.zero {
                    let new = self.operand(i, 1, *word);
                    self.set_operand(i, 0, new, word);
                } else {
                    self.set_register(accumulator, was);
                }
            }
            Mnemonic::Cmp => {
                let (left, right) = (self.operand(i, 0, *word), self.operand(i, 1, *word));
                self.compare(left, right, bytes);
            }
            Mnemonic::Test => {
                let result = self.operand(i, 0, *word) & self.operand(i, 1, *word);
                self.set_flags(result, bytes);
            }
            Mnemonic::Sub | Mnemonic::Add | Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => {
                let (left, right) = (self.operand(i, 0, *word), self.operand(i, 1, *word));
                let result = match i.mnemonic() {
                    Mnemonic::Sub => left.wrapping_sub(right),
                    Mnemonic::Add => left.wrapping_add(right),
                    Mnemonic::And => left & right,
                    Mnemonic::Or => left | right,
                    _ => left ^ right,
                };
                match i.mnemonic() {
                    Mnemonic::Sub => self.compare(left, right, bytes),
                    _ => self.set_flags(result, bytes),
                }
                self.set_operand(i, 0, result, word);
            }
            Mnemonic::Shl | Mnemonic::Shr => {
                let (value, by) = (self.operand(i, 0, *word), self.operand(i, 1, *word));
                let result = if i.mnemonic() == Mnemonic::Shl { value << by } else { value >> by };
                self.set_flags(result, bytes);
                self.set_operand(i, 0, result, word);
            }
            Mnemonic::Inc | Mnemonic::Dec => {
                let value = self.operand(i, 0, *word);
                let by = if i.mnemonic() == Mnemonic::Inc { 1 } else { u64::MAX };
                let carry = self.carry;
                self.set_flags(value.wrapping_add(by), bytes);
                self.carry = carry;
                self.set_operand(i, 0, value.wrapping_add(by), word);
            }
            Mnemonic::Not => {
                let value = self.operand(i, 0, *word);
                self.set_operand(i, 0, !value, word);
            }
            _ if i.is_jcc_short_or_near() => {
                if self.condition(i.condition_code()) {
                    next = i.near_branch_target();
                }
            }
            _ if i.flow_control() == FlowControl::UnconditionalBranch => {
                next = i.near_branch_target();
            }
            _ if i.flow_control() == FlowControl::Return => self.done = true,
            // `setCC` and `cmovCC`: the only others that have a condition.
            _ if i.condition_code() != ConditionCode::None && i.op_count() == 1 => {
                let value = self.condition(i.condition_code()).into();
                self.set_operand(i, 0, value, word);
            }
            _ if i.condition_code() != ConditionCode::None => {
                let from = u32::from(self.condition(i.condition_code()));
                let value = self.operand(i, from, *word);
                self.set_operand(i, 0, value, word);
            }
            Mnemonic::Nop => {}
            other => panic!("the interpreter knows no {other:?}"),
        }
        self.read = None;
        self.ip = next;
    }
}

fn mask(bytes: usize) -> u64 {
    u64::MAX >> (64 - bytes * 8)
}

fn size(i: &Instruction, number: u32) -> usize {
    match i.op_kind(number) {
        OpKind::Register => i.op_register(number).size(),
        OpKind::Memory => i.memory_size().size(),
        _ => 8,
    }
}

/// Where in the word an access is: an aligned part of it.
fn place(address: u64, bytes: usize) -> u64 {
    let place = address.wrapping_sub(WORD);
    assert!(place + bytes as u64 <= 4, "{bytes} bytes at {address:#x} are not in the word");
    assert_eq!(place % bytes as u64, 0, "an access that is not aligned");
    place * 8
}

fn read(word: u32, address: u64, bytes: usize) -> u64 {
    u64::from(word) >> place(address, bytes) & mask(bytes)
}

fn write(word: &mut u32, address: u64, bytes: usize, value: u64) {
    let at = place(address, bytes);
    *word = *word & !((mask(bytes) << at) as u32) | ((value & mask(bytes)) << at) as u32;
}

/// The word at the end, and what each of two steps returned.
type Outcome = (u32, u64, u64);

/// Every outcome of two steps at once, from one word.
fn interleave(codes: [&Code; 2], begin: u32) -> BTreeSet<Outcome> {
    let mut outcomes = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut open = vec![(begin, [Cpu::new(), Cpu::new()])];
    while let Some((word, cpus)) = open.pop() {
        if !seen.insert((word, cpus.clone())) {
            continue;
        }
        if cpus.iter().all(|cpu| cpu.done) {
            let [one, other] = cpus.map(|cpu| cpu.register(Register::RAX));
            outcomes.insert((word, one, other));
            continue;
        }
        for who in [0, 1] {
            if !cpus[who].done {
                let (mut word, mut cpus) = (word, cpus.clone());
                cpus[who].step(codes[who], &mut word);
                open.push((word, cpus));
            }
        }
    }
    outcomes
}

/// One step after the other.
fn in_turn(codes: [&Code; 2], first: usize, begin: u32) -> Outcome {
    let (mut word, mut returned) = (begin, [0, 0]);
    for who in [first, 1 - first] {
        let mut cpu = Cpu::new();
        while !cpu.done {
            cpu.step(codes[who], &mut word);
        }
        returned[who] = cpu.register(Register::RAX);
    }
    (word, returned[0], returned[1])
}

#[test]
fn two_steps_at_once_are_one_after_the_other() {
    let data = object_file();
    let file = object::File::parse(&*data).expect("an object file");
    let codes: Vec<Code> = STEPS.iter().map(|(name, _)| code_of(&file, name)).collect();
    let mut excused = BTreeSet::new();
    let mut pairs = 0;
    for (a, one) in codes.iter().enumerate() {
        for (b, other) in codes.iter().enumerate().skip(a) {
            let names = (STEPS[a].0, STEPS[b].0);
            let excuse = LOOKS_FIRST.iter().find(|&&(x, y)| (x, y) == names || (y, x) == names);
            for begin in BEGINS {
                let codes = [one, other];
                let allowed = [0, 1].map(|first| in_turn(codes, first, begin));
                for outcome in interleave(codes, begin) {
                    if !allowed.contains(&outcome) {
                        let Some(excuse) = excuse else {
                            panic!(
                                "{} and {} at once, from {begin:#010x}: {outcome:#x?}; one after the \
                                 other: {allowed:#x?}",
                                names.0, names.1
                            );
                        };
                        excused.insert(*excuse);
                    }
                    pairs += 1;
                }
            }
        }
    }
    println!("{pairs} outcomes, {} pairs of steps that look first", excused.len());
    assert_eq!(excused.len(), LOOKS_FIRST.len(), "an excuse that nobody needs: {excused:?}");
}
