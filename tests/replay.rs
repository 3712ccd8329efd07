//! Responses from their records: the same tokens, ends and events, in any order, company and number of threads.
//!
//! [`mixed`] gives the responses of the catalogue (`tests/replay/catalogue.rs`). What is not as recorded is refused by
//! name; a record that lies is found out at the first difference.

mod catalogue;

use std::collections::BTreeMap;
use std::sync::Arc;

use vassal::audit::record::{FinishRecord, PolicyRecord, Record, ResponseRecord, WhatRecord};
use vassal::audit::surroundings::ModelRecord;
use vassal::audit::verify::Reader;
use vassal::audit::{ReplayError, Surroundings, replay};
use vassal::engine::{Event, Finish, Response, TraceEvent};
use vassal::request::{FaultPolicy, LoadedPolicy, PolicyUse, ValidRequest};
use vassal::sandbox::{FaultKind, Limits, Needs, Sandbox, Scope, settings};
use vassal_kernels::Device;
use vassal_kernels::cpu::Isa;

use self::catalogue::{POLICIES, mixed};
use crate::audit::{fresh, recorder, surroundings};
use crate::made_up_heads::look_ahead;
use crate::program::{self, Run};
use crate::support::{PROMPT, Setup, Tiny, compilation, processor, sandbox};

/// The recorded policy among the components of these tests.
fn find(tiny: &Tiny, recorded: &PolicyRecord) -> Result<Arc<LoadedPolicy>, ReplayError> {
    let policies = POLICIES.iter().map(|name| tiny.policy(name, &[]).policy);
    let hash = |policy: &LoadedPolicy| vassal::host::hexadecimal(policy.compiled.sha256());
    let mut found = policies.into_iter().filter(|policy| hash(policy) == recorded.sha256);
    Ok(found.next().unwrap_or_else(|| panic!("no policy {}", recorded.name)))
}

fn prepare_with(tiny: &Tiny, record: &Record, ours: &Surroundings) -> Result<ValidRequest, ReplayError> {
    let find = |recorded: &PolicyRecord| find(tiny, recorded);
    replay::prepare(record, ours, tiny.tokenizer.as_ref(), 512, sandbox().limits(), find)
}

fn prepare(tiny: &Tiny, record: &Record) -> ValidRequest {
    prepare_with(tiny, record, &surroundings(tiny)).unwrap()
}

#[track_caller]
fn assert_equal(number: usize, record: &Record, response: &Response) {
    if let Err(difference) = replay::compare(record, response) {
        panic!("response {number}: {difference}");
    }
    assert_eq!(record.response, ResponseRecord::new(response), "{number}");
}

#[test]
fn two_hundred_mixed_responses_replay_to_the_bit_in_another_order_and_company() {
    let path = fresh("mixed");
    let mut tiny = Setup { device: processor(Isa::best(), 2), ..Setup::with_heads() }.open();
    let mut log = recorder(&path, &tiny);
    let (mut next, mut batches) = (0, [1, 16, 5, 11, 2, 9, 20, 3].into_iter().cycle());
    while next < 200 {
        let batch: Vec<ValidRequest> = (next..200).take(batches.next().unwrap()).map(|one| mixed(&tiny, one)).collect();
        next += batch.len();
        let joining = batch.iter().enumerate().map(|(place, one)| (place % 4 * 3, one.clone())).collect();
        for (request, response) in batch.iter().zip(tiny.run_joining(joining)) {
            log.append(request, &response).unwrap();
        }
    }
    let records: Vec<Record> = Reader::open(&path).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(records.len(), 200);
    not_vacuous(&records);

    // Another order, by a step that has no factor in common with 200; other batches; one thread.
    let order: Vec<usize> = (0..200).map(|place| (place * 77 + 13) % 200).collect();
    let mut tiny = Setup::with_heads().open();
    for batch in order[40..].chunks(7) {
        let requests = batch.iter().map(|&number| prepare(&tiny, &records[number])).collect();
        for (&number, response) in batch.iter().zip(tiny.run(requests)) {
            assert_equal(number, &records[number], &response);
        }
    }
    // Alone, and on the plain code.
    let mut plain = Setup { device: processor(Isa::Scalar, 1), ..Setup::with_heads() }.open();
    for &number in &order[..40] {
        let request = prepare(&plain, &records[number]);
        assert_equal(number, &records[number], &plain.run(vec![request])[0]);
    }
}

