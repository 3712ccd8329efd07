//! Audit files: bytes through `verify`, records through their parser, and valid chains that somebody changed.
//!
//! The first byte says what the rest is: a file as it stands; lines whose hashes are made to fit, so that what comes
//! behind the hash is reached too; or changes to a valid chain, each of which has to show. A file that a log may be appended
//! to is one that verifies with its new record, and what is not, is left as it was.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use serde_json::json;
use sha2::{Digest, Sha256};
use vassal::audit::record::NO_PREVIOUS;
use vassal::audit::{AuditError, AuditLog, FORMAT, Record, verify};

/// What the first byte of an input says of the rest, by its remainder.
pub mod kind {
    /// A file as it stands.
    pub const FILE: u8 = 0;
    /// Bodies of lines, without hashes.
    pub const BODIES: u8 = 1;
    /// Changes to a valid chain.
    pub const CHANGES: u8 = 2;
    /// How many there are.
    pub const COUNT: u8 = 3;
}

/// Runs one of the three.
pub fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    match first % kind::COUNT {
        kind::FILE => file(rest),
        kind::BODIES => bodies(rest),
        _ => drop(changes(&mut Unstructured::new(rest))),
    }
}

/// A body's line: its hash, and the newline.
pub fn sealed(body: &[u8]) -> Vec<u8> {
    let hash: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    [body, b",\"sha256\":\"", hash.as_bytes(), b"\"}\n"].concat()
}

/// The body of a valid record, after another.
pub fn body(previous: &str, seed: u64) -> Vec<u8> {
    let fault = json!({ "fault": "deadline", "host": true, "words": "too late", "detail": "" });
    let event = |step: u64, what| json!({ "step": step, "policy": 0, "fuel": 7, "resumed": 0, "what": what });
    // Written by hand as to its frame: the hash is of bytes, and the order of entries is theirs.
    let request = json!({
        "prompt": [1, 2], "user_prompt": [2], "max_tokens": 4, "temperature": 1.0, "top_p": 1.0, "seed": seed,
        "stream": 0, "end_of_text": [0], "candidates_max": 8, "heads": ["h"],
        "policies": [{ "name": "p", "sha256": "0".repeat(64), "source": "p", "heads": ["h"],
            "settings": { "h": "0.5" }, "required": true, "on_fault": "abort" }],
    });
    let host = json!({
        "vassal": "0.1.0", "kernels": 1, "isa": "scalar", "threads": 1, "wasmtime": "48", "limits_sha256": "",
        "model": { "name": "m", "sha256": "", "source": "" },
        "heads": [{ "name": "h", "kind": "look-ahead", "sha256": "", "source": "" }],
    });
    let response = json!({
        "tokens": [3, 4], "inserted": [1], "finish": { "kind": "fault", "fault": fault }, "draws": 1, "steps": 2,
        "fuel": 9, "probabilities_sha256": "",
        "events": [event(0, json!("start")), event(1, json!({ "note": "n" })), event(1, json!({ "notes-dropped": 2 })),
            event(1, json!({ "splice": { "remove": 1, "insert_count": 1, "insert": [4] } })),
            event(2, json!({ "stop": "s" })), event(2, json!({ "fault": fault }))],
    });
    format!(
        r#"{{"format":"{FORMAT}","previous":"{previous}","unix_ms":1,"request":{request},"host":{host},"response":{response}"#
    )
    .into_bytes()
}

/// Lines from bodies, each the successor of the one before where it says `@`.
fn chain<'a>(bodies: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut previous = NO_PREVIOUS.as_bytes().to_vec();
    bodies
        .map(|body| {
            let at = body.iter().position(|byte| *byte == b'@');
            let line = match at {
                Some(at) => sealed(&[&body[..at], &previous, &body[at + 1..]].concat()),
                None => sealed(body),
            };
            previous = line[line.len() - 67..line.len() - 3].to_vec();
            line
        })
        .collect()
}

