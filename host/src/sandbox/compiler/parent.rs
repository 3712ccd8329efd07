//! The parent's side: starts the child, gives it a component, takes the answer, and stops it at its limits.
//!
//! Two threads of its own feed the pipes, so that a child that neither reads nor writes holds nobody up; they
//! end when the child does. The clock starts anew once the child is ready: until then time is the host's, and
//! after that the guest's.

use super::child::{ARGUMENT, CODE, OTHER_SETTINGS, READY, REFUSED, Request};
use super::seal::{Authentic, Key, SEAL_BYTES, Subject};
use super::{CompilerError, Failure};
use crate::sandbox::limits::Limits;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How often an ending child is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// How long a child may take to end after its last word.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What the reading thread reports, in this order.
enum Heard {
    First(u8),
    /// All that followed, up to the limit and one byte.
    Rest(Vec<u8>),
}

/// Compiles in a child.
pub(super) fn compile(
    program: &Path,
    component: &[u8],
    subject: &Subject,
    limits: &Limits,
) -> Result<Authentic, Failure> {
    let name = || program.display().to_string();
    let start = |detail: String| Failure::Compiler(CompilerError::Start { program: name(), detail });
    let key = Key::random().ok_or_else(|| start("the system gives no random numbers".to_owned()))?;
    let request = Request {
        key: &key,
        settings: &subject.settings,
        memory_bytes: limits.compile_memory_bytes as u64,
        processor_seconds: limits.compile_ms.saturating_add(limits.compiler_start_ms).div_ceil(1_000).saturating_add(1),
        component,
    };
    let mut command = Command::new(program);
    command.arg(ARGUMENT).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Stopped(command.spawn().map_err(|error| start(error.to_string()))?);
    let heard = talk(&mut child.0, request.bytes(), limits.code_bytes).map_err(|error| start(error.to_string()))?;
    let not_ready = |ended: String| {
        let limit_ms = limits.compiler_start_ms;
        Failure::Compiler(CompilerError::NotReady { program: name(), ended, limit_ms })
    };
    match heard.recv_timeout(Duration::from_millis(limits.compiler_start_ms)) {
        Ok(Heard::First(READY)) => {}
        Ok(Heard::First(OTHER_SETTINGS)) => {
            return Err(Failure::Compiler(CompilerError::OtherSettings { program: name() }));
        }
        Ok(_) => return Err(not_ready("it said something else".to_owned())),
        Err(mpsc::RecvTimeoutError::Timeout) => return Err(not_ready("it was stopped".to_owned())),
        Err(mpsc::RecvTimeoutError::Disconnected) => return Err(not_ready(child.ended())),
    }
    let answer = match heard.recv_timeout(Duration::from_millis(limits.compile_ms)) {
        Ok(Heard::Rest(answer)) => answer,
        Err(mpsc::RecvTimeoutError::Timeout) => return Err(Failure::Time),
        // A pipe that broke: whatever it is, there is no whole answer.
        Ok(Heard::First(_)) | Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Failure::Ended(child.ended())),
    };
    let forged = || Failure::Compiler(CompilerError::Forged { program: name() });
    match answer.first() {
        None => Err(Failure::Ended(child.ended())),
        Some(&CODE) if answer.len() > limits.code_bytes + SEAL_BYTES + 1 => Err(Failure::TooLarge),
        Some(&CODE) => key.open(subject, answer[1..].to_vec()).ok_or_else(forged),
        Some(&REFUSED) => Err(Failure::Refused(String::from_utf8_lossy(&answer[1..]).into_owned())),
        Some(_) => Err(forged()),
    }
}

/// Feeds the child and listens to it, each on a thread.
fn talk(child: &mut Child, request: Vec<u8>, code_bytes: usize) -> std::io::Result<mpsc::Receiver<Heard>> {
    let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(std::io::ErrorKind::BrokenPipe.into());
    };
    let (tell, heard) = mpsc::channel();
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    // A child that does not listen says so by what it answers.
    thread("compiler-input").spawn(move || drop(input.write_all(&request)))?;
    thread("compiler-output").spawn(move || {
        let mut first = [0];
        if output.read_exact(&mut first).is_ok() && tell.send(Heard::First(first[0])).is_ok() {
            let mut rest = Vec::new();
            let most = (code_bytes + SEAL_BYTES + 2) as u64;
            if output.take(most).read_to_end(&mut rest).is_ok() {
                // Nobody listens any more if the time was up.
                let _ = tell.send(Heard::Rest(rest));
            }
        }
    })?;
    Ok(heard)
}

/// A child that does not outlive this value.
struct Stopped(Child);

impl Stopped {
    /// How it ended by itself; it is stopped if it does not.
    fn ended(&mut self) -> String {
        let begun = Instant::now();
        while begun.elapsed() < LAST_WORD {
            match self.0.try_wait() {
                Ok(Some(status)) => return words(status),
                Ok(None) => std::thread::sleep(LOOK),
                Err(error) => return error.to_string(),
            }
        }
        "it went silent".to_owned()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Both fail where it has ended and been waited for, which is what they are for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn words(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("it was ended by signal {signal}"),
        (None, code) => format!("it ended with exit code {}", code.unwrap_or(-1)),
    }
}
