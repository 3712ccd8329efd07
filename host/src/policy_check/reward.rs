//! Whether a host would take a reward: what `vassal policy check` does where the component is one.
//!
//! The same way as a policy's, as far as it goes: size and form, the contract, `describe` twice. Then it scores exchanges,
//! among them empty, odd and very long ones, in three companies: together, backwards and each alone. A number that is no
//! score is refused, and so is one that changes with its company: a score depends on its exchange alone.
//!
//! Whether the numbers mean anything is not judged. Start at [`RewardCheck::run`].

use super::{CheckError, Outcome, Stage, fault_kind, fill, load_kind, passed, plural, refused};
use crate::sandbox::{
    Compilation, CompiledReward, Exchange, Footprint, Guest, Limits, LoadError, RewardManifest, Sandbox, ScoreFault,
    inspect,
};
use crate::shipped;

/// What is asked, beside nothing.
const PROMPTS: [&str; 4] = [
    shipped::PROMPT,
    "List three fruits.",
    "Erkläre, warum Katzen schnurren – in zwei Sätzen!",
    "猫はなぜ喉を鳴らすの?",
];

/// What is answered, beside nothing and the prompt itself.
const RESPONSES: [&str; 12] = [
    " ",
    "Yes.",
    "NO!!! That is terrible, and I will not say why.",
    "You will be nervous at first, and that passes: after two minutes most people settle down. Look at somebody friendly.",
    "1. Apples\n2. Pears\n3. Plums\n",
    "- Äpfel\n- Birnen\n\t- süß & reif\n",
    "Sure! Here is the code:\n```rust\nfn main() { println!(\"{}\", 1 + 1); }\n```\n",
    "Perhaps it might possibly be the case that it could be so, perhaps.",
    "猫は嬉しいときに喉を鳴らします。 🐈‍⬛ ❤️",
    "\u{0}\u{1b}[2J\u{202e}\u{feff}\u{fffd}\r\n\u{2028}",
    "3.14159 −1e9 0x7f NaN ∞ ½",
    "word\u{301} e\u{301}\u{301}\u{301} ﬁ ǆ İ ẞ ß",
];

/// What to check, and with what.
pub struct RewardCheck<'a> {
    /// The name that messages use.
    pub name: &'a str,
    /// The component.
    pub component: &'a [u8],
    /// Where it is compiled.
    pub compilation: Compilation,
}

/// What a check found.
#[derive(Debug, Clone)]
pub struct RewardReport {
    /// All stages, in order: `component`, `contract`, `describe` and `score`.
    pub stages: Vec<Stage>,
    /// The limits it ran under.
    pub limits: Limits,
    /// What the component is made of, where it is valid and within every cap.
    pub footprint: Option<Footprint>,
    /// What the reward says of itself, where it came so far.
    pub manifest: Option<RewardManifest>,
    /// Exchanges that were scored, each in three companies.
    pub exchanges: usize,
}

impl RewardReport {
    /// The first stage that refused the reward.
    pub fn refusal(&self) -> Option<&Stage> {
        self.stages.iter().find(|stage| matches!(stage.outcome, Outcome::Refused { .. }))
    }
}

impl RewardCheck<'_> {
    /// Takes the reward through all stages.
    ///
    /// # Errors
    /// [`CheckError`]: the host's; what is wrong with the reward is in the report.
    pub fn run(&self) -> Result<RewardReport, CheckError> {
        let sandbox = Sandbox::new(Limits { sequences: 4, ..Limits::default() }, self.compilation.clone())?;
        let limits = sandbox.limits().clone();
        let footprint = inspect(&Guest::reward(self.name), self.component, &limits).ok();
        let mut report = RewardReport { stages: Vec::new(), limits, footprint, manifest: None, exchanges: 0 };
        self.stages(&sandbox, &mut report)?;
        fill(&mut report.stages, &["component", "contract", "describe", "score"]);
        Ok(report)
    }

    fn stages(&self, sandbox: &Sandbox, report: &mut RewardReport) -> Result<(), CheckError> {
        let size = passed("component", format!("{} of {} bytes", self.component.len(), report.limits.component_bytes));
        let reward = match sandbox.compile_reward(self.name, self.component) {
            Ok(reward) => reward,
            Err(LoadError::Compiler { error, .. }) => return Err(error.into()),
            Err(error @ LoadError::Contract { .. }) => {
                report.stages.extend([size, refused("contract", load_kind(&error), error)]);
                return Ok(());
            }
            Err(error) => {
                report.stages.push(refused("component", load_kind(&error), error));
                return Ok(());
            }
        };
        report.stages.extend([size, passed("contract", "imports nothing".to_owned())]);
        let manifest = match reward.describe() {
            Ok(manifest) => manifest,
            Err(LoadError::Describe(fault)) if fault.kind.is_the_hosts() => return Err(CheckError::Host(fault)),
            Err(error) => {
                report.stages.push(refused("describe", load_kind(&error), error));
                return Ok(());
            }
        };
        let RewardManifest { name, version, minimum, maximum, .. } = &manifest;
        report.stages.push(passed("describe", format!("twice the same: {name} {version}, {minimum} to {maximum}")));
        report.manifest = Some(manifest);
        let texts = texts(report.limits.score_text_bytes);
        report.exchanges = texts.len();
        report.stages.push(scored(&reward, &texts)?);
        Ok(())
    }
}

