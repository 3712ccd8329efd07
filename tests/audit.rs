//! Audit files: what a line holds, how each kind of tampering shows, and what a crash costs.
//!
//! Lines are taken apart and sealed here by hand ([`sealed`]), so that the format is tested and not the code that
//! writes it twice. What comes of a record once more is tested in `replay.rs`.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use vassal::audit::log::AuditLog;
use vassal::audit::record::NO_PREVIOUS;
use vassal::audit::surroundings::{ModelRecord, WASMTIME_VERSION};
use vassal::audit::{AuditError, LINE_BYTES_MAX, LineFault, Record, Recorder, Surroundings, verify};
use vassal::engine::Response;
use vassal::request::ValidRequest;
use vassal_kernels::Device;

use crate::rebuild::root;
use crate::support::{PROMPT, Setup, Tiny, sandbox};

/// A name of these tests that no file bears yet.
pub(crate) fn fresh(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("audit").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder.join("log.jsonl")
}

/// What the bits of a tiny engine's responses depend on.
pub(crate) fn surroundings(tiny: &Tiny) -> Surroundings {
    let model = ModelRecord { name: "tiny".into(), sha256: "0".repeat(64), source: String::new() };
    Surroundings::new(&tiny.engine.device().info(), sandbox().limits(), model, &tiny.heads, &[]).unwrap()
}

pub(crate) fn recorder(path: &Path, tiny: &Tiny) -> Recorder {
    Recorder::open(path, surroundings(tiny)).unwrap()
}

/// A response with notes, a splice and a required policy.
fn response(tiny: &mut Tiny) -> (ValidRequest, Response) {
    let scripted = tiny.scripted("2 note seen\n4! splice 2 70,71\n9 note again");
    let mut guard = tiny.policy("guard", &[("phrases", "zebra")]);
    guard.required = true;
    let request = tiny.endless(tiny.request(PROMPT, vec![scripted, guard]));
    let response = tiny.run(vec![request.clone()]).remove(0);
    (request, response)
}

/// A file of some records, and its lines without their newlines.
fn recorded(name: &str, count: usize) -> (PathBuf, Vec<String>) {
    let path = fresh(name);
    let mut tiny = Setup::with_heads().open();
    let mut recorder = recorder(&path, &tiny);
    let (request, response) = response(&mut tiny);
    for stream in 0..count as u64 {
        recorder.append(&ValidRequest { stream, ..request.clone() }, &response).unwrap();
    }
    let lines = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    (path, lines)
}

fn write(path: &Path, lines: &[String]) {
    std::fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

/// The bytes that a line's hash is of.
fn body(line: &str) -> &str {
    line.rsplit_once(",\"sha256\":").unwrap().0
}

/// A line around other contents, with the right hash.
pub(crate) fn sealed(body: &str) -> String {
    let hash: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{body},\"sha256\":\"{hash}\"}}")
}

