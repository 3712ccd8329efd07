//! The compiler's child: limits itself, reads one component, writes its machine code, ends.
//!
//! Standard input brings a [`Request`]; standard output takes one byte as soon as everything of ours is set up,
//! [`READY`], and then the answer. So the parent knows, without reading words, whether a child that died had
//! begun with the guest's component. Nothing else is read or written, and the environment is empty.

use super::seal::{KEY_BYTES, Key, Subject};
use crate::sandbox::config;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use wasmtime::Engine;

/// The one argument by which a program is asked to be the compiler.
pub const ARGUMENT: &str = "vassal-compile-a-policy";

/// Written once the limits are set, the request is read and the compiler is made.
pub(super) const READY: u8 = b'R';
/// Written in place of [`READY`] where the parent's settings are not ours.
pub(super) const OTHER_SETTINGS: u8 = b'S';
/// Before a sealed message.
pub(super) const CODE: u8 = b'C';
/// Before the compiler's words.
pub(super) const REFUSED: u8 = b'E';

/// The form of the request; another form is another number.
const MAGIC: &[u8; 16] = b"vassal-work-0001";

/// Whether this program answers when it is asked to compile.
static SERVED: AtomicBool = AtomicBool::new(false);

pub(super) fn is_served() -> bool {
    SERVED.load(Ordering::Relaxed)
}

/// Makes a program the compiler of its own policies: call it first in `main`.
///
/// Where the program was started as the compiler, this compiles and ends the process. Otherwise it returns at
/// once, and sandboxes of this process may start this program again to compile.
pub fn serve_if_asked() {
    SERVED.store(true, Ordering::Relaxed);
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|argument| argument == ARGUMENT) && arguments.next().is_none() {
        std::process::exit(if serve().is_ok() { 0 } else { 1 });
    }
}

/// What the parent sends: numbers in little-endian order, and then the component to the end.
pub(super) struct Request<'a> {
    pub(super) key: &'a Key,
    pub(super) settings: &'a [u8; 32],
    /// Address space of the child.
    pub(super) memory_bytes: u64,
    /// Processor time of the child, in case nobody is left to stop it.
    pub(super) processor_seconds: u64,
    pub(super) component: &'a [u8],
}

impl Request<'_> {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let numbers = [self.memory_bytes.to_le_bytes(), self.processor_seconds.to_le_bytes()].concat();
        [MAGIC.as_slice(), self.key.bytes(), self.settings, &numbers, self.component].concat()
    }
}

/// An error only says that there is no answer: the parent sees that we end.
fn serve() -> std::io::Result<()> {
    let mut input = std::io::stdin().lock();
    let mut header = [0; MAGIC.len() + KEY_BYTES + 32 + 16];
    input.read_exact(&mut header)?;
    let (magic, rest) = header.split_at(MAGIC.len());
    let (key, rest) = rest.split_at(KEY_BYTES);
    let (settings, numbers) = rest.split_at(32);
    if magic != MAGIC {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|place| numbers[at + place]));
    limit(Resource::As, number(0))?;
    limit(Resource::Cpu, number(8))?;
    limit(Resource::Core, 0)?;
    let mut component = Vec::new();
    input.read_to_end(&mut component)?;
    let engine = Engine::new(&config::compiler()).map_err(std::io::Error::other)?;
    let ours = config::settings_digest(&engine);
    let mut output = std::io::stdout().lock();
    if ours != *settings {
        output.write_all(&[OTHER_SETTINGS])?;
        return output.flush();
    }
    output.write_all(&[READY])?;
    output.flush()?;
    let (kind, answer) = match engine.precompile_component(&component) {
        Ok(code) => {
            let key = Key::from_bytes(std::array::from_fn(|place| key[place]));
            let subject = Subject { component: Sha256::digest(&component).into(), settings: ours };
            (CODE, key.seal(&subject, &code))
        }
        Err(error) => (REFUSED, format!("{error:#}").into_bytes()),
    };
    output.write_all(&[kind])?;
    output.write_all(&answer)?;
    output.flush()
}

/// Sets a limit, or leaves a harder one that is set already.
fn limit(resource: Resource, most: u64) -> std::io::Result<()> {
    let most = getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}