/// The exchanges to score: each prompt with each response, and one with all the text that a call may have.
fn texts(most_bytes: usize) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for prompt in PROMPTS.into_iter().chain([""]) {
        let responses = RESPONSES.into_iter().chain(["", prompt]);
        texts.extend(responses.map(|response| (prompt.to_owned(), response.to_owned())));
    }
    let sentence = RESPONSES[3];
    let room = most_bytes.saturating_sub(shipped::PROMPT.len());
    let mut long = sentence.repeat(room.div_ceil(sentence.len()));
    long.truncate(room);
    texts.push((shipped::PROMPT.to_owned(), long));
    texts
}

/// The last stage: all of them together, backwards, and each alone.
fn scored(reward: &CompiledReward, texts: &[(String, String)]) -> Result<Stage, CheckError> {
    let exchanges: Vec<_> = texts.iter().map(|(prompt, response)| Exchange { prompt, response }).collect();
    let together = reward.score(&exchanges);
    let mut backwards = reward.score(&exchanges.iter().rev().copied().collect::<Vec<_>>());
    backwards.reverse();
    let (mut lowest, mut highest) = (f64::INFINITY, f64::NEG_INFINITY);
    for ((exchange, together), backwards) in exchanges.iter().zip(together).zip(backwards) {
        let alone = reward.score(&[*exchange]).pop().unwrap_or(Err(ScoreFault::Count { given: 0 }));
        let scores = [together, backwards, alone].into_iter().collect::<Result<Vec<f64>, ScoreFault>>();
        let scores = match scores {
            Ok(scores) => scores,
            Err(ScoreFault::Fault(fault)) if fault.kind.is_the_hosts() => return Err(CheckError::Host(fault)),
            Err(fault) => return Ok(refused("score", score_kind(&fault), format!("{}: {fault}", shown(exchange)))),
        };
        if scores.iter().any(|score| score.to_bits() != scores[0].to_bits()) {
            let words = "it depends on what is scored before it, and must on its exchange alone";
            let [together, backwards, alone] = [scores[0], scores[1], scores[2]];
            let detail =
                format!("{}: {alone} alone, {together} and {backwards} among others: {words}", shown(exchange));
            return Ok(refused("score", "unstable", detail));
        }
        (lowest, highest) = (lowest.min(scores[0]), highest.max(scores[0]));
    }
    let count = plural((exchanges.len(), "exchange"));
    Ok(passed("score", format!("{count}, alone and together alike: {lowest} to {highest}")))
}

/// The beginnings of an exchange's texts, for a message.
fn shown(Exchange { prompt, response }: &Exchange<'_>) -> String {
    let start = |text: &str| text.chars().take(24).collect::<String>();
    format!("response {:?} to {:?}", start(response), start(prompt))
}

/// A short name of why an exchange has no score, for scripts.
pub fn score_kind(fault: &ScoreFault) -> &'static str {
    match fault {
        ScoreFault::TooLong { .. } => "too-long",
        ScoreFault::Refused(error) => load_kind(error),
        ScoreFault::Fault(fault) => fault_kind(&fault.kind),
        ScoreFault::Count { .. } => "count",
        ScoreFault::NotANumber => "not-a-number",
        ScoreFault::OutOfRange { .. } => "out-of-range",
    }
}
