//! The contracts as types, one a kind of guest, and whether a component keeps its own.
//!
//! A component whose `decision` has one more case, or whose `step` one more field, links and instantiates:
//! only the first typed call fails. So its imports and exports are compared before any of its code runs with
//! a reference made from the WIT text alone, and the first difference is named.

use super::guest::GuestKind;
use super::imports::POLICY;
use super::words::clean;
use std::fmt::Write as _;
use wasmtime::Engine;
use wasmtime::component::Component;
use wasmtime::component::types::{self, ComponentFunc, ComponentInstance, ComponentItem, Type};

/// The interface that a reward exports.
const REWARD: &str = "vassal:reward/reward@0.1.0";

impl GuestKind {
    /// The contract's text.
    fn wit(self) -> &'static str {
        match self {
            Self::Policy => include_str!("../../../wit/policy-0.1/policy.wit"),
            Self::Reward => include_str!("../../../wit/reward-0.1/reward.wit"),
        }
    }

    /// The contract's world.
    fn world(self) -> &'static str {
        match self {
            Self::Policy => "aligner",
            Self::Reward => "judge",
        }
    }

    /// The interface that a guest of this kind exports.
    pub(super) fn exported(self) -> &'static str {
        match self {
            Self::Policy => POLICY,
            Self::Reward => REWARD,
        }
    }
}

/// The longest name of a guest's that a message quotes, bytes.
const NAME_BYTES: usize = 120;

/// How a component breaks the contract. All names are cleaned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// It is a guest of another kind.
    #[error("it is a {is}, not a {wanted}: {}", is.usage())]
    OtherKind {
        /// What it is.
        is: GuestKind,
        /// What it was taken for.
        wanted: GuestKind,
    },
    /// It imports what no host of this contract gives.
    #[error("it imports `{import}`; a {kind} may import nothing{}", if known.is_empty() { String::new() } else { format!(" but {}", known.join(", ")) })]
    UnknownImport {
        /// What it was taken for.
        kind: GuestKind,
        /// What it imports.
        import: String,
        /// What it may.
        known: Vec<String>,
    },
    /// It does not export the interface of its kind in this version.
    #[error("it does not export `{wanted}`{}", if exports.is_empty() { String::from("; it exports nothing") } else { format!(", but {}", exports.join(", ")) })]
    MissingExport {
        /// What it must export.
        wanted: String,
        /// What it exports.
        exports: Vec<String>,
    },
    /// A function of it has other types than the contract says.
    #[error("{function}: {difference}")]
    Types {
        /// The function.
        function: String,
        /// The first difference.
        difference: String,
    },
}

/// A contract's imports and exports.
pub(super) struct Contract {
    engine: Engine,
    kind: GuestKind,
    reference: types::Component,
}

impl Contract {
    /// Compiles the reference; an error is a bug of the host.
    pub(super) fn new(engine: &Engine, kind: GuestKind) -> wasmtime::Result<Self> {
        let bytes = reference_bytes(kind).map_err(|error| wasmtime::format_err!("{error:#}"))?;
        let reference = Component::new(engine, bytes)?;
        Ok(Self { engine: engine.clone(), kind, reference: reference.component_type() })
    }

    /// Checks a component and returns the functions that it imports, as `interface.function`.
    pub(super) fn check(&self, component: &Component) -> Result<Vec<String>, ContractError> {
        let component = component.component_type();
        let exports = |kind: GuestKind| component.get_export(&self.engine, kind.exported()).map(|export| export.ty);
        // Said first: what else is wrong with it as a guest of this kind would only mislead.
        let other = [GuestKind::Policy, GuestKind::Reward].into_iter().find(|kind| exports(*kind).is_some());
        if let Some(is) = other.filter(|_| exports(self.kind).is_none()) {
            return Err(ContractError::OtherKind { is, wanted: self.kind });
        }
        let mut imported = Vec::new();
        for (name, import) in component.imports(&self.engine) {
            let ours = self.reference.get_import(&self.engine, name).map(|import| import.ty);
            match (import.ty, ours) {
                (ComponentItem::ComponentInstance(theirs), Some(ComponentItem::ComponentInstance(ours))) => {
                    for function in self.compare_imports(name, &theirs, &ours)? {
                        imported.push(format!("{}.{function}", short(name)));
                    }
                }
                _ => return Err(self.unknown(clean(name, NAME_BYTES))),
            }
        }
        match exports(self.kind) {
            Some(ComponentItem::ComponentInstance(theirs)) => self.compare_exports(&theirs)?,
            _ => {
                let exports = component.exports(&self.engine).map(|(name, _)| clean(name, NAME_BYTES)).collect();
                return Err(ContractError::MissingExport { wanted: self.kind.exported().to_owned(), exports });
            }
        }
        Ok(imported)
    }

