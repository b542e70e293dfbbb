//! The C header of the library, as `cbindgen` makes it.

use std::path::{Path, PathBuf};

/// The folder of the library.
pub fn library_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("check stands in it")
}

/// Where the header is.
pub fn header_file() -> PathBuf {
    library_folder().join("include/pvlock.h")
}

/// What belongs there.
pub fn header() -> String {
    let folder = library_folder();
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).expect("it is valid");
    let made = cbindgen::Builder::new()
        .with_config(config)
        .with_src(folder.join("src/lib.rs"))
        .generate()
        .expect("the library has a header");
    let mut text = Vec::new();
    made.write(&mut text);
    let text = String::from_utf8(text).expect("a header is text");
    // A heading for Rust alone.
    text.replace(" *\n * # Safety\n *\n", " *\n")
}