/// Everything that the catalogue is meant to have is there.
fn not_vacuous(records: &[Record]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for record in records {
        let finish = serde_json::to_value(&record.response.finish).unwrap();
        *counts.entry(format!("end {}", finish["kind"].as_str().unwrap())).or_default() += 1;
        *counts.entry("inserted".into()).or_default() += record.response.inserted.len();
        for event in &record.response.events {
            let name = match &event.what {
                WhatRecord::Start => "start",
                WhatRecord::Note(_) => "note",
                WhatRecord::NotesDropped(_) => "notes dropped",
                WhatRecord::Splice { .. } => "splice",
                WhatRecord::Stop(_) => "stop",
                WhatRecord::Fault(fault) if fault.host => "fault of the host",
                WhatRecord::Fault(_) => "fault of a guest",
            };
            *counts.entry(name.into()).or_default() += 1;
        }
    }
    for (name, least) in [
        ("end token-limit", 80),
        ("end stopped", 10),
        ("end fault", 20),
        ("end step-budget", 10),
        ("inserted", 40),
        ("note", 200),
        ("notes dropped", 5),
        ("splice", 100),
        ("stop", 10),
        ("fault of the host", 20),
        ("fault of a guest", 30),
    ] {
        assert!(counts.get(name).is_some_and(|count| *count >= least), "{name}: {counts:#?}");
    }
}

/// A record of one response of the catalogue.
fn one(name: &str, number: usize) -> (Tiny, Record) {
    one_of(Setup::with_heads(), name, number)
}

fn one_of(setup: Setup, name: &str, number: usize) -> (Tiny, Record) {
    let mut tiny = setup.open();
    let request = mixed(&tiny, number);
    let response = tiny.run(vec![request.clone()]).remove(0);
    let record = recorder(&fresh(name), &tiny).append(&request, &response).unwrap();
    (tiny, record)
}

#[test]
fn a_record_of_another_model_head_policy_or_kernel_is_refused_by_name_with_both_values() {
    let (tiny, record) = one("others", 2);
    let ours = surroundings(&tiny);
    assert!(prepare_with(&tiny, &record, &ours).is_ok());
    let says = |record: &Record, ours: &Surroundings, words: [&str; 3]| {
        let refused = prepare_with(&tiny, record, ours).err().expect("refused").to_string();
        assert!(words.iter().all(|word| refused.contains(word)), "{words:?} in {refused}");
    };
    let other = "f".repeat(64);
    let mut model = ours.clone();
    model.model.sha256 = other.clone();
    says(&record, &model, ["model \"tiny\"", &ours.model.sha256, &other]);
    let kernels = Surroundings { kernels: 1_000, ..ours.clone() };
    says(&record, &kernels, ["kernels", &ours.kernels.to_string(), "1000"]);
    let limits = Surroundings { limits_sha256: other.clone(), ..ours.clone() };
    says(&record, &limits, ["limits", &ours.limits_sha256, &other]);
    let retrained = Setup { heads: vec![look_ahead("sentiment", 2, 99)], ..Setup::with_heads() }.open();
    let head = surroundings(&retrained);
    says(&record, &head, ["head \"sentiment\"", &ours.heads[0].sha256, &head.heads[0].sha256]);
    // Another component where the recorded one was.
    let mut rebuilt = record.clone();
    rebuilt.request.policies[0].sha256 = other.clone();
    let load = |_: &PolicyRecord| Ok(tiny.policy("guard", &[]).policy);
    let refused: Result<_, ReplayError> =
        replay::prepare(&rebuilt, &ours, tiny.tokenizer.as_ref(), 512, sandbox().limits(), load);
    let refused = refused.err().expect("refused").to_string();
    let words = ["policy \"guard\"", &other, &record.request.policies[0].sha256];
    assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
    // What is promised to make no difference is a remark.
    let isa = Isa::ALL.map(Isa::name).into_iter().find(|isa| *isa != ours.isa).unwrap();
    let elsewhere = Surroundings { isa: isa.into(), threads: 7, ..ours.clone() };
    assert!(prepare_with(&tiny, &record, &elsewhere).is_ok());
    assert_eq!(record.host.remarks(&elsewhere).len(), 2);
    // Of a card it is not.
    let card = Surroundings { isa: "sm_90".into(), ..ours.clone() };
    let refused = prepare_with(&tiny, &record, &card).err().expect("refused").to_string();
    assert!(refused.contains("instruction set") && refused.contains("sm_90"), "{refused}");
}

