//! Runs the body of a test in a child process that finds the stand-in as its CUDA driver.
//!
//! The library beside the test binary is linked under the driver's names into a folder of its own, and
//! the test binary runs itself again with that folder first on the loader's path. So only a test that
//! asks for it gets the stand-in. Start at [`in_child`](crate::in_child); inside the child, [`findings`]
//! [`configure`] and [`calls`] speak to the loaded library.

use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Says in the child which test it runs.
const CHILD: &str = "VASSAL_STAND_IN_CHILD";
/// Settings of the stand-in.
const SETTINGS: &str = "VASSAL_STAND_IN";
/// Where this is set, children look for the machine's own driver, and bodies run on a real card.
const REAL_CARD: &str = "VASSAL_REAL_CARD";
/// The file to which findings are appended.
const REPORT: &str = "VASSAL_STAND_IN_REPORT";
/// The names under which programs look for the driver.
const DRIVER_NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];
const LIBRARY: &str = "libvassal_cuda_stand_in.so";

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// `RTLD_NOW`.
const NOW: c_int = 2;

/// What a child did.
#[derive(Debug)]
pub struct Outcome {
    /// Whether its test passed.
    pub passed: bool,
    /// Everything that it printed.
    pub output: String,
    /// The findings, leaks at exit included, in order.
    pub findings: Vec<String>,
}

/// Runs `body` in a child under the stand-in and fails unless it passes without a finding.
///
/// `in_child!({ ... })` or `in_child!("memory=1000000", { ... })` with settings, as the last statement of
/// a test. To look at findings instead, take the [`Outcome`] of `child::outcome`.
#[macro_export]
macro_rules! in_child {
    ($body:block) => {
        $crate::in_child!("", $body)
    };
    ($settings:expr, $body:block) => {
        match $crate::child::outcome($crate::test_name!(), $settings, || $body) {
            None => {}
            Some(outcome) => outcome.expect_clean(),
        }
    };
}

/// The path of the test function that this is in, as the test harness names it.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        $crate::child::name_of_test(std::any::type_name_of_val(&here))
    }};
}

/// From `crate::module::test::here` to `module::test`.
#[must_use]
pub fn name_of_test(path: &'static str) -> &'static str {
    let path = path.split_once("::").map_or(path, |(_, rest)| rest);
    let path = path.strip_suffix("::here").unwrap_or(path);
    path.split("::{{closure}}").next().unwrap_or(path)
}

impl Outcome {
    /// Panics unless the test passed and nothing was found.
    pub fn expect_clean(&self) {
        assert!(self.passed && self.findings.is_empty(), "{}\nfindings: {:#?}", self.output, self.findings);
    }

    /// Panics unless some finding contains each of `words`.
    pub fn expect_finding(&self, words: &[&str]) {
        let found = self.findings.iter().any(|finding| words.iter().all(|word| finding.contains(word)));
        assert!(found, "no finding with {words:?} in {:#?}\n{}", self.findings, self.output);
    }
}

/// In the child: runs `body` and gives `None`. In the parent: runs the test `name` in a child with these
/// settings, and gives what came of it. Where `VASSAL_REAL_CARD` is set the child finds the machine's own driver, nothing is
/// checked but what the body asserts, and a test with settings is skipped visibly.
///
/// # Panics
///
/// If the library is not beside the test binary, or the child cannot be started.
pub fn outcome(name: &str, settings: &str, body: impl FnOnce()) -> Option<Outcome> {
    if std::env::var(CHILD).as_deref() == Ok(name) {
        body();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().expect("the test binary has a path"));
    command.args([name, "--exact", "--nocapture", "--include-ignored"]).env(CHILD, name);
    let folder = if std::env::var_os(REAL_CARD).is_none() {
        let folder = folder();
        command.env(SETTINGS, settings).env(REPORT, folder.join("findings")).env("LD_LIBRARY_PATH", path_with(&folder));
        Some(folder)
    } else if settings.is_empty() {
        None
    } else {
        // Not `eprintln!`, which the test harness swallows where a test passes.
        _ = writeln!(std::io::stderr(), "SKIPPED {name}: what it provokes only the stand-in does");
        return None;
    };
    let output = command.output().expect("the child starts");
    let mut findings = String::new();
    if let Some(folder) = folder {
        findings = std::fs::read_to_string(folder.join("findings")).unwrap_or_default();
        // What is left behind lies in the temporary folder, and harms nobody.
        _ = std::fs::remove_dir_all(&folder);
    }
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        text.contains("1 passed") || text.contains("1 failed") || !output.status.success(),
        "no test {name}:\n{text}"
    );
    Some(Outcome {
        passed: output.status.success(),
        output: text,
        findings: findings.lines().map(str::to_owned).collect(),
    })
}

