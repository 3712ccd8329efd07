//! The exact identities of decoding (design, section 3), each by name.
//!
//! Equal means equal to the bit: tokens, and for each the probabilities that it was drawn with. Every test
//! says how it would be vacuous and asserts that it is not: that the policy at hand steers, that the batch
//! is ragged, that something was rewound.

use vassal::engine::{EngineOptions, Finish, Response};
use vassal::request::{PolicyUse, Request, ValidRequest};
use vassal_kernels::cpu::Isa;

use crate::made_up_heads::{look_ahead, token_values};
use crate::support::{PROMPT, Setup, Tiny, bits, noise, processor};

/// Both look-ahead heads and the one-pass head at work.
const DIALS: [(&str, &str); 3] = [("sentiment", "0.9"), ("simplicity", "-0.6"), ("brevity", "0.5")];

fn vas(tiny: &Tiny, more: &[(&str, &str)]) -> PolicyUse {
    tiny.policy("vas", &[&DIALS[..], more].concat())
}

/// The base model, and the same request with a policy.
fn base_and(setup: &Setup, policy: impl Fn(&Tiny) -> PolicyUse, change: impl Fn(&mut Request)) -> [Response; 2] {
    let mut tiny = setup.open();
    let mut request = tiny.request(PROMPT, Vec::new());
    change(&mut request);
    let base = tiny.alone(request.clone());
    request.policies = vec![policy(&tiny)];
    [base, tiny.alone(request)]
}

fn assert_steers(base: &Response, steered: &Response) {
    assert_ne!(base.token_ids(), steered.token_ids(), "the policy does not steer");
    assert!(steered.kl() > 0.2, "KL {}", steered.kl());
    assert_eq!(base.kl(), 0.0, "the base model is itself");
}

#[test]
pub(crate) fn dial_0_with_tail_keep_is_the_base_model() {
    let setup = Setup::with_heads();
    let zero = |tiny: &Tiny| tiny.policy("vas", &[("sentiment", "0")]);
    let [base, zero] = base_and(&setup, zero, |_| {});
    assert_eq!(bits(&base), bits(&zero));
    assert_eq!(base.tokens.len(), 24);
    let [base, steered] = base_and(&setup, |tiny| vas(tiny, &[]), |_| {});
    assert_steers(&base, &steered);
}

#[test]
pub(crate) fn dial_0_with_mask_is_the_bases_top_k() {
    let mut tiny = Setup::with_heads().open();
    let masked = tiny.policy("vas", &[("tail", "mask"), ("candidates", "5")]);
    let request = tiny.request(PROMPT, vec![masked]);
    let prompt = request.prompt.clone();
    let response = tiny.alone(request);
    let mut unlikely = 0;
    for (count, record) in response.tokens.iter().enumerate() {
        let logits = tiny.logits_after(&[&prompt[..], &response.token_ids()[..count]].concat());
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        let place = order[..5].iter().position(|token| *token == record.token as usize);
        let place = place.unwrap_or_else(|| panic!("token {} is none of the top 5", record.token));
        unlikely += usize::from(place > 0);
        let exp = |token: &usize| f64::from(logits[*token]).exp();
        let (kept, all): (f64, f64) = (order[..5].iter().map(exp).sum(), order.iter().map(exp).sum());
        let draw = record.draw.unwrap();
        let renormalised = (exp(&order[place]) / kept).ln();
        assert!((f64::from(draw.log_probability) - renormalised).abs() <= 1e-4, "{draw:?}, {renormalised}");
        assert!((f64::from(draw.kl) - (all / kept).ln()).abs() <= 1e-4, "{draw:?}, {}", (all / kept).ln());
    }
    assert!(unlikely > 3, "only the likeliest token was drawn");
}