/// The line that is wrong, and how.
#[track_caller]
fn wrong(path: &Path) -> (u64, LineFault) {
    match verify(path, None) {
        Err(AuditError::Line { line, fault, .. }) => (line, fault),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_record_reads_back_and_its_hash_is_that_of_its_bytes() {
    let (path, lines) = recorded("round-trip", 3);
    let mut previous = NO_PREVIOUS.to_owned();
    for line in &lines {
        assert_eq!(*line, sealed(body(line)));
        let record = Record::parse(line.as_bytes()).unwrap();
        assert_eq!(record.previous, previous);
        previous = record.sha256;
    }
    let verified = verify(&path, Some(&previous)).unwrap();
    assert_eq!((verified.records, verified.last), (3, previous));
    let record = Record::parse(lines[1].as_bytes()).unwrap();
    assert_eq!((record.request.stream, record.request.policies.len()), (1, 2));
    assert!(record.request.policies[0].required && record.request.policies[0].name == "guard");
    assert_eq!(record.request.policies[1].settings["candidates"], "4");
    assert_eq!((record.response.tokens.len(), record.response.inserted.as_slice()), (24, &[2, 3][..]));
    assert_eq!(record.host.heads.len(), 3);
    let events: Vec<_> = record.response.events.iter().map(|event| (event.step, event.policy)).collect();
    // Both start; a note at length 2, which is step 3; the splice at length 4, step 5; two offers; then length 9.
    assert_eq!(events[..4], [(0, 0), (0, 1), (3, 1), (5, 1)], "{:?}", record.response.events);
    assert!(record.response.events.iter().all(|event| event.fuel.is_some_and(|fuel| fuel > 0)));
}

#[test]
fn every_kind_of_tampering_shows_at_its_line() {
    let (path, lines) = recorded("tampering", 5);
    let try_lines = |change: &dyn Fn(&mut Vec<String>)| {
        let mut changed = lines.clone();
        change(&mut changed);
        assert_ne!(changed, lines);
        write(&path, &changed);
        wrong(&path)
    };
    // A changed byte, wherever it is.
    for at in [1, 100, body(&lines[2]).len() - 1] {
        let (line, fault) = try_lines(&|lines| {
            let byte = if &lines[2][at..=at] == "7" { "8" } else { "7" };
            lines[2].replace_range(at..=at, byte);
        });
        assert!(line == 3 && matches!(fault, LineFault::Changed { .. }), "{line} {fault}");
    }
    // In the hash itself, and at its end.
    let (line, fault) = try_lines(&|lines| {
        let at = lines[2].len() - 10;
        let byte = if &lines[2][at..=at] == "7" { "8" } else { "7" };
        lines[2].replace_range(at..=at, byte);
    });
    assert!(line == 3 && matches!(fault, LineFault::Changed { .. }), "{line} {fault}");
    assert_eq!(try_lines(&|lines| lines[2].push(' ')), (3, LineFault::NoHash));
    // A removed line shows at the next; so do one that is moved, doubled, or new with a right hash of its own.
    let previous = |(line, fault): (u64, LineFault)| {
        assert!(matches!(fault, LineFault::Previous { .. }), "{fault}");
        line
    };
    assert_eq!(previous(try_lines(&|lines| drop(lines.remove(2)))), 3);
    assert_eq!(previous(try_lines(&|lines| drop(lines.remove(0)))), 1);
    assert_eq!(previous(try_lines(&|lines| lines.swap(1, 3))), 2);
    assert_eq!(previous(try_lines(&|lines| lines.insert(3, lines[2].clone()))), 4);
    let forged = |lines: &mut Vec<String>| lines[2] = sealed(&body(&lines[2]).replace("\"seed\":7", "\"seed\":8"));
    assert_eq!(previous(try_lines(&forged)), 4);
    assert_eq!(try_lines(&|lines| lines.insert(2, String::new())), (3, LineFault::NoHash));
    // The last line cut.
    let whole = lines.join("\n");
    std::fs::write(&path, &whole[..whole.len() - 50]).unwrap();
    let bytes = lines[4].len() as u64 - 50;
    assert_eq!(wrong(&path), (5, LineFault::Incomplete { bytes }));
}

#[test]
fn whole_records_missing_at_the_end_show_only_to_who_expects_them() {
    let (path, lines) = recorded("tail", 3);
    let last = verify(&path, None).unwrap().last;
    write(&path, &lines[..2]);
    assert_eq!(verify(&path, None).unwrap().records, 2);
    let error = verify(&path, Some(&last)).unwrap_err();
    assert!(error.to_string().contains(&last) && matches!(error, AuditError::Last { .. }), "{error}");
    write(&path, &[]);
    assert_eq!(verify(&path, None).unwrap().last, NO_PREVIOUS);
}

#[test]
fn a_crash_in_the_middle_of_a_write_loses_that_record_only() {
    let (path, lines) = recorded("crash", 3);
    let mut tiny = Setup::with_heads().open();
    let (request, response) = response(&mut tiny);
    // Cut anywhere: in the first byte, in the middle, before the newline.
    for (round, cut) in [1, lines[2].len() / 2, lines[2].len()].into_iter().enumerate() {
        write(&path, &lines[..2]);
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&lines[2].as_bytes()[..cut]).unwrap();
        drop(file);
        assert_eq!(wrong(&path), (3, LineFault::Incomplete { bytes: cut as u64 }));
        let mut recorder = recorder(&path, &tiny);
        let recovered = recorder.take_recovered().unwrap();
        assert!(recovered.to_string().contains(&format!("{cut} bytes")), "{recovered}");
        assert!(recovered.kept_in.ends_with(format!("log.jsonl.incomplete-{}", round + 1)), "{recovered}");
        assert_eq!(std::fs::read(&recovered.kept_in).unwrap(), &lines[2].as_bytes()[..cut]);
        for file in [&path, &recovered.kept_in] {
            let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(file).unwrap());
            assert_eq!(mode & 0o777, 0o600, "{}: a record is its owner's alone, in part as well", file.display());
        }
        assert_eq!(recorder.take_recovered(), None);
        recorder.append(&request, &response).unwrap();
        assert_eq!(verify(&path, None).unwrap().records, 3);
        let now = std::fs::read_to_string(&path).unwrap();
        assert!(now.lines().zip(&lines).take(2).all(|(now, before)| now == before), "whole records stay");
    }
    // Another writer's crash while this one has the file open.
    let mut recorder = recorder(&path, &tiny);
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"format\":").unwrap();
    recorder.append(&request, &response).unwrap();
    assert!(recorder.take_recovered().is_some());
    assert_eq!(verify(&path, None).unwrap().records, 4);
}