    fn unknown(&self, import: String) -> ContractError {
        let has_functions = |item: &ComponentItem| match item {
            ComponentItem::ComponentInstance(interface) => {
                interface.exports(&self.engine).any(|(_, item)| matches!(item.ty, ComponentItem::ComponentFunc(_)))
            }
            _ => false,
        };
        let known = self.reference.imports(&self.engine).filter(|(_, import)| has_functions(&import.ty));
        ContractError::UnknownImport {
            kind: self.kind,
            import,
            known: known.map(|(name, _)| name.to_owned()).collect(),
        }
    }

    /// A guest may import fewer functions than there are, but each as it is.
    fn compare_imports(
        &self,
        interface: &str,
        theirs: &ComponentInstance,
        ours: &ComponentInstance,
    ) -> Result<Vec<String>, ContractError> {
        let mut functions = Vec::new();
        for (name, item) in theirs.exports(&self.engine) {
            let known = ours.get_export(&self.engine, name).map(|item| item.ty);
            match (item.ty, known) {
                (ComponentItem::ComponentFunc(theirs), Some(ComponentItem::ComponentFunc(ours))) => {
                    same_function(interface, name, &theirs, &ours)?;
                    functions.push(name.to_owned());
                }
                // Types matter where a function uses them, and are compared there.
                (ComponentItem::Type(_), Some(ComponentItem::Type(_))) => {}
                _ => return Err(self.unknown(clean(&format!("{interface}#{name}"), NAME_BYTES))),
            }
        }
        Ok(functions)
    }

    /// A guest must export every function of its kind's interface; others that it has are not looked at.
    fn compare_exports(&self, theirs: &ComponentInstance) -> Result<(), ContractError> {
        let interface = self.kind.exported();
        let Some(ComponentItem::ComponentInstance(ours)) =
            self.reference.get_export(&self.engine, interface).map(|export| export.ty)
        else {
            return Err(ContractError::MissingExport { wanted: interface.to_owned(), exports: Vec::new() });
        };
        for (name, item) in ours.exports(&self.engine) {
            let ComponentItem::ComponentFunc(ours) = item.ty else {
                continue;
            };
            match theirs.get_export(&self.engine, name).map(|item| item.ty) {
                Some(ComponentItem::ComponentFunc(theirs)) => same_function(interface, name, &theirs, &ours)?,
                _ => {
                    let exports = theirs.exports(&self.engine).map(|(name, _)| clean(name, NAME_BYTES)).collect();
                    return Err(ContractError::MissingExport { wanted: format!("{interface}#{name}"), exports });
                }
            }
        }
        Ok(())
    }
}

/// A component that implements a contract's world, made from the WIT text: its code only traps.
fn reference_bytes(kind: GuestKind) -> anyhow::Result<Vec<u8>> {
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("contract.wit", kind.wit())?;
    let world = resolve.select_world(&[package], Some(kind.world()))?;
    let mut module = wit_component::dummy_module(&resolve, world, wit_parser::ManglingAndAbi::Standard32);
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8)?;
    wit_component::ComponentEncoder::default().module(&module)?.encode()
}

/// `values` of `vassal:policy/values@0.1.0`.
fn short(interface: &str) -> &str {
    let name = interface.rsplit('/').next().unwrap_or(interface);
    name.split('@').next().unwrap_or(name)
}

fn same_function(
    interface: &str,
    name: &str,
    theirs: &ComponentFunc,
    ours: &ComponentFunc,
) -> Result<(), ContractError> {
    let difference = if theirs.async_() {
        Some(String::from("is asynchronous"))
    } else {
        named_difference("parameter", theirs.params(), ours.params())
            .or_else(|| unnamed_difference("result", theirs.results(), ours.results()))
    };
    difference.map_or(Ok(()), |difference| {
        Err(ContractError::Types { function: format!("{interface}#{name}"), difference: clean(&difference, 512) })
    })
}

