//! The guest image as it is embedded in `pvlab`: what its file promises to Xen and to itself.
//! Needs no Xen.

#![cfg(not(no_guest_image))]

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use object::elf::{PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, SHT_NOTE};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolKind};

static IMAGE: &[u8] = include_bytes!(env!("XEN_GUEST_IMAGE"));

fn elf() -> ElfFile64<'static, Endianness> {
    ElfFile64::parse(IMAGE).expect("the image is an ELF file")
}

/// Xen pushes the frame of an event right at the stack pointer: what code keeps below it is lost.
#[test]
fn nothing_is_kept_below_the_stack_pointer() {
    let elf = elf();
    let text = elf.section_by_name(".text").unwrap();
    let code = text.data().unwrap();
    let mut functions = 0;
    let mut found = Vec::new();
    for symbol in elf.symbols().filter(|s| s.kind() == SymbolKind::Text && s.size() > 0) {
        let start = (symbol.address() - text.address()) as usize;
        let bytes = &code[start..start + symbol.size() as usize];
        functions += 1;
        for at in below_stack_pointer(bytes, symbol.address()) {
            found.push(format!("{at:#x} in {}", symbol.name().unwrap_or("?")));
        }
    }
    assert!(functions > 100, "only {functions} functions: the symbols are missing");
    assert!(found.is_empty(), "accesses below the stack pointer:\n{}", found.join("\n"));
}

/// Addresses of instructions in one function that access memory below its lowest stack pointer.
///
/// Offsets count from the stack pointer at entry. The function is read from its first instruction to
/// its last, not along its jumps: compiled code lowers the stack pointer before it branches, so the
/// lowest value seen is the one in force.
fn below_stack_pointer(code: &[u8], address: u64) -> Vec<u64> {
    let mut depth = 0i64;
    let mut deepest = 0i64;
    let mut frame = None;
    let mut accesses = Vec::new();
    for i in Decoder::with_ip(64, code, address, DecoderOptions::NONE) {
        if accesses_memory(&i) && i.memory_index() == Register::None {
            let displacement = i.memory_displacement64() as i64;
            match (i.memory_base(), frame) {
                (Register::RSP, _) if displacement < 0 => accesses.push((i.ip(), i64::MIN)),
                (Register::RBP, Some(frame)) => accesses.push((i.ip(), frame + displacement)),
                _ => {}
            }
        }
        let immediate = matches!(
            i.op1_kind(),
            OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64
        );
        match (i.mnemonic(), i.op0_register()) {
            (Mnemonic::Sub, Register::RSP) if immediate => depth -= i.immediate(1) as i64,
            (Mnemonic::Add, Register::RSP) if immediate => depth += i.immediate(1) as i64,
            (Mnemonic::Mov, Register::RBP) if i.op1_register() == Register::RSP => {
                frame = Some(depth);
            }
            _ if i.is_stack_instruction() && i.flow_control() == FlowControl::Next => {
                depth += i64::from(i.stack_pointer_increment());
            }
            _ => {}
        }
        deepest = deepest.min(depth);
    }
    accesses.into_iter().filter(|(_, offset)| *offset < deepest).map(|(ip, _)| ip).collect()
}

fn accesses_memory(i: &Instruction) -> bool {
    let memory = (0..i.op_count()).any(|operand| i.op_kind(operand) == OpKind::Memory);
    memory && !matches!(i.mnemonic(), Mnemonic::Lea | Mnemonic::Nop)
}

#[test]
fn the_check_for_the_red_zone_sees_one() {
    // push rbp; mov rbp, rsp; mov [rbp-8], rdi; pop rbp; ret
    let leaf = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x89, 0x7d, 0xf8, 0x5d, 0xc3];
    assert_eq!(below_stack_pointer(&leaf, 0x1000), [0x1004]);
    // The same with sub rsp, 16 and add rsp, 16 around the store.
    let framed = [
        0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0x48, 0x89, 0x7d, 0xf8, 0x48, 0x83, 0xc4,
        0x10, 0x5d, 0xc3,
    ];
    assert_eq!(below_stack_pointer(&framed, 0x1000), []);
    // mov [rsp-8], rdi; ret
    assert_eq!(below_stack_pointer(&[0x48, 0x89, 0x7c, 0x24, 0xf8, 0xc3], 0x1000), [0x1000]);
}

#[test]
fn no_segment_is_both_writable_and_executable_and_each_has_pages_of_its_own() {
    let elf = elf();
    let endian = elf.endian();
    let loads: Vec<_> =
        elf.elf_program_headers().iter().filter(|p| p.p_type(endian) == PT_LOAD).collect();
    assert_eq!(loads.len(), 3, "code, constants, data");
    let mut end = 0x10_0000;
    for load in loads {
        let flags = load.p_flags(endian);
        assert_ne!(flags & (PF_W | PF_X), PF_W | PF_X, "writable and executable");
        let start = load.p_vaddr(endian);
        assert_eq!(start % 4096, 0);
        assert!(start >= end, "overlaps its neighbour, or lies below 1 MiB");
        assert_eq!(start, load.p_paddr(endian), "virtual = physical");
        end = start + load.p_memsz(endian);
    }
}

#[test]
fn the_image_is_static_and_starts_where_its_notes_say() {
    let elf = elf();
    let endian = elf.endian();
    for header in elf.elf_program_headers() {
        let kind = header.p_type(endian);
        assert!(![PT_DYNAMIC, PT_INTERP].contains(&kind), "needs a dynamic linker");
    }
    let address = |name: &str| {
        let symbol = elf.symbols().find(|s| s.name() == Ok(name));
        symbol.unwrap_or_else(|| panic!("no symbol {name}")).address()
    };
    let notes = xen_notes(&elf);
    let number = |kind: u32| u64::from_le_bytes(notes[&kind][..8].try_into().unwrap());
    // Numbers: Xen public/elfnote.h.
    assert_eq!(number(1), address("xen_pv_entry"), "XEN_ELFNOTE_ENTRY");
    assert_eq!(number(1), elf.entry());
    assert_eq!(number(2), address("xen_hypercall_page"), "XEN_ELFNOTE_HYPERCALL_PAGE");
    assert_eq!(number(2) % 4096, 0);
    assert_eq!(number(3), 0, "XEN_ELFNOTE_VIRT_BASE");
    let entry = u32::from_le_bytes(notes[&18][..4].try_into().unwrap());
    assert_eq!(u64::from(entry), address("xen_pvh_entry"), "XEN_ELFNOTE_PHYS32_ENTRY");
    assert_eq!(notes[&5], b"xen-3.0\0", "XEN_ELFNOTE_XEN_VERSION");
}

/// The notes named "Xen", by type.
fn xen_notes(elf: &ElfFile64<'static, Endianness>) -> BTreeMap<u32, Vec<u8>> {
    let endian = elf.endian();
    let mut notes = BTreeMap::new();
    let sections = elf.elf_header().sections(endian, IMAGE).unwrap();
    for section in sections.iter().filter(|s| s.sh_type(endian) == SHT_NOTE) {
        let Some(mut all) = section.notes(endian, IMAGE).unwrap() else { continue };
        while let Some(note) = all.next().unwrap() {
            if note.name() == b"Xen" {
                notes.insert(note.n_type(endian).0, note.desc().to_vec());
            }
        }
    }
    notes
}
