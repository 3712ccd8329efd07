//! Several policies on one sequence: what wins, what adds up, what is offered to whom, and what a fault does.
//!
//! The order of rank is the contract's: `stop` over `splice` over `steer`, required policies before the
//! request's. The scripted policy (`tests/hostile/examples`) says what a test needs said; it, `vas` and `guard`
//! run as components in the engine.

use vassal::engine::{Finish, Response};
use vassal::model::heads::HeadWeights;
use vassal::model::synthetic::{END_OF_TEXT, TURN_END};
use vassal::request::{FaultPolicy, PolicyUse, Request, TEMPERATURE_MIN};
use vassal::sandbox::{FaultKind, Scope, SettingError, TrapCode, settings};
use vassal::token::Token;

use crate::attacks::Served;
use crate::support::{PROMPT, Setup, Tiny, bits, sandbox};

fn required(policy: PolicyUse) -> PolicyUse {
    PolicyUse { required: true, ..policy }
}

fn run(policies: impl Fn(&Tiny) -> Vec<PolicyUse>) -> Response {
    let mut tiny = Setup::with_heads().open();
    let request = tiny.request(PROMPT, policies(&tiny));
    tiny.alone(request)
}

fn stopped(reason: &str) -> Finish {
    Finish::Stopped { policy: "scripted".into(), reason: reason.into() }
}

fn notes(response: &Response) -> Vec<&str> {
    response.notes.iter().map(|note| note.message.as_str()).collect()
}

#[test]
pub(crate) fn stop_wins_over_splice_and_splice_over_steer() {
    let splices = "3! splice 2 70,71";
    let steers = "* only 60";
    let response = run(|tiny| vec![tiny.scripted(steers), tiny.scripted(splices), tiny.scripted("5 stop enough")]);
    assert_eq!(response.finish, stopped("enough"));
    // What was steered before and after stands, the spliced tokens between.
    assert_eq!(response.token_ids(), [60, 70, 71, 60, 60]);
    let at_once = run(|tiny| vec![tiny.scripted(steers), tiny.scripted(splices), tiny.scripted("3 stop enough")]);
    assert_eq!((at_once.finish.clone(), at_once.token_ids()), (stopped("enough"), vec![60, 60, 60]));
}

/// Found by the fuzz target `decision`: far below it, all logits above 0 had been drawn alike.
#[test]
pub(crate) fn the_lowest_temperature_is_greedy_under_the_greatest_deltas() {
    let drawn = |temperature| {
        let mut tiny = Setup::with_heads().open();
        let biases = || tiny.scripted("* bias 70:10000,71:10000,72:10000");
        let policies = vec![biases(), biases()];
        let request = Request { temperature: Some(temperature), ..tiny.request(PROMPT, policies) };
        tiny.alone(request)
    };
    let lowest = drawn(TEMPERATURE_MIN);
    assert_eq!(lowest.token_ids(), drawn(0.0).token_ids());
    assert!(lowest.tokens.iter().all(|record| record.draw.is_some_and(|draw| draw.kl.is_finite())));
}

#[test]
pub(crate) fn required_policies_rank_before_the_requests() {
    let first = |a: &'static str, b: &'static str| run(move |tiny| vec![tiny.scripted(a), required(tiny.scripted(b))]);
    assert_eq!(first("2 stop request", "2 stop required").finish, stopped("required"));
    assert_eq!(
        run(|tiny| vec![tiny.scripted("2 stop request"), tiny.scripted("2 stop other")]).finish,
        stopped("request")
    );
    let response = first("2! splice 0 50", "2! splice 0 51");
    assert_eq!(response.token_ids()[2], 51);
    // The other is not asked to splice again: its script said `once`.
    assert_ne!(response.token_ids()[3], 50);
}

#[test]
pub(crate) fn two_vas_add_up_to_one_with_both_dials() {
    let both = run(|tiny| vec![tiny.policy("vas", &[("sentiment", "0.9"), ("simplicity", "-0.7")])]);
    let apart = run(|tiny| {
        vec![
            tiny.policy("vas", &[("sentiment", "0.9")]),
            tiny.policy("vas", &[("simplicity", "-0.7"), ("mode", "adjust")]),
        ]
    });
    assert_eq!(bits(&apart), bits(&both));
    let one = run(|tiny| vec![tiny.policy("vas", &[("sentiment", "0.9")])]);
    assert_ne!(bits(&one), bits(&both));
    // The same values asked by two policies are computed once.
    assert_eq!(apart.counters.candidate_rows, both.counters.candidate_rows);
}

