//! Names for the addresses in a guest image.
//!
//! Owns what pvlab knows of an image's inside: its functions, and where its vCPUs' stacks are. It knows
//! nothing of domains.

use std::borrow::Cow;

use anyhow::{Context, Result};
use goblin::elf::Elf;
use goblin::elf::sym::{STT_FUNC, STT_NOTYPE};

/// By which `xen-guest` tells where its stacks are (`xen_guest::stack::Map`).
const STACKS: &str = "xen_guest_stacks";

/// The functions and stacks of one image.
#[derive(Debug, Default)]
pub struct Symbols {
    /// Start, size (0 = unknown) and name, by start.
    functions: Vec<(u64, u64, String)>,
    stacks: Option<Stacks>,
}

/// Equal stacks one after the other, each above a guard page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stacks {
    first: u64,
    stride: u64,
    guard: u64,
    count: u64,
}

impl Symbols {
    /// Reads the symbol table of an ELF image. An image without one has no names.
    ///
    /// # Errors
    ///
    /// If it is no ELF file, or a damaged one.
    pub fn read(image: &[u8]) -> Result<Symbols> {
        let elf = Elf::parse(image).context("the image is no ELF file pvlab can read")?;
        let name = |index| elf.strtab.get_at(index).unwrap_or_default();
        let mut functions: Vec<_> = elf
            .syms
            .iter()
            .filter(|symbol| matches!(symbol.st_type(), STT_FUNC | STT_NOTYPE))
            .filter(|symbol| symbol.st_value != 0 && !name(symbol.st_name).is_empty())
            .filter(|symbol| executable(&elf, symbol.st_value))
            .map(|symbol| (symbol.st_value, symbol.st_size, name(symbol.st_name).to_owned()))
            .collect();
        functions.sort_unstable();
        let map = elf.syms.iter().find(|symbol| name(symbol.st_name) == STACKS);
        let stacks = map.and_then(|map| Stacks::read(&elf, image, map.st_value));
        Ok(Symbols { functions, stacks })
    }

    /// The function at `address` and how far into it that is: `module::function+0x1f`.
    #[must_use]
    pub fn name(&self, address: u64) -> Option<String> {
        let after = self.functions.partition_point(|(start, ..)| *start <= address);
        let (start, size, name) = self.functions[..after].last()?;
        let offset = address - start;
        // An address just behind a function is where a call that never returns would return to.
        (*size == 0 || offset <= *size)
            .then(|| format!("{:#}+{offset:#x}", rustc_demangle::demangle(name)))
    }

    /// Where the image says its stacks are.
    #[must_use]
    pub fn stacks(&self) -> Option<Stacks> {
        self.stacks
    }

    /// `console` with a name behind each address that its backtraces give.
    #[must_use]
    pub fn explain<'a>(&self, console: &'a str) -> Cow<'a, str> {
        const MARK: &str = "backtrace: 0x";
        if !console.contains(MARK) {
            return Cow::Borrowed(console);
        }
        let lines: Vec<_> = console.lines().map(|line| self.explain_line(line, MARK)).collect();
        Cow::Owned(lines.join("\n"))
    }

    fn explain_line(&self, line: &str, mark: &str) -> String {
        let name = line.split_once(mark).and_then(|(_, rest)| {
            let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next()?;
            self.name(u64::from_str_radix(digits, 16).ok()?)
        });
        let line = line.trim_end();
        name.map_or_else(|| line.to_owned(), |name| format!("{line} {name}"))
    }
}

/// Whether `address` is in a part of the image that holds code.
fn executable(elf: &Elf, address: u64) -> bool {
    elf.program_headers
        .iter()
        .any(|part| part.is_executable() && part.vm_range().contains(&(address as usize)))
}

