//! The guest image inside this program.
//!
//! Owns the bytes that the build script made; it never looks into them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

#[cfg(not(no_guest_image))]
static IMAGE: Option<&[u8]> = Some(include_bytes!(env!("XEN_GUEST_IMAGE")));
// The packaged crate has no guest sources to build one from.
#[cfg(no_guest_image)]
static IMAGE: Option<&[u8]> = None;

/// The image to boot: `file` if one is given, else the one built with this program.
///
/// # Errors
///
/// If `file` cannot be read, or this program was built without an image.
pub fn load(file: Option<&Path>) -> Result<Vec<u8>> {
    match file {
        Some(file) => {
            let bytes = fs::read(file)
                .with_context(|| format!("cannot read the image {}", file.display()))?;
            anyhow::ensure!(
                bytes.starts_with(b"\x7fELF"),
                "{} is not an ELF file; give --image the guest image (pvlab image -o FILE writes one)",
                file.display()
            );
            Ok(bytes)
        }
        None => IMAGE.map(<[u8]>::to_vec).context(
            "this pvlab was built without the guest's sources; give it an image with --image FILE",
        ),
    }
}
