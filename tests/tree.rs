//! On a tree that is small enough to enumerate, sampled frequencies match the formula.
//!
//! The exact distribution is computed here in f64, from base logits and head values that are read out of
//! whole passes over whole sequences (no candidate rows, no rounds, no sampler): design, section 3. The
//! bound is on chi-square: its mean and eight of its deviations, under fixed seeds. The same counts must
//! lie far above the bound against the base distribution, and above it against dials that are 10 % off and,
//! where a baseline matters, against another one, or the test would say nothing.

use std::collections::BTreeMap;

use vassal::request::PolicyUse;
use vassal::token::Token;
use vassal_guest::Baseline;

use crate::made_up_heads::{look_ahead, with_share, with_text};
use crate::support::{PROMPT, Setup, Tiny};

const DIALS: [(&str, f64); 2] = [("sentiment", 0.8), ("simplicity", -0.7)];
const TEMPERATURE: f32 = 0.9;
const MAX_TOKENS: usize = 24;

/// The share by which dials may not be wrong unnoticed.
const PERCEIVED: f64 = 0.1;

fn setup() -> Setup {
    let mut setup = Setup {
        heads: vec![with_share(look_ahead("sentiment", 2, 21)), with_text(look_ahead("simplicity", 1, 22))],
        ..Setup::default()
    };
    setup.options.sequences_max = 64;
    setup.options.cache_tokens = 64 * 96;
    setup
}

/// What the formula is about.
#[derive(Clone, Copy)]
struct Formula {
    mask: bool,
    /// What the dials are multiplied by; 0 is the base model.
    turn: f64,
    /// What values are counted from.
    baseline: Baseline,
}

/// What the model and its heads say after a response: the candidates with logit and values, the tail with logits.
struct State {
    candidates: Vec<(Token, f64, [f64; 2])>,
    tail: Vec<(Token, f64)>,
}

/// Every response shorter than the depth, read once, whatever formulas it is put into.
struct Tree {
    states: BTreeMap<Vec<Token>, State>,
    depth: usize,
}

impl Tree {
    /// Over the tokens that are allowed, with so many candidates; those that a mask leaves unsaid are not followed.
    fn read(tiny: &mut Tiny, prompt: &[Token], allowed: &[Token], depth: usize, candidates: usize, mask: bool) -> Self {
        let mut states = BTreeMap::new();
        let mut level = vec![Vec::new()];
        for _ in 0..depth {
            let mut next = Vec::new();
            for response in level {
                let state = State::read(tiny, prompt, &response, allowed, candidates);
                let chosen = state.candidates.iter().map(|(token, ..)| *token);
                let tail = state.tail.iter().map(|(token, _)| *token).filter(|_| !mask);
                next.extend(chosen.chain(tail).map(|token| [&response[..], &[token]].concat()));
                states.insert(response, state);
            }
            level = next;
        }
        Self { states, depth }
    }

    /// Every response of the depth with its probability.
    fn leaves(&self, formula: Formula) -> BTreeMap<Vec<Token>, f64> {
        let mut leaves = BTreeMap::from([(Vec::new(), 1.0)]);
        for _ in 0..self.depth {
            let mut next = BTreeMap::new();
            for (response, probability) in leaves {
                for (token, share) in self.states[&response].exact(formula) {
                    next.insert([&response[..], &[token]].concat(), probability * share);
                }
            }
            leaves = next;
        }
        leaves
    }
}