#[test]
fn nothing_is_appended_to_a_last_line_that_is_wrong() {
    let (path, mut lines) = recorded("wrong-tail", 2);
    lines[1] = lines[1].replace("\"seed\":7", "\"seed\":9");
    write(&path, &lines);
    let tiny = Setup::with_heads().open();
    let refused = Recorder::open(&path, surroundings(&tiny)).err().unwrap();
    assert!(matches!(refused, AuditError::Tail { fault: LineFault::Changed { .. }, .. }), "{refused}");
    assert!(refused.to_string().contains("vassal audit verify"), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[test]
fn two_writers_make_one_chain() {
    let path = fresh("writers");
    let mut tiny = Setup::with_heads().open();
    let (request, response) = response(&mut tiny);
    let surroundings = surroundings(&tiny);
    std::thread::scope(|scope| {
        for seed in [1, 2] {
            let (path, surroundings, request, response) = (&path, &surroundings, &request, &response);
            scope.spawn(move || {
                let mut recorder = Recorder::open(path, surroundings.clone()).unwrap();
                for stream in 0..20 {
                    recorder.append(&ValidRequest { seed, stream, ..request.clone() }, response).unwrap();
                }
            });
        }
    });
    assert_eq!(verify(&path, None).unwrap().records, 40);
    let text = std::fs::read_to_string(&path).unwrap();
    for seed in ["\"seed\":1,", "\"seed\":2,"] {
        assert_eq!(text.lines().filter(|line| line.contains(seed)).count(), 20);
    }
}

#[test]
fn what_is_no_audit_file_is_refused_for_what_it_is() {
    let (path, lines) = recorded("bad-input", 1);
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let (line, fault) = wrong(&path);
        assert_eq!(line, 1);
        fault.to_string()
    };
    assert!(refused(&[0, 159, 146, 150, 10, 255]).contains("does not end in"));
    assert!(refused(b"{}\n").contains("does not end in"));
    assert!(refused("é".repeat(100).as_bytes()).contains("incomplete, 200 bytes"));
    assert!(refused(format!("{}\n", sealed("{\"format\":\"vassal-audit-2\"")).as_bytes()).contains("vassal-audit-2"));
    assert!(refused(format!("{}\n", sealed("\u{1b}[2J")).as_bytes()).contains("not a record: expected value"));
    for (from, to, words) in [
        ("\"temperature\":1.0", "\"temperature\":NaN", "expected value"),
        ("\"temperature\":1.0", "\"temperature\":null", "invalid type: null"),
        ("\"max_tokens\":24", "\"max_tokens\":-1", "invalid value"),
        ("\"seed\":7", "\"seed\":7,\"extra\":0", "unknown field `extra`"),
        ("\"seed\":7,", "", "missing field `seed`"),
    ] {
        let changed = body(&lines[0]).replacen(from, to, 1);
        assert_ne!(changed, body(&lines[0]), "{from}");
        let fault = refused(format!("{}\n", sealed(&changed)).as_bytes());
        assert!(fault.contains(words), "{from} -> {to}: {fault}");
    }
    // A line without an end that is longer than any record: not read to its end.
    std::fs::File::create(&path).unwrap().set_len(LINE_BYTES_MAX as u64 + 2).unwrap();
    assert_eq!(wrong(&path), (1, LineFault::TooLong { bytes: LINE_BYTES_MAX as u64 + 1 }));
    let missing = verify(&path.with_file_name("nowhere"), None).unwrap_err();
    assert!(missing.to_string().contains("nowhere"), "{missing}");
}

#[test]
fn the_recorded_version_of_the_runtime_is_the_one_linked() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    assert!(lock.contains(&format!("name = \"wasmtime\"\nversion = \"{WASMTIME_VERSION}\"\n")));
}

#[test]
fn somebody_elses_file_is_left_as_it_is() {
    let path = fresh("foreign");
    for bytes in [&b"notes without an end of line"[..], b"\0asm\x0d\0\x01\0 one\ntwo", b"{}\n"] {
        std::fs::write(&path, bytes).unwrap();
        assert!(AuditLog::open(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
    let beside = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(beside, 1, "nothing was put aside");
}

/// A pipe has no length: nothing would be found wrong with nothing.
#[test]
fn what_is_no_regular_file_is_not_verified() {
    for path in ["/dev/null", "/dev/zero"] {
        let refused = verify(Path::new(path), None).unwrap_err().to_string();
        assert!(refused.contains("not a regular file"), "{refused}");
    }
}
