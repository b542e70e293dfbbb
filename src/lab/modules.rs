//! Kernel modules: which files a wanted set needs, and in which order they load.
//!
//! The packages hold no modules.dep (their install script would make it), so dependencies are read
//! where depmod reads them: in the `.modinfo` section of each module.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use goblin::elf::Elf;

use super::Error;
use super::kernel::decompress;

/// A module as it goes into the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// Name in the form the kernel uses, with underscores.
    pub(super) name: String,
    /// Path below the modules folder, ending in `.ko`.
    pub(super) path: String,
    /// Names of the modules it needs.
    pub(super) needs: Vec<String>,
    /// The module, uncompressed.
    pub(super) bytes: Vec<u8>,
}

/// Every module below a folder, by name. Nothing is read until it is asked for.
pub(super) struct Tree {
    folder: PathBuf,
    paths: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Tree {
    /// Looks through `folder` (`/lib/modules/VERSION`).
    pub(super) fn scan(folder: &Path) -> Result<Self, Error> {
        let mut paths = BTreeMap::new();
        let mut folders = vec![folder.to_path_buf()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next).map_err(Error::file("list", &next))? {
                let path = entry.map_err(Error::file("list", &next))?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(name) = module_name(&path) {
                    paths.insert(name, path);
                }
            }
        }
        let list = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let builtin = list.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Tree { folder: folder.into(), paths, builtin })
    }

    /// The modules that `wanted` needs, each after those it needs itself.
    pub(super) fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>, Error> {
        let mut loaded = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.visit(&name.replace('-', "_"), &mut seen, &mut loaded)?;
        }
        Ok(loaded)
    }

    /// Those of `names` that are not part of the kernel itself.
    pub(super) fn separate<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        let is_separate = |name: &&&str| !self.builtin.contains(&name.replace('-', "_"));
        names.iter().filter(is_separate).copied().collect()
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        loaded: &mut Vec<Module>,
    ) -> Result<(), Error> {
        if self.builtin.contains(name) || !seen.insert(name.into()) {
            return Ok(());
        }
        let path = self.paths.get(name).ok_or_else(|| Error::Missing {
            what: format!("kernel module {name}"),
            packages: self.folder.display().to_string(),
        })?;
        let damaged = |what| Error::Damaged { path: path.clone(), what };
        let mut bytes = fs::read(path).map_err(Error::file("read", path))?;
        if path.extension().is_some_and(|extension| extension != "ko") {
            bytes = decompress(&bytes).map_err(damaged)?;
        }
        let needs = needs(&bytes).map_err(damaged)?;
        for need in &needs {
            self.visit(need, seen, loaded)?;
        }
        let below = path.strip_prefix(&self.folder).unwrap_or(path).with_file_name("");
        let stem = path
            .file_name()
            .and_then(|file| file.to_str())
            .and_then(|file| file.split(".ko").next());
        let path = format!(
            "{}/{}.ko",
            below.display().to_string().trim_end_matches('/'),
            stem.unwrap_or(name)
        );
        loaded.push(Module { name: name.into(), path, needs, bytes });
        Ok(())
    }
}

/// `modules.dep` for these modules: a line a module, the module first, then all it needs.
pub(super) fn dependencies(modules: &[Module]) -> String {
    let by_name: BTreeMap<&str, &Module> =
        modules.iter().map(|module| (module.name.as_str(), module)).collect();
    let mut text = String::new();
    for module in modules {
        text += &module.path;
        text.push(':');
        // modprobe loads from the end of the line to its beginning.
        let mut all = Vec::new();
        let mut next: Vec<&str> = module.needs.iter().map(String::as_str).collect();
        while let Some(name) = next.pop() {
            if let Some(need) = by_name.get(name) {
                all.retain(|path| *path != need.path);
                all.push(need.path.clone());
                next.extend(need.needs.iter().map(String::as_str));
            }
        }
        for path in all {
            text.push(' ');
            text += &path;
        }
        text.push('\n');
    }
    text
}

