//! The first look at a component: is it well formed, without proposals that are off, and within every cap?
//!
//! It runs before the compiler sees a byte, takes time proportional to the file, and allocates little beyond it,
//! because each count is compared with its cap before anything is done with what is counted. What passes is a
//! valid component, so the compiler's own checks find nothing more; how long it may compile is bounded
//! elsewhere (`compiler/`), since no count of a component says that for certain.
//!
//! [`FEATURES`] is the one list of what is on: the runtime's configuration takes it too.

use super::caps::{Cap, Exceeded, Footprint};
use super::guest::Guest;
use super::limits::Limits;
use super::load_error::LoadError;
use super::words::clean;
use wasmparser::{
    ComponentType, ComponentTypeDeclaration, CompositeInnerType, CoreType, ElementItems, FrameKind, FuncToValidate,
    FuncValidatorAllocations, FunctionBody, InstanceTypeDeclaration, ModuleTypeDeclaration, Parser, Payload, RecGroup,
    ValidPayload, Validator, ValidatorResources, WasmFeatures,
};

/// What ordinary compilers emit for a policy; everything else is off. 128-bit vectors are on because a guest may
/// be built with them, relaxed ones are not: no compiler uses them unasked.
pub(super) const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::COMPONENT_MODEL);

/// The longest complaint of the parser that is kept, bytes.
const DETAIL_BYTES: usize = 512;

/// Why a component does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    /// Too much of something, and in which core function where it is of one.
    Cap { exceeded: Exceeded, function: Option<u32> },
    /// Not valid, or in need of a proposal that is off; cleaned.
    Invalid(String),
}

impl From<Exceeded> for Refusal {
    fn from(exceeded: Exceeded) -> Self {
        Self::Cap { exceeded, function: None }
    }
}

impl From<wasmparser::Error> for Refusal {
    fn from(error: wasmparser::Error) -> Self {
        Self::Invalid(clean(&error.to_string(), DETAIL_BYTES))
    }
}

/// What a component is made of; none of its code is compiled or run. `guest` is what errors name.
///
/// # Errors
/// [`LoadError`], if it is no component, not valid, in need of a proposal that is off, or beyond a cap.
pub fn inspect(guest: &Guest, bytes: &[u8], limits: &Limits) -> Result<Footprint, LoadError> {
    let guest = || guest.clone();
    let (size_bytes, limit_bytes) = (bytes.len(), limits.component_bytes);
    if size_bytes > limit_bytes {
        return Err(LoadError::TooLarge { guest: guest(), bytes: size_bytes, limit_bytes });
    }
    match bytes.first_chunk::<8>() {
        Some([0, b'a', b's', b'm', _, _, 0, 0]) => {
            return Err(LoadError::CoreModule { guest: guest() });
        }
        Some([0, b'a', b's', b'm', ..]) => {}
        _ => return Err(LoadError::NotWebAssembly { guest: guest() }),
    }
    validate(bytes, limits).map_err(|refusal| match refusal {
        Refusal::Invalid(detail) => LoadError::Invalid { guest: guest(), detail },
        Refusal::Cap { exceeded: Exceeded { cap, given, limit }, function } => {
            LoadError::Cap { guest: guest(), cap, given, limit, function }
        }
    })
}

