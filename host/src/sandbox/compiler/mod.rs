//! How a component becomes machine code: in a child process, with the cache in front of it.
//!
//! Compiling cannot be cancelled in a process, and what it takes in time and memory does not follow from any
//! count of the component. So the process that serves never compiles a guest: it starts a child (`parent.rs`),
//! a program that has [`serve_if_asked`] at the top of its `main` (`child.rs`), and stops it at the limits.
//! The answer is sealed (`seal.rs`), because deserialising machine code is only safe if this program made it.
//! Code that was made before may come from a folder (`cache.rs`).
//!
//! Start at [`Compilation`], which is the embedder's choice.

mod cache;
mod child;
mod parent;
pub(super) mod seal;

pub use child::{ARGUMENT, serve_if_asked};

use super::limits::Limits;
use cache::Cache;
use seal::{Authentic, Subject};
use std::path::PathBuf;

/// Where components are compiled.
#[derive(Debug, Clone)]
pub enum Compilation {
    /// In a child process with limits of its own: the choice for components of strangers.
    Child(ChildCompiler),
    /// In this process, without limits on time and memory: for components that you trust as you trust this
    /// program. Nothing falls back to it.
    InProcess,
}

impl Default for Compilation {
    /// In a child that runs this program, without a cache.
    fn default() -> Self {
        Self::Child(ChildCompiler::default())
    }
}

/// The child that compiles, and where its answers are kept.
#[derive(Debug, Clone, Default)]
pub struct ChildCompiler {
    /// The program, which must call [`serve_if_asked`]; this one where none is named.
    pub program: Option<PathBuf>,
    /// The folder below which the cache and its key are kept; no cache where there is none.
    pub cache: Option<PathBuf>,
}

/// What is wrong with the compiler: never the guest's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompilerError {
    /// No program is named, and this one does not serve as a compiler.
    #[error(
        "this program cannot compile in a child: call `vassal::sandbox::compiler::serve_if_asked()` first in its \
         `main`, name a program that does, or choose `Compilation::InProcess` for components that you trust"
    )]
    NotServed,
    /// The program cannot be started.
    #[error("the compiler {program} cannot be started: {detail}")]
    Start {
        /// The program.
        program: String,
        /// The system's words.
        detail: String,
    },
    /// It is no compiler, or could not set itself up.
    #[error(
        "the compiler {program} was not ready within {limit_ms} ms ({ended}): is it a program of this version that serves as one?"
    )]
    NotReady {
        /// The program.
        program: String,
        /// How it ended, if it did.
        ended: String,
        /// The time that it had.
        limit_ms: u64,
    },
    /// It compiles for other settings: another version of this program, most likely.
    #[error("the compiler {program} has other settings than this program: is it another version?")]
    OtherSettings {
        /// The program.
        program: String,
    },
    /// Its answer is not sealed with the key that it was given, or is about something else.
    #[error("the answer of the compiler {program} is not authentic, and was not loaded")]
    Forged {
        /// The program.
        program: String,
    },
}

/// Why there is no machine code.
#[derive(Debug)]
pub(super) enum Failure {
    /// The guest took more than `compile_ms`.
    Time,
    /// The guest's compilation ended the compiler, in these words.
    Ended(String),
    /// The machine code is larger than `code_bytes`.
    TooLarge,
    /// The compiler refuses the component, in its words (not cleaned).
    Refused(String),
    /// The compiler is at fault.
    Compiler(CompilerError),
}

/// Where a component's machine code came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The folder.
    Cache,
    /// A child, just now.
    Child,
}

impl ChildCompiler {
    /// The machine code of a valid component.
    pub(super) fn code(
        &self,
        component: &[u8],
        subject: &Subject,
        limits: &Limits,
        fresh: bool,
    ) -> Result<(Authentic, Origin), Failure> {
        let cache = self.cache.as_ref().map(|home| Cache::below(home, limits));
        if let Some(code) = cache.as_ref().filter(|_| !fresh).and_then(|cache| cache.get(subject)) {
            return Ok((code, Origin::Cache));
        }
        let program = self.program()?;
        let code = parent::compile(&program, component, subject, limits)?;
        if let Some(cache) = cache {
            // A cache that cannot be written is slow, and nothing else.
            let _ = cache.put(subject, &code);
        }
        Ok((code, Origin::Child))
    }

    fn program(&self) -> Result<PathBuf, Failure> {
        match &self.program {
            Some(program) => Ok(program.clone()),
            // Without the call, the child would be this program doing once more whatever it does.
            None if !child::is_served() => Err(Failure::Compiler(CompilerError::NotServed)),
            // The file that runs, even where another was put in its place since.
            None if cfg!(target_os = "linux") => Ok(PathBuf::from("/proc/self/exe")),
            None => std::env::current_exe().map_err(|error| {
                let program = "this program".to_owned();
                Failure::Compiler(CompilerError::Start { program, detail: error.to_string() })
            }),
        }
    }
}
