//! Why a component is not loaded, as a value with a closed set of kinds.
//!
//! Each kind names the policy, what is wrong, the bound and what was given. Most are the guest's;
//! [`LoadError::is_the_hosts`] tells which are not.

use super::caps::Cap;
use super::compiler::{CompilerError, Failure};
use super::contract::ContractError;
use super::fault::Fault;
use super::limits::Limits;
use super::manifest::ManifestError;
use super::words::clean;

/// Why a component is not loaded. Guest's words are cleaned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// More bytes than a component may have.
    #[error("policy `{policy}`: {bytes} bytes, at most {limit_bytes} allowed")]
    TooLarge {
        /// The policy.
        policy: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Not WebAssembly at all.
    #[error("policy `{policy}`: not a WebAssembly file (it does not begin with `\\0asm`)")]
    NotWebAssembly {
        /// The policy.
        policy: String,
    },
    /// A core module.
    #[error(
        "policy `{policy}`: a core WebAssembly module, not a component; make it one with `wasm-tools component new`"
    )]
    CoreModule {
        /// The policy.
        policy: String,
    },
    /// Well formed so far, but more of something than its cap allows.
    #[error("policy `{policy}`: {}{given} {cap}, at most {limit} allowed", in_function(.function))]
    Cap {
        /// The policy.
        policy: String,
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
    #[error("policy `{policy}`: not a valid component: {detail}")]
    Invalid {
        /// The policy.
        policy: String,
        /// The parser's or the runtime's words, cleaned.
        detail: String,
    },
    /// It takes too long to compile.
    #[error("policy `{policy}`: compiling it takes longer than the {limit_ms} ms allowed")]
    CompileTime {
        /// The policy.
        policy: String,
        /// The limit.
        limit_ms: u64,
    },
    /// It ended the compiler: by taking too much memory, most likely.
    #[error("policy `{policy}`: compiling it ended the compiler, which has {limit_bytes} bytes of memory ({ended})")]
    CompileMemory {
        /// The policy.
        policy: String,
        /// How the compiler ended.
        ended: String,
        /// The compiler's address space.
        limit_bytes: usize,
    },
    /// Its machine code is too large.
    #[error("policy `{policy}`: its machine code is larger than the {limit_bytes} bytes allowed")]
    CodeTooLarge {
        /// The policy.
        policy: String,
        /// The limit.
        limit_bytes: usize,
    },
    /// The compiler is at fault: the host's, never the policy's.
    #[error("policy `{policy}`: {error}")]
    Compiler {
        /// The policy that was to be compiled.
        policy: String,
        /// What is wrong with the compiler.
        error: CompilerError,
    },
    /// A component, but not a policy.
    #[error("policy `{policy}`: {error}")]
    Contract {
        /// The policy.
        policy: String,
        /// How it breaks the contract.
        error: ContractError,
    },
    /// `describe` failed.
    #[error("{0}")]
    Describe(Fault),
    /// What `describe` said is refused.
    #[error("policy `{policy}`: {error}")]
    Manifest {
        /// The policy.
        policy: String,
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
    pub(super) fn invalid(policy: &str, words: &str) -> Self {
        Self::Invalid { policy: policy.to_owned(), detail: clean(words, DETAIL_BYTES) }
    }

    /// A policy for which there is no machine code.
    pub(super) fn uncompiled(policy: &str, failure: Failure, limits: &Limits) -> Self {
        let named = policy.to_owned();
        match failure {
            Failure::Time => Self::CompileTime { policy: named, limit_ms: limits.compile_ms },
            Failure::Ended(ended) => {
                Self::CompileMemory { policy: named, ended, limit_bytes: limits.compile_memory_bytes }
            }
            Failure::TooLarge => Self::CodeTooLarge { policy: named, limit_bytes: limits.code_bytes },
            Failure::Refused(words) => Self::invalid(policy, &words),
            Failure::Compiler(error) => Self::Compiler { policy: named, error },
        }
    }
}