/// Reads the whole component and returns what it is made of.
fn validate(bytes: &[u8], limits: &Limits) -> Result<Footprint, Refusal> {
    let mut walk = Walk { bytes, limits, footprint: Footprint::default() };
    walk.footprint.add(Cap::ComponentBytes, bytes.len() as u64, limits)?;
    walk.footprint.add(Cap::Components, 1, limits)?;
    walk.footprint.most(Cap::ComponentDepth, 1, limits)?;
    let mut parser = Parser::new(0);
    parser.set_features(FEATURES);
    let mut validator = Validator::new_with_features(FEATURES);
    let mut allocations = FuncValidatorAllocations::default();
    // Whether each of what is open is a component; modules hold nothing.
    let mut open = vec![true];
    for payload in parser.parse_all(bytes) {
        let payload = payload?;
        match &payload {
            Payload::ModuleSection { .. } => {
                walk.footprint.add(Cap::Modules, 1, limits)?;
                open.push(false);
            }
            Payload::ComponentSection { .. } => {
                walk.footprint.add(Cap::Components, 1, limits)?;
                open.push(true);
                walk.footprint.most(Cap::ComponentDepth, open.len() as u64, limits)?;
            }
            Payload::End(_) => drop(open.pop()),
            other => walk.count(other)?,
        }
        if let ValidPayload::Func(function, body) = validator.payload(&payload)? {
            let index = function.index;
            allocations = walk.function(function, &body, allocations).map_err(|refusal| match refusal {
                Refusal::Cap { exceeded, .. } => Refusal::Cap { exceeded, function: Some(index) },
                invalid => invalid,
            })?;
        }
    }
    Ok(walk.footprint)
}

struct Walk<'a> {
    bytes: &'a [u8],
    limits: &'a Limits,
    footprint: Footprint,
}

