//! Life: policies that behave for a while, wait for ever, are cancelled, come and go, or look for what others left.
//!
//! Whoever is gone has left nothing: to the next policy in its place, to the engine, or to the process.
//! Where memory or mappings of the whole process are counted, the test runs in a process of its own ([`alone`]).

use std::sync::Arc;

use vassal::engine::{Event, Finish, Response, SequenceId};
use vassal::error::{Cause, Error};
use vassal::request::{FaultPolicy, PolicyUse};
use vassal::sandbox::{ChildCompiler, Compilation, Decision, FaultKind, Limits, Progress, Sandbox, Step};

use super::alone::{alone, folder, is_alone, resident_bytes};
use super::forged::Forged;
use super::{GRANTED, Served, asked, good_policy_is_served, hostile_in, start, step, text};
use crate::support::{PROMPT, Setup, Tiny, bits, compilation};

#[test]
fn an_instance_can_be_dropped_while_it_waits() {
    let _served = Served::as_before();
    for _ in 0..200 {
        let mut instance = hostile_in("evaluate-flood");
        assert!(matches!(instance.decide(&step()), Progress::Wants(_)));
    }
    good_policy_is_served();
}

#[test]
fn a_full_pool_is_the_hosts_fault_and_heals() {
    let _served = Served::as_before();
    let small = Sandbox::new(Limits { sequences: 2, ..Limits::default() }, compilation()).unwrap();
    let policy = small.compile("good", &Forged::default().bytes()).unwrap();
    let manifest = Arc::new(policy.describe(&[], GRANTED).unwrap());
    let open = || policy.start(&manifest, &asked(&[]), text());
    let live = [open().unwrap(), open().unwrap()];
    let fault = open().err().unwrap();
    assert_eq!(fault.kind, FaultKind::Capacity);
    assert!(fault.kind.is_the_hosts());
    drop(live);
    assert!(open().is_ok());
}

#[test]
fn a_policy_that_behaves_until_its_thousandth_step_ends_there() {
    let _served = Served::as_before();
    const TOKENS: usize = 1_020;
    let mut setup = Setup::with_heads();
    setup.model.context_tokens = 2 * TOKENS;
    let run = |policies: &dyn Fn(&Tiny) -> Vec<PolicyUse>| {
        let mut tiny = setup.open();
        let mut request = tiny.request(PROMPT, policies(&tiny));
        request.max_tokens = Some(TOKENS);
        tiny.alone(request)
    };
    let turning = |tiny: &Tiny, fault_policy| {
        let policy = tiny.policy("hostile", &[("mode", "thousandth")]);
        vec![PolicyUse { fault_policy, ..policy }]
    };
    let plain = run(&|_| Vec::new());
    let aborted = run(&|tiny| turning(tiny, FaultPolicy::Abort));
    let Finish::Faulted(fault) = &aborted.finish else { panic!("{:?}", aborted.finish) };
    assert_eq!((&fault.kind, aborted.tokens.len()), (&FaultKind::OutOfFuel, 999));
    assert_eq!(bits(&aborted), bits(&plain)[..999]);
    let based = run(&|tiny| turning(tiny, FaultPolicy::Base));
    assert_eq!((&based.finish, based.faults.len()), (&Finish::TokenLimit, 1));
    assert_eq!(based.trace.iter().find(|event| event.fault().is_some()).map(|event| event.step), Some(1_000));
    assert_eq!(bits(&based), bits(&plain), "it changed nothing, before or after");
}

