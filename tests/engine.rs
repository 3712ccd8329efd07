//! The engine as a whole: what is counted, what is sent, who waits for whom, and what a guard keeps unsaid.
//!
//! Tokens that must not change are tested in `identities.rs`, the order of policies in `chains.rs`, hostile neighbours in `neighbours.rs`.
//! Here are the counters against their formulas, text as it is sent, room in passes and in the cache, and `guard` under many draws.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use vassal::engine::{Engine, Event, Finish, Response, SequenceId};
use vassal::model::heads::HeadWeights;
use vassal::request::{PolicyUse, Request, ValidRequest};
use vassal::token::Token;
use vassal_kernels::AnyDevice;

use crate::made_up_heads::look_ahead;
use crate::support::{PROMPT, Setup, Tiny, bits, noise};

/// What was sent of each sequence, with the step that it was sent in.
type Sent = HashMap<SequenceId, Vec<(usize, String)>>;

/// Runs what was submitted to its end.
fn drive(engine: &mut Engine<AnyDevice>) -> (Sent, HashMap<SequenceId, Response>) {
    let (mut texts, mut responses) = (Sent::new(), HashMap::new());
    for step in 0..100_000 {
        if engine.is_idle() {
            return (texts, responses);
        }
        for event in engine.step().unwrap() {
            match event {
                Event::Text { sequence, text } => texts.entry(sequence).or_default().push((step, text)),
                Event::Finished { sequence, response } => drop(responses.insert(sequence, *response)),
            }
        }
    }
    panic!("sequences that never end");
}

fn concat(sent: &[(usize, String)]) -> String {
    sent.iter().map(|(_, text)| text.as_str()).collect()
}

// What is counted.

/// The share of a plain row's multiply-adds that some layers take, by the default synthetic model's shapes.
fn share_of_layers(layers: usize) -> f64 {
    let (hidden, heads, kv_heads, width, feed_forward, vocabulary) = (64, 4, 2, 16, 96, 283);
    let layer = hidden * width * heads * 2 + hidden * width * kv_heads * 2 + 3 * hidden * feed_forward;
    (layer * layers) as f64 / (layer * 3 + hidden * vocabulary) as f64
}

#[test]
pub(crate) fn a_plain_run_counts_one_row_a_token() {
    let mut tiny = Setup::with_heads().open();
    let request = tiny.request(PROMPT, Vec::new());
    let prompt = request.prompt.len();
    let response = tiny.alone(request);
    let counters = response.counters;
    // The last token is drawn and not run: nothing follows it.
    assert_eq!(counters.prompt_rows, prompt as u64);
    assert_eq!((counters.pending_rows, counters.logit_rows, response.draws), (23, 24, 24));
    assert_eq!(
        (counters.candidate_rows, counters.winner_rows, counters.tail_draws, counters.evaluations),
        (0, 0, 0, 0)
    );
    assert_eq!(counters.steps, 25, "one a token and one for the end");
    assert!((counters.forward_equivalents - 23.0).abs() < 1e-9, "{}", counters.forward_equivalents);
    assert_eq!(counters.fuel, 0);
    assert_eq!((response.prompt_tokens, response.finish), (prompt, Finish::TokenLimit));
}

#[test]
pub(crate) fn a_look_ahead_run_counts_candidate_rows_up_to_the_heads_layer() {
    let mut tiny = Setup::with_heads().open();
    let masked = tiny.policy("vas", &[("sentiment", "0.9"), ("tail", "mask"), ("candidates", "10")]);
    let request = tiny.request(PROMPT, vec![masked]);
    let counters = tiny.alone(request).counters;
    assert_eq!((counters.candidate_rows, counters.winner_rows, counters.pending_rows), (240, 23, 0));
    assert_eq!((counters.tail_draws, counters.logit_rows), (0, 24));
    // Candidates run 2 of 3 layers; winners the third and the LM head.
    let expected = 240.0 * share_of_layers(2) + 23.0 * (1.0 - share_of_layers(2));
    assert!((counters.forward_equivalents - expected).abs() < 1e-6, "{}, {expected}", counters.forward_equivalents);
    assert!(counters.fuel > 0);
}

