//! Writes initramfs archives: cpio in the "newc" form that Linux unpacks at boot.
//!
//! Reproducible: entries are sorted, owned by root, dated 1970, and numbered in order, so the same
//! files give the same bytes. The format: Linux Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// What is behind a name.
#[derive(Debug, Clone)]
enum Node {
    Directory,
    Symlink(String),
    Bytes { mode: u32, bytes: Vec<u8> },
    File { mode: u32, path: PathBuf },
}

/// An archive in the making. Names are absolute paths in the future root.
#[derive(Debug, Default, Clone)]
pub(crate) struct Archive {
    // Without the leading slash; a parent sorts before what is in it.
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    pub(crate) fn directory(&mut self, name: &str) {
        self.insert(name, Node::Directory);
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) {
        self.insert(name, Node::Symlink(target.into()));
    }

    pub(crate) fn bytes(&mut self, name: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.insert(name, Node::Bytes { mode, bytes: bytes.into() });
    }

    /// A copy of the file at `path`, read when the archive is written.
    pub(crate) fn file(&mut self, name: &str, mode: u32, path: impl Into<PathBuf>) {
        self.insert(name, Node::File { mode, path: path.into() });
    }

    /// Adds `node`, and the folders above it that are not there yet. The last one of a name wins.
    fn insert(&mut self, name: &str, node: Node) {
        let name = name.trim_matches('/');
        for (end, _) in name.match_indices('/') {
            self.nodes.entry(name[..end].into()).or_insert(Node::Directory);
        }
        self.nodes.insert(name.into(), node);
    }

    /// Writes the archive, padded so that another may follow it.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (number, (name, node)) in (1..).zip(&self.nodes) {
            match node {
                Node::Directory => entry(out, number, name, DIRECTORY | 0o755, io::empty(), 0)?,
                Node::Symlink(target) => {
                    entry(
                        out,
                        number,
                        name,
                        SYMLINK | 0o777,
                        target.as_bytes(),
                        target.len() as u64,
                    )?;
                }
                Node::Bytes { mode, bytes } => {
                    entry(out, number, name, REGULAR | mode, bytes.as_slice(), bytes.len() as u64)?;
                }
                Node::File { mode, path } => {
                    let named = |error: io::Error| {
                        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                    };
                    let mut file = File::open(path).map_err(named)?;
                    let size = file.metadata().map_err(named)?.len();
                    entry(out, number, name, REGULAR | mode, &mut file, size).map_err(named)?;
                }
            }
        }
        entry(out, 0, "TRAILER!!!", 0, io::empty(), 0)
    }
}

/// Header of 13 eight-digit hexadecimal fields, name, data; name and data padded to four bytes.
fn entry(
    out: &mut impl Write,
    number: u32,
    name: &str,
    mode: u32,
    data: impl io::Read,
    size: u64,
) -> io::Result<()> {
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "larger than 4 GiB");
    let size = u32::try_from(size).map_err(|_| too_large())?;
    let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
    let name_size = name.len() as u32 + 1;
    // magic, ino, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2), namesize, check
    write!(
        out,
        "070701{number:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}{name}\0",
        0
    )?;
    pad(out, 110 + u64::from(name_size))?;
    let copied = io::copy(&mut data.take(u64::from(size)), out)?;
    if copied != u64::from(size) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    pad(out, copied)
}

fn pad(out: &mut impl Write, written: u64) -> io::Result<()> {
    out.write_all(&[0; 3][..(written.next_multiple_of(4) - written) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(archive: &Archive) -> Vec<u8> {
        let mut out = Vec::new();
        archive.write(&mut out).unwrap();
        out
    }

    /// Splits an archive back into (name, mode, data), checking the fields that must be constant.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            assert_eq!((field(2), field(3), field(5)), (0, 0, 0), "owner and date");
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap().to_owned();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let data = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len(), data);
                return found;
            }
            found.push((name, mode as u32, bytes[data..data + size].to_vec()));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn entries_are_sorted_and_parents_come_first() {
        let mut archive = Archive::default();
        archive.bytes("/usr/bin/tool", 0o755, *b"12345");
        archive.symlink("/bin", "usr/bin");
        archive.directory("/proc");
        let expected = [
            ("bin", 0o120_777, b"usr/bin".as_slice()),
            ("proc", 0o040_755, b""),
            ("usr", 0o040_755, b""),
            ("usr/bin", 0o040_755, b""),
            ("usr/bin/tool", 0o100_755, b"12345"),
        ];
        let expected = expected.map(|(name, mode, data)| (name.to_owned(), mode, data.to_vec()));
        assert_eq!(read(&written(&archive)), expected);
    }

    #[test]
    fn the_same_files_give_the_same_bytes_in_any_order() {
        let names = ["/b", "/a/y", "/a/x", "/c"];
        let (mut one, mut two) = (Archive::default(), Archive::default());
        names
            .iter()
            .for_each(|name| one.bytes(name, 0o644, *name.as_bytes().first_chunk::<2>().unwrap()));
        names
            .iter()
            .rev()
            .for_each(|name| two.bytes(name, 0o644, *name.as_bytes().first_chunk::<2>().unwrap()));
        assert_eq!(written(&one), written(&two));
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let mut archive = Archive::default();
        archive.file("/x", 0o644, "/no/such/file");
        let error = archive.write(&mut io::sink()).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/file: "), "{error}");
    }
}
