//! What went wrong with a guest, as a value with a closed set of kinds.
//!
//! Kinds are told apart by type, never by an error's text; what the runtime reports without a type of its
//! own is [`FaultKind::Error`]. A fault ends one response and nothing else: its instance is dropped and
//! answers the same fault for ever. Deciding what follows (`abort` or `base`) is the engine's.

use super::decision::BadDecision;
use super::guest::Guest;
use super::limits::Limits;
use super::plan::BadPlan;
use super::words::clean;
use crate::token_search::FindError;
use wasmtime::Trap;

/// A guest that failed, and how.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{guest}: {kind}{}{detail}", if detail.is_empty() { "" } else { ": " })]
pub struct Fault {
    /// What kind of fault it is.
    pub kind: FaultKind,
    /// Whose it is.
    pub guest: Guest,
    /// More for a log, cleaned; may be empty.
    pub detail: String,
}

/// The kinds of fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FaultKind {
    /// The call used up its fuel.
    #[error("out of fuel")]
    OutOfFuel,
    /// The clock ran out before the fuel did: the host's fault, not the guest's.
    #[error("the host's deadline passed")]
    Deadline,
    /// A linear memory would have grown beyond the limit.
    #[error("memory limit: {wanted_bytes} bytes wanted, at most {limit_bytes} allowed")]
    Memory {
        /// The size asked for.
        wanted_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A table would have grown beyond the limit.
    #[error("table limit: {wanted} entries wanted, at most {limit} allowed")]
    Table {
        /// The entries asked for.
        wanted: usize,
        /// The limit.
        limit: usize,
    },
    /// A host function was called with what the contract forbids.
    #[error("bad call: {0}")]
    BadCall(BadCall),
    /// The guest trapped.
    #[error("trap: {0}")]
    Trap(TrapCode),
    /// The answer does not fit the step, the manifest or what was granted.
    #[error("bad decision: {0}")]
    BadDecision(BadDecision),
    /// The plan that `start` answered does not fit the manifest.
    #[error("bad plan: {0}")]
    BadPlan(BadPlan),
    /// `start` answered with an error; its words are the detail.
    #[error("refused to start")]
    StartRefused,
    /// All instances that the host can hold are in use: the host's fault, not the guest's.
    #[error("no free instance")]
    Capacity,
    /// Any other failure of a guest call: an answer too large to lift, a bad string, too many handles, ...
    #[error("failed")]
    Error,
}

impl FaultKind {
    /// Whether the host, not the guest, is to blame.
    pub fn is_the_hosts(&self) -> bool {
        matches!(self, Self::Deadline | Self::Capacity)
    }
}

/// A call of a host function that the contract forbids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCall {
    /// A pattern beyond the bounds of `text.find`.
    #[error("{0}")]
    Pattern(FindError),
    /// More text than one call may encode.
    #[error("{bytes} bytes of text, at most {limit} allowed")]
    TextTooLong {
        /// The text's length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// Why a guest trapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrapCode {
    /// It gave up (a panic, mostly).
    #[error("unreachable code reached")]
    Unreachable,
    /// Its stack was exhausted. A Rust guest's own stack lies in its memory, so there it is [`Self::MemoryOutOfBounds`].
    #[error("stack overflow")]
    StackOverflow,
    /// An access outside its memory.
    #[error("memory access out of bounds")]
    MemoryOutOfBounds,
    /// An access outside a table.
    #[error("table access out of bounds")]
    TableOutOfBounds,
    /// A call through a table that found nothing or another signature.
    #[error("bad indirect call")]
    IndirectCall,
    /// Integer overflow, division by zero, or a conversion that does not fit.
    #[error("bad arithmetic")]
    Arithmetic,
    /// A list, string or variant handed over whose place or form is invalid.
    #[error("invalid value handed over")]
    InvalidValue,
    /// Anything else.
    #[error("other")]
    Other,
}

impl From<Trap> for TrapCode {
    fn from(trap: Trap) -> Self {
        match trap {
            Trap::UnreachableCodeReached => Self::Unreachable,
            Trap::StackOverflow => Self::StackOverflow,
            Trap::MemoryOutOfBounds => Self::MemoryOutOfBounds,
            Trap::TableOutOfBounds => Self::TableOutOfBounds,
            Trap::IndirectCallToNull | Trap::BadSignature => Self::IndirectCall,
            Trap::IntegerOverflow | Trap::IntegerDivisionByZero | Trap::BadConversionToInteger => Self::Arithmetic,
            Trap::InvalidChar
            | Trap::StringOutOfBounds
            | Trap::ListOutOfBounds
            | Trap::InvalidDiscriminant
            | Trap::UnalignedPointer => Self::InvalidValue,
            _ => Self::Other,
        }
    }
}

/// What our own host functions and limiter raise inside a guest call. It travels through the guest
/// unchanged and is recognised by its type.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) FaultKind);

/// The longest detail kept, bytes.
const DETAIL_BYTES: usize = 512;

impl Fault {
    /// A fault of `guest` whose kind says everything.
    pub(super) fn new(guest: &Guest, kind: FaultKind) -> Self {
        Self { kind, guest: guest.clone(), detail: String::new() }
    }

    /// The same, with the bound that `call` has met where the kind does not name it; `fuel` is the call's, and so are the
    /// `windows` of the clock.
    pub(super) fn of_call(mut self, call: &str, fuel: u64, windows: u32, limits: &Limits) -> Self {
        let Limits { deadline_ms, sequences, .. } = limits;
        self.detail = match self.kind {
            FaultKind::OutOfFuel => format!("{call} may use {fuel} units"),
            FaultKind::Deadline => format!("{call} may take {windows} times {deadline_ms} ms"),
            FaultKind::Capacity => format!("the host holds {sequences}, and all are in use"),
            _ => return self,
        };
        self
    }

    /// Classifies the error of a guest call. `last_note` is what the guest noted last in it: the message of
    /// a panic, where it gave up.
    pub(super) fn from_error(guest: &Guest, error: &wasmtime::Error, last_note: Option<&String>) -> Self {
        let kind = if let Some(Raised(kind)) = error.downcast_ref() {
            kind.clone()
        } else if let Some(trap) = error.downcast_ref::<Trap>() {
            match *trap {
                Trap::OutOfFuel => FaultKind::OutOfFuel,
                Trap::Interrupt => FaultKind::Deadline,
                other => FaultKind::Trap(other.into()),
            }
        } else if error.downcast_ref::<wasmtime::PoolConcurrencyLimitError>().is_some() {
            FaultKind::Capacity
        } else {
            FaultKind::Error
        };
        let detail = match kind {
            FaultKind::Error | FaultKind::Trap(TrapCode::Other) => clean(&format!("{error:#}"), DETAIL_BYTES),
            FaultKind::Trap(TrapCode::Unreachable) => last_note.cloned().unwrap_or_default(),
            _ => String::new(),
        };
        Self { kind, guest: guest.clone(), detail }
    }
}
