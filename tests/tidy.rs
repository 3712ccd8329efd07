//! Tidy: what the compiler does not check about the repository, as ordinary tests.
//!
//! Each rule is a function from text to complaints, with a test of its own on small strings; the tests
//! here run the rules over every committed file. [`sources`] has the rules for code, [`references`] those
//! for what documents name, [`attacks`] those for the table of attacks, [`commands`] compares command lines with the program's own definition.
//! A complaint starts a conversation: an exception gets an entry with its reason, and an entry that is no
//! longer needed is a complaint too.

mod attacks;
mod commands;
mod references;
mod sources;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::rebuild::root;

/// A file larger than this belongs into a release or a download, not into the repository.
const BLOB_BYTES_MAX: usize = 1 << 20;

/// The contracts, and the guide that moves with each.
const CONTRACTS: [(&str, &str); 2] =
    [("wit/policy-0.1/policy.wit", "docs/policies.md"), ("wit/reward-0.1/reward.wit", "docs/rewards.md")];

/// The committed files, by path from the root with `/` between names.
pub(crate) struct Repository {
    files: BTreeMap<String, Vec<u8>>,
}

impl Repository {
    /// What git tracks; without git (an unpacked archive), everything that `.gitignore` does not name.
    fn read() -> Self {
        let git = Command::new("git").args(["-c", "safe.directory=*", "ls-files", "-z"]).current_dir(root()).output();
        let paths = match git {
            Ok(output) if output.status.success() => {
                String::from_utf8_lossy(&output.stdout).split_terminator('\0').map(str::to_owned).collect()
            }
            _ => walk(&root(), &std::fs::read_to_string(root().join(".gitignore")).unwrap_or_default()),
        };
        let files: BTreeMap<_, _> = paths
            .into_iter()
            .filter_map(|path| std::fs::read(root().join(&path)).ok().map(|bytes| (path, bytes)))
            .collect();
        assert!(files.len() > 100, "only {} files found: the rules would mean nothing", files.len());
        Self { files }
    }

    /// A text file's contents.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        std::str::from_utf8(self.files.get(path)?).ok()
    }

    /// Text files whose names end so, in order of path.
    pub(crate) fn texts(&self, endings: &[&str]) -> impl Iterator<Item = (&str, &str)> {
        let of = move |path: &str| endings.iter().any(|ending| path.ends_with(ending));
        let names: Vec<&str> = self.files.keys().map(String::as_str).filter(|path| of(path)).collect();
        names.into_iter().filter_map(|path| Some((path, self.text(path)?)))
    }

    /// Whether this names a file or folder, from the root or from anywhere below.
    pub(crate) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let (below, folder) = (format!("/{path}"), format!("/{path}/"));
        self.files.keys().any(|file| {
            let file = format!("/{file}");
            file.ends_with(&below) || file.contains(&folder)
        })
    }

    /// Whether this names a file or folder from the root.
    pub(crate) fn has_at_root(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        self.files.contains_key(path) || self.files.keys().any(|file| file.starts_with(&folder))
    }
}

/// Every file below, but for `.git` and names that the ignore list has (`name/`, `name*/`, `*.ending`).
fn walk(top: &Path, ignored: &str) -> Vec<String> {
    fn visit(folder: &Path, prefix: &str, ignored: &str, paths: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == ".git" || ignored.lines().any(|pattern| is_ignored(&name, pattern)) {
                continue;
            }
            if entry.path().is_dir() {
                visit(&entry.path(), &format!("{prefix}{name}/"), ignored, paths);
            } else {
                paths.push(format!("{prefix}{name}"));
            }
        }
    }
    let mut paths = Vec::new();
    visit(top, "", ignored, &mut paths);
    paths
}

fn is_ignored(name: &str, pattern: &str) -> bool {
    let pattern = pattern.trim_matches('/');
    match pattern.split_once('*') {
        _ if pattern.is_empty() => false,
        Some((start, end)) => name.starts_with(start) && name.ends_with(end),
        None => name == pattern,
    }
}