#[test]
fn a_record_that_asks_for_what_no_request_may_is_refused() {
    let (tiny, record) = one("foreign", 13);
    let says = |change: &dyn Fn(&mut Record), words: &str| {
        let mut changed = record.clone();
        change(&mut changed);
        let refused = prepare_with(&tiny, &changed, &surroundings(&tiny)).err().expect(words).to_string();
        assert!(refused.contains(words), "{words} in {refused}");
    };
    says(&|record| record.request.temperature = 1e300, "temperature must be 0, or 0.000001 to 100, got inf");
    says(&|record| record.request.top_p = f64::NAN, "top-p must be above 0 to 1, got NaN");
    says(&|record| record.request.max_tokens = 1 << 40, "max-tokens must be 1 to 32768");
    says(&|record| record.request.prompt = vec![u32::MAX], "token 4294967295");
    says(&|record| record.request.end_of_text = vec![283], "token 283");
    says(&|record| record.request.heads = vec!["\u{1b}x".into()], "the heads on offer: x; accepted is sentiment");
    says(&|record| drop(record.request.policies[1].settings.insert("candidates".into(), "NaN".into())), "`NaN`");
    says(&|record| record.request.policies[1].heads.clear(), "heads recorded , here sentiment");
    let host = |event: &mut vassal::audit::record::EventRecord| {
        if let WhatRecord::Fault(fault) = &mut event.what {
            fault.fault = "trap".into();
        }
    };
    says(&|record| record.response.events.iter_mut().for_each(host), "a fault of the host's: trap");
}

#[test]
fn a_record_that_lies_is_found_out_at_the_first_difference() {
    let (mut tiny, record) = one("lies", 3);
    let request = prepare(&tiny, &record);
    let response = tiny.run(vec![request]).remove(0);
    assert_equal(3, &record, &response);
    let finds = |change: &dyn Fn(&mut ResponseRecord), what: &str| {
        let mut lie = record.clone();
        change(&mut lie.response);
        assert_eq!(replay::compare(&lie, &response).unwrap_err().what, what);
    };
    finds(&|one| one.tokens[5] ^= 1, "token 5");
    finds(&|one| one.tokens.truncate(3), "number of tokens");
    finds(&|one| one.inserted.clear(), "inserted tokens");
    finds(&|one| one.probabilities_sha256 = "0".repeat(64), "probabilities' SHA-256");
    finds(&|one| one.events[2].fuel = Some(1), "event 2");
    finds(&|one| drop(one.events.pop()), "number of events");
    finds(&|one| one.finish = FinishRecord::EndOfText, "end");
    finds(&|one| one.draws += 1, "draws");
    finds(&|one| one.steps += 1, "steps");
    finds(&|one| one.fuel += 1, "fuel");
}

#[test]
fn cancelled_responses_replay_up_to_where_they_were_cancelled() {
    let mut tiny = Setup::with_heads().open();
    let mut log = recorder(&fresh("cancelled"), &tiny);
    let mut records = Vec::new();
    for (number, steps) in [(3, 0), (3, 1), (3, 6), (12, 4), (2, 9), (16, 30), (5, 3)] {
        let request = mixed(&tiny, number);
        let id = tiny.engine.submit(request.clone()).unwrap();
        for _ in 0..steps {
            tiny.engine.step().unwrap();
        }
        let Some(Event::Finished { response, .. }) = std::iter::from_fn(|| tiny.engine.cancel(id)).last() else {
            panic!("{number} had ended before step {steps}");
        };
        assert_eq!(response.finish, Finish::Cancelled);
        records.push(log.append(&request, &response).unwrap());
    }
    assert!(records.iter().filter(|record| record.response.tokens.len() > 2).count() > 2);
    let mut again = Setup { device: processor(Isa::best(), 2), ..Setup::with_heads() }.open();
    let requests = records.iter().map(|record| prepare(&again, record)).collect();
    for (number, (record, response)) in records.iter().zip(again.run(requests)).enumerate() {
        replay::compare(record, &response).unwrap_or_else(|difference| panic!("{number}: {difference}"));
    }
}