/// The first difference of two types, from the outside in; none where they are equal.
fn difference(theirs: &Type, ours: &Type) -> Option<String> {
    if theirs == ours {
        return None;
    }
    let inner = match (theirs, ours) {
        (Type::List(theirs), Type::List(ours)) => difference(&theirs.ty(), &ours.ty()),
        (Type::Option(theirs), Type::Option(ours)) => difference(&theirs.ty(), &ours.ty()),
        (Type::Record(theirs), Type::Record(ours)) => named_difference(
            "field",
            theirs.fields().map(|field| (field.name, field.ty)),
            ours.fields().map(|field| (field.name, field.ty)),
        ),
        (Type::Variant(theirs), Type::Variant(ours)) => optional_difference(
            "case",
            theirs.cases().map(|case| (case.name, case.ty)),
            ours.cases().map(|case| (case.name, case.ty)),
        ),
        (Type::Enum(theirs), Type::Enum(ours)) => {
            optional_difference("case", theirs.names().map(|name| (name, None)), ours.names().map(|name| (name, None)))
        }
        (Type::Flags(theirs), Type::Flags(ours)) => {
            optional_difference("flag", theirs.names().map(|name| (name, None)), ours.names().map(|name| (name, None)))
        }
        (Type::Tuple(theirs), Type::Tuple(ours)) => unnamed_difference("part", theirs.types(), ours.types()),
        (Type::Result(theirs), Type::Result(ours)) => optional_difference(
            "result case",
            [("ok", theirs.ok()), ("error", theirs.err())].into_iter(),
            [("ok", ours.ok()), ("error", ours.err())].into_iter(),
        ),
        _ => None,
    };
    Some(inner.unwrap_or_else(|| format!("is {}, but {} in the contract", kind(theirs), kind(ours))))
}

fn named_difference<'a>(
    what: &str,
    theirs: impl Iterator<Item = (&'a str, Type)>,
    ours: impl Iterator<Item = (&'a str, Type)>,
) -> Option<String> {
    optional_difference(what, theirs.map(|(name, ty)| (name, Some(ty))), ours.map(|(name, ty)| (name, Some(ty))))
}

fn unnamed_difference(
    what: &str,
    theirs: impl Iterator<Item = Type>,
    ours: impl Iterator<Item = Type>,
) -> Option<String> {
    named_difference(what, theirs.map(|ty| ("", ty)), ours.map(|ty| ("", ty)))
}

fn optional_difference<'a>(
    what: &str,
    theirs: impl Iterator<Item = (&'a str, Option<Type>)>,
    ours: impl Iterator<Item = (&'a str, Option<Type>)>,
) -> Option<String> {
    let (theirs, ours): (Vec<_>, Vec<_>) = (theirs.collect(), ours.collect());
    for (place, (name, ty)) in theirs.iter().enumerate() {
        let quoted = quote(what, name);
        let Some((known, expected)) = ours.get(place) else {
            return Some(format!("{quoted} is not in the contract"));
        };
        if name != known {
            return Some(format!("{quoted} stands where the contract has `{known}`"));
        }
        let inner = match (ty, expected) {
            (Some(ty), Some(expected)) => difference(ty, expected),
            (None, None) => None,
            (Some(ty), None) => Some(format!("carries {}, but nothing in the contract", kind(ty))),
            (None, Some(expected)) => Some(format!("carries nothing, but {} in the contract", kind(expected))),
        };
        if let Some(inner) = inner {
            return Some(format!("{quoted} {inner}"));
        }
    }
    ours.get(theirs.len()).map(|(missing, _)| format!("{} of the contract is missing", quote(what, missing)))
}

fn quote(what: &str, name: &str) -> String {
    let mut quoted = what.to_owned();
    if !name.is_empty() {
        // Writing to a string cannot fail.
        let _ = write!(quoted, " `{name}`");
    }
    quoted
}

fn kind(ty: &Type) -> &'static str {
    match ty {
        Type::Bool => "bool",
        Type::S8 => "s8",
        Type::U8 => "u8",
        Type::S16 => "s16",
        Type::U16 => "u16",
        Type::S32 => "s32",
        Type::U32 => "u32",
        Type::S64 => "s64",
        Type::U64 => "u64",
        Type::Float32 => "f32",
        Type::Float64 => "f64",
        Type::Char => "char",
        Type::String => "string",
        Type::List(_) => "a list",
        Type::Record(_) => "a record",
        Type::Tuple(_) => "a tuple",
        Type::Variant(_) => "a variant",
        Type::Enum(_) => "an enum",
        Type::Option(_) => "an option",
        Type::Result(_) => "a result",
        Type::Flags(_) => "flags",
        Type::Own(_) | Type::Borrow(_) => "a resource",
        _ => "another type",
    }
}
