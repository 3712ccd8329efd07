//! What a component is made of, counted, beside the cap on each: what it may cost to compile and to hold.
//!
//! A [`Cap`] names one thing that is counted, and finds its bound in [`Limits`]. A [`Footprint`] is what one
//! component has of everything; adding to it beyond a cap is an error, so whoever counts need not compare.
//! Counting itself is `validate.rs`.

use super::limits::Limits;
use std::fmt;

/// Something of a component that is counted and bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Cap {
    /// The file's size.
    ComponentBytes,
    /// Components inside each other, the file's own included.
    ComponentDepth,
    /// Components, all together.
    Components,
    /// Core modules, all together.
    Modules,
    /// Instances of modules and of components, all together.
    Instances,
    /// Functions with a body and adapted ones, all together.
    Functions,
    /// Types of all kinds, those declared inside others included, all together.
    Types,
    /// Component and instance types declared inside others, counted so that it may be too many and never too few.
    NestedTypes,
    /// Imports of components and modules, all together.
    Imports,
    /// Exports of components and modules, all together.
    Exports,
    /// Aliases, all together.
    Aliases,
    /// Globals, all together.
    Globals,
    /// Memories that modules define, all together.
    Memories,
    /// Tables that modules define, all together.
    Tables,
    /// Data segments, all together.
    DataSegments,
    /// Element segments, all together.
    ElementSegments,
    /// Entries of element segments, all together.
    ElementEntries,
    /// A memory's initial size.
    MemoryBytes,
    /// A table's initial size.
    TableEntries,
    /// A function's body.
    FunctionBytes,
    /// A function's locals, its parameters included.
    FunctionLocals,
    /// Blocks inside each other in a function.
    FunctionBlocks,
    /// Loops inside each other in a function.
    FunctionLoops,
    /// Operands on a function's stack.
    FunctionOperands,
    /// Parameters and results of a core function or block, together.
    SignatureValues,
}

impl Cap {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 25] = [
        Self::ComponentBytes,
        Self::ComponentDepth,
        Self::Components,
        Self::Modules,
        Self::Instances,
        Self::Functions,
        Self::Types,
        Self::NestedTypes,
        Self::Imports,
        Self::Exports,
        Self::Aliases,
        Self::Globals,
        Self::Memories,
        Self::Tables,
        Self::DataSegments,
        Self::ElementSegments,
        Self::ElementEntries,
        Self::MemoryBytes,
        Self::TableEntries,
        Self::FunctionBytes,
        Self::FunctionLocals,
        Self::FunctionBlocks,
        Self::FunctionLoops,
        Self::FunctionOperands,
        Self::SignatureValues,
    ];

    /// What is counted, in the plural: `nested blocks in a function`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ComponentBytes => "bytes",
            Self::ComponentDepth => "components inside each other",
            Self::Components => "components",
            Self::Modules => "core modules",
            Self::Instances => "instances",
            Self::Functions => "functions",
            Self::Types => "types",
            Self::NestedTypes => "types declared inside types",
            Self::Imports => "imports",
            Self::Exports => "exports",
            Self::Aliases => "aliases",
            Self::Globals => "globals",
            Self::Memories => "memories",
            Self::Tables => "tables",
            Self::DataSegments => "data segments",
            Self::ElementSegments => "element segments",
            Self::ElementEntries => "entries of element segments",
            Self::MemoryBytes => "bytes in a memory at first",
            Self::TableEntries => "entries in a table at first",
            Self::FunctionBytes => "bytes of code in a function",
            Self::FunctionLocals => "locals in a function",
            Self::FunctionBlocks => "nested blocks in a function",
            Self::FunctionLoops => "nested loops in a function",
            Self::FunctionOperands => "operands on a function's stack",
            Self::SignatureValues => "parameters and results of a function or block",
        }
    }

    /// The bound.
    pub fn limit(self, limits: &Limits) -> u64 {
        let count = |limit: usize| limit as u64;
        match self {
            Self::ComponentBytes => count(limits.component_bytes),
            Self::ComponentDepth => limits.component_depth.into(),
            Self::Components => limits.components.into(),
            Self::Modules => limits.modules.into(),
            Self::Instances => limits.instances.into(),
            Self::Functions => limits.functions.into(),
            Self::Types => limits.types.into(),
            Self::NestedTypes => limits.nested_types.into(),
            Self::Imports => limits.imports.into(),
            Self::Exports => limits.exports.into(),
            Self::Aliases => limits.aliases.into(),
            Self::Globals => limits.globals.into(),
            Self::Memories => limits.memories.into(),
            Self::Tables => limits.tables.into(),
            Self::DataSegments => limits.data_segments.into(),
            Self::ElementSegments => limits.element_segments.into(),
            Self::ElementEntries => limits.element_entries.into(),
            Self::MemoryBytes => count(limits.memory_bytes),
            Self::TableEntries => count(limits.table_elements),
            Self::FunctionBytes => count(limits.function_bytes),
            Self::FunctionLocals => limits.function_locals.into(),
            Self::FunctionBlocks => limits.function_blocks.into(),
            Self::FunctionLoops => limits.function_loops.into(),
            Self::FunctionOperands => limits.function_operands.into(),
            Self::SignatureValues => limits.signature_values.into(),
        }
    }
}

impl fmt::Display for Cap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// More of something than its cap allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exceeded {
    pub(super) cap: Cap,
    pub(super) given: u64,
    pub(super) limit: u64,
}

/// What one component has of everything that is capped: totals, or the most in one place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint([u64; Cap::ALL.len()]);

impl Footprint {
    /// How much it has.
    pub fn of(&self, cap: Cap) -> u64 {
        self.0[cap as usize]
    }

    /// Counts `more` of what is totalled.
    pub(super) fn add(&mut self, cap: Cap, more: u64, limits: &Limits) -> Result<(), Exceeded> {
        self.set(cap, self.of(cap).saturating_add(more), limits)
    }

    /// Takes note of one place that has `here` of it.
    pub(super) fn most(&mut self, cap: Cap, here: u64, limits: &Limits) -> Result<(), Exceeded> {
        self.set(cap, self.of(cap).max(here), limits)
    }

    fn set(&mut self, cap: Cap, given: u64, limits: &Limits) -> Result<(), Exceeded> {
        self.0[cap as usize] = given;
        let limit = cap.limit(limits);
        if given <= limit { Ok(()) } else { Err(Exceeded { cap, given, limit }) }
    }
}