#[test]
pub(crate) fn k_1_is_the_base_with_keep_and_greedy_with_mask() {
    let setup = Setup::with_heads();
    let one = |tail| move |tiny: &Tiny| vas(tiny, &[("candidates", "1"), ("tail", tail)]);
    let [base, kept] = base_and(&setup, one("keep"), |_| {});
    assert_eq!(bits(&base), bits(&kept));
    assert!(kept.counters.candidate_rows >= 24, "the candidate was valued");
    let [_, masked] = base_and(&setup, one("mask"), |_| {});
    let [greedy, _] = base_and(&setup, one("mask"), |request| request.temperature = Some(0.0));
    assert_eq!(greedy.token_ids(), masked.token_ids());
    assert_ne!(greedy.token_ids(), base.token_ids());
}

#[test]
pub(crate) fn a_constant_added_to_representable_values_changes_nothing() {
    // Eighths and a power of two of candidates: every sum and mean is exact.
    let vocabulary = Setup::default().model.vocabulary_size();
    let mut next = noise(5);
    let values: Vec<f32> = (0..vocabulary).map(|_| (16.0 * next()).round() / 8.0).collect();
    let run = |constant: f32| {
        let moved: Vec<f32> = values.iter().map(|value| value + constant).collect();
        let setup = Setup { heads: vec![token_values("sentiment", &moved)], ..Setup::default() };
        let settings = [("sentiment", "1"), ("candidates", "16"), ("baseline", "candidates")];
        base_and(&setup, |tiny| tiny.policy("vas", &settings), |_| {})
    };
    let [base, steered] = run(0.0);
    assert_steers(&base, &steered);
    for constant in [0.125, 16.0, -64.0] {
        assert_eq!(bits(&run(constant)[1]), bits(&steered), "{constant}");
    }
}

#[test]
pub(crate) fn a_constant_added_to_a_look_ahead_head_changes_rounding_at_most() {
    let run = |constant: f32, baseline: &str| {
        let mut head = look_ahead("sentiment", 2, 11);
        let vassal::model::heads::HeadWeights::LookAhead(weights) = &mut head.weights else { panic!() };
        weights.bias += constant;
        let setup = Setup { heads: vec![head], ..Setup::default() };
        base_and(&setup, |tiny| tiny.policy("vas", &[("sentiment", "1"), ("baseline", baseline)]), |_| {})
    };
    for baseline in ["weighted", "candidates", "state"] {
        let [base, steered] = run(0.0, baseline);
        assert_steers(&base, &steered);
        let [_, moved] = run(3.0, baseline);
        assert_eq!(moved.token_ids(), steered.token_ids());
        for (a, b) in moved.tokens.iter().zip(&steered.tokens) {
            let (a, b) = (a.draw.unwrap(), b.draw.unwrap());
            assert!((a.log_probability - b.log_probability).abs() <= 1e-4, "{a:?} {b:?}");
        }
    }
}

#[test]
pub(crate) fn blend_adjust_and_evaluate_give_the_same_bits_in_the_engine() {
    let setup = Setup::with_heads();
    for baseline in ["weighted", "candidates", "state", "none"] {
        for (tail, candidates) in [("keep", "20"), ("mask", "7")] {
            let settings = [("baseline", baseline), ("tail", tail), ("candidates", candidates)];
            let run = |mode: &str| {
                let dials = [&DIALS[..], &settings, &[("mode", mode)]].concat();
                base_and(&setup, |tiny| tiny.policy("vas", &dials), |_| {})
            };
            let [base, blended] = run("blend");
            assert_steers(&base, &blended);
            let [_, adjusted] = run("adjust");
            let [_, evaluated] = run("evaluate");
            assert_eq!(bits(&adjusted), bits(&blended), "adjust, {settings:?}");
            assert_eq!(bits(&evaluated), bits(&blended), "evaluate, {settings:?}");
            assert_eq!(evaluated.counters.evaluations, 24);
            assert_eq!(blended.counters.evaluations + adjusted.counters.evaluations, 0);
            assert_eq!(evaluated.counters.candidate_rows, blended.counters.candidate_rows);
        }
    }
}