impl Walk<'_> {
    fn add(&mut self, cap: Cap, more: u32) -> Result<(), Refusal> {
        Ok(self.footprint.add(cap, more.into(), self.limits)?)
    }

    fn most(&mut self, cap: Cap, here: u64) -> Result<(), Refusal> {
        Ok(self.footprint.most(cap, here, self.limits)?)
    }

    /// Counts what a section declares. Counts in its header come first: they may lie, but only upwards.
    fn count(&mut self, payload: &Payload<'_>) -> Result<(), Refusal> {
        match payload {
            Payload::TypeSection(section) => {
                self.add(Cap::Types, section.count())?;
                for group in section.clone() {
                    self.signatures(&group?)?;
                }
            }
            Payload::ImportSection(section) => self.add(Cap::Imports, section.count())?,
            Payload::FunctionSection(section) => self.add(Cap::Functions, section.count())?,
            Payload::TableSection(section) => {
                self.add(Cap::Tables, section.count())?;
                for table in section.clone() {
                    self.most(Cap::TableEntries, table?.ty.initial)?;
                }
            }
            Payload::MemorySection(section) => {
                self.add(Cap::Memories, section.count())?;
                for memory in section.clone() {
                    self.most(Cap::MemoryBytes, memory?.initial.saturating_mul(1 << 16))?;
                }
            }
            Payload::GlobalSection(section) => self.add(Cap::Globals, section.count())?,
            Payload::ExportSection(section) => self.add(Cap::Exports, section.count())?,
            Payload::ElementSection(section) => {
                self.add(Cap::ElementSegments, section.count())?;
                for segment in section.clone() {
                    let entries = match segment?.items {
                        ElementItems::Functions(items) => items.count(),
                        ElementItems::Expressions(_, items) => items.count(),
                    };
                    self.add(Cap::ElementEntries, entries)?;
                }
            }
            Payload::DataSection(section) => self.add(Cap::DataSegments, section.count())?,
            Payload::InstanceSection(section) => self.add(Cap::Instances, section.count())?,
            Payload::ComponentInstanceSection(section) => self.add(Cap::Instances, section.count())?,
            Payload::ComponentAliasSection(section) => self.add(Cap::Aliases, section.count())?,
            Payload::ComponentCanonicalSection(section) => self.add(Cap::Functions, section.count())?,
            Payload::ComponentImportSection(section) => self.add(Cap::Imports, section.count())?,
            Payload::ComponentExportSection(section) => self.add(Cap::Exports, section.count())?,
            Payload::CoreTypeSection(section) => {
                self.add(Cap::Types, section.count())?;
                for ty in section.clone() {
                    self.core_type(&ty?)?;
                }
            }
            Payload::ComponentTypeSection(section) => {
                self.add(Cap::Types, section.count())?;
                let section_bytes = self.bytes.get(section.range()).unwrap_or(self.bytes);
                self.most(Cap::NestedTypes, nested_types(section_bytes))?;
                for ty in section.clone() {
                    self.component_type(&ty?)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn signatures(&mut self, group: &RecGroup) -> Result<(), Refusal> {
        for ty in group.types() {
            if let CompositeInnerType::Func(function) = &ty.composite_type.inner {
                let values = function.params().len() + function.results().len();
                self.most(Cap::SignatureValues, values as u64)?;
            }
        }
        Ok(())
    }

    fn core_type(&mut self, ty: &CoreType<'_>) -> Result<(), Refusal> {
        match ty {
            CoreType::Rec(group) => self.signatures(group),
            CoreType::Module(declarations) => {
                self.add(Cap::Types, declarations.len() as u32)?;
                declarations.iter().try_for_each(|declaration| match declaration {
                    ModuleTypeDeclaration::Type(group) => self.signatures(group),
                    _ => Ok(()),
                })
            }
        }
    }

    /// Declarations inside a type count as types. How deep they nest was bounded before they were parsed.
    fn component_type(&mut self, ty: &ComponentType<'_>) -> Result<(), Refusal> {
        match ty {
            ComponentType::Component(declarations) => {
                self.add(Cap::Types, declarations.len() as u32)?;
                declarations.iter().try_for_each(|declaration| match declaration {
                    ComponentTypeDeclaration::CoreType(ty) => self.core_type(ty),
                    ComponentTypeDeclaration::Type(ty) => self.component_type(ty),
                    _ => Ok(()),
                })
            }
            ComponentType::Instance(declarations) => {
                self.add(Cap::Types, declarations.len() as u32)?;
                declarations.iter().try_for_each(|declaration| match declaration {
                    InstanceTypeDeclaration::CoreType(ty) => self.core_type(ty),
                    InstanceTypeDeclaration::Type(ty) => self.component_type(ty),
                    _ => Ok(()),
                })
            }
            ComponentType::Defined(_) | ComponentType::Func(_) | ComponentType::Resource { .. } => Ok(()),
        }
    }

    /// Validates one body, and measures it on the way.
    fn function(
        &mut self,
        function: FuncToValidate<ValidatorResources>,
        body: &FunctionBody<'_>,
        allocations: FuncValidatorAllocations,
    ) -> Result<FuncValidatorAllocations, Refusal> {
        self.most(Cap::FunctionBytes, body.range().len() as u64)?;
        let mut validator = function.into_validator(allocations);
        // Before the locals are declared to the validator, which makes room for each.
        let mut locals = u64::from(validator.len_locals());
        for group in body.get_locals_reader()? {
            locals = locals.saturating_add(group?.0.into());
            self.most(Cap::FunctionLocals, locals)?;
        }
        self.most(Cap::FunctionLocals, locals)?;
        let mut reader = body.get_binary_reader();
        validator.read_locals(&mut reader)?;
        reader.set_features(FEATURES);
        // Whether each of the open blocks is a loop.
        let mut open: Vec<bool> = Vec::new();
        while !reader.eof() {
            reader.visit_operator(&mut validator.visitor(reader.original_position()))??;
            self.most(Cap::FunctionOperands, validator.operand_stack_height().into())?;
            // The function itself is a block too.
            let blocks = validator.control_stack_height().saturating_sub(1) as usize;
            if blocks > open.len() {
                open.push(validator.get_control_frame(0).is_some_and(|frame| frame.kind == FrameKind::Loop));
                self.most(Cap::FunctionBlocks, blocks as u64)?;
                self.most(Cap::FunctionLoops, open.iter().filter(|is_loop| **is_loop).count() as u64)?;
            }
            open.truncate(blocks);
        }
        reader.finish_expression(&validator.visitor(reader.original_position()))?;
        Ok(validator.into_allocations())
    }
}

/// How many types a section may declare inside others, at most: a type's declaration there is the byte 1 and then, for
/// a component or an instance type, 0x41 or 0x42. Other bytes may look so too. It has to be known without parsing,
/// because the parser recurses.
fn nested_types(section: &[u8]) -> u64 {
    section.windows(2).filter(|pair| matches!(pair, [1, 0x41 | 0x42])).count() as u64
}
