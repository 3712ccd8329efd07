//! Slow policies hold up nobody: their sequences are left out of passes, with everybody's tokens unchanged.
//!
//! What is counted here is steps of the engine, which no busy machine changes; `vassal bench engine` measures what
//! a step takes. The slow one is `tests/spinner`, which works for most of its fuel in every step.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use vassal::engine::{Event, Finish, Response};
use vassal::error::{Cause, Error};
use vassal::request::{FaultPolicy, LoadedPolicy, PolicyUse, ValidRequest};
use vassal::sandbox::{
    CompiledPolicy, Decision, Fault, FaultKind, Instance, Limits, Manifest, Needs, Progress, Sandbox, Scope,
    SettingValue, StartRequest, Step, VocabularyText, settings,
};

use crate::attacks::Served;
use crate::support::{PROMPT, Setup, Tiny, bits, compilation, compiled, component, sandbox};

/// Divisions that take most of a step's fuel.
const MOST: &str = "60000";

/// Well-behaved sequences, and as many slow ones.
const SEQUENCES: usize = 16;

fn setup() -> Setup {
    let mut setup = Setup::with_heads();
    setup.options.sequences_max = 2 * SEQUENCES;
    setup.options.cache_tokens = 2 * SEQUENCES * 256;
    // All prompts fit into one pass.
    setup.options.rows_max = 2 * SEQUENCES * 64;
    setup
}

fn good(tiny: &Tiny, seed: usize) -> ValidRequest {
    // A one-pass head takes no rows: steps are as short as they get.
    let mut request = tiny.request(PROMPT, vec![tiny.policy("vas", &[("brevity", "0.9")])]);
    request.seed = Some(seed as u64);
    tiny.endless(request)
}

fn slow(tiny: &Tiny, seed: usize, given: &[(&str, &str)]) -> ValidRequest {
    let mut request = tiny.request(PROMPT, vec![tiny.policy("spinner", given)]);
    request.seed = Some(seed as u64);
    tiny.endless(request)
}

/// Runs everything; the responses in order, and after how many steps each was there.
fn run(tiny: &mut Tiny, requests: Vec<ValidRequest>) -> Vec<(Response, usize)> {
    let ids: Vec<_> = requests.into_iter().map(|request| tiny.engine.submit(request).unwrap()).collect();
    let mut ended: Vec<Option<(Response, usize)>> = ids.iter().map(|_| None).collect();
    for step in 1.. {
        for event in tiny.engine.step().unwrap() {
            let Event::Finished { sequence, response } = event else { continue };
            ended[ids.iter().position(|id| *id == sequence).unwrap()] = Some((*response, step));
        }
        if ended.iter().all(Option::is_some) {
            break;
        }
    }
    ended.into_iter().flatten().collect()
}

#[test]
fn sixteen_slow_neighbours_change_neither_tokens_nor_steps() {
    let _served = Served::as_before();
    let setup = setup();
    let alone = {
        let mut tiny = setup.open();
        let requests = (0..SEQUENCES).map(|seed| good(&tiny, seed)).collect();
        run(&mut tiny, requests)
    };
    let mut tiny = setup.open();
    let slow_alone = {
        let request = slow(&tiny, SEQUENCES, &[("divisions", MOST)]);
        run(&mut tiny, vec![request]).remove(0).0
    };
    let mixed = (0..2 * SEQUENCES).map(|seed| match seed % 2 {
        0 => good(&tiny, seed / 2),
        _ => slow(&tiny, SEQUENCES + seed / 2, &[("divisions", MOST)]),
    });
    let mixed = mixed.collect();
    let responses = run(&mut tiny, mixed);
    let (good, slow): (Vec<_>, Vec<_>) = responses.iter().enumerate().partition(|(place, _)| place % 2 == 0);
    for ((_, (response, steps)), (alone, steps_alone)) in good.iter().zip(&alone) {
        assert_eq!(bits(response), bits(alone));
        assert_eq!(steps, steps_alone, "a good sequence was left out of a step");
    }
    let last = good.iter().map(|(_, (_, steps))| *steps).max().unwrap();
    for (_, (response, steps)) in &slow {
        assert_eq!((&response.finish, response.tokens.len()), (&Finish::TokenLimit, 24));
        assert!(*steps > last, "a slow sequence was not left out: {steps} of {last} steps");
        assert!(response.counters.fuel > 24 * 200_000, "it is not slow: {} units", response.counters.fuel);
    }
    assert_eq!(bits(&slow[0].1.0), bits(&slow_alone), "nor do its own tokens change");
}