/// A file of this process's, its name the same for every input.
fn written(bytes: &[u8]) -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let memory = Path::new("/dev/shm");
    let folder = || if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let path = PATH.get_or_init(|| folder().join(format!("vassal-fuzz-audit-{}", std::process::id())));
    let file = std::fs::File::create(path).and_then(|mut file| file.write_all(bytes));
    file.expect("a file for the input");
    path.clone()
}

fn file(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(record) = Record::parse(line) {
            reads_back(&record);
        }
    }
    let path = written(bytes);
    let before = verify(&path, None);
    let appended = AuditLog::open(&path).map(|mut log| log.take_recovered());
    match appended {
        Ok(recovered) => {
            let now = std::fs::read(&path).expect("the log");
            let aside = recovered.map(|recovered| {
                let kept = std::fs::read(&recovered.kept_in).expect("what was put aside");
                assert_eq!(kept.len() as u64, recovered.bytes);
                let _ = std::fs::remove_file(&recovered.kept_in);
                kept
            });
            // Nothing is lost: what is not in the file any more is beside it.
            assert_eq!([now.clone(), aside.clone().unwrap_or_default()].concat(), bytes);
            if before.is_ok() {
                assert!(aside.is_none(), "a chain that holds was cut");
            }
            assert!(now.is_empty() || now.ends_with(b"\n"));
        }
        Err(AuditError::Tail { .. }) => {
            assert!(before.is_err(), "a chain that holds cannot be appended to");
            assert_eq!(std::fs::read(&path).expect("the log"), bytes);
        }
        Err(error) => panic!("{error}"),
    }
}

fn bodies(bytes: &[u8]) {
    let lines = chain(bytes.split(|byte| *byte == b'\n'));
    for line in &lines {
        if let Ok(record) = Record::parse(&line[..line.len() - 1]) {
            reads_back(&record);
        }
    }
    file(&lines.concat());
}

/// A record is what its own JSON says.
fn reads_back(record: &Record) {
    let text = serde_json::to_string(record).expect("a record is JSON");
    let again: Record = serde_json::from_str(&text).expect("a record's JSON is a record");
    assert_eq!(serde_json::to_string(&again).expect("a record is JSON"), text);
}

/// Changes a valid chain's bytes or lines; it has to show, given the hash of its last record.
fn changes(u: &mut Unstructured) -> Result<()> {
    let count = u.int_in_range(1..=4)?;
    let bodies: Vec<Vec<u8>> = (0..count).map(|seed| body("@", seed)).collect();
    let lines = chain(bodies.iter().map(Vec::as_slice));
    let valid = lines.concat();
    let verified = verify(&written(&valid), None).expect("a valid chain");
    assert_eq!(verified.records, count);
    let mut changed = lines.clone();
    for _ in 0..u.int_in_range(1..=3)? {
        if changed.is_empty() {
            break;
        }
        let line = u.choose_index(changed.len())?;
        match u.int_in_range(0..=7)? {
            0 => drop(changed.remove(line)),
            1 => changed.insert(line, lines[line % lines.len()].clone()),
            2 => {
                let other = u.choose_index(changed.len())?;
                changed.swap(line, other);
            }
            3 => {
                let length = u.choose_index(changed[line].len().max(1))?;
                changed[line].truncate(length);
            }
            4 => {
                let at = u.choose_index(changed[line].len().max(1))?;
                changed[line].insert(at, u.arbitrary()?);
            }
            _ if changed[line].is_empty() => {}
            _ => {
                let at = u.choose_index(changed[line].len())?;
                changed[line][at] ^= u.arbitrary::<u8>()?;
            }
        }
    }
    let changed = changed.concat();
    if changed != valid {
        let result = verify(&written(&changed), Some(&verified.last));
        assert!(result.is_err(), "a change does not show: {}", String::from_utf8_lossy(&changed));
    }
    Ok(())
}
