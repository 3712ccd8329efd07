//! Findings: what was wrong with a kernel or with a call, as text that a test can read.
//!
//! A finding ends the launch that it is in, and makes the device's error sticky, as a fault does on
//! hardware; what the hardware would let pass (a race, an uninitialised read) ends it as well. The
//! list lives as long as the process. Start at [`Kind`].

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An access outside any allocation, or across the end of one.
    OutOfBounds,
    /// An address that is not a multiple of the size of the access.
    Misaligned,
    /// Bytes read that nothing has written.
    Uninitialised,
    /// An access to memory that was freed.
    UseAfterFree,
    /// A write to constants.
    ReadOnly,
    /// Two accesses to shared memory, one a write, that nothing orders.
    Race,
    /// An access to bytes that an asynchronous copy is still writing.
    PendingCopy,
    /// Threads of a block that do not meet at one barrier.
    BarrierDivergence,
    /// Lanes named by a warp-wide instruction that do not come to it.
    WarpDivergence,
    /// Memory that was never freed.
    Leak,
    /// A launch that the device refuses.
    Launch,
    /// The kernel trapped.
    Trap,
    /// The kernel ran longer than the stand-in waits.
    Timeout,
    /// A module with something that the stand-in does not implement or understand.
    Module,
    /// A call of the driver with arguments that it refuses.
    Call,
}

/// One finding.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What was found.
    pub kind: Kind,
    /// Where, and with which values: kernel, PTX line, block, thread, address.
    pub text: String,
}

impl Finding {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}