/// A dozen requests that differ in everything: prompts from 1 token to over two pages, lengths, policies, seeds.
fn ragged(tiny: &Tiny) -> Vec<ValidRequest> {
    let long = PROMPT.repeat(6);
    let phrases = "\n\nthe\nyou";
    (0..12)
        .map(|place| {
            let policies = match place % 6 {
                0 => vec![vas(tiny, &[])],
                1 => Vec::new(),
                2 => vec![vas(tiny, &[("mode", "evaluate"), ("tail", "mask"), ("candidates", "9")])],
                3 => vec![tiny.policy("guard", &[("phrases", phrases)]), vas(tiny, &[("mode", "adjust")])],
                4 => vec![tiny.scripted("5! splice 3 50,51,52,53\n9! splice 4 -\nend! splice 2 -")],
                _ => vec![tiny.scripted("* evaluate 1 7,9,200\n* bias 60:1.5"), vas(tiny, &[("floor", "0.02")])],
            };
            let mut request = tiny.request(&long[..1 + 17 * place], policies);
            request.max_tokens = Some(5 + 7 * (place % 5));
            request.seed = Some(100 + place as u64);
            request.temperature = Some(0.6 + 0.1 * place as f32);
            request.top_p = Some(if place % 4 == 3 { 0.9 } else { 1.0 });
            tiny.endless(request)
        })
        .collect()
}

/// Each of the ragged requests in an engine of its own.
fn each_alone(setup: &Setup) -> Vec<Vec<(u32, Option<[u32; 3]>)>> {
    let count = ragged(&setup.open()).len();
    let alone = |place: usize| {
        let mut tiny = setup.open();
        let request = ragged(&tiny).swap_remove(place);
        bits(&tiny.run(vec![request])[0])
    };
    (0..count).map(alone).collect()
}

fn all_bits(responses: &[Response]) -> Vec<Vec<(u32, Option<[u32; 3]>)>> {
    responses.iter().map(bits).collect()
}

/// The ragged requests together, joining while others are under way, in an engine that has room for five.
fn joining(setup: &Setup) -> Vec<Response> {
    let mut setup = setup.clone();
    setup.options.sequences_max = 5;
    let mut tiny = setup.open();
    let requests = ragged(&tiny);
    tiny.run_joining(requests.into_iter().enumerate().map(|(place, request)| (3 * (place / 2), request)).collect())
}

#[test]
pub(crate) fn alone_is_batched_in_ragged_batches_that_are_joined_and_left() {
    let setup = Setup::with_heads();
    let batched = joining(&setup);
    let lengths: Vec<usize> = batched.iter().map(|response| response.tokens.len()).collect();
    assert!(lengths.iter().max() > lengths.iter().min(), "{lengths:?}");
    assert!(batched.iter().any(|response| response.counters.tail_draws > 0), "nothing came from the tail");
    assert!(batched[4].tokens.iter().any(|record| record.draw.is_none()), "nothing was inserted");
    assert_eq!(all_bits(&batched), each_alone(&setup));
}

#[test]
pub(crate) fn chunks_of_prompts_and_the_size_of_passes_change_nothing() {
    let setup = Setup::with_heads();
    let expected = all_bits(&joining(&setup));
    for (rows_max, candidate_rows_max) in [(7, 512), (32, 512), (512, 512), (32, 10), (2, 3)] {
        let options = EngineOptions { rows_max, candidate_rows_max, ..setup.options.clone() };
        let small = Setup { options, ..setup.clone() };
        assert_eq!(all_bits(&joining(&small)), expected, "passes of {rows_max} rows, {candidate_rows_max} candidates");
    }
}