#[test]
pub(crate) fn mask_wins_over_keep_and_masks_intersect() {
    let kept = run(|tiny| vec![tiny.policy("vas", &[("tail", "keep")])]);
    let masked = |policies: &dyn Fn(&Tiny) -> Vec<PolicyUse>| {
        let mut tiny = Setup::with_heads().open();
        let request = tiny.request(PROMPT, policies(&tiny));
        let prompt = request.prompt.clone();
        let response = tiny.alone(request);
        let places: Vec<usize> = (0..response.tokens.len())
            .map(|count| {
                let tokens = response.token_ids();
                let logits = tiny.logits_after(&[&prompt[..], &tokens[..count]].concat());
                let own = logits[tokens[count] as usize];
                logits.iter().filter(|logit| **logit > own).count()
            })
            .collect();
        (response, places)
    };
    let (response, places) = masked(&|tiny| vec![tiny.policy("vas", &[]), tiny.scripted("* mask")]);
    assert!(places.iter().all(|place| *place < 4), "{places:?}");
    assert!(places.contains(&3), "{places:?}");
    assert_ne!(bits(&response), bits(&kept));
    let wide = |tiny: &Tiny| tiny.policy("vas", &[("tail", "mask"), ("candidates", "2")]);
    let (_, places) = masked(&|tiny| vec![tiny.scripted("* mask"), wide(tiny)]);
    assert!(places.iter().all(|place| *place < 2) && places.contains(&1), "{places:?}");
}

#[test]
pub(crate) fn insertions_are_offered_one_at_a_time_and_cut_before_the_first_that_is_forbidden() {
    let insert = |tiny: &Tiny, text: &[u8]| {
        let tokens: Vec<String> = text.iter().map(|byte| tiny.byte(*byte).to_string()).collect();
        tiny.scripted(&format!("4! splice 0 {}", tokens.join(",")))
    };
    let guard = |tiny: &Tiny| tiny.policy("guard", &[("phrases", "zebra")]);
    let text_of = |response: &Response| {
        let tiny = Setup::default().open();
        String::from_utf8_lossy(&tiny.bytes(&response.token_ids())).to_lowercase()
    };
    // Without the guard the phrase is said, and so it is where nobody requires the guard.
    let said = run(|tiny| vec![insert(tiny, b"a ZEBRA!")]);
    assert!(text_of(&said).contains("a zebra!"), "{:?}", text_of(&said));
    let wished = run(|tiny| vec![guard(tiny), insert(tiny, b"a ZEBRA!")]);
    assert!(text_of(&wished).contains("a zebra!"));
    let cut = run(|tiny| vec![insert(tiny, b"a ZEBRA!"), required(guard(tiny))]);
    let text = text_of(&cut);
    assert!(text.contains("a zebr") && !text.contains("zebra"), "{text:?}");
    let inserted: Vec<usize> = (0..24).filter(|place| cut.tokens[*place].draw.is_none()).collect();
    assert_eq!(inserted, [4, 5, 6, 7, 8, 9], "`a zebr` was inserted, then drawing goes on");
    assert_eq!(cut.finish, Finish::TokenLimit);
    // Nothing to cut: the insertion stands as it is.
    let whole = run(|tiny| vec![insert(tiny, b"a horse!"), required(guard(tiny))]);
    assert!(text_of(&whole).contains("a horse!"));
}

#[test]
pub(crate) fn a_required_policy_sees_each_inserted_token_as_the_only_candidate() {
    let response = run(|tiny| {
        vec![
            required(tiny.scripted("2 show\n3 show\n4 show\n5 show")),
            tiny.scripted("3! splice 1 80,81,82\nend stop x"),
        ]
    });
    let ids = response.token_ids();
    assert_eq!(ids[2..5], [80, 81, 82]);
    let notes = notes(&response);
    let drawn = response.tokens[..2].iter().all(|record| record.draw.is_some());
    assert!(drawn, "{ids:?}");
    // Length 2: a draw, then the offer of 80 after one was taken back; 3: a draw, then the offer of 81; ...
    let expected_offers = ["candidates [80]", "candidates [81]", "candidates [82]"];
    let offers: Vec<&&str> =
        notes.iter().filter(|note| expected_offers.iter().any(|offer| note.contains(offer))).collect();
    assert_eq!(offers.len(), 3, "{notes:#?}");
    assert!(offers[0].starts_with("kept 2 appended [] "), "{notes:#?}");
    assert!(offers[1].starts_with("kept 2 appended [80] "), "{notes:#?}");
    assert!(offers[2].starts_with("kept 3 appended [81] "), "{notes:#?}");
    assert!(notes.last().unwrap().starts_with("kept 4 appended [82] "), "{notes:#?}");
}

