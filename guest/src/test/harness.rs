//! Starts a policy against a [`FakeHost`] and steps it.
//!
//! Start at [`Harness::new`]; [`Harness::decide`] is one step, [`Harness::generate`] a response. The
//! settings are resolved as the host would: the initial value, unless [`Harness::set`] gave another.

use super::{FakeHost, lending};
use crate::{
    Decision, HeadOffer, Manifest, NamedValue, Plan, Policy, Request, Schedule, SettingKind, SettingValue, Splice,
    Steering, Step, Tail, Token, blend,
};

/// One policy, its host and its response.
pub struct Harness<P> {
    host: FakeHost,
    offers: Vec<HeadOffer>,
    given: Vec<(String, SettingValue)>,
    /// What the policy is started with. A test may change it before [`Harness::start`]; settings,
    /// heads, vocabulary and end of text are filled in there.
    pub request: Request,
    manifest: Manifest,
    plan: Plan,
    policy: Option<P>,
    shown: u32,
    kept: u32,
    response: Vec<Token>,
}

/// How a response of [`Harness::generate`] went.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Its tokens.
    pub tokens: Vec<Token>,
    /// The reason, where the policy stopped it, or `nothing-allowed` where no token was left.
    pub stopped: Option<String>,
    /// How many tokens were taken back.
    pub removed: u32,
}

impl From<f64> for SettingValue {
    fn from(value: f64) -> SettingValue {
        SettingValue::Number(value)
    }
}

impl From<bool> for SettingValue {
    fn from(value: bool) -> SettingValue {
        SettingValue::Flag(value)
    }
}

impl From<&str> for SettingValue {
    /// A choice or a text; the manifest decides which.
    fn from(value: &str) -> SettingValue {
        SettingValue::Text(value.to_owned())
    }
}

impl<P: Policy> Harness<P> {
    /// A harness at temperature 1 without heads, with at most 1,000 tokens a response.
    pub fn new(host: FakeHost) -> Harness<P> {
        let request = Request { candidates: 256, max_tokens: 1000, temperature: 1.0, top_p: 1.0, ..Request::default() };
        Harness {
            host,
            offers: Vec::new(),
            given: Vec::new(),
            request,
            manifest: Manifest::default(),
            plan: Plan { candidates: 0, candidates_floor: 0.0, prefetch: Vec::new() },
            policy: None,
            shown: 0,
            kept: 0,
            response: Vec::new(),
        }
    }

    /// Offers a head; their order is the order of the calls.
    pub fn offer(mut self, name: &str, kind: &str, spread: f32) -> Harness<P> {
        self.offers.push(HeadOffer { name: name.to_owned(), kind: kind.to_owned(), spread });
        self
    }

    /// Gives a setting a value.
    pub fn set(mut self, name: &str, value: impl Into<SettingValue>) -> Harness<P> {
        self.given.push((name.to_owned(), value.into()));
        self
    }

    /// Starts the policy for a new response.
    ///
    /// # Errors
    /// The policy's own words, where it refuses.
    ///
    /// # Panics
    /// If a given setting is not in the manifest, is of another kind or out of range.
    pub fn start(&mut self) -> Result<(), String> {
        let offers = &self.offers;
        self.manifest = lending(&mut self.host, || P::manifest(offers));
        self.request.settings = settings(&self.manifest, &self.given);
        let offer = |name: &String| offers.iter().find(|offer| offer.name == *name).cloned();
        self.request.heads = self.manifest.heads.iter().filter_map(offer).collect();
        assert_eq!(self.request.heads.len(), self.manifest.heads.len(), "a head that is not offered");
        self.request.vocabulary_size = self.host.vocabulary_size();
        self.request.end_of_text = self.host.end_of_text.clone();
        self.host.heads = self.manifest.heads.len() as u32;
        self.host.candidates = self.request.candidates;
        self.host.response.clear();
        self.response.clear();
        (self.shown, self.kept) = (0, 0);
        let request = &self.request;
        let (policy, plan) = lending(&mut self.host, || {
            let policy = P::start(request)?;
            let plan = policy.plan(request);
            Ok::<_, String>((policy, plan))
        })?;
        assert!((1..=self.manifest.candidates_max).contains(&plan.candidates), "{plan:?}");
        assert!((0.0..=1.0).contains(&plan.candidates_floor), "{plan:?}");
        assert_eq!(plan.prefetch.len(), self.manifest.heads.len(), "one schedule a head");
        (self.policy, self.plan) = (Some(policy), plan);
        Ok(())
    }