#[test]
pub(crate) fn draws_from_the_tail_are_counted_and_run_as_one_pending_row_each() {
    let mut tiny = Setup::with_heads().open();
    let kept = tiny.policy("vas", &[("sentiment", "0.9"), ("candidates", "5")]);
    let mut request = tiny.request(PROMPT, vec![kept]);
    request.max_tokens = Some(100);
    let prompt = request.prompt.clone();
    let response = tiny.alone(request);
    let tokens = response.token_ids();
    let from_tail = |count: &usize| {
        let logits = tiny.logits_after(&[&prompt[..], &tokens[..*count]].concat());
        let own = logits[tokens[*count] as usize];
        logits.iter().filter(|logit| **logit > own).count() >= 5
    };
    let tail: Vec<usize> = (0..100).filter(from_tail).collect();
    assert!(tail.len() > 5 && tail.len() < 95, "{tail:?}");
    let counters = response.counters;
    assert_eq!(counters.tail_draws, tail.len() as u64);
    // Of the drawn tokens but the last, those of the tail ran as pending rows, the others as candidates.
    let pending = tail.iter().filter(|count| **count < 99).count() as u64;
    assert_eq!((counters.pending_rows, counters.winner_rows, counters.candidate_rows), (pending, 99 - pending, 500));
    let lower = share_of_layers(2);
    let expected = 500.0 * lower + (99 - pending) as f64 * (1.0 - lower) + pending as f64;
    assert!((counters.forward_equivalents - expected).abs() < 1e-6, "{}, {expected}", counters.forward_equivalents);
}

#[test]
pub(crate) fn a_one_pass_head_takes_no_rows() {
    let mut tiny = Setup::with_heads().open();
    let steered = tiny.policy("vas", &[("brevity", "1.5")]);
    let request = tiny.request(PROMPT, vec![steered]);
    let response = tiny.alone(request);
    assert!(response.kl() > 0.1, "it steers: {}", response.kl());
    assert_eq!((response.counters.candidate_rows, response.counters.pending_rows), (0, 23));
    assert!((response.counters.forward_equivalents - 23.0).abs() < 1e-9);
}

#[test]
pub(crate) fn a_replay_of_the_prompts_last_token_is_no_part_of_the_prompt() {
    let mut tiny = Setup::with_heads().open();
    let request = tiny.request(PROMPT, vec![tiny.scripted("2! splice 2 -")]);
    let prompt = request.prompt.len() as u64;
    let counters = tiny.alone(request).counters;
    assert_eq!(counters.prompt_rows, prompt);
    // Two tokens that were taken back, the replay, and 23 of 24.
    assert_eq!(counters.pending_rows, 2 + 1 + 23);
}

// What is sent.

#[test]
pub(crate) fn text_is_sent_in_whole_characters_and_adds_up_to_the_response() {
    let mut tiny = Setup::with_heads().open();
    let insert: Vec<String> = "é😀x".bytes().map(|byte| tiny.byte(byte).to_string()).collect();
    // One token after another, each in a step of its own.
    let script: Vec<String> = insert.iter().enumerate().map(|(at, token)| format!("{at} only {token}")).collect();
    let requests: Vec<ValidRequest> = (0..6)
        .map(|place| {
            let policies = if place == 0 { vec![tiny.scripted(&script.join("\n"))] } else { Vec::new() };
            let mut request = tiny.request(PROMPT, policies);
            (request.seed, request.max_tokens) = (Some(place), Some(80));
            tiny.endless(request)
        })
        .collect();
    let ids: Vec<SequenceId> = requests.into_iter().map(|request| tiny.engine.submit(request).unwrap()).collect();
    let (texts, responses) = drive(&mut tiny.engine);
    for id in &ids {
        let response = &responses[id];
        assert_eq!(concat(&texts[id]), response.text);
        assert_eq!(response.text, String::from_utf8_lossy(&tiny.bytes(&response.token_ids())));
        assert!(texts[id].len() > 20, "sent as it comes, not at the end");
    }
    assert!(responses[&ids[0]].text.starts_with("é😀x"));
    // The scripted policy may rewind, so nothing of its response is sent before 8 more tokens stand; then é in
    // one piece, and 😀 in one piece.
    let pieces: Vec<&str> = texts[&ids[0]].iter().map(|(_, text)| text.as_str()).take(3).collect();
    assert_eq!(pieces, ["é", "😀", "x"]);
    let firsts: Vec<usize> = ids.iter().map(|id| texts[id][0].0).collect();
    assert!(firsts[0] >= firsts[1..].iter().min().unwrap() + 8, "{firsts:?}");
}