/// In company all policies are called before any is asked: where the first ends the response, what those behind it did
/// in that step has not happened, as if it ran alone.
#[test]
fn nothing_counts_of_a_call_whose_turn_never_came() {
    let flood = "* note b\n".repeat(65);
    // The first of a chain fails in step 5. Where it asks for values before, the second has its turn in the meantime.
    for (first, second, has_turn) in [
        ("* note a\n4 panic", "* note b", false),
        ("4 panic", flood.as_str(), false),
        ("* evaluate 0 33\n4 panic", "* note b", true),
    ] {
        let mut tiny = Setup::with_heads().open();
        let chain = |tiny: &Tiny| vec![tiny.scripted(first), tiny.scripted(second)];
        let requests: Vec<ValidRequest> =
            (0..8).map(|stream| ValidRequest { stream, ..tiny.endless(tiny.request(PROMPT, chain(&tiny))) }).collect();
        let mut log = recorder(&fresh("early"), &tiny);
        let together = tiny.run(requests.clone());
        for (number, (request, response)) in requests.iter().zip(together).enumerate() {
            assert!(matches!(response.finish, Finish::Faulted(_)), "{number}: {:?}", response.finish);
            let noted = |event: &TraceEvent| event.place == 1 && event.step == 5 && event.note().is_some();
            assert_eq!(response.trace.iter().any(noted), has_turn, "{number}: {:?}", response.trace);
            let record = log.append(request, &response).unwrap();
            let again = prepare(&tiny, &record);
            assert_equal(number, &record, &tiny.run(vec![again])[0]);
        }
    }
}

#[test]
fn what_the_clock_cut_short_is_cut_there_again() {
    let impatient =
        Limits { fuel_decide: u64::MAX, deadline_ms: 20, deadline_windows: 2, sequences: 2, ..Limits::default() };
    let run = |limits: &Limits, replayed: Option<&Record>| {
        let mut tiny = Setup::default().open_in(&Sandbox::new(limits.clone(), compilation()).unwrap());
        let component = std::fs::read(program::hostile()).unwrap();
        let policy = Arc::new(tiny.engine.load_policy("hostile", &component, &[], Needs::ALL).unwrap());
        let model = ModelRecord { name: "tiny".into(), sha256: "0".repeat(64), source: String::new() };
        let ours = Surroundings::new(&tiny.engine.device().info(), limits, model, &[], &[]).unwrap();
        let request = match replayed {
            None => {
                let settings = settings::resolve(&policy.manifest, &[("mode", "loop")], Scope::Tenant, limits).unwrap();
                let used = PolicyUse { policy, settings, required: false, fault_policy: FaultPolicy::Base };
                tiny.endless(tiny.request(PROMPT, vec![used]))
            }
            Some(record) => {
                let load = |_: &PolicyRecord| Ok::<_, ReplayError>(policy.clone());
                replay::prepare(record, &ours, tiny.tokenizer.as_ref(), 512, limits, load).unwrap()
            }
        };
        let response = tiny.run(vec![request.clone()]).remove(0);
        (Record::new(&ours, &request, &BTreeMap::new(), &response), response)
    };
    let (record, response) = run(&impatient, None);
    assert_eq!((&response.faults[0].kind, response.tokens.len()), (&FaultKind::Deadline, 24));
    // Without the record, a clock this patient would let it spin for minutes.
    let patient = Limits { deadline_ms: 600_000, ..impatient };
    replay::compare(&record, &run(&patient, Some(&record)).1).unwrap();
}