#[test]
pub(crate) fn a_required_stop_refuses_an_inserted_token() {
    let refuse = "2 show\n3! keep\n3! splice 0 90\n3 stop no";
    let response = run(|tiny| vec![required(tiny.scripted(refuse)), tiny.scripted("3! splice 0 80,81")]);
    // At length 3: asked for a draw it keeps; the offer of 80 it answers with a splice, which an offer cannot be.
    assert_eq!(response.token_ids()[3], 80);
    let refuse = "3! keep\n3 stop no";
    let response = run(|tiny| vec![required(tiny.scripted(refuse)), tiny.scripted("3! splice 0 80,81")]);
    // The offer is refused; then the draw is stopped.
    assert_eq!((response.finish.clone(), response.tokens.len()), (stopped("no"), 3));
}

#[test]
pub(crate) fn where_nothing_is_left_the_policies_that_forbade_are_named() {
    let q = |tiny: &Tiny| tiny.byte(b'q').to_string();
    let response = run(|tiny| {
        vec![
            tiny.policy("vas", &[("sentiment", "0.5")]),
            tiny.scripted(&format!("3 only {}", q(tiny))),
            required(tiny.policy("guard", &[("phrases", "Q")])),
        ]
    });
    assert_eq!(response.tokens.len(), 3);
    let policies = vec!["guard".to_owned(), "scripted".to_owned()];
    assert_eq!(response.finish, Finish::NothingAllowed { policies });
    let masked = run(|tiny| {
        vec![tiny.policy("vas", &[("tail", "mask"), ("candidates", "3")]), tiny.scripted("2 show\n2 adjust 0"), {
            let forbid: Vec<String> = (0..283).map(|token: Token| token.to_string()).collect();
            tiny.scripted(&format!("2 forbid {}", forbid.join(",")))
        }]
    });
    let policies = vec!["vas".to_owned(), "scripted".to_owned()];
    assert_eq!((masked.finish, masked.tokens.len()), (Finish::NothingAllowed { policies }, 2));
}

/// Each policy sees as many candidates as it asked for, whatever the others did: `adjust` and masks are about these.
#[test]
pub(crate) fn each_policy_of_a_chain_has_its_own_candidates() {
    let of = |tiny: &Tiny, script: &str, candidates: &str| {
        tiny.policy("scripted", &[("script", script), ("candidates", candidates)])
    };
    let response = run(|tiny| vec![of(tiny, "* show\n* adjust 0.5", "20"), of(tiny, "* show\n* mask", "4")]);
    assert_eq!((&response.finish, response.tokens.len()), (&Finish::TokenLimit, 24));
    for step in notes(&response)[..40].chunks(2) {
        let [wide, narrow] = [step[0], step[1]].map(|note| {
            let list = note.split_once("candidates [").unwrap().1.split_once(']').unwrap().0;
            list.split(", ").collect::<Vec<_>>()
        });
        assert_eq!((wide.len(), narrow.len()), (20, 4));
        assert_eq!(wide[..4], narrow, "the likeliest of them");
    }
    // The narrow one's mask leaves its own four, and the wide one's adjustment is the same for all of them.
    let masked = run(|tiny| vec![of(tiny, "* mask", "4")]);
    assert_eq!(response.token_ids(), masked.token_ids());
}

#[test]
pub(crate) fn the_step_budget_ends_a_rewind_that_goes_on_for_ever() {
    let response = run(|tiny| vec![tiny.scripted("5 splice 3 -")]);
    assert_eq!(response.finish, Finish::StepBudget { steps: 4 * 24 });
    assert_eq!(response.counters.steps, 4 * 24 + 1);
    // Discarded draws count, so that the segment is not drawn again as it was.
    assert!(response.draws > 40, "{}", response.draws);
    assert!(response.tokens.len() <= 5);
}