    /// The step that the base model's logits make, one a token of the vocabulary, with the prefetched
    /// values of the plan.
    pub fn step(&self, logits: &[f32]) -> Step {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let log_normalizer = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln() as f32;
        let probability = |token: usize| (logits[token] - log_normalizer).exp();
        let floor = self.plan.candidates_floor;
        order.truncate(self.plan.candidates.min(self.request.candidates) as usize);
        let candidates: Vec<Token> = order
            .iter()
            .enumerate()
            .filter(|(rank, token)| *rank == 0 || probability(**token) >= floor)
            .map(|(_, token)| *token as Token)
            .collect();
        let (mut prefetched, mut values) = (0, Vec::new());
        for (head, schedule) in (0u32..).zip(&self.plan.prefetch) {
            let due = match schedule {
                Schedule::Never => false,
                Schedule::Every(steps) => self.response.len().is_multiple_of(*steps as usize),
                Schedule::Unsure(bound) => probability(order[0]) < *bound,
            };
            if due {
                prefetched |= 1 << head;
                values.extend(candidates.iter().map(|token| self.host.value(head, &[*token])));
            }
        }
        let terms = logits.iter().map(|logit| f64::from(logit - log_normalizer));
        Step {
            kept: self.kept,
            appended: self.response[self.kept as usize..].to_vec(),
            logits: candidates.iter().map(|token| logits[*token as usize]).collect(),
            candidates,
            prefetched,
            values,
            log_normalizer,
            entropy: terms.map(|log| -log * log.exp()).sum::<f64>() as f32,
            ended: false,
        }
    }

    /// The step in which the response would end.
    pub fn ending(&self) -> Step {
        let appended = self.response[self.kept as usize..].to_vec();
        Step { kept: self.kept, appended, ended: true, ..Step::default() }
    }

    /// Asks the policy about a step.
    ///
    /// # Panics
    /// If it was not started.
    pub fn decide(&mut self, step: &Step) -> Decision {
        self.host.deciding = !step.ended;
        self.host.evaluations = 0;
        self.host.known = (0..32)
            .filter(|head| step.prefetched >> head & 1 == 1)
            .flat_map(|head| step.candidates.iter().map(move |token| (head, *token)))
            .collect();
        let policy = self.policy.as_mut().expect("the harness is started first");
        let decision = lending(&mut self.host, || policy.decide(step));
        self.host.deciding = false;
        self.shown = self.response.len() as u32;
        self.kept = self.shown;
        decision
    }

    /// One step to the end: the logits after the policy's steering, one a token of the vocabulary.
    ///
    /// # Panics
    /// If the policy splices or stops.
    pub fn steered(&mut self, logits: &[f32]) -> Vec<f32> {
        let step = self.step(logits);
        match self.decide(&step) {
            Decision::Keep => logits.to_vec(),
            Decision::Steer(steering) => apply(&step, &steering, logits, &self.host),
            other => panic!("steering was expected, not {other:?}"),
        }
    }

    /// Commits a token, drawn or another policy's.
    pub fn commit(&mut self, token: Token) {
        self.response.push(token);
        self.host.response.push(token);
    }

    /// Does what a splice asks for, this policy's or another's.
    ///
    /// # Panics
    /// If it takes back more than there is.
    pub fn splice(&mut self, splice: &Splice) {
        let left = self.response.len().checked_sub(splice.remove as usize).expect("more than the response has");
        self.response.truncate(left);
        self.host.response.truncate(left);
        self.kept = self.kept.min(left as u32);
        for token in &splice.insert {
            self.commit(*token);
        }
    }

    /// A whole response: `model` gives the base model's logits after a response, `draw` picks a token
    /// by its steered logits (those at negative infinity are forbidden).
    pub fn generate(&mut self, model: impl Fn(&[Token]) -> Vec<f32>, mut draw: impl FnMut(&[f32]) -> Token) -> Outcome {
        let mut outcome = Outcome { tokens: Vec::new(), stopped: None, removed: 0 };
        // Splices may go round in circles; the real host bounds the forwards of a response too.
        for _ in 0..4 * self.request.max_tokens {
            let ended = self.response.last().is_some_and(|token| self.host.end_of_text.contains(token))
                || self.response.len() >= self.request.max_tokens as usize;
            let logits = model(&self.response);
            let step = if ended { self.ending() } else { self.step(&logits) };
            match self.decide(&step) {
                Decision::Stop(reason) => {
                    outcome.stopped = Some(reason);
                    break;
                }
                Decision::Splice(splice) => {
                    outcome.removed += splice.remove;
                    self.splice(&splice);
                }
                _ if ended => break,
                decision => {
                    let steered = match decision {
                        Decision::Steer(steering) => apply(&step, &steering, &logits, &self.host),
                        _ => logits,
                    };
                    if steered.iter().all(|logit| *logit == f32::NEG_INFINITY) {
                        outcome.stopped = Some("nothing-allowed".to_owned());
                        break;
                    }
                    self.commit(draw(&steered));
                }
            }
        }
        outcome.tokens.clone_from(&self.response);
        outcome
    }

