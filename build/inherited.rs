//! What a cargo inside cargo must not inherit. For `build.rs`, and for the test that builds the example
//! kernel.

use std::env;

/// Variables of the outer build that must not shape the inner one: flags, wrappers (clippy is one)
/// and settings of profiles and directories.
pub(crate) fn inherited() -> impl Iterator<Item = String> {
    const NAMES: &[&str] = &[
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_ENCODED_RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
    ];
    // CARGO_TARGET_DIR is among the second.
    const PREFIXES: &[&str] =
        &["CARGO_BUILD_", "CARGO_TARGET_", "CARGO_PROFILE_", "CARGO_FEATURE_"];
    env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| {
        NAMES.contains(&name.as_str()) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}
