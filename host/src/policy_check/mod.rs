//! Whether a host would take a policy: `vassal policy check`.
//!
//! The component goes the whole way, stage by stage: size and form, the contract, `describe` twice, its dials,
//! `start`, and the recorded steps of a real response (see [`recorded`]), with every dial at its least and its
//! most, several seeds, rewinds by others, few candidates, heads that fail, and the ended step. Each stage says what
//! passed or what it would be refused for. A policy that declines to start with an extreme setting, in its own
//! words, is not at fault: that is what the words are for.
//!
//! It judges form and cost, never whether a policy aligns anything. Start at [`Check::run`]; a reward's is [`reward`].

mod cases;
mod drive;
pub mod recorded;
pub mod reward;

use std::sync::Arc;

use crate::sandbox::{
    BadCall, Compilation, CompiledPolicy, CompilerError, ContractError, Fault, FaultKind, Footprint, Guest, GuestKind,
    HeadOffer, Limits, LoadError, Manifest, ManifestError, Needs, Sandbox, SandboxError, Scope, SettingError,
    VocabularyText, inspect, settings,
};
use crate::token::Vocabulary;
use cases::{Case, cases};
use recorded::Recording;

/// What to check, and with what.
pub struct Check<'a> {
    /// The name that messages use.
    pub name: &'a str,
    /// The component.
    pub component: &'a [u8],
    /// The heads it may use.
    pub offered: &'a [HeadOffer],
    /// The rights that it would have.
    pub granted: Needs,
    /// Settings to start from, as a tenant would give them; initial values for the rest.
    pub settings: &'a [(String, String)],
    /// A whole vocabulary, in place of the recorded tokens.
    pub vocabulary: Option<Arc<dyn Vocabulary>>,
    /// Where it is compiled.
    pub compilation: Compilation,
}

/// How a stage went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// The host refuses the policy.
    Refused {
        /// The kind of fault or refusal, one of a closed set: for scripts.
        kind: &'static str,
    },
    /// An earlier stage refused it.
    NotReached,
}

/// One stage of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// `component`, `contract`, `describe`, `settings`, `start` or `steps`.
    pub name: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What was found, in words.
    pub detail: String,
}

/// What was counted on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Responses that were started.
    pub responses: usize,
    /// Steps that were shown.
    pub steps: usize,
    /// Value requests that were answered.
    pub value_requests: usize,
    /// The most fuel that a start took, its instantiation included, units.
    pub fuel_start_max: u64,
    /// The most fuel that a step took, units.
    pub fuel_step_max: u64,
    /// Notes that the policy left, all responses together.
    pub notes: usize,
    /// Settings with which the policy declined to start, and its words; it did so in the first response of all
    /// only where a stage says so.
    pub declined: Vec<(String, String)>,
}

/// What a check found.
#[derive(Debug, Clone)]
pub struct Report {
    /// All stages, in order.
    pub stages: Vec<Stage>,
    /// What was counted.
    pub tally: Tally,
    /// The limits it ran under.
    pub limits: Limits,
    /// What the component is made of, where it is valid and within every cap.
    pub footprint: Option<Footprint>,
    /// The rights that it would have.
    pub granted: Needs,
    /// What the policy says of itself, where it came so far.
    pub manifest: Option<Arc<Manifest>>,
    /// What the component is; where it is no policy, the contract's stage has refused it.
    pub kind: GuestKind,
}

/// The stages, in their order.
const STAGES: [&str; 6] = ["component", "contract", "describe", "settings", "start", "steps"];

impl Report {
    /// Nothing is checked yet.
    fn new(limits: Limits, granted: Needs) -> Self {
        let (stages, tally) = (Vec::new(), Tally::default());
        Self { stages, tally, limits, footprint: None, granted, manifest: None, kind: GuestKind::Policy }
    }

    /// Of a file that is refused before it is read.
    pub fn unread(error: &LoadError, granted: Needs) -> Self {
        let mut report = Self::new(Limits::default(), granted);
        report.stages.push(refused(STAGES[0], load_kind(error), error));
        fill(&mut report.stages, &STAGES);
        report
    }

    /// The first stage that refused the policy.
    pub fn refusal(&self) -> Option<&Stage> {
        self.stages.iter().find(|stage| matches!(stage.outcome, Outcome::Refused { .. }))
    }
}