    /// The host, for its text and notes.
    pub fn host(&self) -> &FakeHost {
        &self.host
    }

    /// The policy, for what a test wants to see of it.
    ///
    /// # Panics
    /// If it was not started.
    pub fn policy(&self) -> &P {
        self.policy.as_ref().expect("the harness is started first")
    }

    /// What the policy declared.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it planned.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// The contract's rules: every token's logit after one policy's steering, before temperature.
///
/// # Panics
/// If the steering breaks a bound of the contract, where the real host faults the policy.
pub fn apply(step: &Step, steering: &Steering, logits: &[f32], host: &FakeHost) -> Vec<f32> {
    let bounded = |delta: f32| delta.abs() <= 10_000.0 || delta == f32::NEG_INFINITY;
    let mut steered = logits.to_vec();
    let mut candidates = step.candidates.clone();
    if let Some(bias) = &steering.vocabulary {
        assert_eq!(bias.bits.len(), logits.len().div_ceil(64), "words of the vocabulary bias");
        assert!(bounded(bias.set) && bounded(bias.unset), "{} {}", bias.set, bias.unset);
        for (token, logit) in steered.iter_mut().enumerate() {
            *logit += if bias.bits[token / 64] >> (token % 64) & 1 == 1 { bias.set } else { bias.unset };
        }
        let mut order: Vec<usize> = (0..steered.len()).filter(|token| steered[*token].is_finite()).collect();
        order.sort_by(|a, b| steered[*b].total_cmp(&steered[*a]).then(a.cmp(b)));
        candidates = order.iter().take(candidates.len()).map(|token| *token as Token).collect();
    }
    let base: Vec<f32> = candidates.iter().map(|token| logits[*token as usize]).collect();
    let mut blended = vec![0.0f32; candidates.len()];
    for term in &steering.blend {
        assert!(term.weight.abs() <= 10_000.0, "{term:?}");
        let values: Vec<f32> = candidates.iter().map(|token| host.value(term.head, &[*token])).collect();
        let state = host.value(term.head, &[]);
        let baseline = blend::baseline(term.baseline, &values, &base, state);
        blend::add_term(&mut blended, term.weight, &values, baseline);
    }
    if !steering.adjust.is_empty() {
        assert_eq!(steering.adjust.len(), step.candidates.len(), "one delta a candidate");
        for (token, delta) in step.candidates.iter().zip(&steering.adjust) {
            assert!(bounded(*delta), "{delta}");
            steered[*token as usize] += delta;
        }
    }
    for (token, delta) in candidates.iter().zip(blended) {
        steered[*token as usize] += delta;
    }
    if let Some(bias) = &steering.bias {
        assert!(bias.tokens.len() == bias.deltas.len() && bias.tokens.len() <= 1024, "{bias:?}");
        for (token, delta) in bias.tokens.iter().zip(&bias.deltas) {
            assert!(bounded(*delta), "{delta}");
            steered[*token as usize] += delta;
        }
    }
    if steering.tail == Tail::Mask {
        for (token, logit) in steered.iter_mut().enumerate() {
            if !candidates.contains(&(token as Token)) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    steered
}

fn settings(manifest: &Manifest, given: &[(String, SettingValue)]) -> Vec<NamedValue> {
    for (name, _) in given {
        assert!(manifest.settings.iter().any(|setting| setting.name == *name), "no setting `{name}`");
    }
    let value = |setting: &crate::Setting| {
        let given = given.iter().rev().find(|(name, _)| *name == setting.name).map(|(_, value)| value.clone());
        let value = match (&setting.kind, given) {
            (SettingKind::Number { initial, .. }, None) => SettingValue::Number(*initial),
            (SettingKind::Number { minimum, maximum, .. }, Some(SettingValue::Number(value))) => {
                assert!((*minimum..=*maximum).contains(&value), "`{}` is {minimum} to {maximum}", setting.name);
                SettingValue::Number(value)
            }
            (SettingKind::Flag(initial), None) => SettingValue::Flag(*initial),
            (SettingKind::Flag(_), Some(SettingValue::Flag(value))) => SettingValue::Flag(value),
            (SettingKind::Choice(words), None) => SettingValue::Choice(words[0].clone()),
            (SettingKind::Choice(words), Some(SettingValue::Text(word) | SettingValue::Choice(word))) => {
                assert!(words.contains(&word), "`{}` is one of {words:?}", setting.name);
                SettingValue::Choice(word)
            }
            (SettingKind::Text(initial), None) => SettingValue::Text(initial.clone()),
            (SettingKind::Text(_), Some(SettingValue::Text(text))) => SettingValue::Text(text),
            (kind, Some(value)) => panic!("`{}` is a {kind:?}, not a {value:?}", setting.name),
        };
        NamedValue { name: setting.name.clone(), value }
    };
    manifest.settings.iter().map(value).collect()
}