#[test]
pub(crate) fn cached_is_uncached_in_ragged_batches_and_after_a_splice() {
    let setup = Setup::with_heads();
    let mut tiny = setup.open();
    let requests = ragged(&tiny);
    let responses = tiny.run(requests.clone());
    let mut spliced = 0;
    for (slot, (request, response)) in requests.iter().zip(&responses).enumerate() {
        // The last token has not been run: nothing follows it.
        let tokens = response.token_ids();
        let tokens = [&request.prompt[..], &tokens[..tokens.len() - 1]].concat();
        let left = tiny.logits_left(slot as u32);
        let uncached = setup.open().logits_after(&tokens);
        assert_eq!(left.len(), uncached.len());
        assert!(left.iter().zip(&uncached).all(|(a, b)| a.to_bits() == b.to_bits()), "sequence {slot}");
        spliced += response.tokens.iter().filter(|record| record.draw.is_none()).count();
    }
    assert!(spliced >= 2, "nothing was spliced");
}

#[test]
pub(crate) fn samples_that_share_a_prompt_are_each_as_alone() {
    // A prompt of whole pages, one more and one less: the last position is each member's own.
    for length in [1, 31, 32, 33, 64, 75] {
        let mut setup = Setup::with_heads();
        setup.options.sequences_max = 4;
        let mut tiny = setup.open();
        let mut request = tiny.request(&PROMPT.repeat(4), vec![vas(&tiny, &[])]);
        request.prompt.truncate(length);
        assert_eq!(request.prompt.len(), length);
        request.max_tokens = Some(9);
        let request = tiny.endless(request);
        let samples = tiny.samples(request.clone(), 6);
        assert_eq!(samples[0].counters.prompt_rows, length as u64);
        for (stream, sample) in samples.iter().enumerate() {
            let alone = setup.open().run(vec![ValidRequest { stream: stream as u64, ..request.clone() }]);
            assert_eq!(bits(sample), bits(&alone[0]), "sample {stream} of a prompt of {length}");
            assert!(stream == 0 || sample.counters.prompt_rows == 1, "the prompt is shared: {:?}", sample.counters);
        }
        assert_ne!(bits(&samples[0]), bits(&samples[1]));
    }
}

#[test]
pub(crate) fn one_thread_is_two_threads() {
    let setup = Setup::with_heads();
    let two = Setup { device: processor(Isa::best(), 2), ..setup.clone() };
    assert_eq!(all_bits(&joining(&two)), all_bits(&joining(&setup)));
}

#[test]
pub(crate) fn every_instruction_set_gives_the_same_bits() {
    let setup = Setup::with_heads();
    let of = |isa| all_bits(&joining(&Setup { device: processor(isa, 1), ..setup.clone() }));
    let scalar = of(Isa::Scalar);
    let others: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| *isa != Isa::Scalar && isa.is_available()).collect();
    assert!(!others.is_empty() || cfg!(not(target_arch = "x86_64")), "a machine without AVX2");
    for isa in others {
        assert_eq!(of(isa), scalar, "{}", isa.name());
    }
}

#[test]
pub(crate) fn a_rewound_and_replayed_sequence_is_an_untouched_one() {
    let mut setup = Setup::with_heads();
    setup.options.sequences_max = 1;
    let untouched = {
        let mut tiny = setup.open();
        let request = tiny.request(PROMPT, vec![vas(&tiny, &[])]);
        let response = tiny.alone(request);
        (bits(&response), tiny.logits_left(0), response.token_ids())
    };
    for (at, count) in [(5, 3), (8, 8), (17, 1), (20, 8)] {
        let mut tiny = setup.open();
        let again: Vec<String> = untouched.2[at - count..at].iter().map(u32::to_string).collect();
        let script = format!("{at}! splice {count} {}", again.join(","));
        let request = tiny.request(PROMPT, vec![tiny.scripted(&script), vas(&tiny, &[])]);
        let response = tiny.alone(request);
        let replayed = bits(&response);
        assert!(replayed[at - count..at].iter().all(|(_, draw)| draw.is_none()), "replayed, not drawn");
        assert_eq!(response.token_ids(), untouched.2, "at {at}, {count}");
        assert_eq!(replayed[at..], untouched.0[at..], "at {at}, {count}");
        let left = tiny.logits_left(0);
        assert!(left.iter().zip(&untouched.1).all(|(a, b)| a.to_bits() == b.to_bits()), "at {at}, {count}");
    }
}