impl State {
    fn read(tiny: &mut Tiny, prompt: &[Token], response: &[Token], allowed: &[Token], candidates: usize) -> Self {
        let logits = tiny.logits_after(&[prompt, response].concat());
        let logit = |token: Token| f64::from(logits[token as usize]);
        let mut order = allowed.to_vec();
        order.sort_by(|a, b| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b)));
        let (chosen, tail) = order.split_at(candidates.min(order.len()));
        let mut values = |token: Token| {
            let response = [response, &[token]].concat();
            [0, 1].map(|head| *tiny.values_along(head, prompt, &response, MAX_TOKENS).last().unwrap())
        };
        Self {
            candidates: chosen.iter().map(|token| (*token, logit(*token), values(*token))).collect(),
            tail: tail.iter().map(|token| (*token, logit(*token))).collect(),
        }
    }

    /// The exact next-token distribution.
    fn exact(&self, formula: Formula) -> BTreeMap<Token, f64> {
        let mut adjusted: BTreeMap<Token, f64> =
            self.candidates.iter().map(|(token, logit, _)| (*token, *logit)).collect();
        if !formula.mask {
            adjusted.extend(self.tail.iter().copied());
        }
        let weight = |logit: f64| if formula.baseline == Baseline::Weighted { logit.exp() } else { 1.0 };
        let mass: f64 = self.candidates.iter().map(|(_, logit, _)| weight(*logit)).sum();
        for (head, (_, dial)) in DIALS.iter().enumerate() {
            let beta = formula.turn * dial * f64::from(TEMPERATURE);
            let mean =
                self.candidates.iter().map(|(_, logit, values)| weight(*logit) * values[head]).sum::<f64>() / mass;
            let baseline = if formula.baseline == Baseline::None { 0.0 } else { mean };
            for (token, _, values) in &self.candidates {
                *adjusted.get_mut(token).unwrap() += beta * (values[head] - baseline);
            }
        }
        let weight = |logit: f64| (logit / f64::from(TEMPERATURE)).exp();
        let total: f64 = adjusted.values().map(|logit| weight(*logit)).sum();
        adjusted.into_iter().map(|(token, logit)| (token, weight(logit) / total)).collect()
    }
}

/// Pearson's chi-square and its degrees of freedom; leaves that are expected less than 8 times are one bin.
fn chi_square(expected: &BTreeMap<Vec<Token>, f64>, counts: &BTreeMap<Vec<Token>, usize>) -> (f64, f64) {
    let total = counts.values().sum::<usize>() as f64;
    let (mut sum, mut bins, mut rare) = (0.0, 0.0, (0.0, 0.0));
    for (leaf, probability) in expected {
        let (expected, found) = (probability * total, counts.get(leaf).copied().unwrap_or(0) as f64);
        if expected < 8.0 {
            rare = (rare.0 + expected, rare.1 + found);
        } else {
            sum += (found - expected).powi(2) / expected;
            bins += 1.0;
        }
    }
    // What the formula says cannot be counts as rare too.
    rare.1 +=
        counts.iter().filter(|(leaf, _)| !expected.contains_key(*leaf)).map(|(_, count)| *count as f64).sum::<f64>();
    if rare.0 > 0.0 || rare.1 > 0.0 {
        sum += (rare.1 - rare.0).powi(2) / rare.0.max(1e-9);
        bins += 1.0;
    }
    (sum, bins - 1.0)
}

/// Samples `count` responses of `depth` tokens and compares them with the formula.
fn check(
    allowed: &[Token],
    restrict: impl Fn(&Tiny) -> Vec<PolicyUse>,
    depth: usize,
    candidates: usize,
    mask: bool,
    count: usize,
) {
    let mut tiny = setup().open();
    let dials = DIALS.map(|(name, dial)| (name, dial.to_string()));
    let candidates_text = candidates.to_string();
    let mut settings = vec![("candidates", candidates_text.as_str()), ("tail", if mask { "mask" } else { "keep" })];
    settings.extend(dials.iter().map(|(name, dial)| (*name, dial.as_str())));
    let mut policies = restrict(&tiny);
    policies.push(tiny.policy("vas", &settings));
    let mut request = tiny.request(PROMPT, policies);
    request.temperature = Some(TEMPERATURE);
    // The limit is a feature, so the sequences run under it and are cut here.
    request.max_tokens = Some(MAX_TOKENS);
    request.seed = Some(2024);
    let prompt = request.prompt.clone();
    let mut counts = BTreeMap::new();
    let mut request = tiny.endless(request);
    request.policies.push(tiny.scripted(&format!("{depth} stop enough")));
    for response in tiny.samples(request, count) {
        assert_eq!(response.tokens.len(), depth, "{:?}", response.finish);
        *counts.entry(response.token_ids()).or_insert(0) += 1;
    }
    let formula = Formula { mask, turn: 1.0, baseline: Baseline::Weighted };
    let tree = Tree::read(&mut tiny, &prompt, allowed, depth, candidates, mask);
    let compared = |formula| {
        let expected = tree.leaves(formula);
        assert!((expected.values().sum::<f64>() - 1.0).abs() < 1e-9);
        let (found, freedom) = chi_square(&expected, &counts);
        assert!(freedom >= 5.0, "{freedom} degrees of freedom");
        (found, freedom + 8.0 * (2.0 * freedom).sqrt())
    };
    let (found, bound) = compared(formula);
    assert!(found <= bound, "chi-square {found:.1}, bound {bound:.1}");
    let (unsteered, bound) = compared(Formula { turn: 0.0, ..formula });
    assert!(unsteered > 3.0 * bound, "the base fits too: {unsteered:.1}, bound {bound:.1}");
    for turn in [1.0 - PERCEIVED, 1.0 + PERCEIVED] {
        let (turned, bound) = compared(Formula { turn, ..formula });
        assert!(turned > bound, "dials times {turn} fit too: {turned:.1}, bound {bound:.1}");
    }
    // Among masked candidates a baseline is a constant, and changes nothing; at one state with hardly a tail it
    // changes little.
    for baseline in [Baseline::None, Baseline::Candidates].into_iter().filter(|_| !mask && depth > 1) {
        let (other, bound) = compared(Formula { baseline, ..formula });
        assert!(other > bound, "the baseline {baseline:?} fits too: {other:.1}, bound {bound:.1}");
    }
}

