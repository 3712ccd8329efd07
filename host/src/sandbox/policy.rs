//! A policy's component, which responses share.
//!
//! [`Sandbox::compile`] takes it the road of every component (`compiled.rs`). [`CompiledPolicy::describe`] runs the guest
//! twice in instances of their own and validates what it says; [`CompiledPolicy::begin`] makes the instance of one
//! response (`starting.rs`), which is asked once a step (`instance.rs`).

use super::Sandbox;
use super::bindings;
use super::caps::Footprint;
use super::compiled::{Loaded, instantiate_and_call};
use super::fault::Fault;
use super::guest::Guest;
use super::imports::StoreData;
use super::instance::Instance;
use super::load_error::LoadError;
use super::manifest::{HeadOffer, Manifest, Needs, SettingValue};
use super::slice::to_its_end;
use super::starting::Starting;
use super::text::VocabularyText;
use crate::token::Token;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wasmtime::Store;
use wasmtime::component::{self, ComponentExportIndex, ComponentNamedList, InstancePre, Lift, Lower};

/// A policy's component, checked and compiled. Clones share it.
#[derive(Clone)]
pub struct CompiledPolicy(pub(super) Arc<Compiled>);

impl fmt::Debug for CompiledPolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CompiledPolicy").field("name", &self.name()).finish_non_exhaustive()
    }
}

pub(super) struct Compiled {
    pub(super) loaded: Loaded,
    /// Whether calls may be suspended.
    pub(super) imports_values: bool,
    imports_find: bool,
    /// For calls that run through; none where calls may be suspended.
    plain: Option<InstancePre<StoreData>>,
    /// For calls that run in slices.
    sliced: InstancePre<StoreData>,
    /// A call has used more fuel than a slice has.
    slow: AtomicBool,
    /// The last start was not done within a slice's time.
    pub(super) slow_to_start: AtomicBool,
    describe: ComponentExportIndex,
    pub(super) start: ComponentExportIndex,
    pub(super) decide: ComponentExportIndex,
}

/// What one response is started with. Settings are in the manifest's order (see `settings.rs`).
#[derive(Debug, Clone, PartialEq)]
pub struct StartRequest<'a> {
    /// One value a setting, in the manifest's order.
    pub settings: &'a [SettingValue],
    /// The user's prompt; the guest sees it only if its manifest needs it.
    pub prompt: &'a [Token],
    /// The most candidates that a step of this response has.
    pub candidates: u32,
    /// The response's token limit.
    pub max_tokens: u32,
    /// 0 for greedy decoding.
    pub temperature: f32,
    /// In (0, 1]; 1 where nothing is cut.
    pub top_p: f32,
    /// For the policy's own draws.
    pub seed: u64,
}

impl Sandbox {
    /// Checks and compiles a component. `name` is the host's name for it, used in faults.
    ///
    /// # Errors
    /// [`LoadError`], before any code of the guest has run.
    pub fn compile(&self, name: &str, bytes: &[u8]) -> Result<CompiledPolicy, LoadError> {
        let (loaded, component) = self.load(Guest::policy(name), bytes)?;
        let invalid = |error: wasmtime::Error| LoadError::invalid(&loaded.guest, &format!("{error:#}"));
        let imports_values = loaded.imports.iter().any(|import| import.starts_with("values."));
        let plain = (!imports_values).then(|| self.0.plain.instantiate_pre(&component)).transpose().map_err(invalid)?;
        let sliced = self.0.suspending.instantiate_pre(&component).map_err(invalid)?;
        Ok(CompiledPolicy(Arc::new(Compiled {
            imports_values,
            imports_find: loaded.imports.iter().any(|import| import == "text.find"),
            describe: loaded.export(&component, "describe")?,
            start: loaded.export(&component, "start")?,
            decide: loaded.export(&component, "decide")?,
            loaded,
            plain,
            sliced,
            slow: AtomicBool::new(false),
            slow_to_start: AtomicBool::new(false),
        })))
    }
}

impl CompiledPolicy {
    /// The host's name for it.
    pub fn name(&self) -> &str {
        &self.0.loaded.guest.name
    }

