//! Why Xen ended a domain that could not say so itself.
//!
//! Owns the reading of what Xen's tools know of a crashed domain: the hypervisor's own log names the vCPU,
//! `xenctx` has its registers and its stack. On PV a stack overflow ends so: Xen has nowhere to push the
//! fault's frame, and no handler of the guest runs. Nothing here changes the domain.

use anyhow::Result;

use super::{CRASH_REPORT, XenHost};
use crate::symbols::Symbols;

/// Most lines of a backtrace.
const LINES: usize = 32;

/// Words by which a guest of ours has told its end itself; there is nothing to find out then.
pub(super) const OWN_WORDS: [&str; 3] = [CRASH_REPORT, "guest error: ", "guest failure: "];

/// What was found out, for a person.
pub(super) struct Finding {
    /// Why the domain ended, in one line.
    pub(super) cause: String,
    /// The way there, a function a line, innermost first.
    pub(super) backtrace: Vec<String>,
}

/// What this file looks at of a vCPU's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Registers {
    rip: u64,
    rsp: u64,
    rbp: u64,
}

/// Asks Xen why the domain `domid`, which has crashed and is still there, was ended.
pub(super) fn examine<H: XenHost>(host: &mut H, domid: u32, symbols: &Symbols) -> Result<Finding> {
    let logged = crash_in(&host.log()?, domid);
    let seen = host.registers(domid)?.map(|text| registers_in(&text)).unwrap_or_default();
    let overflowed = |registers: &Registers| {
        let next_push = registers.rsp.wrapping_sub(8);
        symbols.stacks().is_some_and(|stacks| stacks.is_guard(next_push))
    };
    // Without the log's word, a vCPU whose stack is used up is the one.
    let vcpu = logged.as_ref().map(|crash| crash.vcpu);
    let vcpu = vcpu.or_else(|| Some(seen.iter().find(|(_, at)| overflowed(at))?.0));
    let Some(vcpu) = vcpu else { return Ok(unknown(&seen, symbols)) };
    let by_xenctx =
        seen.iter().find(|(number, _)| *number == vcpu).map(|(_, registers)| *registers);
    let Some(registers) = by_xenctx.or_else(|| logged.as_ref().map(|crash| crash.registers)) else {
        return Ok(unknown(&seen, symbols));
    };
    let place = place(registers.rip, symbols);
    let cause = if overflowed(&registers) {
        let rsp = registers.rsp;
        format!("vCPU {vcpu} overflowed its stack in {place}: rsp {rsp:#x} is at its guard page")
    } else {
        format!("Xen ended it for what vCPU {vcpu} did in {place}")
    };
    let mut stack = logged.map(|crash| crash.stack).unwrap_or_default();
    if let Some((from, bytes)) = worth_reading(registers.rsp, symbols) {
        let text = host.memory(domid, vcpu, from, bytes)?;
        stack.extend(text.map(|text| memory_in(&text)).unwrap_or_default());
    }
    let mut backtrace = vec![place];
    backtrace.extend(callers(registers.rbp, &stack, symbols));
    Ok(Finding { cause, backtrace })
}

/// Where nobody says which vCPU it was: where they all stand.
fn unknown(seen: &[(u32, Registers)], symbols: &Symbols) -> Finding {
    let cause = match seen {
        [] => "nothing more is known: Xen's log does not name it, and xenctx is not installed or \
               says nothing"
            .to_owned(),
        _ => "Xen's log does not say why; its vCPUs stand here".to_owned(),
    };
    let stand = |(vcpu, at): &(u32, Registers)| format!("vCPU {vcpu}: {}", place(at.rip, symbols));
    Finding { cause, backtrace: seen.iter().map(stand).collect() }
}

fn place(address: u64, symbols: &Symbols) -> String {
    symbols
        .name(address)
        .map_or_else(|| format!("{address:#x}"), |name| format!("{name} ({address:#x})"))
}

/// The used part of the stack that `rsp` is in: address and length.
fn worth_reading(rsp: u64, symbols: &Symbols) -> Option<(u64, u64)> {
    /// Where the image does not say where its stacks are: as much as a page.
    const BLIND: u64 = 4096;
    let Some(stacks) = symbols.stacks() else {
        return Some((rsp & !7, BLIND - rsp % BLIND));
    };
    let from = if stacks.is_guard(rsp) { stacks.usable(rsp)? } else { rsp & !7 };
    Some((from, stacks.end(rsp)? - from))
}