#[test]
fn a_policy_that_is_slow_in_start_is_left_out_until_it_has_started() {
    let _served = Served::as_before();
    let setup = setup();
    let mut tiny = setup.open();
    // Its first start is not known to be slow, and runs through.
    let requests = vec![slow(&tiny, 9, &[("start", "160000"), ("divisions", "0")])];
    let first = run(&mut tiny, requests).remove(0).0;
    let steps = {
        let requests = vec![good(&tiny, 0)];
        run(&mut tiny, requests)[0].1
    };
    let mut requests = vec![good(&tiny, 0)];
    requests.extend((0..8).map(|_| slow(&tiny, 9, &[("start", "160000"), ("divisions", "0")])));
    let responses = run(&mut tiny, requests);
    assert_eq!(responses[0].1, steps, "the good sequence was left out of a step");
    for (response, _) in &responses[1..] {
        assert_eq!(bits(response), bits(&first));
    }
    assert!(responses[1..].iter().any(|(_, later)| *later > 24 + 8), "nobody was started in slices");
}

#[test]
fn a_start_that_spins_until_it_faults_runs_through_once() {
    let setup = setup();
    // A sandbox of its own, where nobody has met the policy yet.
    let sandbox = Sandbox::new(Limits { deadline_ms: 60_000, ..Limits::default() }, compilation()).unwrap();
    let alone = Alone::new(&sandbox, &[("start", "1000000")]);
    let mut tiny = setup.open_in(&sandbox);
    let policy = LoadedPolicy {
        name: "spinner".into(),
        compiled: alone.policy.clone(),
        manifest: alone.manifest.clone(),
        signers: Vec::new(),
    };
    let used = PolicyUse {
        policy: Arc::new(policy),
        settings: alone.settings.clone(),
        required: false,
        fault_policy: FaultPolicy::Abort,
    };
    let requests: Vec<_> = (0..4).map(|_| tiny.endless(tiny.request(PROMPT, vec![used.clone()]))).collect();
    let responses = run(&mut tiny, requests);
    let steps: HashSet<usize> = responses.iter().map(|(_, steps)| *steps).collect();
    for (response, _) in &responses {
        let Finish::Faulted(fault) = &response.finish else { panic!("{:?}", response.finish) };
        assert_eq!(fault.kind, FaultKind::OutOfFuel);
    }
    assert_eq!(responses[0].1, 1, "the first was not known to be slow");
    assert!(steps.len() > 1 && alone.policy.is_slow_to_start(), "all ran through: {steps:?}");
}

