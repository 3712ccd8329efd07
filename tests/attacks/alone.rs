//! What holds after every attack: a good request is served as before, and memory is back.
//!
//! [`Served`] is the one place where that is asked. Tokens are compared wherever a test runs. Memory belongs to the whole
//! process, so it is looked at only where an attack runs alone: [`alone`] starts this program of tests anew, one thread,
//! one test after the other, and [`ALONE`] tells it so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use crate::support::{PROMPT, Setup, bits};

/// A folder of a test and of this process: two run the same tests at once.
pub(super) fn folder(name: &str) -> PathBuf {
    static TAKEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attacks").join(format!("{name}-{}", is_alone()));
    let mut taken = TAKEN.lock().unwrap();
    if !taken.iter().any(|taken| taken == name) {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        taken.push(name.to_owned());
    }
    folder
}

/// Set in a process whose memory is looked at.
const ALONE: &str = "VASSAL_TESTS_ALONE";

/// What one attack may leave resident, bytes: less than the largest memory that a guest may have, so that one which is
/// not given back shows. The pool keeps up to 256 KiB of a memory that was used, 16 KiB of its stack and of its tables,
/// for the 16 instances that an engine of these tests holds at once; the rest is the allocator's.
const LEFT_BYTES: u64 = 16 << 20;

/// What all of them together may, bytes: of some seventy attacks, three such memories. That it does not go on growing is
/// what a thousand loads are for.
const LEFT_BY_ALL_BYTES: u64 = 3 * LEFT_BYTES;

/// What was before the first attack of this process.
struct Before {
    tokens: Vec<Tokens>,
    resident_bytes: u64,
}

type Tokens = (u32, Option<[u32; 3]>);

fn before() -> &'static Before {
    static BEFORE: OnceLock<Before> = OnceLock::new();
    BEFORE.get_or_init(|| {
        // What is made once for a process is made before its memory is looked at.
        super::hostile();
        let tokens = good_tokens();
        assert_eq!(good_tokens(), tokens);
        Before { tokens, resident_bytes: resident_bytes() }
    })
}

/// A request with a policy that evaluates, in an engine of its own, and in the sandbox of the attacks.
fn good_tokens() -> Vec<Tokens> {
    let mut tiny = Setup::with_heads().open();
    let vas = tiny.policy("vas", &[("sentiment", "0.9"), ("simplicity", "-0.6"), ("mode", "evaluate")]);
    let request = tiny.request(PROMPT, vec![vas]);
    bits(&tiny.alone(request))
}

/// Whether this process runs one test at a time, and nothing else.
pub(super) fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// A line of `/proc/self/status` that is in KiB, in bytes.
pub(super) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Held while an attack is tried; when it is dropped, the process must be as before.
pub(crate) struct Served {
    resident_bytes: u64,
}

impl Served {
    /// The first of a process notes what is before.
    pub(crate) fn as_before() -> Self {
        before();
        Self { resident_bytes: resident_bytes() }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let before = before();
        assert!(good_tokens() == before.tokens, "a good request has other tokens after the attack");
        if is_alone() {
            let (now, just_before, at_first) = (resident_bytes(), self.resident_bytes, before.resident_bytes);
            eprintln!("resident: {} KiB, {} KiB before, {} KiB at first", now >> 10, just_before >> 10, at_first >> 10);
            assert!(now < just_before + LEFT_BYTES, "{now} bytes are resident, {just_before} before the attack");
            assert!(now < at_first + LEFT_BY_ALL_BYTES, "{now} bytes are resident, {at_first} before the first attack");
        }
    }
}

/// Runs tests in a process of their own, one at a time; what they said.
pub(super) fn alone(filters: &[&str]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(filters).args(["--test-threads=1", "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn memory_is_back_after_every_attack() {
    if is_alone() {
        return;
    }
    let said = alone(&["attacks::", "neighbours::"]);
    let checked = said.matches("resident: ").count();
    assert!(checked >= 50, "{checked} attacks looked at the memory: {said}");
}