/// Why nothing was checked: never the policy's fault.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is no sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// There is no compiler.
    #[error(transparent)]
    Compiler(#[from] CompilerError),
    /// A setting that the caller gave.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The machine was too slow, or had no room: nothing that the policy did.
    #[error(transparent)]
    Host(Fault),
    /// The recorded steps, or a vocabulary that they are not of.
    #[error(transparent)]
    Recording(#[from] recorded::RecordingError),
}

impl Check<'_> {
    /// Takes the policy through all stages.
    ///
    /// # Errors
    /// [`CheckError`]: the caller's settings or the host; what is wrong with the policy is in the report.
    pub fn run(&self) -> Result<Report, CheckError> {
        let recording = Recording::built_in()?;
        let sandbox = Sandbox::new(Limits { sequences: 4, ..Limits::default() }, self.compilation.clone())?;
        let mut report = Report::new(sandbox.limits().clone(), self.granted);
        report.footprint = inspect(&Guest::policy(self.name), self.component, &report.limits).ok();
        self.stages(&sandbox, &recording, &mut report)?;
        fill(&mut report.stages, &STAGES);
        Ok(report)
    }

    fn stages(&self, sandbox: &Sandbox, recording: &Recording, report: &mut Report) -> Result<(), CheckError> {
        let stages = &mut report.stages;
        let compiled = match sandbox.compile(self.name, self.component) {
            Ok(compiled) => compiled,
            Err(LoadError::Compiler { error, .. }) => return Err(error.into()),
            Err(error) => {
                if let LoadError::Contract { error: ContractError::OtherKind { is, .. }, .. } = &error {
                    report.kind = *is;
                }
                let of_contract = matches!(error, LoadError::Contract { .. });
                if of_contract {
                    stages.push(passed("component", format!("{} bytes", self.component.len())));
                }
                stages.push(refused(if of_contract { "contract" } else { "component" }, load_kind(&error), error));
                return Ok(());
            }
        };
        stages
            .push(passed("component", format!("{} of {} bytes", compiled.size_bytes(), report.limits.component_bytes)));
        stages.push(passed("contract", contract_words(&compiled)));
        let manifest = match compiled.describe(self.offered, Needs::ALL) {
            Ok(manifest) => Arc::new(manifest),
            Err(error) => {
                stages.push(refused("describe", load_kind(&error), error));
                return Ok(());
            }
        };
        report.manifest = Some(manifest.clone());
        if let Some(need) = manifest.needs.without(self.granted).names().first() {
            stages.push(refused("describe", "manifest", ManifestError::NotGranted(need)));
            return Ok(());
        }
        let (name, version) = (&manifest.name, &manifest.version);
        let counts = [(manifest.settings.len(), "dial"), (manifest.heads.len(), "head")].map(plural);
        stages.push(passed("describe", format!("twice the same: {name} {version}, {}", counts.join(", "))));
        let given = settings::resolve(&manifest, self.settings, Scope::Tenant, &report.limits)?;
        let cases = cases(&manifest, &given);
        let count = plural((cases.len(), "response"));
        stages.push(passed("settings", format!("{count} to try: each dial at its least and its most")));
        let text = VocabularyText::new(match &self.vocabulary {
            Some(vocabulary) => vocabulary.clone(),
            None => Arc::new(recording.vocabulary()),
        });
        let driver = drive::Driver {
            recording,
            compiled: &compiled,
            manifest: &manifest,
            text: &text,
            limits: sandbox.limits(),
        };
        responses(&driver, &cases, report)
    }
}