/// Fails with all complaints at once.
#[track_caller]
fn check(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn modules_have_headers() {
    let repository = Repository::read();
    check(repository.texts(&[".rs"]).filter_map(|(path, text)| sources::header(path, text)).collect());
}

#[test]
fn files_and_functions_are_short() {
    let repository = Repository::read();
    let files: Vec<_> = repository.texts(&[".rs", ".py", ".wit"]).collect();
    let mut complaints = sources::long_files(&files, sources::LONG_FILES);
    complaints.extend(sources::long_functions(&files, sources::LONG_FUNCTIONS));
    check(complaints);
}

#[test]
fn unsafe_code_is_in_kernels_and_in_one_block_of_the_sandbox() {
    let repository = Repository::read();
    let outside = repository.texts(&[".rs"]).filter(|(path, _)| !path.starts_with("kernels/"));
    check(outside.flat_map(|(path, text)| sources::unsafe_outside_kernels(path, text)).collect());
}

#[test]
fn no_large_blobs() {
    let repository = Repository::read();
    let large = repository.files.iter().filter(|(_, bytes)| bytes.len() > BLOB_BYTES_MAX);
    check(
        large
            .map(|(path, bytes)| format!("{path}: {} bytes, at most {BLOB_BYTES_MAX} may be committed", bytes.len()))
            .collect(),
    );
}

#[test]
fn no_machine_is_named() {
    let repository = Repository::read();
    let texts = repository.texts(&[""]);
    check(
        texts
            .flat_map(|(path, text)| [sources::machine_paths(path, text), sources::registries(path, text)])
            .flatten()
            .collect(),
    );
}

#[test]
fn the_guides_moved_with_their_contracts() {
    let repository = Repository::read();
    for (contract, guide) in CONTRACTS {
        let text = repository.files.get(contract).expect("the contract");
        let hash: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(
            repository.text(guide).unwrap_or_default().contains(&hash),
            "{contract} has changed: read {guide} again, change what it says, and record {hash} there"
        );
    }
}

#[test]
fn the_contracts_parse() {
    for (folder, name) in [("wit/policy-0.1", "vassal:policy@0.1.0"), ("wit/reward-0.1", "vassal:reward@0.1.0")] {
        let mut resolve = wit_parser::Resolve::default();
        let (package, _) = resolve.push_dir(root().join(folder)).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(resolve.packages[package].name.to_string(), name);
    }
}

#[test]
fn documents_name_what_exists() {
    let repository = Repository::read();
    let known = references::Known::read(&repository);
    check(repository.texts(&[".md"]).flat_map(|(path, text)| references::document(path, text, &known)).collect());
}

#[test]
fn comments_name_files_that_exist() {
    let repository = Repository::read();
    let known = references::Known::read(&repository);
    let own = |path: &str| path.starts_with("tests/tidy");
    check(
        repository
            .texts(&[".rs"])
            .filter(|(path, _)| !own(path))
            .flat_map(|(path, text)| references::comments(path, text, &known))
            .collect(),
    );
}

#[test]
fn documents_are_listed_and_folders_described() {
    let repository = Repository::read();
    let mut complaints = Vec::new();
    let index = repository.text("docs/README.md").unwrap_or_default();
    for (path, _) in
        repository.texts(&[".md"]).filter(|(path, _)| path.starts_with("docs/") && *path != "docs/README.md")
    {
        let name = path.trim_start_matches("docs/");
        if !index.contains(&format!("({name})")) {
            complaints.push(format!("docs/README.md does not link {name}"));
        }
    }
    let architecture = repository.text("ARCHITECTURE.md").unwrap_or_default();
    for folder in references::folders(repository.files.keys().map(String::as_str)) {
        if !architecture.contains(&format!("`{folder}`")) {
            complaints.push(format!("ARCHITECTURE.md's code map lacks `{folder}`"));
        }
    }
    check(complaints);
}

#[test]
fn the_table_of_attacks_is_whole() {
    let repository = Repository::read();
    let tests = repository.texts(&[".rs"]).filter(|(path, _)| !path.starts_with("tests/tidy/"));
    let tests = tests.flat_map(|(_, text)| attacks::tests(text)).collect();
    let text = |path: &str| repository.text(path).unwrap_or_else(|| panic!("{path} is not there"));
    let guests = ["tests/hostile/src/lib.rs", "tests/hostile/examples/hostile_reward.rs"];
    let modes: Vec<&str> = guests.into_iter().flat_map(|guest| attacks::modes(text(guest))).collect();
    let limits = attacks::limits(text("host/src/sandbox/limits.rs"));
    assert!(modes.len() > 70 && limits.len() > 50, "{modes:?} {limits:?}");
    check(attacks::table(text("tests/attacks/README.md"), &tests, &modes, &limits));
}

#[test]
fn continuous_integration_runs_the_readmes_test_command() {
    let repository = Repository::read();
    let readme = repository.text("README.md").unwrap_or_default();
    let command = references::fenced(readme)
        .into_iter()
        .find(|line| line.starts_with("cargo test"))
        .expect("the README's test command");
    let script = repository.text(".ci/run").unwrap_or_default();
    assert!(script.lines().any(|line| line.ends_with(&command)), ".ci/run does not call `{command}`");
}

#[test]
fn ignored_names_are_left_out_without_git() {
    for (name, pattern, expected) in [
        ("target", "target/", true),
        ("targets", "target/", false),
        (".venv-a", ".venv*/", true),
        ("x.part", "*.part", true),
        ("x", "", false),
    ] {
        assert_eq!(is_ignored(name, pattern), expected, "{name} {pattern}");
    }
}