    /// The component's SHA-256.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.0.loaded.sha256
    }

    /// The component's size, bytes.
    pub fn size_bytes(&self) -> usize {
        self.0.loaded.size_bytes()
    }

    /// What the component is made of.
    pub fn footprint(&self) -> &Footprint {
        &self.0.loaded.footprint
    }

    /// The functions that it imports, as `interface.function`: all that it can reach.
    pub fn imports(&self) -> &[String] {
        &self.0.loaded.imports
    }

    /// Whether it may ask for values, so that its calls may be suspended (and cost more).
    pub fn imports_values(&self) -> bool {
        self.0.imports_values
    }

    /// Asks the guest what it is, in two instances that must agree, and validates the answer against the
    /// offered heads and what is granted.
    ///
    /// # Errors
    /// [`LoadError::Describe`] if the guest fails, [`LoadError::Manifest`] if its manifest is refused.
    pub fn describe(&self, offered: &[HeadOffer], granted: Needs) -> Result<Manifest, LoadError> {
        let loaded = &self.0.loaded;
        let described = || {
            let raw = self.0.describe_once(offered).map_err(LoadError::Describe)?;
            Manifest::check(raw, offered, granted, &loaded.shared.limits).map_err(|error| loaded.refused(error))
        };
        loaded.agreed(described, Manifest::difference)
    }

    /// Sees to what its responses need of a vocabulary, so that no response waits for it. Starting one does it too.
    pub fn prepare(&self, text: &VocabularyText) {
        if self.0.imports_find {
            // Built once a vocabulary. An error shows where it is used.
            let _ = text.search();
        }
    }

    /// Begins to make the instance of one response; [`Starting::proceed`] does it, slice by slice. `manifest` is
    /// what [`Self::describe`] returned.
    pub fn begin(&self, manifest: &Arc<Manifest>, request: &StartRequest<'_>, text: &Arc<VocabularyText>) -> Starting {
        let compiled = &self.0;
        self.prepare(text);
        let mut data = StoreData::new(&compiled.loaded.shared, text);
        data.heads = manifest.heads.len();
        data.candidates = request.candidates as usize;
        Starting::new(compiled, manifest, data, lower_request(manifest, request, text))
    }

    /// The same to its end.
    ///
    /// # Errors
    /// The guest's fault, or [`FaultKind::Capacity`](super::FaultKind::Capacity) if all instances are in use.
    pub fn start(
        &self,
        manifest: &Arc<Manifest>,
        request: &StartRequest<'_>,
        text: &Arc<VocabularyText>,
    ) -> Result<Instance, Fault> {
        let mut starting = self.begin(manifest, request, text);
        loop {
            if let Some(started) = starting.proceed() {
                return started;
            }
        }
    }

    /// Whether a call of it has used more fuel than a slice has.
    pub fn is_slow(&self) -> bool {
        self.0.is_slow()
    }

    /// Whether its last start was not done within a slice's time.
    pub fn is_slow_to_start(&self) -> bool {
        self.0.slow_to_start.load(Ordering::Relaxed)
    }
}

impl Compiled {
    /// An instance, and the answer of one call of it. The future waits only where calls run in slices.
    pub(super) async fn instantiate_and_call<P, R>(
        &self,
        store: &mut Store<StoreData>,
        sliced: bool,
        export: ComponentExportIndex,
        parameters: P,
    ) -> wasmtime::Result<(component::Instance, R)>
    where
        P: ComponentNamedList + Lower + Send + Sync,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let Some(plain) = self.plain.as_ref().filter(|_| !sliced) else {
            store.fuel_async_yield_interval(Some(self.loaded.shared.limits.fuel_slice))?;
            let instance = self.sliced.instantiate_async(&mut *store).await?;
            let function = instance.get_typed_func::<P, R>(&mut *store, &export)?;
            return Ok((instance, function.call_async(&mut *store, parameters).await?));
        };
        instantiate_and_call(plain, store, export, parameters)
    }

    /// A call has used so much fuel; where that is more than a slice, later ones run in slices.
    pub(super) fn note_fuel(&self, used: u64) {
        if used > self.loaded.shared.limits.fuel_slice && !self.is_slow() {
            self.call_in_slices();
        }
    }

    /// Later calls run in slices.
    pub(super) fn call_in_slices(&self) {
        self.slow.store(true, Ordering::Relaxed);
    }

    /// Whether a call has used more fuel than a slice has.
    pub(super) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// Whether new instances run in slices: where calls may be suspended anyway, always.
    pub(super) fn runs_in_slices(&self) -> bool {
        self.imports_values || self.is_slow()
    }

    fn describe_once(&self, offered: &[HeadOffer]) -> Result<bindings::Manifest, Fault> {
        let offered: Vec<bindings::HeadOffer> = offered.iter().map(lower_offer).collect();
        let shared = &self.loaded.shared;
        let data = StoreData::new(shared, &shared.no_text);
        let exchange = data.exchange.clone();
        let run = async {
            let mut store = self.loaded.store(data, shared.limits.fuel_describe)?;
            self.instantiate_and_call::<_, (bindings::Manifest,)>(&mut store, false, self.describe, (offered,)).await
        };
        let limits = &shared.limits;
        let failed = |error| {
            let fault = exchange.fault(&self.loaded.guest, &error);
            fault.of_call("instantiation and `describe`", limits.fuel_describe, limits.deadline_windows, limits)
        };
        let (_, answer) = to_its_end(run).map_err(failed)?;
        Ok(answer.0)
    }
}

fn lower_offer(offer: &HeadOffer) -> bindings::HeadOffer {
    bindings::HeadOffer { name: offer.name.clone(), kind: offer.kind.clone(), spread: offer.spread }
}

pub(super) fn lower_request(
    manifest: &Manifest,
    request: &StartRequest<'_>,
    text: &VocabularyText,
) -> bindings::Request {
    let lower_value = |value: &SettingValue| match value {
        SettingValue::Number(number) => bindings::SettingValue::Number(*number),
        SettingValue::Flag(flag) => bindings::SettingValue::Flag(*flag),
        SettingValue::Choice(word) => bindings::SettingValue::Choice(word.clone()),
        SettingValue::Text(text) => bindings::SettingValue::Text(text.clone()),
    };
    let named = manifest.settings.iter().zip(request.settings);
    bindings::Request {
        settings: named
            .map(|(setting, value)| bindings::NamedValue { name: setting.name.clone(), value: lower_value(value) })
            .collect(),
        heads: manifest.heads.iter().map(lower_offer).collect(),
        prompt: if manifest.needs.prompt { request.prompt.to_vec() } else { Vec::new() },
        candidates: request.candidates,
        vocabulary_size: u32::try_from(text.size()).unwrap_or(u32::MAX),
        end_of_text: text.vocabulary().end_of_text().to_vec(),
        max_tokens: request.max_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        seed: request.seed,
    }
}