/// The callers by the chain of frame pointers from `rbp`, each once however often it follows itself.
fn callers(mut rbp: u64, stack: &[(u64, u64)], symbols: &Symbols) -> Vec<String> {
    let word = |address: u64| stack.iter().find(|(at, _)| *at == address).map(|(_, word)| *word);
    let mut frames: Vec<(u64, usize)> = Vec::new();
    while let (Some(caller), Some(back)) = (word(rbp), word(rbp.wrapping_add(8))) {
        match frames.last_mut() {
            Some((last, times)) if *last == back => *times += 1,
            _ => frames.push((back, 1)),
        }
        // Callers lie higher; anything else is the end, or a broken chain.
        if caller <= rbp || frames.len() > LINES {
            break;
        }
        rbp = caller;
    }
    let line = |(back, times): (u64, usize)| match times {
        1 => place(back, symbols),
        _ => format!("{}, {times} times", place(back, symbols)),
    };
    frames.into_iter().map(line).collect()
}

/// What Xen's log says of a crash.
#[derive(Debug, PartialEq)]
struct Logged {
    vcpu: u32,
    registers: Registers,
    /// Address and word.
    stack: Vec<(u64, u64)>,
}

/// The last crash of `domid` in `xl dmesg`: a line `Domain 1 (vcpu#2) crashed on cpu#1:`, registers, and
/// the first words of the stack.
fn crash_in(log: &str, domid: u32) -> Option<Logged> {
    let header = format!("Domain {domid} (vcpu#");
    let mut lines = log.lines().skip_while(|line| !line.contains(&header)).peekable();
    let mut last = None;
    while let Some(line) = lines.next() {
        let Some((_, rest)) = line.split_once(&header) else { continue };
        let Some(vcpu) = rest.split(')').next().and_then(|number| number.parse().ok()) else {
            continue;
        };
        let mut crash = Logged { vcpu, registers: Registers::default(), stack: Vec::new() };
        let mut next_word = None;
        while let Some(line) = lines.next_if(|line| !line.contains(" crashed on cpu#")) {
            if let Some(rsp) = number_after(line, "Guest stack trace from rsp=") {
                next_word = Some(rsp);
            } else if let Some(at) = next_word {
                let words = words_in(line.trim_start_matches("(XEN)"));
                if words.is_empty() {
                    break;
                }
                crash.stack.extend((at..).step_by(8).zip(words.iter().copied()));
                next_word = Some(at + 8 * words.len() as u64);
            } else {
                look_for_registers(line, &mut crash.registers);
            }
        }
        last = Some(crash);
    }
    last
}

/// The registers of each vCPU in what `xenctx --all-vcpus` prints.
fn registers_in(text: &str) -> Vec<(u32, Registers)> {
    let mut all = Vec::new();
    for line in text.lines() {
        let vcpu = line.strip_prefix("vcpu").and_then(|rest| rest.strip_suffix(':'));
        if let Some(vcpu) = vcpu.and_then(|number| number.parse().ok()) {
            all.push((vcpu, Registers::default()));
        } else if let Some((_, registers)) = all.last_mut() {
            look_for_registers(line, registers);
        }
    }
    all
}

/// The words in what `xenctx --memory --tag-stack-dump` prints, with their addresses.
fn memory_in(text: &str) -> Vec<(u64, u64)> {
    let mut memory = Vec::new();
    for line in text.lines() {
        let Some((address, words)) = line.split_once(": ") else { continue };
        let Ok(address) = u64::from_str_radix(address.trim(), 16) else { continue };
        memory.extend((address..).step_by(8).zip(words_in(words)));
    }
    memory
}

/// A line of words of 16 hexadecimal digits; empty if it is anything else.
fn words_in(line: &str) -> Vec<u64> {
    let word = |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok())?;
    line.split_whitespace().map(word).collect::<Option<_>>().unwrap_or_default()
}

fn look_for_registers(line: &str, registers: &mut Registers) {
    // Xen writes `RIP:    e033:[<0000000000102fb8>]`.
    let rip = line.contains("RIP:").then(|| number_after(line, "[<")).flatten();
    let fields = [
        (rip.or_else(|| number_after(line, "rip: ")), &mut registers.rip),
        (number_after(line, "rsp: "), &mut registers.rsp),
        (number_after(line, "rbp: "), &mut registers.rbp),
    ];
    for (found, register) in fields {
        if let Some(found) = found {
            *register = found;
        }
    }
}