#[test]
pub(crate) fn the_step_budget_bounds_the_rows_of_insertions_that_are_taken_back() {
    let churn = run(|tiny| vec![tiny.scripted("8 splice 8 1,1,1,1,1,1,1,1\n0 splice 0 1,1,1,1,1,1,1,1")]);
    assert_eq!(churn.finish, Finish::StepBudget { steps: 4 * 24 });
    assert!(churn.counters.pending_rows <= 4 * 24 + 8, "{:?}", churn.counters);
}

#[test]
pub(crate) fn a_splice_at_the_end_goes_on_and_a_stop_at_the_end_has_its_reason() {
    let response = run(|tiny| vec![tiny.scripted("end! show\nend! splice 4 70,71\nend show")]);
    assert_eq!(response.finish, Finish::TokenLimit);
    assert_eq!(response.tokens.len(), 24);
    assert_eq!(response.token_ids()[20..22], [70, 71]);
    let notes = notes(&response);
    assert_eq!(notes.len(), 2, "the end is shown twice: {notes:#?}");
    // Each time with the last draw as what is new; of the first the token was taken back.
    assert!(
        notes[0].starts_with("kept 23 appended [") && notes[0].ends_with("] candidates [] ended true"),
        "{notes:#?}"
    );
    assert_eq!(notes[1], format!("kept 23 appended [{}] candidates [] ended true", response.token_ids()[23]));
    let response = run(|tiny| vec![tiny.scripted("end stop done")]);
    assert_eq!((response.finish.clone(), response.tokens.len()), (stopped("done"), 24));
}

#[test]
pub(crate) fn an_end_of_text_token_ends_the_response_and_is_shown_to_every_policy() {
    // Nothing but the insertion ends this text before its limit.
    let run = |script: &str| {
        let mut tiny = Setup::with_heads().open();
        let ends = "* forbid 0,2";
        let request =
            tiny.request(PROMPT, vec![tiny.scripted(&format!("{script}\n{ends}")), tiny.scripted("end show")]);
        let valid = request.validate(tiny.tokenizer.as_ref(), 512).unwrap();
        assert_eq!(valid.end_of_text, [END_OF_TEXT, TURN_END]);
        tiny.run(vec![valid]).remove(0)
    };
    let shown = |response: &Response, policy: usize| {
        let last = *response.token_ids().last().unwrap();
        let kept = response.tokens.len() - 1;
        let note = format!("kept {kept} appended [{last}] candidates [] ended true");
        assert_eq!(notes(response)[policy..].last(), Some(&note.as_str()), "{:#?}", response.notes);
    };
    let insert = format!("6! splice 0 {TURN_END}\nend! show");
    let ended = run(&insert);
    assert_eq!((&ended.finish, ended.tokens.len()), (&Finish::EndOfText, 7));
    assert_eq!(notes(&ended).len(), 2, "both policies see the end: {:#?}", ended.notes);
    shown(&ended, 0);
    shown(&ended, 1);
    // The same taken back: the other tokens stand, and the response goes on to its limit.
    let taken_back = run(&format!("{insert}\nend! splice 1 -\nend show"));
    assert!(notes(&taken_back)[0].contains(&format!("appended [{TURN_END}] candidates [] ended true")));
    assert_eq!((&taken_back.finish, taken_back.tokens.len()), (&Finish::TokenLimit, 24));
    assert_eq!(taken_back.token_ids()[..6], ended.token_ids()[..6]);
    assert!(taken_back.tokens.iter().all(|record| record.draw.is_some()), "the end was taken back");
    shown(&taken_back, 0);
}