/// The loader's path with a folder first, and what the caller's has behind it.
fn path_with(folder: &Path) -> OsString {
    let mut path = folder.as_os_str().to_owned();
    if let Some(have) = std::env::var_os("LD_LIBRARY_PATH").filter(|have| !have.is_empty()) {
        path.push(":");
        path.push(have);
    }
    path
}

/// A new folder with the library under the driver's names.
///
/// # Panics
///
/// If the library is not there, or the folder cannot be made.
fn folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("vassal-stand-in-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
    let library = library().unwrap_or_else(|| panic!("{LIBRARY} is not beside the test binary"));
    for name in DRIVER_NAMES {
        let link = folder.join(name);
        _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&library, &link).expect("the folder takes links");
    }
    folder
}

/// The library: beside the test binary or one folder up.
fn library() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    own.ancestors().skip(1).take(2).map(|folder: &Path| folder.join(LIBRARY)).find(|path| path.is_file())
}

/// A function of the loaded stand-in.
fn symbol(name: &str) -> *mut c_void {
    let (library, name) = (CString::from(c"libcuda.so"), CString::new(name).unwrap_or_default());
    // SAFETY: both are C strings; loading runs no code of ours but what the driver's user runs anyway.
    let found = unsafe { dlsym(dlopen(library.as_ptr(), NOW), name.as_ptr()) };
    assert!(!found.is_null(), "the stand-in is not loaded: is this a child?");
    found
}

/// The findings up to now, after all work that was submitted. Only in a child.
///
/// # Panics
///
/// If the stand-in is not the driver of this process.
#[must_use]
pub fn findings() -> Vec<String> {
    type Findings = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    // SAFETY: the symbol has this type in `driver/hooks.rs`.
    let function = unsafe { std::mem::transmute::<*mut c_void, Findings>(symbol("vassal_stand_in_findings")) };
    // SAFETY: no room is given, so nothing is written.
    let bytes = unsafe { function(std::ptr::null_mut(), 0) };
    let mut text = vec![0_u8; bytes];
    // SAFETY: the room is what is said.
    unsafe { function(text.as_mut_ptr().cast(), bytes) };
    String::from_utf8_lossy(&text[..bytes - 1]).lines().map(str::to_owned).collect()
}

/// How often the driver's function `name` was called up to now, or with an empty name all of them. Only in a child.
///
/// # Panics
///
/// If the stand-in is not the driver of this process.
#[must_use]
pub fn calls(name: &str) -> u64 {
    type Calls = unsafe extern "C" fn(*const c_char) -> u64;
    // SAFETY: the symbol has this type in `driver/hooks.rs`.
    let function = unsafe { std::mem::transmute::<*mut c_void, Calls>(symbol("vassal_stand_in_calls")) };
    let text = CString::new(name).unwrap_or_default();
    // SAFETY: null or a C string.
    unsafe { function(if name.is_empty() { std::ptr::null() } else { text.as_ptr() }) }
}

/// Changes settings of the stand-in, for example `fail-launch=1`. Only in a child.
///
/// # Panics
///
/// If the stand-in is not the driver of this process, or refuses the settings.
pub fn configure(settings: &str) {
    type Configure = unsafe extern "C" fn(*const c_char) -> u32;
    // SAFETY: the symbol has this type in `driver/hooks.rs`.
    let function = unsafe { std::mem::transmute::<*mut c_void, Configure>(symbol("vassal_stand_in_configure")) };
    let text = CString::new(settings).unwrap_or_default();
    // SAFETY: a C string.
    let code = unsafe { function(text.as_ptr()) };
    assert_eq!(code, 0, "the stand-in refuses {settings:?}");
}

/// Forgets findings and the error that stays, and goes back to the default settings. Only in a child.
///
/// # Panics
///
/// If the stand-in is not the driver of this process.
pub fn reset() {
    type Reset = unsafe extern "C" fn() -> u32;
    // SAFETY: the symbol has this type in `driver/hooks.rs`.
    let function = unsafe { std::mem::transmute::<*mut c_void, Reset>(symbol("vassal_stand_in_reset")) };
    // SAFETY: it takes nothing.
    unsafe { function() };
}
