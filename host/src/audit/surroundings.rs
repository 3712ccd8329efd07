//! What the bits of a response depend on beside its request: model, heads, kernels, limits, versions.
//!
//! A replay compares the record's [`Surroundings`] with its own. What must be equal for equal bits is refused by
//! name and with both values; what this project promises to make no difference (a processor's instruction set, threads) or
//! what may make one in fuel only (versions) is a [`Surroundings::remarks`] line.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vassal_kernels::DeviceInfo;
use vassal_kernels::cpu::Isa;

use super::AuditError;
use super::replay::ReplayError;
use crate::hex::hexadecimal;
use crate::model::heads::{HeadFile, HeadKind};
use crate::sandbox::Limits;

/// The runtime's version; a test compares it with the lock file.
pub const WASMTIME_VERSION: &str = "48.0.8";

/// The model of a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// What the file calls itself.
    pub name: String,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Where it was: a hint for a replay.
    pub source: String,
}

/// A value head of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadRecord {
    /// Its name.
    pub name: String,
    /// How it reads the model.
    pub kind: HeadKind,
    /// SHA-256 of the file that [`HeadFile::write`] makes of it.
    pub sha256: String,
    /// Where it was, empty for a shipped one: a hint for a replay.
    pub source: String,
}

/// Everything beside the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Surroundings {
    /// This program's version.
    pub vassal: String,
    /// [`vassal_kernels::KERNELS_VERSION`].
    pub kernels: u32,
    /// The instruction set of the kernels: a processor's, or a card's compute capability.
    pub isa: String,
    /// Threads of the device.
    pub threads: usize,
    /// The version of the runtime of policies.
    pub wasmtime: String,
    /// [`limits_sha256`].
    pub limits_sha256: String,
    /// The model.
    pub model: ModelRecord,
    /// All heads of the engine, in the order of their ids: policies were described with them.
    pub heads: Vec<HeadRecord>,
}

impl Surroundings {
    /// Those of an engine. `head_sources` says where heads came from, in their order; shipped ones may be missing.
    ///
    /// # Errors
    /// A head that no file could hold.
    pub fn new(
        device: &DeviceInfo,
        limits: &Limits,
        model: ModelRecord,
        heads: &[HeadFile],
        head_sources: &[String],
    ) -> Result<Self, AuditError> {
        let head = |(place, file): (usize, &HeadFile)| {
            let source = head_sources.get(place).cloned().unwrap_or_default();
            HeadRecord::new(file, source)
        };
        Ok(Self {
            vassal: env!("CARGO_PKG_VERSION").to_owned(),
            kernels: vassal_kernels::KERNELS_VERSION,
            isa: device.isa.clone(),
            threads: device.threads,
            wasmtime: WASMTIME_VERSION.to_owned(),
            limits_sha256: limits_sha256(limits),
            model,
            heads: heads.iter().enumerate().map(head).collect::<Result<_, _>>()?,
        })
    }

    /// Refuses surroundings under which bits may differ.
    ///
    /// # Errors
    /// [`ReplayError::Other`], naming the first that differs with both values.
    pub fn check(&self, ours: &Self) -> Result<(), ReplayError> {
        other(format!("model {:?}: SHA-256", self.model.name), &self.model.sha256, &ours.model.sha256)?;
        other("kernels' version".to_owned(), &self.kernels, &ours.kernels)?;
        self.check_isa(&ours.isa)?;
        other("sandbox's limits: SHA-256".to_owned(), &self.limits_sha256, &ours.limits_sha256)?;
        for (place, head) in self.heads.iter().enumerate() {
            let own = ours.heads.get(place);
            let what = format!("head {:?}: SHA-256", head.name);
            other(what, &head.sha256, &own.map_or("nothing", |own| own.sha256.as_str()))?;
        }
        other("heads of the engine: their number".to_owned(), &self.heads.len(), &ours.heads.len())
    }

    /// Refuses a device whose instruction set gives other bits, which can be seen before there is a model on it.
    ///
    /// # Errors
    /// [`ReplayError::Other`] with both.
    pub fn check_isa(&self, ours: &str) -> Result<(), ReplayError> {
        // All instruction sets of processors give the same bits; a card's tensor cores are a law unto themselves.
        let is_a_processors = |name: &str| Isa::ALL.iter().any(|isa| isa.name() == name);
        if is_a_processors(&self.isa) && is_a_processors(ours) {
            return Ok(());
        }
        other("device's instruction set".to_owned(), &self.isa, &ours)
    }

    /// What differs and should not matter, a line each.
    pub fn remarks(&self, ours: &Self) -> Vec<String> {
        let pairs = [
            ("instruction set", self.isa.clone(), ours.isa.clone(), "gives the same bits"),
            ("threads", self.threads.to_string(), ours.threads.to_string(), "give the same bits"),
            ("wasmtime", self.wasmtime.clone(), ours.wasmtime.clone(), "may count fuel differently"),
            ("vassal", self.vassal.clone(), ours.vassal.clone(), "may differ in what no other entry names"),
        ];
        let differing = pairs.into_iter().filter(|(_, recorded, ours, _)| recorded != ours);
        differing.map(|(what, recorded, ours, so)| format!("{what}: recorded {recorded}, here {ours}; {so}")).collect()
    }
}

impl HeadRecord {
    /// A head's.
    ///
    /// # Errors
    /// A head that no file could hold.
    pub fn new(file: &HeadFile, source: String) -> Result<Self, AuditError> {
        let sha256 = hexadecimal(&Sha256::digest(file.to_bytes()?));
        Ok(Self { name: file.description.name.clone(), kind: file.description.kind, sha256, source })
    }
}

/// Refuses what is not as recorded.
fn other(what: String, recorded: &dyn ToString, ours: &dyn ToString) -> Result<(), ReplayError> {
    let (recorded, ours) = (recorded.to_string(), ours.to_string());
    if recorded == ours { Ok(()) } else { Err(ReplayError::Other { what, recorded, ours }) }
}

/// SHA-256 of the limits that decide what a policy may do, as they print. The clock and the number of instances
/// are left out: what they end is recorded as the host's fault, and a replay has a patient clock.
pub fn limits_sha256(limits: &Limits) -> String {
    let deciding = Limits {
        deadline_ms: 0,
        deadline_windows: 0,
        sequences: 0,
        compile_ms: 0,
        compiler_start_ms: 0,
        compile_memory_bytes: 0,
        code_bytes: 0,
        cache_bytes: 0,
        ..limits.clone()
    };
    hexadecimal(&Sha256::digest(format!("{deciding:?}")))
}