#[test]
pub(crate) fn a_fault_ends_the_response_or_only_the_policy() {
    let panics = |tiny: &Tiny, fault_policy| PolicyUse { fault_policy, ..tiny.scripted("* note here\n3 panic") };
    let aborted = run(|tiny| vec![panics(tiny, FaultPolicy::Abort), tiny.policy("vas", &[("sentiment", "0.9")])]);
    let Finish::Faulted(fault) = &aborted.finish else { panic!("{:?}", aborted.finish) };
    assert_eq!((fault.guest.name.as_str(), &fault.kind), ("scripted", &FaultKind::Trap(TrapCode::Unreachable)));
    assert_eq!(aborted.tokens.len(), 3);
    let dropped = run(|tiny| vec![panics(tiny, FaultPolicy::Base), tiny.policy("vas", &[("sentiment", "0.9")])]);
    assert_eq!(dropped.finish, Finish::TokenLimit);
    assert_eq!(dropped.faults.len(), 1);
    assert_eq!(dropped.faults[0].kind, FaultKind::Trap(TrapCode::Unreachable));
    assert!(notes(&dropped).contains(&"here"), "notes before the fault are kept");
    let without = run(|tiny| vec![tiny.policy("vas", &[("sentiment", "0.9")])]);
    assert_eq!(bits(&dropped), bits(&without), "the others go on as if it had kept");
}

#[test]
pub(crate) fn a_policy_that_fails_in_start_ends_the_response_or_is_left_out() {
    let refuses =
        |tiny: &Tiny, fault_policy| PolicyUse { fault_policy, ..tiny.policy("hostile", &[("mode", "start-panic")]) };
    let aborted = run(|tiny| vec![refuses(tiny, FaultPolicy::Abort)]);
    assert!(matches!(aborted.finish, Finish::Faulted(_)), "{:?}", aborted.finish);
    assert!(aborted.tokens.is_empty());
    let left_out = run(|tiny| vec![refuses(tiny, FaultPolicy::Base)]);
    assert_eq!((left_out.faults.len(), left_out.tokens.len()), (1, 24));
    assert_eq!(bits(&left_out), bits(&run(|_| Vec::new())));
}

#[test]
pub(crate) fn a_request_cannot_turn_a_tenants_dial() {
    let _served = Served::as_before();
    let tiny = Setup::with_heads().open();
    let guard = tiny.policy("guard", &[("phrases", "zebra")]);
    let manifest = &guard.policy.manifest;
    let mut values = guard.settings.clone();
    let limits = sandbox().limits();
    let refused = settings::apply(manifest, &mut values, &[("phrases", "")], Scope::Request, limits);
    assert_eq!(refused, Err(SettingError::Tenant { policy: "guard".into(), name: "phrases".into() }));
    assert_eq!(values, guard.settings);
    assert_eq!(settings::apply(manifest, &mut values, &[("phrases", "")], Scope::Tenant, limits), Ok(()));
    assert_ne!(values, guard.settings);
}

#[test]
pub(crate) fn what_evaluate_and_current_say_is_what_heads_say_of_the_sequence() {
    let mut tiny = Setup::with_heads().open();
    let script = "4 evaluate 0 33,210\n4 current 0\n4 evaluate 1 33\nend evaluate 0 33\nend current 0";
    let request = tiny.request(PROMPT, vec![tiny.scripted(script)]);
    let prompt = request.prompt.clone();
    let response = tiny.alone(request);
    let before = &response.token_ids()[..4];
    let mut along =
        |head, token: &[Token]| *tiny.values_along(head, &prompt, &[before, token].concat(), 24).last().unwrap();
    let numbers = |note: &str| -> Vec<f64> {
        let words = note.split(|c: char| !(c.is_ascii_digit() || "+-.e".contains(c)));
        words.filter_map(|word| word.parse().ok()).collect()
    };
    let notes = notes(&response);
    assert_eq!(notes.len(), 5, "{notes:#?}");
    let expected = [vec![along(0, &[33]), along(0, &[210])], vec![along(0, &[])], vec![along(1, &[33])]];
    for (note, expected) in notes.iter().zip(&expected) {
        let found = numbers(note);
        assert_eq!(found.len(), expected.len(), "{note}");
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-4), "{note}: {expected:?}");
    }
    assert_ne!(expected[0][0], expected[0][1]);
    // The share weights' part of the first head's values is no rounding.
    let HeadWeights::LookAhead(mut weights) = Setup::with_heads().heads[0].weights.clone() else { panic!() };
    weights.share.clear();
    let without = *tiny.linear_along(0, &weights, &prompt, &[before, &[33]].concat(), 24).last().unwrap();
    assert!((expected[0][0] - without).abs() > 0.01, "{} with and {without} without", expected[0][0]);
    assert!(notes[3].contains("NotNow") && notes[4].contains("NotNow"), "{notes:#?}");
}