#[test]
fn sequences_that_never_end_exhaust_the_pool_and_no_guest_is_blamed() {
    let _served = Served::as_before();
    let small =
        Sandbox::new(Limits { sequences: 3, deadline_windows: 3_000, ..Limits::default() }, compilation()).unwrap();
    let mut tiny = Setup::default().open_in(&small);
    let keeping = tiny.policy_of(small.compile("forged", &Forged::default().bytes()).unwrap(), &[]);
    let chain = |tiny: &Tiny, policies: usize| {
        let policy = PolicyUse { required: true, ..keeping.clone() };
        tiny.endless(tiny.request(PROMPT, vec![policy; policies]))
    };
    let submit = |tiny: &mut Tiny, policies| {
        let request = chain(tiny, policies);
        tiny.engine.submit(request)
    };
    let plain = {
        let request = chain(&tiny, 1);
        bits(&tiny.run(vec![request])[0])
    };
    let endless = [submit(&mut tiny, 2).unwrap(), submit(&mut tiny, 1).unwrap()];
    // All have started and drawn a token, and are never brought to an end.
    tiny.engine.step().unwrap();
    endless.iter().for_each(|id| tiny.engine.set_paused(*id, true));
    // What a chain needs is there in whole or waited for: no policy, a tenant's least of all, fails for want of it.
    let waiting = [submit(&mut tiny, 2).unwrap(), submit(&mut tiny, 1).unwrap()];
    let mut ended: Vec<(SequenceId, Response)> = Vec::new();
    let steps = |tiny: &mut Tiny, ended: &mut Vec<_>| {
        for _ in 0..100 {
            for event in tiny.engine.step().unwrap() {
                if let Event::Finished { sequence, response } = event {
                    ended.push((sequence, *response));
                }
            }
        }
    };
    steps(&mut tiny, &mut ended);
    assert!(ended.is_empty(), "{ended:?}");
    // One place is too few for the first of them, and the second does not pass it.
    assert!(tiny.engine.cancel(endless[1]).is_some());
    steps(&mut tiny, &mut ended);
    assert!(ended.is_empty(), "{ended:?}");
    assert!(tiny.engine.cancel(endless[0]).is_some());
    steps(&mut tiny, &mut ended);
    assert_eq!(ended.iter().map(|(id, _)| *id).collect::<Vec<_>>(), waiting);
    for (_, response) in &ended {
        assert_eq!((&response.finish, bits(response)), (&Finish::TokenLimit, plain.clone()));
    }
    // What could never fit is refused at once.
    let refused = Error::from(submit(&mut tiny, 4).unwrap_err());
    assert_eq!(refused.cause(), Cause::Capacity);
    assert!(refused.to_string().contains("4 policies") && refused.to_string().contains("holds 3"), "{refused}");
    assert!(tiny.engine.is_idle());
}

/// A component with as many tables, memories and core instances as one may have; modules may have one table each.
fn of_every_count_the_most(limits: &Limits) -> Vec<u8> {
    let section = |id: u8, body: &[u8]| [&[id, body.len() as u8][..], body].concat();
    let mut component = Forged::default().bytes();
    for module in ["(module (table 1 funcref))", "(module (memory 1))", "(module)"] {
        component.extend(section(1, &wat::parse_str(module).unwrap()));
    }
    // The forged module is the first, and has a memory.
    let (tables, memories) = (limits.tables as usize, limits.memories as usize - 1);
    let others = limits.core_instances as usize - 1 - tables - memories;
    let modules = [vec![1; tables], vec![2; memories], vec![3; others]].concat();
    let instances: Vec<u8> = modules.iter().flat_map(|&module| [0, module, 0]).collect();
    component.extend(section(2, &[&[modules.len() as u8][..], &instances].concat()));
    component
}

/// Whoever lets sequences in counts instances, so none may take another's tables, memories or core instances.
#[test]
fn as_many_instances_live_as_the_pool_holds_whatever_shape_they_have() {
    let _served = Served::as_before();
    let limits = Limits { sequences: 3, deadline_windows: 3_000, ..Limits::default() };
    let small = Sandbox::new(limits.clone(), compilation()).unwrap();
    let policy = small.compile("large", &of_every_count_the_most(&limits)).unwrap();
    let manifest = Arc::new(policy.describe(&[], GRANTED).unwrap());
    let open = || policy.start(&manifest, &asked(&[]), text());
    let live = [open(), open(), open()];
    assert!(live.iter().all(Result::is_ok), "{live:?}");
    assert_eq!(open().err().map(|fault| fault.kind), Some(FaultKind::Capacity));
}

#[test]
fn requests_that_are_cancelled_while_suspended_leave_nothing_behind() {
    let _served = Served::as_before();
    // Passes that do not hold what one evaluation asks for, so that it is under way between two steps.
    let mut setup = Setup::with_heads();
    setup.options.candidate_rows_max = 96;
    let mut tiny = setup.open();
    let mut suspended = 0;
    for round in 0..40 {
        let asks = tiny.policy("scripted", &[("script", "* evaluate-widely 0"), ("candidates", "256")]);
        let requests = [0, 1, 2].map(|_| tiny.endless(tiny.request(PROMPT, vec![asks.clone()])));
        let ids = requests.map(|request| tiny.engine.submit(request).unwrap());
        for _ in 0..1 + round % 4 {
            tiny.engine.step().unwrap();
        }
        for id in ids {
            let events = tiny.engine.cancel(id);
            let Some(Event::Finished { response, .. }) = events else { panic!("{id:?} is gone") };
            assert_eq!(response.finish, Finish::Cancelled);
            suspended += usize::from(response.counters.evaluations > response.tokens.len() as u64);
        }
        assert!(tiny.engine.is_idle());
    }
    assert!(suspended >= 40, "{suspended} of 120 were cancelled while they waited for values");
    // The same engine serves on, as one that has never been troubled.
    let tokens = |tiny: &mut Tiny| {
        let request = tiny.request(PROMPT, vec![tiny.policy("vas", &[("sentiment", "0.9"), ("mode", "evaluate")])]);
        bits(&tiny.alone(request))
    };
    assert_eq!(tokens(&mut tiny), tokens(&mut setup.open()));
}