impl Stacks {
    /// The four words at `address`.
    fn read(elf: &Elf, image: &[u8], address: u64) -> Option<Stacks> {
        let part = elf.program_headers.iter().find(|part| {
            address >= part.p_vaddr && address.saturating_add(32) <= part.p_vaddr + part.p_filesz
        })?;
        let at = usize::try_from(address - part.p_vaddr + part.p_offset).ok()?;
        let bytes = image.get(at..at.checked_add(32)?)?;
        let word =
            |n: usize| u64::from_le_bytes(bytes[8 * n..][..8].try_into().unwrap_or_default());
        let stacks = Stacks { first: word(0), stride: word(1), guard: word(2), count: word(3) };
        (stacks.guard < stacks.stride).then_some(stacks)
    }

    /// Offset of `address` in its stack and guard page.
    fn offset(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.first)?;
        (offset / self.stride < self.count).then_some(offset % self.stride)
    }

    /// Whether `address` is in a guard page.
    #[must_use]
    pub fn is_guard(&self, address: u64) -> bool {
        self.offset(address).is_some_and(|offset| offset < self.guard)
    }

    /// Where the usable part begins of the stack that `address` is in, or above whose guard page it is.
    #[must_use]
    pub fn usable(&self, address: u64) -> Option<u64> {
        self.offset(address).map(|offset| address - offset + self.guard)
    }

    /// The end of the stack or guard page that `address` is in.
    #[must_use]
    pub fn end(&self, address: u64) -> Option<u64> {
        self.offset(address).map(|offset| address - offset + self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Symbols {
        let functions = vec![
            (0x1000, 0x10, "xen_pv_entry".to_owned()),
            (0x1040, 0x20, "_ZN9lab_guest8workload6commit17h0123456789abcdefE".to_owned()),
        ];
        let stacks = Stacks { first: 0x10000, stride: 0x9000, guard: 0x1000, count: 2 };
        Symbols { functions, stacks: Some(stacks) }
    }

    #[test]
    fn an_address_has_the_name_of_the_function_around_it() {
        let symbols = symbols();
        assert_eq!(symbols.name(0x1045).unwrap(), "lab_guest::workload::commit+0x5");
        assert_eq!(symbols.name(0x1060).unwrap(), "lab_guest::workload::commit+0x20");
        assert_eq!(symbols.name(0x100f).unwrap(), "xen_pv_entry+0xf");
        assert_eq!([0xfff, 0x1020, 0x1061].map(|at| symbols.name(at)), [None, None, None]);
    }

    #[test]
    fn a_backtrace_on_a_console_gets_names() {
        let console = "hello\r\n  backtrace: 0x1045 (3 times)\r\n  backtrace: 0x5\n";
        let expected = "hello\n  backtrace: 0x1045 (3 times) lab_guest::workload::commit+0x5\n  backtrace: 0x5";
        assert_eq!(symbols().explain(console), expected);
        assert!(matches!(symbols().explain("no address\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn guard_pages_lie_below_their_stacks() {
        let stacks = symbols().stacks().unwrap();
        assert!(stacks.is_guard(0x10000) && stacks.is_guard(0x10fff) && stacks.is_guard(0x19000));
        assert!(!stacks.is_guard(0x11000) && !stacks.is_guard(0xffff) && !stacks.is_guard(0x22000));
        assert_eq!(stacks.end(0x11008), Some(0x19000));
        assert_eq!(stacks.usable(0x19ff8), Some(0x1a000));
        assert_eq!(stacks.end(0x22000), None);
    }

    #[test]
    fn what_is_no_image_is_an_error_and_an_empty_table_no_name() {
        assert!(Symbols::read(b"text").is_err());
        assert_eq!(Symbols::default().name(1), None);
    }

    #[cfg(not(no_guest_image))]
    #[test]
    fn the_built_in_image_tells_its_functions_and_stacks() {
        let symbols = Symbols::read(&crate::image::load(None).unwrap()).unwrap();
        assert!(symbols.functions.iter().any(|(.., name)| name.contains("xen_pv_entry")));
        let stacks = symbols.stacks().expect("the image says where its stacks are");
        assert_eq!((stacks.guard, stacks.stride, stacks.count), (4096, 9 * 4096, 128));
        assert_eq!(stacks.first % 4096, 0);
    }
}