#[test]
pub(crate) fn no_text_is_sent_that_is_taken_back_later() {
    let mut tiny = Setup::with_heads().open();
    // Of 12 tokens 8 may still be taken back, and are; what is asked beyond what was held is not granted.
    let before: Vec<String> = "abcdefghijkl".bytes().map(|byte| tiny.byte(byte).to_string()).collect();
    let after: Vec<String> = "MNOPQRST".bytes().map(|byte| tiny.byte(byte).to_string()).collect();
    let script =
        format!("0! splice 0 {}\n12! splice 8 {}\n12! splice 8 -\n4 stop done", before.join(","), after.join(","));
    let request = tiny.request(PROMPT, vec![tiny.scripted(&script)]);
    let request = tiny.endless(request);
    tiny.engine.submit(request).unwrap();
    let mut sent = String::new();
    let mut finished = None;
    while finished.is_none() {
        for event in tiny.engine.step().unwrap() {
            match event {
                Event::Text { text, .. } => sent.push_str(&text),
                Event::Finished { response, .. } => finished = Some(response),
            }
        }
        assert!("abcd".starts_with(&sent), "{sent:?}");
    }
    let response = finished.unwrap();
    assert_eq!(response.finish.name(), "stopped");
    assert_eq!((sent.as_str(), response.text.as_str()), ("abcd", "abcd"));
    assert_eq!(tiny.engine.step().unwrap().len(), 0);
}

// Who waits for whom.

#[test]
pub(crate) fn rounds_wider_than_any_pass_run_in_parts() {
    // 256 tokens asked for at once by each of three policies, in passes of at most 48 rows.
    let run = |rows_max, candidate_rows_max| {
        let mut setup = Setup::with_heads();
        (setup.options.rows_max, setup.options.candidate_rows_max) = (rows_max, candidate_rows_max);
        let mut tiny = setup.open();
        let wide = |head: u32| tiny.scripted(&format!("* evaluate-widely {head}"));
        let vas = tiny.policy("vas", &[("sentiment", "0.9"), ("tail", "mask")]);
        let request = tiny.request(PROMPT, vec![wide(0), wide(1), vas]);
        let response = tiny.alone(request);
        assert!(response.notes.iter().all(|note| note.message == "Ok(256)"), "{:?}", response.notes);
        assert!(response.counters.candidate_rows >= 24 * 256);
        bits(&response)
    };
    let roomy = run(512, 1024);
    assert_eq!(run(48, 512), roomy);
    assert_eq!(run(512, 40), roomy);
}

#[test]
pub(crate) fn wide_rounds_and_long_prompts_do_not_hold_others_up() {
    let mut setup = Setup::with_heads();
    (setup.options.rows_max, setup.options.candidate_rows_max, setup.options.sequences_max) = (32, 64, 8);
    let mut tiny = setup.open();
    let valid = |tiny: &Tiny, request: Request| tiny.endless(request);
    // Six that want many rows in every step, a prompt of several passes, and a plain one behind them all.
    let mut requests: Vec<ValidRequest> = Vec::new();
    for _ in 0..6 {
        let greedy = tiny.policy("vas", &[("sentiment", "0.9"), ("candidates", "24")]);
        let mut request = tiny.request(PROMPT, vec![greedy]);
        request.max_tokens = Some(120);
        requests.push(valid(&tiny, request));
    }
    requests.push(valid(&tiny, tiny.request(&PROMPT.repeat(8), Vec::new())));
    requests.push(valid(&tiny, tiny.request(PROMPT, Vec::new())));
    let ids: Vec<SequenceId> = requests.into_iter().map(|request| tiny.engine.submit(request).unwrap()).collect();
    let (mut steps, mut ended) = (0, BTreeMap::new());
    while !tiny.engine.is_idle() {
        steps += 1;
        for event in tiny.engine.step().unwrap() {
            if let Event::Finished { sequence, .. } = event {
                ended.insert(sequence, steps);
            }
        }
    }
    // 24 tokens and a prompt of two dozen take a plain sequence some 40 steps here; a wide one has no less.
    let wide: Vec<usize> = ids[..6].iter().map(|id| ended[id]).collect();
    assert!(ended[&ids[7]] <= 60, "the plain one ended at {} of {steps}, {wide:?}", ended[&ids[7]]);
    assert!(ended[&ids[6]] <= 120, "the long prompt's ended at {} of {steps}, {wide:?}", ended[&ids[6]]);
    // Nobody is always last: in a fixed order the last would take three times as long as the first.
    assert!(*wide.iter().max().unwrap() <= 2 * wide.iter().min().unwrap(), "{wide:?}");
}