/// Beside `KERNELS_VERSION` stand bits that it made. Other bits are another version; what rewards read off unfinished texts is under
/// the same number.
#[test]
fn the_kernels_version_is_that_of_their_bits() {
    let mut textless = Setup::with_heads();
    textless.heads.iter_mut().for_each(|head| head.description.text = None);
    for (setup, name, expected) in
        [(textless, "kernels", "80976611defce962"), (Setup::with_heads(), "kernels-text", "9531a63826a4ba1e")]
    {
        let (_, record) = one_of(setup, name, 2);
        let bits = record.response.probabilities_sha256;
        assert_eq!(
            (vassal_kernels::KERNELS_VERSION, &bits[..16]),
            (1, expected),
            "{name}: raise the version, and note its bits here"
        );
    }
}

#[test]
fn the_program_records_verifies_and_replays() {
    let log = fresh("program");
    let file = log.to_str().unwrap();
    let hostile = ["--policy", program::hostile(), "--set", "mode=loop", "--audit", file, "--max-tokens", "6"];
    assert_eq!(Run::tiny("one", &["--policy", "vas", "--audit", file, "--max-tokens", "6"]).code, Some(0));
    assert_eq!(Run::tiny("two", &hostile).code, Some(3), "a response that a fault ends is recorded as well");
    assert_eq!(Run::tiny("x", &["--compare", "--audit", file, "--max-tokens", "4", "--json"]).code, Some(0));
    let verified = Run::of(&["audit", "verify", file, "--json"]).object(0);
    assert_eq!((&verified["holds"], &verified["records"]), (&true.into(), &4.into()));
    let last = verified["last"].as_str().unwrap();
    let plain = Run::of(&["audit", "verify", file, "--expect", last]);
    assert!(plain.code == Some(0) && plain.out.contains("4 records, the chain holds"), "{plain:?}");
    Run::of(&["audit", "verify", file, "--expect", "00ff"]).refuses(2, &[last, "expected 00ff"]);
    let replayed = Run::of(&["replay", file, "--threads", "1"]);
    assert_eq!((replayed.code, replayed.out.matches("equal").count()), (Some(0), 4), "{replayed:?}");
    let one = Run::of(&["replay", file, "--record", "2", "--isa", "scalar", "--json"]).object(0);
    assert_eq!((&one["equal"], &one["records"][0]["record"]), (&true.into(), &2.into()));
    Run::of(&["replay", file, "--record", "5"]).refuses(2, &["no record 5", "has 4"]);
    Run::of(&["replay", file, "--record", "0"]).refuses(2, &["a number from 1 or all"]);
    // One that lies, with a hash of its own.
    let text = std::fs::read_to_string(&log).unwrap();
    let (body, _) = text.lines().next().unwrap().rsplit_once(",\"sha256\":").unwrap();
    let draws = body.split_once("\"draws\":").unwrap().1.split(',').next().unwrap();
    let lie = body.replace(&format!("\"draws\":{draws}"), "\"draws\":77");
    std::fs::write(&log, format!("{}\n", crate::audit::sealed(&lie))).unwrap();
    let differs = Run::of(&["replay", file, "--json"]);
    differs.says(&["record 1 differs", "draws", "recorded 77"]);
    assert_eq!(differs.object(1)["records"][0]["difference"]["what"], "draws");
    // A changed line, and another model in the place of the recorded one.
    std::fs::write(&log, text.replacen("\"seed\":1", "\"seed\":2", 1)).unwrap();
    let broken = Run::of(&["audit", "verify", file, "--json"]);
    broken.says(&["line 1", "changed"]);
    assert_eq!(broken.object(2)["line"], 1);
    Run::of(&["replay", file]).refuses(2, &["line 1", "changed"]);
    std::fs::write(&log, text).unwrap();
    let other = vassal::model::synthetic::SyntheticModel { seed: 99, ..Default::default() };
    let other = program::written("other.gguf", &other.bytes());
    Run::of(&["replay", file, "--model", &other]).refuses(2, &["model", "SHA-256", "recorded", "here"]);
    Run::of(&["audit", "verify", "./nowhere.jsonl"]).refuses(2, &["nowhere.jsonl", "No such file"]);
    Run::tiny("x", &["--audit", "./nowhere/log.jsonl"]).refuses(2, &["nowhere/log.jsonl", "No such file"]);
}
