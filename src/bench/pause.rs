//! A guest's code without PAUSE, for an emulator in which one ends a pCPU's turn.
//!
//! Owns which PAUSEs are taken out: of a guest image all of them, of a Linux kernel those around
//! its spin loops. Each becomes a NOP of the same length, so that no turn of a loop has an
//! instruction more or less. Code is disassembled; bytes that only look like a PAUSE stay.

use std::ops::Range;

use anyhow::{Context, Result, bail};
use goblin::elf::Elf;
use goblin::elf::section_header::SHF_EXECINSTR;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use crate::linux;

const PAUSE: [u8; 2] = [0xf3, 0x90];
/// `xchg ax, ax`
const NOP: [u8; 2] = [0x66, 0x90];

/// How far from a recognised spin loop of Linux its lock's code reaches at most.
const AROUND: u64 = 4096;

/// Takes them out of a guest image.
///
/// # Errors
///
/// If the image does not say which of its sections are code, or has no PAUSE in them.
pub(super) fn out_of_image(image: &mut [u8]) -> Result<()> {
    let elf = Elf::parse(image).context("the guest image is no ELF file")?;
    let code: Vec<_> = elf
        .section_headers
        .iter()
        .filter(|section| section.sh_flags & u64::from(SHF_EXECINSTR) != 0)
        .filter_map(|section| section.file_range())
        .collect();
    if code.into_iter().map(|range| replace(image, range)).sum::<usize>() == 0 {
        bail!("the guest image has no PAUSE in a section of code; leave --no-pause or --image out");
    }
    Ok(())
}

/// Takes them out of the spin loops of Linux.
///
/// # Errors
///
/// If these were not recognised.
pub(super) fn out_of_linux(files: &mut linux::Files) -> Result<()> {
    let places = files.places.clone().map_err(anyhow::Error::msg)?;
    let segment = linux::budget::code_segments(&files.kernel)?
        .iter()
        .map(|segment| segment.file_range())
        .find(|file| places.iter().all(|place| file.contains(&(place.offset as usize))))
        .context("the spin loops of this Linux kernel are not in one segment")?;
    let (first, last) = places.iter().fold((u64::MAX, 0), |(first, last), place| {
        (first.min(place.offset), last.max(place.offset))
    });
    // It may begin inside an instruction; a decoder is in step again long before it comes to the
    // loops.
    let begin = (first.saturating_sub(AROUND) as usize).max(segment.start);
    let end = ((last + AROUND) as usize).min(segment.end);
    if replace(&mut files.kernel, begin..end) < places.len() {
        bail!("the spin loops of this Linux kernel were recognised, and have no PAUSE");
    }
    files.pause = false;
    Ok(())
}

/// Replaces the PAUSEs among the instructions in `range`, and answers how many there were.
fn replace(bytes: &mut [u8], range: Range<usize>) -> usize {
    let code = &bytes[range.clone()];
    let found: Vec<usize> = Decoder::with_ip(64, code, range.start as u64, DecoderOptions::NONE)
        .into_iter()
        .filter(|instruction| instruction.mnemonic() == Mnemonic::Pause)
        .map(|instruction| instruction.next_ip() as usize - PAUSE.len())
        .filter(|&at| bytes[at..].starts_with(&PAUSE))
        .collect();
    for &at in &found {
        bytes[at..at + NOP.len()].copy_from_slice(&NOP);
    }
    found.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_becomes_a_nop_and_what_only_looks_like_one_stays() {
        // pause; mov eax, 0x000090f3; pause
        let mut code = [0xf3, 0x90, 0xb8, 0xf3, 0x90, 0x00, 0x00, 0xf3, 0x90];
        assert_eq!(replace(&mut code, 0..9), 2);
        assert_eq!(code, [0x66, 0x90, 0xb8, 0xf3, 0x90, 0x00, 0x00, 0x66, 0x90]);
    }

    #[test]
    fn the_guest_image_has_some_and_then_none() {
        let Ok(mut image) = crate::image::load(None) else { return };
        out_of_image(&mut image).unwrap();
        let error = out_of_image(&mut image).unwrap_err().to_string();
        assert!(error.contains("has no PAUSE"), "{error}");
    }
}