#[test]
fn a_thousand_loads_and_unloads_leave_no_memory_mappings_or_files() {
    if !is_alone() {
        alone(&["a_thousand_loads_and_unloads_leave_no_memory_mappings_or_files"]);
        return;
    }
    let home = folder("loads");
    let child = |cache| ChildCompiler { program: Some(env!("CARGO_BIN_EXE_vassal-under-test").into()), cache };
    let limits = Limits { sequences: 8, deadline_windows: 3_000, ..Limits::default() };
    let sandbox = |cache| Sandbox::new(limits.clone(), Compilation::Child(child(cache))).unwrap();
    let (cached, compiling) = (sandbox(Some(home)), sandbox(None));
    let component = Forged::default().bytes();
    let load = |sandbox: &Sandbox| {
        let policy = sandbox.compile("forged", &component).unwrap();
        let mut live = [start(&policy, &[]).unwrap(), start(&policy, &[]).unwrap()];
        assert!(live.iter_mut().all(|instance| instance.decide(&step()) == Progress::Decided(Decision::Keep)));
    };
    let count = |what: &str| std::fs::read_to_string(format!("/proc/self/{what}")).unwrap().lines().count();
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let now = || (resident_bytes(), count("maps"), files());
    // Out of the cache, which maps and unmaps code, and through the compiler, which has threads and a child besides.
    for (sandbox, loads) in [(&cached, 1_000), (&compiling, 100)] {
        // What the pool and the allocator keep once each slot has been used is not growth.
        (0..100).for_each(|_| load(sandbox));
        let before = now();
        (0..loads).for_each(|_| load(sandbox));
        let after = now();
        eprintln!("{before:?} resident bytes, mappings, files before {loads} loads; {after:?} after");
        // A thousand loads that left one page of four KiB each would leave 4 MiB, and as many mappings.
        assert!(after.0 <= before.0 + (2 << 20), "resident bytes: {before:?}, then {after:?}");
        assert!(after.1 <= before.1 + 16, "mappings: {before:?}, then {after:?}");
        assert!(after.2 <= before.2, "files: {before:?}, then {after:?}");
    }
}

#[test]
fn a_policy_that_looks_for_anothers_settings_finds_zeros() {
    let _served = Served::as_before();
    // Asked with nothing kept it leaves marks all over its memory, its table and its globals; else it looks for any.
    let fields = "(table $t 4 10 funcref) (elem declare func $mark) (global $secret (mut i64) (i64.const 0))
        (func $grow (drop (memory.grow (i32.const 254))))
        (func $mark (local $at i32)
            (global.set $secret (i64.const 0x5ec3e7)) (table.set $t (i32.const 3) (ref.func $mark))
            (local.set $at (i32.const 65536))
            (loop $again
                (i64.store (local.get $at) (i64.const 0x5ec3e7))
                (local.set $at (i32.add (local.get $at) (i32.const 2048)))
                (br_if $again (i32.lt_u (local.get $at) (i32.const 0x1000000)))))
        (func $look (local $at i32)
            (if (i64.ne (global.get $secret) (i64.const 0)) (then unreachable))
            (if (i32.eqz (ref.is_null (table.get $t (i32.const 3)))) (then unreachable))
            (local.set $at (i32.const 65536))
            (loop $again
                (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then unreachable))
                (local.set $at (i32.add (local.get $at) (i32.const 2048)))
                (br_if $again (i32.lt_u (local.get $at) (i32.const 0x1000000)))))";
    let decide = "(call $grow) (if (i32.eqz (local.get 0)) (then (call $mark)) (else (call $look))) i32.const 512";
    let policy = Forged { fields, decide, ..Forged::default() }.load().unwrap();
    let look = Step { kept: 1, ..step() };
    for _ in 0..8 {
        let mut marking = start(&policy, &[]).unwrap();
        assert_eq!(marking.decide(&step()), Progress::Decided(Decision::Keep));
        // Its neighbour, while it lives; then whoever gets its place.
        assert_eq!(start(&policy, &[]).unwrap().decide(&look), Progress::Decided(Decision::Keep));
        assert!(matches!(marking.decide(&look), Progress::Faulted(_)), "its own it does find");
        drop(marking);
        assert_eq!(start(&policy, &[]).unwrap().decide(&look), Progress::Decided(Decision::Keep));
    }
}
