//! The shipped components are what their sources make.
//!
//! They are committed, so that nobody has to build them, and rebuilt here byte for byte. After a change
//! of the SDK or of a shipped policy, run this test with VASSAL_WRITE_POLICIES=1 set to write them anew.
//! The comparison is for the machine type that they were built on: elsewhere the compiler numbers
//! symbols differently, and the test only builds.

use std::path::{Path, PathBuf};

use vassal::policy_build::Recipe;

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn shipped_policies_rebuild_byte_for_byte() {
    let policies = root().join("guest/policies");
    for (file, folder, no_default_features) in [
        ("vas.wasm", "vas", false),
        ("vas_plain.wasm", "vas", true),
        ("guard.wasm", "guard", false),
        ("comparison.wasm", "comparison", false),
    ] {
        let dir = policies.join(folder);
        let recipe = Recipe { dir, no_default_features, locked: true, quiet: true, ..Recipe::default() };
        let rebuilt = recipe.component().unwrap_or_else(|error| panic!("{error}"));
        let path = policies.join(file);
        if std::env::var_os("VASSAL_WRITE_POLICIES").is_some() {
            std::fs::write(&path, &rebuilt).unwrap();
        }
        let committed = std::fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&rebuilt);
        for path in ["/home/", "/root/", "/work/", "/Users/", ".cargo"] {
            assert!(!text.contains(path), "{file} holds a path of this machine with {path}");
        }
        assert!(rebuilt.len() <= 96 * 1024, "{file} has grown to {} bytes", rebuilt.len());
        if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            assert!(rebuilt == committed, "{file} is not what its sources make: VASSAL_WRITE_POLICIES=1 writes it");
        }
    }
}
