//! The road that every component goes, from bytes to something that can be instantiated.
//!
//! [`Sandbox::load`] refuses what the validator refuses, has the rest compiled elsewhere (`compiler/`), takes the
//! machine code into this process, and refuses what does not keep the contract of its kind. What comes out is a
//! [`Loaded`], which makes stores: limits are set before anything of the guest runs, core start functions included.
//! What policies and rewards are asked is `policy.rs`'s and `reward/`'s.

use super::caps::{Cap, Footprint};
use super::compiler::seal::{Authentic, Subject};
use super::compiler::{ChildCompiler, Compilation, Failure, Origin};
use super::contract::ContractError;
use super::guest::Guest;
use super::imports::{StoreData, start_clock, window_passed};
use super::load_error::LoadError;
use super::manifest::ManifestError;
use super::validate::inspect;
use super::{Sandbox, Shared};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use wasmtime::component::{self, Component, ComponentExportIndex, ComponentNamedList, InstancePre, Lift, Lower};
use wasmtime::{Engine, Store};

/// A component that has been checked and compiled, of whatever kind.
pub(super) struct Loaded {
    pub(super) guest: Guest,
    pub(super) shared: Arc<Shared>,
    pub(super) sha256: [u8; 32],
    pub(super) footprint: Footprint,
    pub(super) imports: Vec<String>,
}

impl Sandbox {
    /// Checks and compiles a component of the kind that `guest` says.
    ///
    /// # Errors
    /// [`LoadError`], before any code of the guest has run.
    pub(super) fn load(&self, guest: Guest, bytes: &[u8]) -> Result<(Loaded, Component), LoadError> {
        let shared = &self.0;
        let footprint = inspect(&guest, bytes, &shared.limits)?;
        let sha256 = Sha256::digest(bytes).into();
        let component = match &shared.compilation {
            Compilation::InProcess => Component::from_binary(&shared.engine, bytes)
                .map_err(|error| LoadError::invalid(&guest, &format!("{error:#}")))?,
            Compilation::Child(child) => shared
                .compile(child, sha256, bytes)
                .map_err(|error| LoadError::uncompiled(&guest, error, &shared.limits))?,
        };
        match shared.contract(guest.kind).check(&component) {
            Ok(imports) => Ok((Loaded { guest, shared: Arc::clone(shared), sha256, footprint, imports }, component)),
            Err(error) => Err(LoadError::Contract { guest, error }),
        }
    }
}

impl Shared {
    /// Has a valid component compiled, and takes its machine code into this process.
    fn compile(&self, child: &ChildCompiler, sha256: [u8; 32], bytes: &[u8]) -> Result<Component, Failure> {
        let subject = Subject { component: sha256, settings: self.settings };
        let (code, origin) = child.code(bytes, &subject, &self.limits, false)?;
        match deserialize(&self.engine, &code) {
            Ok(component) => Ok(component),
            // Nothing that is kept can stand in the way of what would be made today.
            Err(_) if origin == Origin::Cache => {
                let (code, _) = child.code(bytes, &subject, &self.limits, true)?;
                deserialize(&self.engine, &code).map_err(|error| Failure::Refused(format!("{error:#}")))
            }
            Err(error) => Err(Failure::Refused(format!("{error:#}"))),
        }
    }
}

/// Machine code as a component of this process: the one unsafe operation outside of `kernels/`.
#[allow(unsafe_code, reason = "the runtime cannot tell machine code that it made from any other; the seal can")]
fn deserialize(engine: &Engine, code: &Authentic) -> wasmtime::Result<Component> {
    // SAFETY: the bytes are what `Engine::precompile_component` returned, unchanged. An `Authentic` is only made by
    // opening a seal (`compiler/seal.rs`), whose key is known to the child that this process started as the compiler
    // and gave the key through a pipe, or, for the cache, to processes of this user that had their code so. The seal
    // also binds the code to this component and to the digest of this engine's settings, and the bytes are in
    // memory of ours that nobody else can change.
    unsafe { Component::deserialize(engine, code.code()) }
}

impl Loaded {
    /// The component's size, bytes.
    pub(super) fn size_bytes(&self) -> usize {
        self.footprint.of(Cap::ComponentBytes) as usize
    }

    /// A function of the interface that its kind exports.
    pub(super) fn export(&self, component: &Component, function: &str) -> Result<ComponentExportIndex, LoadError> {
        let exported = self.guest.kind.exported();
        let interface = component.get_export_index(None, exported);
        interface.and_then(|interface| component.get_export_index(Some(&interface), function)).ok_or_else(|| {
            let wanted = format!("{exported}#{function}");
            let error = ContractError::MissingExport { wanted, exports: Vec::new() };
            LoadError::Contract { guest: self.guest.clone(), error }
        })
    }

    /// A new store, with every limit set before the guest's start functions run in it.
    pub(super) fn store(&self, mut data: StoreData, fuel: u64) -> wasmtime::Result<Store<StoreData>> {
        let limits = &self.shared.limits;
        data.slice_fuel = fuel;
        let mut store = Store::new(&self.shared.engine, data);
        store.limiter(|data| data);
        store.set_hostcall_fuel(limits.answer_bytes);
        store.set_max_component_handles(limits.handles);
        store.set_fuel(fuel)?;
        store.epoch_deadline_callback(window_passed);
        start_clock(&mut store);
        Ok(store)
    }

    /// What the guest says of itself, asked in two instances that must agree.
    ///
    /// # Errors
    /// What `described` fails with, or [`ManifestError::Unstable`] with the first part that `difference` finds.
    pub(super) fn agreed<M>(
        &self,
        described: impl Fn() -> Result<M, LoadError>,
        difference: impl FnOnce(&M, &M) -> Option<&'static str>,
    ) -> Result<M, LoadError> {
        let (first, second) = (described()?, described()?);
        match difference(&first, &second) {
            Some(part) => Err(self.refused(ManifestError::Unstable(part))),
            None => Ok(first),
        }
    }

    /// Its manifest is refused.
    pub(super) fn refused(&self, error: ManifestError) -> LoadError {
        LoadError::Manifest { guest: self.guest.clone(), error }
    }
}

/// An instance, and the answer of one call of it that runs through.
pub(super) fn instantiate_and_call<P, R>(
    instance: &InstancePre<StoreData>,
    store: &mut Store<StoreData>,
    export: ComponentExportIndex,
    parameters: P,
) -> wasmtime::Result<(component::Instance, R)>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let instance = instance.instantiate(&mut *store)?;
    let function = instance.get_typed_func::<P, R>(&mut *store, &export)?;
    Ok((instance, function.call(&mut *store, parameters)?))
}
