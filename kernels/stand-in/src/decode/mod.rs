//! From the tree of PTX to a flat list of instructions that the machine runs without looking at text.
//!
//! Every operand is a register: immediates, special registers and addresses of variables get registers
//! of their own, filled when a warp starts. Calls of device functions are expanded in place. An opcode,
//! part, type or operand that is not known is an error with its line: nothing is guessed, and nothing
//! unknown survives loading. Start at [`kernel`] in `builder.rs`; [`Op`] is what can be executed.

mod arithmetic;
mod builder;
mod control;
mod convert;
mod float;
mod half;
mod integer;
pub(crate) mod lanes;
mod memory;
mod operand;
mod results;
mod warp;

pub(crate) use builder::kernel;
pub(crate) use convert::Conversion;
use lanes::{W1, W2, W3, W4};

/// Index of a register of the warp.
pub(crate) type Reg = u32;

/// A type of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    Pred,
}

impl Type {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "b128" => Self::B128,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "pred" => Self::Pred,
            _ => return None,
        })
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::B8 | Self::U8 | Self::S8 => 8,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 16,
            Self::B32 | Self::U32 | Self::S32 | Self::F16x2 | Self::Bf16x2 | Self::Tf32 | Self::F32 => 32,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 64,
            Self::B128 => 128,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn is_float(self) -> bool {
        self.is_half() || matches!(self, Self::Tf32 | Self::F32 | Self::F64)
    }

    pub(crate) fn is_half(self) -> bool {
        matches!(self, Self::F16 | Self::F16x2 | Self::Bf16 | Self::Bf16x2)
    }
}

/// What a register holds when a warp starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Init {
    /// A register of the program: a pattern that shows, NaN as f32 and f64.
    Poison,
    Constant(u64),
    Special(Special),
}

/// Special registers whose value does not change while a block runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    ThreadX,
    ThreadY,
    ThreadZ,
    ThreadsX,
    ThreadsY,
    ThreadsZ,
    BlockX,
    BlockY,
    BlockZ,
    BlocksX,
    BlocksY,
    BlocksZ,
    Lane,
    Warp,
    Warps,
    LanesEqual,
    LanesLess,
    LanesLessEqual,
    LanesGreater,
    LanesGreaterEqual,
    DynamicSharedBytes,
    TotalSharedBytes,
}

/// The memory that an access names; `Generic` finds out by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// `ld` and `st`.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) space: Where,
    /// Bytes of one element.
    pub(crate) bytes: u32,
    /// Registers, as many as elements.
    pub(crate) registers: Vec<Reg>,
    pub(crate) address: Reg,
    pub(crate) offset: i64,
    /// Width to which a load extends the sign, or 0 where it extends zeros.
    pub(crate) sign_to: u32,
    /// `volatile`, `relaxed`, `acquire` or `release`: no race with its like.
    pub(crate) strong: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    And,
    Or,
    Xor,
    Min,
    Max,
    Inc,
    Dec,
    Exchange,
    CompareExchange,
}

/// `atom` and `red`.
#[derive(Clone, Debug)]
pub(crate) struct Atomic {
    pub(crate) op: AtomicOp,
    pub(crate) kind: Type,
    pub(crate) space: Where,
    pub(crate) result: Option<Reg>,
    pub(crate) address: Reg,
    pub(crate) offset: i64,
    pub(crate) value: Reg,
    pub(crate) other: Reg,
}

