//! From a file to a policy that may run: what is refused before it is compiled, the compiler's child, the cache.
//!
//! [`caps`] has every cap at its bound and one beyond, [`proposals`] a component for each WebAssembly proposal
//! that is off, [`compiler`] the child's limits and children that lie, [`cache`] what may happen to files, [`check`]
//! what a user is told. Components are WebAssembly text, or bytes where the text's own parser would give up first.

mod cache;
mod caps;
mod check;
mod compiler;
mod proposals;

use std::path::{Path, PathBuf};

use vassal::sandbox::{
    ChildCompiler, Compilation, CompiledPolicy, Footprint, Guest, Limits, LoadError, Needs, Sandbox, inspect,
};

use crate::attacks::Forged;

/// What a component in text is made of, under the default limits.
fn inspect_text(text: &str) -> Result<Footprint, LoadError> {
    inspect(&Guest::policy("text"), &wat::parse_str(text).unwrap_or_else(|error| panic!("{error}")), &Limits::default())
}

/// A component with one core module of these fields.
fn module(fields: &str) -> String {
    format!("(component (core module {fields}))")
}

/// The program that compiles.
const PROGRAM: &str = env!("CARGO_BIN_EXE_vassal-under-test");

/// Few instances: each sandbox reserves room for its own.
fn limits() -> Limits {
    Limits { sequences: 2, ..Limits::default() }
}

/// A new, empty folder of these tests.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("loading").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A sandbox that compiles in a child of this program, with or without a cache.
fn sandbox(program: impl Into<PathBuf>, cache: Option<&Path>, limits: Limits) -> Sandbox {
    let child = ChildCompiler { program: Some(program.into()), cache: cache.map(Path::to_owned) };
    Sandbox::new(limits, Compilation::Child(child)).unwrap()
}

/// A policy that keeps the contract.
fn good() -> Vec<u8> {
    Forged::default().bytes()
}

/// Loads the good policy and asks it what it is, which runs its code.
fn is_served(sandbox: &Sandbox) -> Result<CompiledPolicy, LoadError> {
    let policy = sandbox.compile("good", &good())?;
    assert_eq!(policy.describe(&[], Needs::default())?.name, "forged");
    Ok(policy)
}