#[test]
fn a_slow_policy_in_a_chain_that_asks_for_values_changes_nothing() {
    // Every call that yields is left alone, and every policy that asks for values waits for rows meanwhile.
    let limits = Limits { slice_us: 0, fuel_slice: 500, deadline_ms: 60_000, ..Limits::default() };
    let sliced = Sandbox::new(limits, compilation()).unwrap();
    let through = sandbox();
    let run_in = |sandbox: &Sandbox| {
        let mut tiny = setup().open_in(sandbox);
        let load = |tiny: &Tiny, name: &str, component: &[u8], given: &[(&str, &str)]| {
            let policy = tiny.engine.load_policy(name, component, &tiny.head_ids(), Needs::ALL).unwrap();
            let settings = settings::resolve(&policy.manifest, given, Scope::Tenant, sandbox.limits()).unwrap();
            PolicyUse { policy: Arc::new(policy), settings, required: false, fault_policy: FaultPolicy::Base }
        };
        let spinner = component("spinner");
        let vas = vassal::shipped::POLICIES[0].component;
        let evaluate = [("sentiment", "0.9"), ("simplicity", "-0.6"), ("mode", "evaluate")];
        let chains = [
            vec![load(&tiny, "vas", vas, &evaluate), load(&tiny, "spinner", &spinner, &[("divisions", "3000")])],
            vec![load(&tiny, "spinner", &spinner, &[("divisions", "3000")]), load(&tiny, "vas", vas, &evaluate)],
            // It faults in its first step, and the response goes on without it.
            vec![load(&tiny, "spinner", &spinner, &[("divisions", "900000")]), load(&tiny, "vas", vas, &evaluate)],
            vec![PolicyUse { required: true, ..load(&tiny, "vas", vas, &evaluate) }],
        ];
        let requests: Vec<_> = chains.into_iter().map(|chain| tiny.endless(tiny.request(PROMPT, chain))).collect();
        run(&mut tiny, requests)
    };
    let expected = run_in(through);
    let found = run_in(&sliced);
    for ((found, _), (expected, _)) in found.iter().zip(&expected) {
        assert_eq!(bits(found), bits(expected));
        assert_eq!((found.counters.fuel, &found.trace), (expected.counters.fuel, &expected.trace));
        assert_eq!(found.counters.evaluations, expected.counters.evaluations);
    }
    assert_eq!(expected[2].0.faults.len(), 1);
}

#[test]
fn a_sequence_that_is_left_out_can_be_cancelled() {
    let setup = setup();
    let mut tiny = setup.open();
    let warm = vec![slow(&tiny, 1, &[("divisions", MOST)])];
    run(&mut tiny, warm);
    for given in [&[("divisions", MOST)][..], &[("start", "160000")]] {
        let request = slow(&tiny, 1, given);
        let id = tiny.engine.submit(request).unwrap();
        tiny.engine.step().unwrap();
        let Some(Event::Finished { response, .. }) = tiny.engine.cancel(id) else { panic!("it runs") };
        assert_eq!(response.finish, Finish::Cancelled);
        assert!(tiny.engine.is_idle());
    }
    // Nothing of theirs is in the way.
    let request = vec![good(&tiny, 3)];
    let alone = bits(&run(&mut setup.open(), request.clone())[0].0);
    assert_eq!(bits(&run(&mut tiny, request)[0].0), alone);
}

/// The slow policy in a sandbox of its own.
struct Alone {
    policy: CompiledPolicy,
    manifest: Arc<Manifest>,
    settings: Vec<SettingValue>,
}

impl Alone {
    fn new(sandbox: &Sandbox, given: &[(&str, &str)]) -> Alone {
        let policy = sandbox.compile("spinner", &component("spinner")).unwrap();
        let manifest = Arc::new(policy.describe(&[], Needs::ALL).unwrap());
        let settings = settings::resolve(&manifest, given, Scope::Tenant, sandbox.limits()).unwrap();
        Alone { policy, manifest, settings }
    }

    fn start(&self) -> Instance {
        let request = StartRequest {
            settings: &self.settings,
            prompt: &[],
            candidates: 1,
            max_tokens: 8,
            temperature: 1.0,
            top_p: 1.0,
            seed: 1,
        };
        let text = VocabularyText::new(Setup::default().open().tokenizer);
        self.policy.start(&self.manifest, &request, &text).unwrap()
    }
}

const STEP: Step<'static> = Step {
    kept: 0,
    appended: &[],
    candidates: &[5],
    logits: &[0.5],
    prefetched: 0,
    values: &[],
    log_normalizer: 1.0,
    entropy: 1.0,
    ended: false,
};