#[test]
pub(crate) fn samples_whose_shared_prompt_fills_the_cache_still_run() {
    // Room for one sequence: the prompt's shared pages would be in its members' way.
    let mut setup = Setup::with_heads();
    setup.options.cache_tokens = 64;
    let mut tiny = setup.open();
    let mut request = tiny.request(&PROMPT.repeat(4), Vec::new());
    request.prompt.truncate(40);
    let request = tiny.endless(request);
    let ids = tiny.engine.submit_samples(request, 3).unwrap();
    let mut ended = BTreeSet::new();
    for _ in 0..500 {
        for event in tiny.engine.step().unwrap() {
            if let Event::Finished { sequence, response } = event {
                assert_eq!(response.tokens.len(), 24);
                ended.insert(sequence);
            }
        }
    }
    assert_eq!(ended.len(), ids.len());
    assert!(tiny.engine.is_idle());
}

#[test]
pub(crate) fn a_request_that_can_never_fit_is_refused_and_all_pages_come_back() {
    let mut setup = Setup::with_heads();
    setup.options.cache_tokens = 64;
    let mut tiny = setup.open();
    let mut request = tiny.request(PROMPT, Vec::new());
    request.max_tokens = Some(100);
    let request = tiny.endless(request);
    let refused = tiny.engine.submit(request).unwrap_err().to_string();
    assert!(refused.contains("the engine has 64"), "{refused}");
    for _ in 0..5 {
        let request = tiny.request(PROMPT, Vec::new());
        assert_eq!(tiny.alone(request).tokens.len(), 24);
    }
}

#[test]
pub(crate) fn a_head_gone_wild_neither_forbids_nor_undoes_what_is_forbidden() {
    // Values of 1e38 and more: products with a weight are infinite.
    let mut head = look_ahead("sentiment", 2, 11);
    let HeadWeights::LookAhead(weights) = &mut head.weights else { panic!() };
    let mut next = noise(3);
    weights.residual.iter_mut().for_each(|weight| *weight = 1e37 * next());
    let mut tiny = Setup { heads: vec![head], ..Setup::default() }.open();
    let every_even: Vec<String> = (0..283).step_by(2).map(|token: Token| token.to_string()).collect();
    let wild = tiny.policy("vas", &[("sentiment", "3"), ("candidates", "256"), ("baseline", "none")]);
    let blend = tiny.scripted("* blend 0 9999");
    let forbids = tiny.scripted(&format!("* forbid {}", every_even.join(",")));
    let policies: Vec<PolicyUse> = vec![wild, blend, forbids];
    let request = tiny.request(PROMPT, policies);
    let response = tiny.alone(request);
    assert_eq!(response.finish, Finish::TokenLimit);
    assert!(response.token_ids().iter().all(|token| token % 2 == 1), "{:?}", response.token_ids());
}

// What a guard keeps unsaid.

/// Lower-case text of a response, byte for byte.
fn lower(tiny: &Tiny, response: &Response) -> Vec<u8> {
    tiny.bytes(&response.token_ids()).to_ascii_lowercase()
}

fn count_of(text: &[u8], phrase: &[u8]) -> usize {
    text.windows(phrase.len()).filter(|window| *window == phrase).count()
}