/// The last two stages: all responses, from start to end. The first fault of each stage stands for it.
fn responses(driver: &drive::Driver<'_>, cases: &[Case], report: &mut Report) -> Result<(), CheckError> {
    let (mut start, mut steps) = (None, None);
    for (place, case) in cases.iter().enumerate() {
        let mut instance = match driver.start(case, &mut report.tally) {
            Ok(instance) => instance,
            Err(fault) if fault.kind == FaultKind::StartRefused && place > 0 => {
                report.tally.declined.push((case.label.clone(), fault.detail));
                continue;
            }
            Err(fault) if fault.kind.is_the_hosts() => return Err(CheckError::Host(fault)),
            Err(fault) => {
                start.get_or_insert_with(|| refused_at("start", &case.label, &fault));
                // If it does not start as it is, there is no use in trying all the rest.
                if place == 0 {
                    break;
                }
                continue;
            }
        };
        if let Err((step, fault)) = driver.drive(&mut instance, case, &mut report.tally) {
            if fault.kind.is_the_hosts() {
                return Err(CheckError::Host(fault));
            }
            steps.get_or_insert_with(|| refused_at("steps", &format!("{}, {step}", case.label), &fault));
        }
    }
    let (tally, limits) = (&report.tally, &report.limits);
    if tally.responses == 0 {
        report.stages.extend(start);
        return Ok(());
    }
    report.stages.push(start.unwrap_or_else(|| {
        let fuel = fuel_words(tally.fuel_start_max, limits.fuel_start);
        passed("start", format!("{}, {fuel}", plural((tally.responses, "response"))))
    }));
    report.stages.push(steps.unwrap_or_else(|| {
        let fuel = fuel_words(tally.fuel_step_max, limits.fuel_decide);
        passed("steps", format!("{}, {fuel}", plural((tally.steps, "step"))))
    }));
    Ok(())
}

/// Adds the stages that were not reached.
fn fill(stages: &mut Vec<Stage>, all: &[&'static str]) {
    for name in all {
        if !stages.iter().any(|stage| stage.name == *name) {
            stages.push(Stage { name, outcome: Outcome::NotReached, detail: String::new() });
        }
    }
}

fn passed(name: &'static str, detail: String) -> Stage {
    Stage { name, outcome: Outcome::Passed, detail }
}

fn refused(name: &'static str, kind: &'static str, error: impl std::fmt::Display) -> Stage {
    Stage { name, outcome: Outcome::Refused { kind }, detail: error.to_string() }
}

fn refused_at(name: &'static str, place: &str, fault: &Fault) -> Stage {
    refused(name, fault_kind(&fault.kind), format!("{place}: {fault}"))
}

fn contract_words(compiled: &CompiledPolicy) -> String {
    let called = if compiled.imports_values() { "suspended" } else { "plainly" };
    let imports = if compiled.imports().is_empty() { "nothing".to_owned() } else { compiled.imports().join(", ") };
    format!("imports {imports}; called {called}")
}

fn fuel_words(used: u64, budget: u64) -> String {
    let share = 100.0 * used as f64 / budget.max(1) as f64;
    format!("at most {used} of {budget} units of fuel ({share:.1} %)")
}

fn plural((count, what): (usize, &str)) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A short name of why a component is not loaded, for scripts.
pub fn load_kind(error: &LoadError) -> &'static str {
    match error {
        LoadError::TooLarge { .. } => "too-large",
        LoadError::NotWebAssembly { .. } => "not-webassembly",
        LoadError::CoreModule { .. } => "core-module",
        LoadError::Cap { .. } => "cap",
        LoadError::Invalid { .. } => "invalid",
        LoadError::CompileTime { .. } => "compile-time",
        LoadError::CompileMemory { .. } => "compile-memory",
        LoadError::CodeTooLarge { .. } => "code-too-large",
        LoadError::Compiler { .. } => "compiler",
        LoadError::Contract { .. } => "contract",
        LoadError::Describe(fault) => fault_kind(&fault.kind),
        LoadError::Manifest { .. } => "manifest",
    }
}

/// A short name of a fault's kind, for scripts.
pub fn fault_kind(kind: &FaultKind) -> &'static str {
    match kind {
        FaultKind::OutOfFuel => "out-of-fuel",
        FaultKind::Deadline => "deadline",
        FaultKind::Memory { .. } => "memory",
        FaultKind::Table { .. } => "table",
        FaultKind::BadCall(BadCall::Pattern(_) | BadCall::TextTooLong { .. }) => "bad-call",
        FaultKind::Trap(_) => "trap",
        FaultKind::BadDecision(_) => "bad-decision",
        FaultKind::BadPlan(_) => "bad-plan",
        FaultKind::StartRefused => "start-refused",
        FaultKind::Capacity => "capacity",
        FaultKind::Error => "error",
    }
}

#[cfg(test)]
mod tests;