/// `xen-evtchn.ko.xz` is `xen_evtchn`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, packing) = file.split_once(".ko")?;
    matches!(packing, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

/// The `depends=a,b` of a module.
fn needs(bytes: &[u8]) -> Result<Vec<String>, String> {
    let elf = Elf::parse(bytes).map_err(|error| format!("not a kernel module: {error}"))?;
    let section = elf
        .section_headers
        .iter()
        .find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(".modinfo"))
        .and_then(|section| bytes.get(section.file_range()?))
        .ok_or("not a kernel module: no .modinfo section")?;
    let fields =
        section.split(|byte| *byte == 0).filter_map(|field| std::str::from_utf8(field).ok());
    let depends =
        fields.filter_map(|field| field.strip_prefix("depends=")).flat_map(|list| list.split(','));
    Ok(depends.filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    /// An ELF file with nothing but a `.modinfo` section.
    fn module(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let (info_at, names_at) = (64, 64 + modinfo.len());
        let headers_at = names_at + names.len();
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let half = |file: &mut Vec<u8>, values: &[u16]| {
            values.iter().for_each(|value| file.extend(value.to_le_bytes()))
        };
        half(&mut file, &[1, 62, 1, 0]);
        for value in [0, 0, headers_at as u64] {
            file.extend(value.to_le_bytes());
        }
        half(&mut file, &[0, 0, 64, 0, 0, 64, 3, 2]);
        file.extend(modinfo);
        file.extend(names);
        let mut section = |name: u32, kind: u32, at: usize, size: usize| {
            file.extend(name.to_le_bytes());
            file.extend(kind.to_le_bytes());
            for value in [0, 0, at as u64, size as u64, 0, 1, 0] {
                file.extend(value.to_le_bytes());
            }
        };
        section(0, 0, 0, 0);
        section(1, 1, info_at, modinfo.len());
        section(10, 3, names_at, names.len());
        file
    }

    fn tree() -> (tempfile::TempDir, Tree) {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        put("kernel/fs/9p/9p.ko", &module(b"license=GPL\0depends=9pnet,netfs\0name=9p\0"));
        put("kernel/net/9pnet.ko", &module(b"depends=\0"));
        put(
            "kernel/net/9pnet-virtio.ko.zst",
            &compress_to_vec(&module(b"depends=9pnet,virtio\0")[..], CompressionLevel::Fastest),
        );
        put("kernel/fs/netfs.ko", &module(b"depends=9pnet\0"));
        put("kernel/broken.ko", b"text");
        put("modules.builtin", b"kernel/drivers/virtio/virtio.ko\n");
        let tree = Tree::scan(folder.path()).unwrap();
        (folder, tree)
    }

    #[test]
    fn what_is_needed_loads_first_and_once() {
        let (_folder, tree) = tree();
        let modules = tree.closure(&["9p", "9pnet-virtio", "virtio"]).unwrap();
        assert_eq!(tree.separate(&["9p", "virtio"]), ["9p"]);
        let order: Vec<_> = modules.iter().map(|module| module.path.as_str()).collect();
        let expected = [
            "kernel/net/9pnet.ko",
            "kernel/fs/netfs.ko",
            "kernel/fs/9p/9p.ko",
            "kernel/net/9pnet-virtio.ko",
        ];
        assert_eq!(order, expected);
        assert!(modules.iter().all(|module| module.bytes.starts_with(b"\x7fELF")));
        let text = dependencies(&modules);
        assert!(
            text.contains("kernel/fs/9p/9p.ko: kernel/fs/netfs.ko kernel/net/9pnet.ko\n"),
            "{text}"
        );
        assert!(text.contains("kernel/net/9pnet.ko:\n"), "{text}");
    }

    #[test]
    fn a_module_that_is_missing_or_broken_is_named() {
        let (_folder, tree) = tree();
        assert!(
            tree.closure(&["nonesuch"]).unwrap_err().to_string().contains("kernel module nonesuch")
        );
        assert!(
            tree.closure(&["broken"])
                .unwrap_err()
                .to_string()
                .contains("broken.ko: not a kernel module")
        );
    }
}
