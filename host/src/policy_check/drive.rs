//! A policy shown recorded steps, as a host would show them.
//!
//! What was drawn is drawn again whatever the policy steers, so that every policy sees the same response;
//! its splices and stops are followed. In between, tokens are taken back as if another policy had: that is
//! where policies that count tokens for themselves go wrong. Start at [`Driver::drive`].

use std::sync::Arc;

use super::recorded::{RecordedStep, Recording};
use super::{Case, Tally};
use crate::sandbox::{
    CompiledPolicy, Decision, Fault, Instance, Limits, Manifest, Progress, Schedule, StartRequest, Step, ValueAnswer,
    ValueRequest, VocabularyText,
};
use crate::token::Token;

/// Tokens taken back by somebody else: at this length, so many, and whether another token follows at once.
const REWINDS: [(usize, usize, bool); 3] = [(5, 1, false), (9, 3, false), (14, 2, true)];

/// What all responses of a check share.
pub(super) struct Driver<'a> {
    pub(super) recording: &'a Recording,
    pub(super) compiled: &'a CompiledPolicy,
    pub(super) manifest: &'a Arc<Manifest>,
    pub(super) text: &'a Arc<VocabularyText>,
    pub(super) limits: &'a Limits,
}

/// The response as the policy has been told of it.
#[derive(Default)]
struct Told {
    response: Vec<Token>,
    /// Tokens that it was shown and that still stand.
    kept: usize,
}

impl Told {
    fn truncate(&mut self, length: usize) {
        self.response.truncate(length);
        self.kept = self.kept.min(self.response.len());
    }
}