/// `cp.async`.
#[derive(Clone, Debug)]
pub(crate) struct CopyAsync {
    pub(crate) to: Reg,
    pub(crate) to_offset: i64,
    pub(crate) from: Reg,
    pub(crate) from_offset: i64,
    pub(crate) bytes: u32,
    /// Bytes really read, the rest become zero.
    pub(crate) source_bytes: Option<Reg>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

/// Instructions that several lanes of a warp execute together.
#[derive(Clone, Debug)]
pub(crate) enum Together {
    Shuffle {
        mode: ShuffleMode,
        result: Reg,
        valid: Reg,
        value: Reg,
        lane: Reg,
        clamp: Reg,
    },
    Vote {
        mode: VoteMode,
        result: Reg,
        value: Reg,
        negated: bool,
    },
    MatchAny {
        result: Reg,
        value: Reg,
    },
    MatchAll {
        result: Reg,
        same: Reg,
        value: Reg,
    },
    Reduce {
        op: AtomicOp,
        kind: Type,
        result: Reg,
        value: Reg,
    },
    /// `bar.warp.sync`.
    Sync,
    LoadMatrix {
        transposed: bool,
        registers: Vec<Reg>,
        address: Reg,
        offset: i64,
    },
    StoreMatrix {
        transposed: bool,
        registers: Vec<Reg>,
        address: Reg,
        offset: i64,
    },
    MoveMatrix {
        result: Reg,
        value: Reg,
    },
    Multiply(Multiply),
}

/// `mma.sync` of shape m16n8kK.
#[derive(Clone, Debug)]
pub(crate) struct Multiply {
    pub(crate) depth: u32,
    pub(crate) a_kind: Type,
    pub(crate) b_kind: Type,
    /// F32, F16 or S32.
    pub(crate) sum_kind: Type,
    pub(crate) saturate: bool,
    pub(crate) d: Vec<Reg>,
    pub(crate) a: Vec<Reg>,
    pub(crate) b: Vec<Reg>,
    pub(crate) c: Vec<Reg>,
}

/// What a barrier does besides waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Wait,
    Arrive,
    Count { result: Reg, value: Reg, negated: bool },
    And { result: Reg, value: Reg, negated: bool },
    Or { result: Reg, value: Reg, negated: bool },
}

/// Additions and subtractions through the carry flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Carry {
    pub(crate) subtract: bool,
    pub(crate) bits: u32,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    pub(crate) flag: Reg,
}

/// One thing that the machine can do.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    One(W1, Reg, Reg),
    Two(W2, Reg, [Reg; 2]),
    Three(W3, Reg, [Reg; 3]),
    Four(W4, Reg, [Reg; 4]),
    /// A bit of `accept`, chosen by the outcome of `order`.
    Compare {
        order: W2,
        accept: u8,
        result: Reg,
        left: Reg,
        right: Reg,
    },
    Convert(Box<Conversion>, Reg, Reg),
    Carry(Carry, Reg, [Reg; 2]),
    Load(Box<Access>),
    Store(Box<Access>),
    Atomic(Box<Atomic>),
    CopyAsync(Box<CopyAsync>),
    CommitGroup,
    /// Waits until at most so many groups are under way.
    WaitGroup(u32),
    WaitAll,
    /// A collective with the register that names its lanes; `None`: those of the whole warp.
    Together(Box<Together>, Option<Reg>),
    ActiveMask(Reg),
    Elect {
        result: Reg,
        chosen: Reg,
        mask: Reg,
    },
    Barrier {
        kind: BarrierKind,
        id: Reg,
        count: Option<Reg>,
    },
    Branch(u32),
    Switch {
        index: Reg,
        targets: Box<[u32]>,
    },
    IsSpace {
        space: Where,
        result: Reg,
        address: Reg,
    },
    Clock(Reg),
    Exit,
    Trap,
    Nothing,
}

/// One instruction of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    /// Register of the guard; meaningless where `guarded` is false.
    pub(crate) guard: Reg,
    pub(crate) guarded: bool,
    pub(crate) negated: bool,
    pub(crate) line: u32,
}

/// A kernel, ready to run.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) code: Vec<Inst>,
    pub(crate) registers: Vec<Init>,
    /// Offset and size of each parameter.
    pub(crate) params: Vec<(u64, u64)>,
    pub(crate) param_bytes: u64,
    pub(crate) shared_bytes: u64,
    pub(crate) local_bytes: u64,
    pub(crate) max_threads: u32,
    pub(crate) required_threads: Option<[u32; 3]>,
}
