//! The binaries built ahead: they belong to the sources, and take what the host passes.
//!
//! These tests need no driver. `kernels/cuda/build.py --check` builds again and compares bytes; here only hashes are
//! compared, so that a changed source without new binaries fails in every test run.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::cuda::binaries::MODULES;
use crate::cuda::parameters::*;

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/cuda"))
}

#[test]
fn binaries_belong_to_their_sources() {
    let manifest = std::fs::read_to_string(folder().join("prebuilt/manifest.txt")).expect("the manifest");
    let listed: Vec<(&str, &str)> = manifest.lines().filter_map(|line| line.split_once("  ")).collect();
    for (hash, name) in &listed {
        let bytes = std::fs::read(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, *hash, "{name} has changed: run kernels/cuda/build.py");
    }
    for entry in std::fs::read_dir(folder()).expect("the sources") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        if name.ends_with(".cu") || name.ends_with(".cuh") {
            assert!(listed.iter().any(|(_, listed)| *listed == name), "{name} is new: run kernels/cuda/build.py");
        }
    }
    for module in MODULES {
        for ending in ["ptx", "cubin"] {
            let name = format!("prebuilt/{}.{ending}", module.name);
            assert!(listed.iter().any(|(_, listed)| *listed == name), "{name} is not in the manifest");
        }
    }
}

/// The size that the PTX declares of a kernel's one parameter.
fn declared(kernel: &str) -> usize {
    let found = MODULES.iter().find_map(|module| {
        let (_, after) = module.ptx.split_once(&format!(".visible .entry {kernel}("))?;
        let (_, after) = after.split_once(".b8 ")?;
        let (_, after) = after.split_once('[')?;
        after.split_once(']')?.0.parse().ok()
    });
    found.unwrap_or_else(|| panic!("{kernel} has no parameter in any module"))
}

#[test]
fn parameters_are_as_large_as_the_kernels_say() {
    let sizes: [(&[&str], usize); 16] = [
        (&["embed"], size_of::<Embed>()),
        (&["prepare"], size_of::<Prepare>()),
        (&["linear_1", "linear_2", "linear_3", "linear_4", "linear_8"], size_of::<Linear>()),
        (&["attend_32", "attend_64", "attend_96", "attend_128", "merge_splits"], size_of::<Attend>()),
        (&["rope_store"], size_of::<RopeStore>()),
        (&["copy_rows"], size_of::<CopyRows>()),
        (&["commit"], size_of::<Commit>()),
        (&["accumulate"], size_of::<Accumulate>()),
        (&["values"], size_of::<Values>()),
        (&["project"], size_of::<Project>()),
        (&["score"], size_of::<Score>()),
        (&["read_features"], size_of::<ReadFeatures>()),
        (&["top_k_chunks", "top_k_merge"], size_of::<TopK>()),
        (&["adjust"], size_of::<Sample>()),
        (&["weigh"], size_of::<Sample>()),
        (&["choose"], size_of::<Sample>()),
    ];
    let mut checked = 0;
    for (kernels, size) in sizes {
        for kernel in kernels {
            assert_eq!(declared(kernel), size, "{kernel}");
            checked += 1;
        }
    }
    assert_eq!(checked, MODULES.iter().map(|module| module.kernels.len()).sum::<usize>(), "every kernel");
}