#[test]
fn a_slow_call_comes_back_after_each_slice_and_ends_as_one_that_runs_through() {
    let _served = Served::as_before();
    // A slice ends wherever a call yields.
    let limits = Limits { slice_us: 0, deadline_ms: 60_000, ..Limits::default() };
    let sandbox = Sandbox::new(limits, compilation()).unwrap();
    for given in [&[("divisions", MOST)][..], &[("divisions", "0"), ("calls", "500")]] {
        let alone = Alone::new(&sandbox, given);
        let mut first = alone.start();
        let through = first.decide(&STEP);
        let fuel = first.fuel_used();
        assert!(alone.policy.is_slow() && fuel > 100_000, "{fuel}");
        // One that was there when the policy was found to be slow, and one that has been started since.
        for mut instance in [first, alone.start()] {
            let mut progress = instance.decide_sliced(&STEP);
            let mut slices = 1;
            while progress.is_none() {
                assert!(instance.is_unfinished());
                progress = instance.proceed();
                slices += 1;
            }
            assert_eq!((progress.as_ref(), instance.fuel_used()), (Some(&through), fuel));
            assert!(slices > fuel / 20_000, "{given:?}: {slices} slices for {fuel} units");
        }
    }
}

#[test]
fn the_time_between_slices_is_not_on_a_calls_clock() {
    let limits = Limits { slice_us: 0, deadline_ms: 20, deadline_windows: 2, ..Limits::default() };
    let sandbox = Sandbox::new(limits, compilation()).unwrap();
    let mut instance = Alone::new(&sandbox, &[("divisions", "10000")]).start();
    instance.decide(&STEP);
    let mut progress = instance.decide_sliced(&STEP);
    while progress.is_none() {
        std::thread::sleep(Duration::from_millis(60));
        progress = instance.proceed();
    }
    assert_eq!(progress, Some(Progress::Decided(Decision::Keep)));
}

#[test]
fn a_call_that_runs_out_of_fuel_does_so_in_slices_too() {
    let setup = setup();
    let mut tiny = setup.open();
    let request = || -> PolicyUse { tiny.policy("spinner", &[("divisions", "1000000")]) };
    let requests: Vec<_> = (0..2).map(|_| tiny.endless(tiny.request(PROMPT, vec![request()]))).collect();
    let faults: HashSet<String> = run(&mut tiny, requests)
        .into_iter()
        .map(|(response, _)| match response.finish {
            Finish::Faulted(Fault { kind: FaultKind::OutOfFuel, guest, .. }) => guest.name,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(faults.len(), 1);
    assert!(compiled("spinner").is_slow() && sandbox().limits().fuel_slice == 10_000);
}

#[test]
fn no_more_wait_than_the_engine_keeps() {
    let mut setup = Setup::default();
    (setup.options.sequences_max, setup.options.waiting_max) = (1, 3);
    let mut tiny = setup.open();
    let request = tiny.endless(tiny.request(PROMPT, Vec::new()));
    assert_eq!(tiny.engine.submit_samples(request.clone(), 2).unwrap().len(), 2);
    let refused = Error::from(tiny.engine.submit_samples(request.clone(), 2).unwrap_err());
    assert_eq!(refused.cause(), Cause::Capacity);
    let words = "2 sequences wait already and 2 more are asked for; the engine keeps at most 3 waiting";
    assert_eq!(refused.to_string(), words);
    tiny.engine.submit(request.clone()).unwrap();
    // One of them runs from here on.
    tiny.engine.step().unwrap();
    tiny.engine.submit(request).unwrap();
    let mut ended = 0;
    while !tiny.engine.is_idle() {
        ended += tiny.engine.step().unwrap().iter().filter(|event| matches!(event, Event::Finished { .. })).count();
    }
    assert_eq!(ended, 4);
}
