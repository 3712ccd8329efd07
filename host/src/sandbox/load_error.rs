//! Why a component is not loaded, as a value with a closed set of kinds.
//!
//! Each kind names the component, what is wrong, the bound and what was given. Most are the guest's;
//! [`LoadError::is_the_hosts`] tells which are not.

use super::caps::Cap;
use super::compiler::{CompilerError, Failure};
use super::contract::ContractError;
use super::fault::Fault;
use super::guest::Guest;
use super::limits::Limits;
use super::manifest::ManifestError;
use super::words::clean;

/// Why a component is not loaded. Guest's words are cleaned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// More bytes than a component may have.
    #[error("{guest}: {bytes} bytes, at most {limit_bytes} allowed")]
    TooLarge {
        /// Which.
        guest: Guest,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Not WebAssembly at all.
    #[error("{guest}: not a WebAssembly file (it does not begin with `\\0asm`)")]
    NotWebAssembly {
        /// Which.
        guest: Guest,
    },
    /// A core module.
    #[error("{guest}: a core WebAssembly module, not a component; make it one with `wasm-tools component new`")]
    CoreModule {
        /// Which.
        guest: Guest,
    },
    /// Well formed so far, but more of something than its cap allows.
    #[error("{guest}: {}{given} {cap}, at most {limit} allowed", in_function(.function))]
    Cap {
        /// Which.
        guest: Guest,
        /// What there is too much of.
        cap: Cap,
        /// How much there is, as far as was counted.
        given: u64,
        /// The limit.
        limit: u64,
        /// The index of the core function that has it, where it is one's.
        function: Option<u32>,
    },
    /// Damaged, cut off, or in need of what is switched off.
    #[error("{guest}: not a valid component: {detail}")]
    Invalid {
        /// Which.
        guest: Guest,
        /// The parser's or the runtime's words, cleaned.
        detail: String,
    },
    /// It takes too long to compile.
    #[error("{guest}: compiling it takes longer than the {limit_ms} ms allowed")]
    CompileTime {
        /// Which.
        guest: Guest,
        /// The limit.
        limit_ms: u64,
    },
    /// It ended the compiler: by taking too much memory, most likely.
    #[error("{guest}: compiling it ended the compiler, which has {limit_bytes} bytes of memory ({ended})")]
    CompileMemory {
        /// Which.
        guest: Guest,
        /// How the compiler ended.
        ended: String,
        /// The compiler's address space.
        limit_bytes: usize,
    },
    /// Its machine code is too large.
    #[error("{guest}: its machine code is larger than the {limit_bytes} bytes allowed")]
    CodeTooLarge {
        /// Which.
        guest: Guest,
        /// The limit.
        limit_bytes: usize,
    },
    /// The compiler is at fault: the host's, never the guest's.
    #[error("{guest}: {error}")]
    Compiler {
        /// What was to be compiled.
        guest: Guest,
        /// What is wrong with the compiler.
        error: CompilerError,
    },
    /// A component, but not of the kind that it was taken for.
    #[error("{guest}: {error}")]
    Contract {
        /// Which.
        guest: Guest,
        /// How it breaks the contract.
        error: ContractError,
    },
    /// `describe` failed.
    #[error("{0}")]
    Describe(Fault),
    /// What `describe` said is refused.
    #[error("{guest}: {error}")]
    Manifest {
        /// Which.
        guest: Guest,
        /// Why.
        error: ManifestError,
    },
}

/// `function 17: `, or nothing.
fn in_function(function: &Option<u32>) -> String {
    function.map_or(String::new(), |index| format!("function {index}: "))
}

/// The longest complaint of the runtime that is kept, bytes.
const DETAIL_BYTES: usize = 512;

impl LoadError {
    /// Whether the host, not the guest, is to blame.
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::Compiler { .. } => true,
            Self::Describe(fault) => fault.kind.is_the_hosts(),
            _ => false,
        }
    }

    /// What the runtime finds wrong with a component that passed the validator.
    pub(super) fn invalid(guest: &Guest, words: &str) -> Self {
        Self::Invalid { guest: guest.clone(), detail: clean(words, DETAIL_BYTES) }
    }

    /// A component for which there is no machine code.
    pub(super) fn uncompiled(guest: &Guest, failure: Failure, limits: &Limits) -> Self {
        let guest = guest.clone();
        match failure {
            Failure::Time => Self::CompileTime { guest, limit_ms: limits.compile_ms },
            Failure::Ended(ended) => Self::CompileMemory { guest, ended, limit_bytes: limits.compile_memory_bytes },
            Failure::TooLarge => Self::CodeTooLarge { guest, limit_bytes: limits.code_bytes },
            Failure::Refused(words) => Self::invalid(&guest, &words),
            Failure::Compiler(error) => Self::Compiler { guest, error },
        }
    }
}
