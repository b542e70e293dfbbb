//! Takes the kernels out of their compressed packings.
//!
//! QEMU wants Xen uncompressed, and Xen hands over to an uncompressed Linux seven seconds earlier
//! than to a compressed one, because unpacking in an emulator is slow.

use std::io::{self, Read};

use ruzstd::decoding::StreamingDecoder;

/// The uncompressed kernel inside a Linux bzImage.
///
/// The set-up header says where it is: Linux Documentation/arch/x86/boot.rst, fields `setup_sects`
/// (0x1f1), `header` (0x202), `payload_offset` (0x248) and `payload_length` (0x24c).
///
/// # Errors
///
/// A sentence about what is wrong with the image.
pub(super) fn vmlinux(image: &[u8]) -> Result<Vec<u8>, String> {
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("not a Linux bzImage (no HdrS at 0x202)".into());
    }
    let field = |at: usize| {
        let bytes = image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| u32::from_le_bytes(bytes) as usize).ok_or("cut off in its set-up header")
    };
    // Zero means four, for the oldest loaders.
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let begin = (setup_sectors + 1) * 512 + field(0x248)?;
    let end = begin + field(0x24c)?;
    let payload = image.get(begin..end).ok_or_else(|| {
        format!("cut off: its payload ends at byte {end}, the file at {}", image.len())
    })?;
    let kernel = decompress(payload)?;
    if !kernel.starts_with(b"\x7fELF") {
        return Err("its payload is no ELF file".into());
    }
    Ok(kernel)
}

/// The loaded part of a Linux kernel, as a bzImage or as the ELF file inside one.
///
/// # Errors
///
/// A sentence about what is wrong with the file.
pub(crate) fn uncompressed(file: Vec<u8>) -> Result<Vec<u8>, String> {
    let kernel = if file.starts_with(b"\x7fELF") { file } else { vmlinux(&file)? };
    super::elf::loaded_part(kernel)
}

/// Undoes gzip, xz, zstd or lz4, told apart by their first bytes. What follows the first stream (Linux
/// appends the uncompressed size) is left alone.
///
/// # Errors
///
/// A sentence about what is wrong with the data.
pub(super) fn decompress(data: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let read: io::Result<usize> = match data {
        [0x1f, 0x8b, ..] => flate2::read::GzDecoder::new(data).read_to_end(&mut out),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            liblzma::bufread::XzDecoder::new(data).read_to_end(&mut out)
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            unzstd(data).and_then(|mut decoder| decoder.read_to_end(&mut out))
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => unlz4(&data[4..]).map(|bytes| {
            out = bytes;
            out.len()
        }),
        _ => {
            let magic = data.iter().take(6).map(|byte| format!("{byte:02x}")).collect::<String>();
            return Err(format!(
                "compressed in a way the lab does not know (first bytes {magic}); gzip, xz, zstd and lz4 it does"
            ));
        }
    };
    read.map_err(|error| format!("does not decompress: {error}"))?;
    Ok(out)
}

/// Reads the blocks of lz4's old frame, which Linux' build uses: a length of 4 bytes before each, 8 MiB when
/// unpacked. Behind the last one stands what Linux appends, whose length is no block's.
fn unlz4(mut data: &[u8]) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut out = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((block, rest)) = rest.split_at_checked(length) else { break };
        let unpacked = lz4_flex::block::decompress(block, BLOCK).map_err(io::Error::other)?;
        let last = unpacked.len() < BLOCK;
        out.extend(unpacked);
        if last {
            break;
        }
        data = rest;
    }
    if out.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(out)
}

/// Reads one zstd frame.
pub(super) fn unzstd<R: Read>(data: R) -> io::Result<impl Read> {
    // What Linux's build uses at most: level 22 looks back 128 MiB.
    StreamingDecoder::new_with_max_window_size(data, 128 << 20).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn bz_image(payload: &[u8], setup_sectors: u8) -> Vec<u8> {
        let protected = (usize::from(if setup_sectors == 0 { 4 } else { setup_sectors }) + 1) * 512;
        let mut image = vec![0; protected + 0x40];
        image[0x1f1] = setup_sectors;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&0x40_u32.to_le_bytes());
        image[0x24c..0x250]
            .copy_from_slice(&u32::try_from(payload.len() + 4).unwrap().to_le_bytes());
        image.extend_from_slice(payload);
        // Linux's build appends the uncompressed size.
        image.extend_from_slice(&1234_u32.to_le_bytes());
        image
    }

    fn packings(data: &[u8]) -> [Vec<u8>; 3] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(data).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(data).unwrap();
        [
            gzip.finish().unwrap(),
            xz.finish().unwrap(),
            compress_to_vec(data, CompressionLevel::Fastest),
        ]
    }

    #[test]
    fn finds_the_kernel_in_every_packing() {
        let kernel = [b"\x7fELF".as_slice(), &[42; 5000]].concat();
        for packed in packings(&kernel) {
            for setup_sectors in [0, 1, 39] {
                assert_eq!(vmlinux(&bz_image(&packed, setup_sectors)).unwrap(), kernel);
            }
        }
    }

    #[test]
    fn a_damaged_image_is_an_error_not_a_panic() {
        let [_, xz, _] = packings(&[b"\x7fELF".as_slice(), &[1; 300]].concat());
        let image = bz_image(&xz, 1);
        // The last four bytes are the appended size, which nobody reads but must be there.
        for cut in 0..image.len() {
            assert!(vmlinux(&image[..cut]).is_err(), "cut at {cut}");
        }
        let error = vmlinux(&bz_image(b"plain text", 1)).unwrap_err();
        assert!(error.contains("706c61696e20"), "{error}");
    }

    #[test]
    fn a_payload_that_is_no_kernel_is_refused() {
        let [gzip, ..] = packings(b"hello");
        assert_eq!(vmlinux(&bz_image(&gzip, 1)).unwrap_err(), "its payload is no ELF file");
    }
}