impl Driver<'_> {
    /// Starts one response.
    pub(super) fn start(&self, case: &Case, tally: &mut Tally) -> Result<Instance, Fault> {
        let request = StartRequest {
            settings: &case.settings,
            prompt: &self.recording.prompt,
            candidates: case.candidates,
            max_tokens: self.limit() as u32,
            temperature: case.temperature,
            top_p: 1.0,
            seed: case.seed,
        };
        let instance = self.compiled.start(self.manifest, &request, self.text)?;
        tally.responses += 1;
        tally.fuel_start_max = tally.fuel_start_max.max(instance.start_fuel_used());
        Ok(instance)
    }

    /// Shows it all steps. A fault comes with the words for where it happened.
    pub(super) fn drive(&self, instance: &mut Instance, case: &Case, tally: &mut Tally) -> Result<(), (String, Fault)> {
        let mut told = Told::default();
        let mut rewinds = REWINDS.iter().peekable();
        let mut end_taken_back = false;
        for _ in 0..self.limits.steps_max(self.limit()) {
            let ended = told.response.len() >= self.limit();
            let decision = self.step(instance, case, &mut told, ended, tally).map_err(|fault| {
                let number = told.response.len();
                (if ended { format!("ended at {number} tokens") } else { format!("step {number}") }, fault)
            });
            tally.notes += instance.take_notes().len();
            match decision? {
                Decision::Stop(_) => return Ok(()),
                Decision::Splice { remove, insert } => {
                    told.truncate(told.response.len().saturating_sub(remove as usize));
                    let room = self.limit() - told.response.len();
                    told.response.extend(insert.into_iter().take(room));
                    continue;
                }
                Decision::Keep | Decision::Steer(_) => {}
            }
            if ended {
                if end_taken_back {
                    return Ok(());
                }
                end_taken_back = true;
                told.truncate(self.limit() - 1);
                continue;
            }
            told.response.push(self.recorded(told.response.len()).drawn);
            if let Some((_, back, inserts)) = rewinds.next_if(|(length, ..)| told.response.len() >= *length) {
                let stands = told.response.len() - back;
                told.truncate(stands);
                if *inserts {
                    let candidates = &self.recorded(stands).candidates;
                    told.response.extend(candidates.last());
                }
            }
        }
        // A policy that takes back for ever has its response ended by the host, which is no fault.
        Ok(())
    }

    /// One step, brought to its end.
    fn step(
        &self,
        instance: &mut Instance,
        case: &Case,
        told: &mut Told,
        ended: bool,
        tally: &mut Tally,
    ) -> Result<Decision, Fault> {
        let recorded = self.recorded(told.response.len());
        let plan = instance.plan();
        let most = (plan.candidates.min(case.candidates) as usize).min(recorded.candidates.len());
        let likely = |logit: &f32| (logit - recorded.log_normalizer).exp() >= plan.candidates_floor;
        let likely = recorded.logits[..most].iter().take_while(|logit| likely(logit)).count();
        let shown = if ended { 0 } else { likely.max(1) };
        let candidates = &recorded.candidates[..shown];
        let likeliest = (recorded.logits[0] - recorded.log_normalizer).exp();
        let due = |schedule: &Schedule| match *schedule {
            Schedule::Never => false,
            Schedule::Every(n) => told.response.len().is_multiple_of(n as usize),
            Schedule::Unsure(below) => likeliest < below,
        };
        let prefetch = plan.prefetch.iter().enumerate();
        let heads: Vec<u32> =
            prefetch.filter(|(_, schedule)| !ended && due(schedule)).map(|(head, _)| head as u32).collect();
        let values = self.values(recorded, &heads, candidates);
        let step = Step {
            kept: told.kept as u32,
            appended: &told.response[told.kept..],
            candidates,
            logits: &recorded.logits[..shown],
            prefetched: heads.iter().fold(0, |bits, head| bits | 1 << head),
            values: &values,
            log_normalizer: if ended { 0.0 } else { recorded.log_normalizer },
            entropy: if ended { 0.0 } else { recorded.entropy },
            ended,
        };
        tally.steps += 1;
        let mut progress = instance.decide(&step);
        told.kept = told.response.len();
        loop {
            let request = match progress {
                Progress::Wants(request) => request,
                Progress::Decided(decision) => {
                    tally.fuel_step_max = tally.fuel_step_max.max(instance.fuel_used());
                    return Ok(decision);
                }
                Progress::Faulted(fault) => {
                    tally.fuel_step_max = tally.fuel_step_max.max(instance.fuel_used());
                    return Err(fault);
                }
            };
            tally.value_requests += 1;
            progress = instance.resume(match request {
                _ if !case.heads_answer => ValueAnswer::Unavailable,
                ValueRequest::Evaluate { heads, tokens } => ValueAnswer::Values(self.values(recorded, &heads, &tokens)),
                ValueRequest::Current { head } => {
                    ValueAnswer::Values(vec![self.scaled(head, recorded.state, recorded, 0)])
                }
            });
        }
    }

    /// Values of some heads for some tokens, `[heads, tokens]`.
    fn values(&self, recorded: &RecordedStep, heads: &[u32], tokens: &[Token]) -> Vec<f32> {
        let value = |head: u32, token: Token| {
            let place = recorded.candidates.iter().position(|&candidate| candidate == token);
            // Tokens without a recorded value get one between -1 and 1 that depends on nothing else.
            let unrecorded = (token.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 23) as f32 - 1.0;
            let value = place.map_or(unrecorded, |place| recorded.values[place]);
            self.scaled(head, value, recorded, place.unwrap_or(recorded.logits.len() - 1))
        };
        heads.iter().flat_map(|&head| tokens.iter().map(move |&token| value(head, token))).collect()
    }

    /// A recorded value as this head would give it: in its own units, every second head the other way round; a
    /// model's probability where that is its kind.
    fn scaled(&self, head: u32, value: f32, recorded: &RecordedStep, place: usize) -> f32 {
        let Some(offer) = self.manifest.heads.get(head as usize) else { return value };
        let log_probability = recorded.logits[place] - recorded.log_normalizer;
        match offer.kind.as_str() {
            "log-probability" => log_probability,
            "probability" => log_probability.exp(),
            _ if head % 2 == 1 => -value * offer.spread,
            _ => value * offer.spread,
        }
    }

    fn recorded(&self, length: usize) -> &RecordedStep {
        &self.recording.steps[length.min(self.limit() - 1)]
    }

    /// The response's token limit.
    fn limit(&self) -> usize {
        self.recording.steps.len()
    }
}