/// Six tokens that the base model likes about alike, and the policy that allows nothing else.
fn six(tiny: &mut Tiny) -> Vec<Token> {
    let prompt = tiny.tokenizer.encode(PROMPT, false).unwrap();
    let logits = tiny.logits_after(&prompt);
    let mut order: Vec<Token> = (0..logits.len() as Token).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    let mut chosen = order[4..10].to_vec();
    chosen.sort_unstable();
    chosen
}

fn check_six(mask: bool) {
    let allowed = six(&mut setup().open());
    let named: Vec<String> = allowed.iter().map(u32::to_string).collect();
    let only = format!("* only {}", named.join(","));
    check(&allowed, |tiny| vec![tiny.scripted(&only)], 3, 4, mask, 8_000);
}

#[test]
fn the_enumerable_tree_matches_the_formula_with_tail_keep() {
    check_six(false);
}

#[test]
fn the_enumerable_tree_matches_the_formula_with_tail_mask() {
    check_six(true);
}

#[test]
fn the_whole_vocabulary_matches_the_formula_with_tail_keep() {
    let all: Vec<Token> = (0..setup().model.vocabulary_size() as Token).collect();
    check(&all, |_| Vec::new(), 1, 20, false, 8_000);
}

#[test]
fn the_whole_vocabulary_matches_the_formula_with_tail_mask() {
    let all: Vec<Token> = (0..setup().model.vocabulary_size() as Token).collect();
    check(&all, |_| Vec::new(), 1, 20, true, 8_000);
}

#[test]
fn states_of_a_known_response_are_valued_as_whole_sequences_are_and_alike_one_by_one() {
    let mut setup = setup();
    // Fewer logits than states, and candidates for several passes.
    setup.options.sequences_max = 4;
    setup.options.rows_max = 32;
    let mut tiny = setup.open();
    let prompt = tiny.request(PROMPT, Vec::new()).prompt;
    let response: Vec<Token> = (0..20).map(|place| tiny.byte(b'a' + place)).collect();
    let states: Vec<usize> = (0..=response.len()).collect();
    // The heads read different layers, so each is asked alone; the second adds something for the text.
    for head in tiny.head_ids() {
        let valued = |tiny: &mut Tiny, states: &[usize]| {
            tiny.engine.candidate_states(&[head], &prompt, &response, states, 5, MAX_TOKENS).unwrap()
        };
        let together = valued(&mut tiny, &states);
        assert_eq!(together.iter().map(|state| state.response_count).collect::<Vec<_>>(), states);
        let along = tiny.values_along(head.0, &prompt, &response, MAX_TOKENS);
        for (state, value) in together.iter().zip(along) {
            assert_eq!(valued(&mut tiny, &[state.response_count]), std::slice::from_ref(state));
            assert!((f64::from(state.state_values[0]) - value).abs() < 1e-4, "{state:?} for {value}");
            for (&token, &value) in state.top.tokens.iter().zip(&state.values[0]) {
                let after = [&response[..state.response_count], &[token]].concat();
                let whole = *tiny.values_along(head.0, &prompt, &after, MAX_TOKENS).last().unwrap();
                assert!((f64::from(value) - whole).abs() < 1e-4, "{value} for {whole} of {token}");
            }
        }
    }
}