fn number_after(line: &str, mark: &str) -> Option<u64> {
    let (_, rest) = line.split_once(mark)?;
    let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Xen 4.17.7 on a PV domain that overflowed its stack, shortened.
    const LOG: &str = "\
(XEN) domain_crash_sync called from entry.S: fault at ffff82d0403602d0 x86_64/entry.S#domain_crash_page_fault_6x8+0/0x4
(XEN) Domain 1 (vcpu#2) crashed on cpu#1:
(XEN) ----[ Xen-4.17.7  x86_64  debug=n  Not tainted ]----
(XEN) CPU:    1
(XEN) RIP:    e033:[<0000000000102fb8>]
(XEN) RFLAGS: 0000000000010203   EM: 1   CONTEXT: pv guest (d1v2)
(XEN) rax: 00000000005b6000   rbx: 0000000000160080   rcx: 0000000000000001
(XEN) rbp: 00000000005b6010   rsp: 00000000005b6000   r8:  0000000000000000
(XEN) ds: 0000   es: 0000   fs: 0000   gs: 0000   ss: e02b   cs: e033
(XEN) Guest stack trace from rsp=00000000005b6000:
(XEN)    00000000000000de 00000000000000de 00000000005b6020 0000000000102fbd
(XEN)    0000000000000000 0000000000110d06
(XEN) Domain 11 (vcpu#0) crashed on cpu#2:
(XEN) RIP:    e033:[<0000000000000001>]
";

    /// Of the same domain, `xenctx -C`.
    const XENCTX: &str = "\
vcpu0:
rip: 00000000001013aa
flags: 00000246 i z p
rsp: 00000000005abad8
rax: 0000000000000000\trcx: 00000000001013aa\trdx: 0000000000000000
rbp: 00000000005abb40\t r8: 0000000000000006\t r9: 0000000000000002
Code (instr addr 001013aa)
cc cc cc <41> 5b

vcpu2:
rip: 0000000000102fb8
rsp: 00000000005b6000
rbp: 00000000005b6010\t r8: 0000000000000000\t r9: 0000000000000000
";

    #[test]
    fn xens_log_names_the_vcpu_its_registers_and_its_first_words() {
        let crash = crash_in(LOG, 1).unwrap();
        let registers = Registers { rip: 0x102fb8, rsp: 0x5b6000, rbp: 0x5b6010 };
        assert_eq!((crash.vcpu, crash.registers), (2, registers));
        assert_eq!(crash.stack.len(), 6);
        assert_eq!(crash.stack[3], (0x5b6018, 0x102fbd));
        let frames = callers(0x5b6010, &crash.stack, &Symbols::default());
        assert_eq!(frames, ["0x102fbd", "0x110d06"]);
        assert_eq!(crash_in(LOG, 11).unwrap().vcpu, 0);
        assert_eq!(crash_in(LOG, 2), None);
    }

    #[test]
    fn xenctx_gives_each_vcpus_registers() {
        let vcpu0 = Registers { rip: 0x1013aa, rsp: 0x5abad8, rbp: 0x5abb40 };
        let vcpu2 = Registers { rip: 0x102fb8, rsp: 0x5b6000, rbp: 0x5b6010 };
        assert_eq!(registers_in(XENCTX), [(0, vcpu0), (2, vcpu2)]);
    }

    #[test]
    fn xenctx_gives_words_with_their_addresses() {
        let text = "Memory (address 00000000005b7000):\n\
                    00000000005b7000: 0000000000000000 00000000005b70d0\n\
                    00000000005b7010: 000000000011e0fd\n\n";
        let expected = [(0x5b7000, 0), (0x5b7008, 0x5b70d0), (0x5b7010, 0x11e0fd)];
        assert_eq!(memory_in(text), expected);
    }

    #[test]
    fn a_recursion_takes_one_line_and_a_broken_chain_ends() {
        let frame = |at: u64, back| [(at, at + 0x10), (at + 8, back)];
        let mut stack: Vec<_> = (0..5).flat_map(|n| frame(0x1000 + 0x10 * n, 0xaaaa)).collect();
        stack.extend([(0x1050, 0x1000), (0x1058, 0xbbbb)]);
        let frames = callers(0x1000, &stack, &Symbols::default());
        assert_eq!(frames, ["0xaaaa, 5 times", "0xbbbb"]);
        assert_eq!(callers(u64::MAX, &stack, &Symbols::default()), [""; 0]);
    }
}
