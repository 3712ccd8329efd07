//! The compiler's child: what it may take, what becomes of one that lies, and whose fault each is.
//!
//! Children that are no compilers are shell scripts. After each failure the same process serves a policy.
//! Limits are lowered where a default would take a test too long, and only then.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vassal::error::{Cause, Error};
use vassal::sandbox::{Compilation, CompilerError, Guest, Limits, LoadError, Sandbox};

use super::{PROGRAM, folder, good, is_served, limits, module, sandbox};
use crate::attacks::Served;

/// Within every cap, and seconds and more than 100 MiB to compile: large functions of nothing but calls, two bytes
/// each, around which fuel is counted.
fn heavy() -> Vec<u8> {
    let function = format!("(func {})", "call $f ".repeat(32_000));
    wat::parse_str(module(&format!("(func $f) {}", function.repeat(16)))).unwrap()
}

/// A program of one line of shell; `$program` is the compiler.
fn script(name: &str, line: &str) -> PathBuf {
    let path = folder(&format!("script-{name}")).join("program");
    std::fs::write(&path, format!("#!/bin/sh\nprogram='{PROGRAM}'\n{line}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What loading `component` ends in, with whose fault it is; a good policy is served after it.
#[track_caller]
fn refused(program: impl AsRef<Path>, component: &[u8], limits: Limits) -> (LoadError, Cause) {
    let error = sandbox(program.as_ref(), None, limits).compile("policy", component).expect_err("refused");
    is_served(&sandbox(PROGRAM, None, super::limits())).unwrap();
    let words = error.to_string();
    assert!(words.starts_with("policy `policy`: ") && words.len() < 1_024, "{words}");
    (error.clone(), Error::from(error).cause())
}

#[test]
fn a_child_compiles_what_the_process_would() {
    let in_process = Sandbox::new(limits(), Compilation::InProcess).unwrap();
    let (ours, childs) = (is_served(&in_process).unwrap(), is_served(&sandbox(PROGRAM, None, limits())).unwrap());
    let manifests = [&ours, &childs].map(|policy| policy.describe(&[], Default::default()).unwrap());
    assert_eq!(manifests[0], manifests[1]);
    assert_eq!(
        (ours.sha256(), ours.imports(), ours.footprint()),
        (childs.sha256(), childs.imports(), childs.footprint())
    );
}

#[test]
fn a_component_that_compiles_too_long_is_stopped() {
    let _served = Served::as_before();
    let heavy = heavy();
    let (error, cause) = refused(PROGRAM, &heavy, Limits { compile_ms: 100, ..limits() });
    assert_eq!(
        (error, cause),
        (LoadError::CompileTime { guest: Guest::policy("policy"), limit_ms: 100 }, Cause::Guest)
    );
}

#[test]
fn a_component_that_takes_too_much_memory_to_compile_ends_the_child_only() {
    let _served = Served::as_before();
    let limit_bytes = 96 << 20;
    let small = Limits { compile_memory_bytes: limit_bytes, compile_ms: 120_000, ..limits() };
    // It is the component that does not fit, not the compiler.
    is_served(&sandbox(PROGRAM, None, small.clone())).unwrap();
    let (error, cause) = refused(PROGRAM, &heavy(), small);
    assert!(matches!(error, LoadError::CompileMemory { limit_bytes: 100_663_296, .. }), "{error:?}");
    assert_eq!(cause, Cause::Guest);
}

#[test]
fn machine_code_beyond_its_limit_is_not_read() {
    let _served = Served::as_before();
    let (error, cause) = refused(PROGRAM, &good(), Limits { code_bytes: 1_000, ..limits() });
    assert_eq!(
        (error, cause),
        (LoadError::CodeTooLarge { guest: Guest::policy("policy"), limit_bytes: 1_000 }, Cause::Guest)
    );
}

#[test]
fn an_answer_that_is_not_the_compilers_is_refused() {
    let _served = Served::as_before();
    let relay = script("relay", "\"$program\" \"$@\" | cat");
    is_served(&sandbox(relay, None, limits())).expect("the way itself is sound");
    for (name, line) in [
        // One value of bytes replaced wherever it stands.
        ("flipped", "\"$program\" \"$@\" | tr '\\377' '\\376'"),
        ("longer", "\"$program\" \"$@\"; printf x"),
        ("invented", "cat >/dev/null; printf RC; head -c 5000 /dev/zero"),
        ("short", "cat >/dev/null; printf RCx"),
        ("unknown", "cat >/dev/null; printf RX"),
    ] {
        let (error, cause) = refused(script(name, line), &good(), limits());
        assert!(matches!(error, LoadError::Compiler { error: CompilerError::Forged { .. }, .. }), "{name}: {error}");
        assert_eq!(cause, Cause::Host, "{name}");
    }
}

#[test]
fn a_child_that_dies_or_goes_silent_over_a_component_is_the_guests_fault() {
    let _served = Served::as_before();
    let (error, cause) = refused(script("dies", "printf R; kill -9 $$"), &good(), limits());
    let LoadError::CompileMemory { ended, .. } = error else { panic!("{error}") };
    assert_eq!((ended.as_str(), cause), ("it was ended by signal 9", Cause::Guest));
    let slow = Limits { compile_ms: 100, ..limits() };
    let (error, cause) = refused(script("silent", "printf R; exec sleep 60"), &good(), slow);
    assert!(matches!(error, LoadError::CompileTime { limit_ms: 100, .. }), "{error}");
    assert_eq!(cause, Cause::Guest);
}

#[test]
fn a_compiler_that_is_none_is_the_hosts_fault() {
    let _served = Served::as_before();
    let of = |program: &Path, limits| match refused(program, &good(), limits) {
        (LoadError::Compiler { error, .. }, Cause::Host) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(of(Path::new("/nowhere/vassal"), limits()), CompilerError::Start { .. }));
    let error = of(&script("ends", "exit 3"), limits());
    assert!(matches!(&error, CompilerError::NotReady { ended, .. } if ended == "it ended with exit code 3"), "{error}");
    let error = of(&script("talks", "echo hello; exec sleep 60"), limits());
    assert!(matches!(&error, CompilerError::NotReady { .. }), "{error}");
    let slow = Limits { compiler_start_ms: 100, ..limits() };
    let error = of(&script("sleeps", "exec sleep 60"), slow);
    assert!(matches!(&error, CompilerError::NotReady { limit_ms: 100, .. }), "{error}");
    let error = of(&script("other", "printf S"), limits());
    assert!(matches!(&error, CompilerError::OtherSettings { .. }), "{error}");
}

#[test]
fn nothing_is_compiled_here_unless_that_was_chosen() {
    // The tests' own `main` does not serve, so this program must not be started again.
    let sandbox = Sandbox::new(limits(), Compilation::default()).unwrap();
    let error = sandbox.compile("policy", &good()).unwrap_err();
    assert_eq!(error, LoadError::Compiler { guest: Guest::policy("policy"), error: CompilerError::NotServed });
    assert_eq!(Error::from(error).cause(), Cause::Host);
}

#[test]
fn the_compiler_asked_by_a_stranger_says_nothing() {
    let mut child = Command::new(PROGRAM)
        .arg(vassal::sandbox::compiler::ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    // It may have ended by then.
    let _ = child.stdin.take().unwrap().write_all(&[b'x'; 4_096]);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(1), 0, 0));
}
