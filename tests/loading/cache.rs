//! The cache: a hit is what was compiled, and whatever happens to its files makes the next load slower, no more.
//!
//! Whether an entry is used shows where there is no compiler: [`hits`] names a program that does not exist.
//! Each test has a folder of its own. Permissions are not tried where the super-user would pass them: what cannot
//! be written here is a folder whose name a file has.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vassal::sandbox::{CompilerError, Limits, LoadError};

use super::{PROGRAM, folder, good, is_served, limits, sandbox};
use crate::attacks::{Forged, Served};

/// Whether the good policy is loaded without a compiler.
fn hits(home: &Path) -> bool {
    match is_served(&sandbox("/nowhere/vassal", Some(home), limits())) {
        Ok(_) => true,
        Err(LoadError::Compiler { error: CompilerError::Start { .. }, .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Loads the good policy; it must be in the cache then.
#[track_caller]
fn fills(home: &Path) {
    is_served(&sandbox(PROGRAM, Some(home), limits())).unwrap();
    assert!(hits(home));
}

/// Files of the cache, the key left out.
fn entries(home: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> =
        fs::read_dir(home.join("policy-cache")).unwrap().map(|file| file.unwrap().path()).collect();
    entries.sort();
    entries
}

fn key(home: &Path) -> PathBuf {
    home.join("policy-cache.key")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_hit_is_what_was_compiled() {
    let home = folder("hit");
    assert!(!hits(&home));
    let compiled = is_served(&sandbox(PROGRAM, Some(&home), limits())).unwrap();
    let cached = is_served(&sandbox("/nowhere/vassal", Some(&home), limits())).unwrap();
    let manifests = [&compiled, &cached].map(|policy| policy.describe(&[], Default::default()).unwrap());
    assert_eq!(manifests[0], manifests[1]);
    assert_eq!((compiled.sha256(), compiled.imports()), (cached.sha256(), cached.imports()));
    let entries = entries(&home);
    assert_eq!((entries.len(), mode(&key(&home)), mode(&entries[0])), (1, 0o600, 0o600));
    // What is refused by the validator or the contract is refused with a cache, too.
    assert!(sandbox(PROGRAM, Some(&home), limits()).compile("none", &good()[..100]).is_err());
}

#[test]
fn a_damaged_entry_is_compiled_again_and_replaced() {
    let _served = Served::as_before();
    let home = folder("damaged");
    fills(&home);
    let entry = entries(&home).remove(0);
    let whole = fs::read(&entry).unwrap();
    let middle = whole.len() / 2;
    let flipped = |place: usize| {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        bytes
    };
    for damaged in [
        // The magic, the component's hash, the settings, the code, the tag.
        flipped(0),
        flipped(20),
        flipped(60),
        flipped(middle),
        flipped(whole.len() - 1),
        whole[..middle].to_vec(),
        Vec::new(),
        [&whole[..], b"x"].concat(),
    ] {
        fs::write(&entry, damaged).unwrap();
        assert!(!hits(&home));
        fills(&home);
        assert_eq!(entries(&home), std::slice::from_ref(&entry));
    }
}

#[test]
fn an_entry_of_another_component_is_not_taken_under_this_name() {
    let _served = Served::as_before();
    let home = folder("foreign");
    fills(&home);
    let ours = entries(&home).remove(0);
    let other = Forged { fields: "(func $more)", ..Forged::default() }.bytes();
    sandbox(PROGRAM, Some(&home), limits()).compile("other", &other).unwrap();
    let theirs = entries(&home).into_iter().find(|entry| *entry != ours).unwrap();
    fs::copy(theirs, &ours).unwrap();
    assert!(!hits(&home));
    fills(&home);
}

#[test]
fn an_entry_under_another_key_is_not_taken() {
    let _served = Served::as_before();
    let home = folder("key");
    fills(&home);
    fs::write(key(&home), [7; 32]).unwrap();
    assert!(!hits(&home));
    fills(&home);
    assert_eq!(fs::read(key(&home)).unwrap(), [7; 32]);
    // A key that others can read, or that is none, is replaced.
    fs::set_permissions(key(&home), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(!hits(&home));
    fills(&home);
    assert_eq!(mode(&key(&home)), 0o600);
    assert_ne!(fs::read(key(&home)).unwrap(), [7; 32]);
    fs::write(key(&home), b"short").unwrap();
    assert!(!hits(&home));
    fills(&home);
}

#[test]
fn the_folder_and_the_key_can_be_deleted_at_any_time() {
    let home = folder("deleted");
    fills(&home);
    fs::remove_dir_all(home.join("policy-cache")).unwrap();
    assert!(!hits(&home));
    fills(&home);
    fs::remove_file(key(&home)).unwrap();
    assert!(!hits(&home));
    fills(&home);
    let _ = fs::remove_dir_all(&home);
    fills(&home);
}

#[test]
fn where_nothing_can_be_written_loading_still_works() {
    let file = folder("unwritable").join("file");
    fs::write(&file, b"not a folder").unwrap();
    is_served(&sandbox(PROGRAM, Some(&file), limits())).unwrap();
    // A folder where the key should be, and a file where the folder should be.
    let home = folder("taken");
    fs::create_dir(key(&home)).unwrap();
    is_served(&sandbox(PROGRAM, Some(&home), limits())).unwrap();
    let home = folder("taken-folder");
    fs::write(home.join("policy-cache"), b"").unwrap();
    is_served(&sandbox(PROGRAM, Some(&home), limits())).unwrap();
    assert!(!hits(&home));
}

#[test]
fn the_oldest_entries_make_room() {
    let home = folder("full");
    fills(&home);
    let bytes = fs::metadata(&entries(&home)[0]).unwrap().len();
    let small = Limits { cache_bytes: bytes * 5 / 2, ..limits() };
    let sandbox = sandbox(PROGRAM, Some(&home), small);
    for number in 0..3 {
        let fields = format!("(func (drop (i32.const {number})))");
        let component = Forged { fields: &fields, ..Forged::default() }.bytes();
        sandbox.compile("another", &component).unwrap();
    }
    let total: u64 = entries(&home).iter().map(|entry| fs::metadata(entry).unwrap().len()).sum();
    assert_eq!(entries(&home).len(), 2, "{:?}", entries(&home));
    assert!(total <= bytes * 5 / 2 && !hits(&home));
}

#[test]
fn processes_share_a_cache() {
    let home = folder("shared");
    let inspect = |vassal_home: &Path| {
        let mut command = Command::new(PROGRAM);
        command.args(["policy", "inspect", "guard", "--json"]).env("VASSAL_HOME", vassal_home);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let racing: Vec<_> = (0..4).map(|_| inspect(&home)).collect();
    let outputs: Vec<_> = racing.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    for output in &outputs {
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(output.stdout, outputs[0].stdout);
    }
    // Nothing but one entry and one key is left.
    assert_eq!(entries(&home).len(), 1);
    assert_eq!((fs::read_dir(&home).unwrap().count(), mode(&key(&home))), (2, 0o600));
    let guard = vassal::shipped::POLICIES.iter().find(|policy| policy.name == "guard").unwrap();
    sandbox("/nowhere/vassal", Some(&home), limits()).compile("guard", guard.component).unwrap();
}