#[test]
pub(crate) fn guard_keeps_its_phrases_unsaid_over_10_000_tokens_at_temperature_2() {
    let mut setup = Setup::with_heads();
    setup.options.cache_tokens = 16 * 512;
    let mut tiny = setup.open();
    let run = |tiny: &mut Tiny, policies: Vec<PolicyUse>| -> Vec<Vec<u8>> {
        let requests = (0..25).map(|seed| {
            let mut request = tiny.request(PROMPT, policies.clone());
            (request.temperature, request.max_tokens, request.seed) = (Some(2.0), Some(402), Some(seed));
            tiny.endless(request)
        });
        let requests: Vec<ValidRequest> = requests.collect();
        let responses = tiny.run(requests);
        assert!(responses.iter().all(|response| response.tokens.len() == 402), "{:?}", responses[0].finish);
        responses.iter().map(|response| lower(tiny, response)).collect()
    };
    // The pairs of letters that this model says most, in either case, are what it must not say.
    let unguarded = run(&mut tiny, Vec::new());
    let mut pairs: HashMap<&[u8], usize> = HashMap::new();
    for text in &unguarded {
        for pair in text.windows(2).filter(|pair| pair.iter().all(u8::is_ascii_alphabetic)) {
            *pairs.entry(pair).or_default() += 1;
        }
    }
    let mut order: Vec<(&[u8], usize)> = pairs.into_iter().collect();
    order.sort_by_key(|(pair, count)| (usize::MAX - count, *pair));
    let mut phrases: Vec<Vec<u8>> = order[..20].iter().map(|(pair, _)| pair.to_vec()).collect();
    let said: usize = order[..20].iter().map(|(_, count)| count).sum();
    assert!(said >= 60, "without the guard the phrases are said {said} times");
    // Longer ones of the same letters are matched along, with all their beginnings.
    phrases.push(b"the end".to_vec());
    let given: Vec<String> = phrases.iter().map(|phrase| String::from_utf8_lossy(phrase).to_uppercase()).collect();
    let guard = tiny.policy("guard", &[("phrases", &given.join("\n"))]);
    let vas = tiny.policy("vas", &[("sentiment", "0.5"), ("brevity", "0.5"), ("candidates", "8")]);
    for policies in [vec![guard.clone()], vec![guard, vas]] {
        for text in run(&mut tiny, policies) {
            for phrase in &phrases {
                let name = String::from_utf8_lossy(phrase);
                assert_eq!(count_of(&text, phrase), 0, "{name:?} was said");
            }
        }
    }
}

#[test]
pub(crate) fn guard_forbids_the_completing_token_inside_and_outside_the_candidates() {
    const K: usize = 4;
    let mut tiny = Setup::with_heads().open();
    let prompt = tiny.tokenizer.encode(PROMPT, false).unwrap();
    let letters: Vec<Token> = (b'a'..=b'z').chain(b'A'..=b'Z').map(|byte| tiny.byte(byte)).collect();
    // After which first letter does a letter stand at rank k + 1, after which one at a rank within k?
    let mut ranked = |place: usize| {
        letters.iter().find_map(|first| {
            let logits = tiny.logits_after(&[&prompt[..], &[*first]].concat());
            let mut order: Vec<Token> = (0..logits.len() as Token).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            letters.contains(&order[place]).then_some((*first, order[place]))
        })
    };
    let found: Vec<(Token, Token)> = [K, K - 1, K + 6].into_iter().filter_map(&mut ranked).collect();
    assert!(found.len() >= 2 && ranked(K).is_some(), "no prompt with letters at the ranks wanted: {found:?}");
    for (first, second) in found {
        let phrase = String::from_utf8(tiny.bytes(&[first, second])).unwrap();
        let count = |tiny: &mut Tiny, guarded: bool| {
            let candidates = K.to_string();
            let vas = tiny.policy("vas", &[("sentiment", "0.3"), ("candidates", &candidates)]);
            let mut policies = vec![tiny.scripted(&format!("0 splice 0 {first}")), vas];
            if guarded {
                policies.push(tiny.policy("guard", &[("phrases", &phrase)]));
            }
            let mut request = tiny.request(PROMPT, policies);
            (request.temperature, request.max_tokens) = (Some(2.0), Some(2));
            let request = tiny.endless(request);
            let responses = tiny.samples(request, 600);
            assert!(responses.iter().all(|response| response.token_ids()[0] == first));
            // Also by a longer token that begins with the letter.
            let completes = |response: &&Response| lower(tiny, response).starts_with(phrase.to_lowercase().as_bytes());
            responses.iter().filter(completes).count()
        };
        assert!(count(&mut tiny, false) >= 3, "without the guard {phrase:?} is said");
        assert_eq!(count(&mut tiny, true), 0, "{phrase:?} was said");
    }
}