#[test]
pub(crate) fn rewound_tokens_leave_no_trace_in_values_or_logits() {
    // Other tokens stand for a while where the final ones come to stand.
    let setup = Setup::with_heads();
    let mut tiny = setup.open();
    let with = |tiny: &Tiny, script: &str| tiny.request(PROMPT, vec![tiny.scripted(script), vas(tiny, &[])]);
    let request = with(&tiny, "0! splice 0 40,41,42,43");
    let direct = tiny.alone(request);
    let request = with(&tiny, "0! splice 0 99,98,97,96,95\n5! splice 5 40,41,42,43");
    let detour = tiny.alone(request);
    assert_eq!(bits(&detour), bits(&direct));
    assert_eq!(detour.counters.pending_rows, direct.counters.pending_rows + 5);
}

#[test]
pub(crate) fn a_paused_sequence_changes_nobody() {
    let setup = Setup::with_heads();
    let expected = {
        let mut tiny = setup.open();
        let requests = ragged(&tiny);
        all_bits(&tiny.run(requests))
    };
    let mut tiny = setup.open();
    let requests = ragged(&tiny);
    let ids: Vec<_> = requests.into_iter().map(|request| tiny.engine.submit(request).unwrap()).collect();
    let mut responses = vec![None; ids.len()];
    let mut order = Vec::new();
    for step in 0..2_000 {
        // One is paused before it has begun, one in the middle; both go on after the others.
        if step == 0 || step == 6 {
            tiny.engine.set_paused(ids[if step == 0 { 3 } else { 8 }], true);
        }
        if step == 500 {
            assert_eq!(order.len(), ids.len() - 2, "all others have ended");
            tiny.engine.set_paused(ids[3], false);
            tiny.engine.set_paused(ids[8], false);
        }
        for event in tiny.engine.step().unwrap() {
            if let vassal::engine::Event::Finished { sequence, response } = event {
                let place = ids.iter().position(|id| *id == sequence).unwrap();
                order.push(place);
                responses[place] = Some(bits(&response));
            }
        }
    }
    assert_eq!(responses.into_iter().map(Option::unwrap).collect::<Vec<_>>(), expected);
}

#[test]
pub(crate) fn a_cancelled_sequence_changes_nobody() {
    let setup = Setup::with_heads();
    let mut tiny = setup.open();
    let requests = ragged(&tiny);
    let expected = all_bits(&tiny.run(requests.clone()));
    let ids: Vec<_> = requests.into_iter().map(|request| tiny.engine.submit(request).unwrap()).collect();
    let mut responses: Vec<Option<Response>> = vec![None; ids.len()];
    let mut keep = |event: Option<vassal::engine::Event>| {
        if let Some(vassal::engine::Event::Finished { sequence, response }) = event {
            responses[ids.iter().position(|id| *id == sequence).unwrap()] = Some(*response);
        }
    };
    for step in 0..500 {
        if step == 20 {
            keep(tiny.engine.cancel(ids[9]));
        }
        tiny.engine.step().unwrap().into_iter().for_each(|event| keep(Some(event)));
    }
    assert!(tiny.engine.is_idle());
    for (place, response) in responses.into_iter().enumerate() {
        let response = response.unwrap();
        if place == 9 {
            assert_eq!(response.finish, Finish::Cancelled);
            assert!(!response.tokens.is_empty() && response.tokens.len() < expected[9].len());
            assert_eq!(bits(&response), expected[9][..response.tokens.len()]);
        } else {
            assert_eq!(bits(&response), expected[place], "{place}");
        }
    }
}
