//! Chains: a hostile policy among others, in the first place and in the last.
//!
//! What wins over what is in `tests/chains.rs`; here somebody tries to win who must not. Each is tried on both sides of
//! the others ([`both_ways`]), since the order of a request's policies is the request's own.

use vassal::engine::{Finish, Response};
use vassal::model::heads::{HeadFile, HeadWeights};
use vassal::request::{FaultPolicy, PolicyUse, Request};
use vassal::sandbox::Limits;
use vassal::token::Token;

use super::Served;
use crate::made_up_heads::look_ahead;
use crate::support::{PROMPT, Setup, Tiny, bits};

type Policies<'a> = &'a dyn Fn(&Tiny) -> Vec<PolicyUse>;

fn required(policy: PolicyUse) -> PolicyUse {
    PolicyUse { required: true, ..policy }
}

fn run(setup: &Setup, policies: impl Fn(&Tiny) -> Vec<PolicyUse>) -> Response {
    let mut tiny = setup.open();
    let request = tiny.request(PROMPT, policies(&tiny));
    tiny.alone(request)
}

/// The responses with the hostile policy before the others, and after them.
fn both_ways(
    setup: &Setup,
    hostile: impl Fn(&Tiny) -> PolicyUse,
    others: impl Fn(&Tiny) -> Vec<PolicyUse>,
) -> [Response; 2] {
    [
        run(setup, |tiny| [vec![hostile(tiny)], others(tiny)].concat()),
        run(setup, |tiny| [others(tiny), vec![hostile(tiny)]].concat()),
    ]
}

fn text_of(response: &Response) -> String {
    let tiny = Setup::default().open();
    String::from_utf8_lossy(&tiny.bytes(&response.token_ids())).to_lowercase()
}

fn byte_list(tiny: &Tiny, text: &[u8]) -> String {
    text.iter().map(|byte| tiny.byte(*byte).to_string()).collect::<Vec<_>>().join(",")
}

#[test]
fn a_fault_in_either_place_leaves_the_others_tokens_as_they_are() {
    let _served = Served::as_before();
    let setup = Setup::with_heads();
    let others = |tiny: &Tiny| {
        vec![required(tiny.policy("guard", &[("phrases", "zebra")])), tiny.policy("vas", &[("sentiment", "0.9")])]
    };
    let without = bits(&run(&setup, others));
    for mode in
        ["loop", "grow", "panic", "nan", "bias-long", "flood-answer", "evaluate-forever", "start-loop", "insert-token"]
    {
        let hostile =
            |tiny: &Tiny, fault_policy| PolicyUse { fault_policy, ..tiny.policy("hostile", &[("mode", mode)]) };
        for response in both_ways(&setup, |tiny| hostile(tiny, FaultPolicy::Base), others) {
            assert_eq!((&response.finish, response.faults.len()), (&Finish::TokenLimit, 1), "`{mode}`");
            assert_eq!(bits(&response), without, "`{mode}`");
        }
        for response in both_ways(&setup, |tiny| hostile(tiny, FaultPolicy::Abort), others) {
            let Finish::Faulted(fault) = &response.finish else { panic!("`{mode}`: {:?}", response.finish) };
            assert!(
                fault.guest.name == "hostile" && !fault.kind.is_the_hosts() && response.tokens.is_empty(),
                "`{mode}`"
            );
        }
        // Required of a tenant, it is no less a guest.
        let both = both_ways(&setup, |tiny| required(hostile(tiny, FaultPolicy::Base)), others);
        assert!(both.iter().all(|response| bits(response) == without), "`{mode}`");
    }
}

#[test]
fn no_steering_in_either_place_says_what_a_required_policy_forbids() {
    let _served = Served::as_before();
    let setup = Setup::with_heads();
    // The most that one may add to a token, in every way at once that a decision has.
    let wish = |tiny: &Tiny| {
        let token = tiny.byte(b'q');
        tiny.scripted(&format!("* bias {token}:10000"))
    };
    let wished = run(&setup, |tiny| vec![wish(tiny)]);
    assert_eq!(text_of(&wished), "q".repeat(24));
    let forbid = |tiny: &Tiny| vec![required(tiny.scripted(&format!("* forbid {}", tiny.byte(b'q'))))];
    for response in both_ways(&setup, wish, forbid) {
        assert_eq!(response.finish, Finish::TokenLimit);
        assert!(!text_of(&response).contains('q'), "{:?}", text_of(&response));
    }
    // Nor does it where it forbids everything else: then there is nothing to draw, and both are named.
    let only = |tiny: &Tiny| tiny.scripted(&format!("* only {}", tiny.byte(b'q')));
    for response in both_ways(&setup, only, forbid) {
        assert!(
            matches!(&response.finish, Finish::NothingAllowed { policies } if policies.len() == 2),
            "{:?}",
            response.finish
        );
    }
}

#[test]
fn an_insertion_in_either_place_is_vetted_by_what_is_required() {
    let _served = Served::as_before();
    let setup = Setup::with_heads();
    let insert = |tiny: &Tiny| tiny.scripted(&format!("4! splice 0 {}", byte_list(tiny, b"a ZEBRA!")));
    let guard = |tiny: &Tiny| vec![required(tiny.policy("guard", &[("phrases", "zebra")]))];
    for response in both_ways(&setup, insert, guard) {
        let text = text_of(&response);
        assert!(text.contains("a zebr") && !text.contains("zebra"), "{text:?}");
    }
}

#[test]
fn a_request_in_either_place_cannot_outrank_what_is_required() {
    let _served = Served::as_before();
    let setup = Setup::with_heads();
    let hostile = |tiny: &Tiny| tiny.scripted("2 stop mine");
    let others = |tiny: &Tiny| vec![required(tiny.scripted("2 stop the-tenants"))];
    for response in both_ways(&setup, hostile, others) {
        assert!(
            matches!(&response.finish, Finish::Stopped { reason, .. } if reason == "the-tenants"),
            "{:?}",
            response.finish
        );
    }
    let hostile = |tiny: &Tiny| tiny.scripted("2! splice 2 50");
    let others = |tiny: &Tiny| vec![required(tiny.scripted("2! splice 0 51"))];
    for response in both_ways(&setup, hostile, others) {
        assert_eq!(response.token_ids()[2], 51);
    }
    // A splice of the request's does not keep a required policy from stopping.
    let hostile = |tiny: &Tiny| tiny.scripted("1 splice 1 50,51\n2 splice 1 50,51\n3 splice 1 50,51");
    let others = |tiny: &Tiny| vec![required(tiny.scripted("3 stop enough"))];
    for response in both_ways(&setup, hostile, others) {
        assert!(
            matches!(&response.finish, Finish::Stopped { reason, .. } if reason == "enough"),
            "{:?}",
            response.finish
        );
    }
}

#[test]
fn livelocks_in_either_place_end_by_the_step_budget() {
    let _served = Served::as_before();
    let setup = Setup::with_heads();
    let others: [Policies<'_>; 2] =
        [&|tiny| vec![tiny.policy("vas", &[("sentiment", "0.9"), ("mode", "evaluate")])], &|tiny| {
            vec![required(tiny.policy("guard", &[("phrases", "zebra")]))]
        }];
    for script in [
        // Takes back what was drawn, for ever; with insertions; at the end only; inserts what it takes back.
        "5 splice 3 -",
        "8 splice 8 1,1,1,1,1,1,1,1\n0 splice 0 1,1,1,1,1,1,1,1",
        "end splice 4 70,71",
        "1 splice 1 70",
    ] {
        for others in others {
            for response in both_ways(&setup, |tiny| tiny.scripted(script), others) {
                assert_eq!(response.finish, Finish::StepBudget { steps: 4 * 24 }, "{script:?}");
                assert_eq!(response.counters.steps, 4 * 24 + 1, "{script:?}");
                let rows = response.counters.pending_rows + response.counters.winner_rows;
                assert!(rows <= 4 * 24 + 8, "{script:?}: {:?}", response.counters);
            }
        }
    }
}

/// Whoever takes nothing back may evaluate what a step allows, in every step; whoever does that for ever is ended by what
/// it makes the host compute, before the steps are spent.
#[test]
fn livelocks_that_evaluate_end_by_the_row_budget() {
    let _served = Served::as_before();
    let setup = Setup::with_heads();
    // The candidates' own values and twice as many of other tokens: most of what one policy can want in a step.
    let most = "* evaluate 0 101,102,103,104,105,106,107,108\n* evaluate 0 111,112,113,114,115,116,117,118";
    let run = |script: &str, others: usize| {
        let mut tiny = setup.open();
        let wide = tiny.policy("scripted", &[("script", script), ("candidates", "8")]);
        let policies = [vec![wide], vec![tiny.scripted("* keep"); others]].concat();
        let request = Request { candidates_max: Some(8), ..tiny.request(PROMPT, policies) };
        tiny.alone(request)
    };
    for others in [0, 1] {
        let honest = run(&format!("{most}\n* blend 0 1"), others);
        assert_eq!((&honest.finish, honest.counters.evaluations), (&Finish::TokenLimit, 48));
        assert!(honest.counters.candidate_rows > 24 * 20, "{:?}", honest.counters);
        let limits = Limits::default();
        let (steps, rows) = (limits.steps_max(24), limits.rows_max(24, 8, 1 + others));
        let livelock = run(&format!("{most}\n5 splice 3 -\n* blend 0 1"), others);
        let counters = &livelock.counters;
        assert_eq!(livelock.finish, Finish::RowBudget { rows }, "{counters:?}");
        assert!(counters.steps < steps && counters.steps > 24, "{counters:?}");
        // By no more than the step in which it was spent.
        let used = counters.steps + counters.candidate_rows;
        assert!(used > rows && used <= rows + 1 + 8 * 4, "{used} of {rows}");
        assert!(counters.forward_equivalents <= used as f64, "{counters:?}");
    }
}

/// A head whose every value is near `value`.
fn wild(value: f32) -> HeadFile {
    let mut head = look_ahead("sentiment", 2, 11);
    let HeadWeights::LookAhead(weights) = &mut head.weights else { panic!("a look-ahead head") };
    weights.bias = value;
    head
}

#[test]
fn products_that_overflow_in_two_policies_together_neither_forbid_nor_allow() {
    let _served = Served::as_before();
    for value in [3e34, -3e34] {
        // Each product is finite, 3e38; two of them are not.
        let setup = Setup { heads: vec![wild(value)], ..Setup::default() };
        let blend = |tiny: &Tiny| tiny.scripted("* blend 0 10000");
        let one = run(&setup, |tiny| vec![blend(tiny)]);
        let two = run(&setup, |tiny| vec![blend(tiny), blend(tiny)]);
        for response in [&one, &two] {
            assert_eq!((&response.finish, response.tokens.len()), (&Finish::TokenLimit, 24), "{value}");
            let draws = response.tokens.iter().filter_map(|record| record.draw);
            assert!(draws.clone().count() == 24 && draws.clone().all(|draw| !draw.kl.is_nan()), "{value}");
        }
        // Where all tokens but one are out of reach, what forbids that one stands, in any place.
        let only: Token = 70;
        let forbid = |tiny: &Tiny| tiny.scripted(&format!("* forbid {only}"));
        for response in both_ways(&setup, forbid, |tiny| vec![blend(tiny), blend(tiny)]) {
            assert!(!response.token_ids().contains(&only), "{value}: {:?}", response.token_ids());
        }
        // An insertion is offered to what is required: two that overflow neither refuse it nor undo a refusal.
        let knowing = |tiny: &Tiny| required(tiny.scripted(&format!("* evaluate 0 {only}\n* blend 0 10000")));
        let insert = |tiny: &Tiny| tiny.scripted(&format!("3! splice 0 {only}"));
        let stands = run(&setup, |tiny| vec![knowing(tiny), knowing(tiny), insert(tiny)]);
        assert_eq!(stands.token_ids()[3], only, "{value}: nobody forbade it");
        assert!(stands.tokens[3].draw.is_none());
        let vetoes = |tiny: &Tiny| required(forbid(tiny));
        for response in both_ways(&setup, vetoes, |tiny| vec![knowing(tiny), knowing(tiny), insert(tiny)]) {
            assert!(!response.token_ids().contains(&only), "{value}: {:?}", response.token_ids());
        }
    }
}

#[test]
fn heads_that_are_no_numbers_count_as_nothing() {
    let _served = Served::as_before();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let setup = Setup { heads: vec![wild(value)], ..Setup::default() };
        let plain = run(&setup, |_| Vec::new());
        let steered = run(&setup, |tiny| vec![tiny.scripted("* blend 0 1"), tiny.scripted("* blend 0 -1")]);
        let tokens = |response: &Response| response.token_ids();
        assert_eq!((&steered.finish, tokens(&steered)), (&Finish::TokenLimit, tokens(&plain)), "{value}");
    }
}

#[test]
fn a_request_cannot_turn_the_dial_of_a_policy_by_having_it_twice() {
    let _served = Served::as_before();
    let setup = Setup::with_heads();
    let insert = |tiny: &Tiny| tiny.scripted(&format!("4! splice 0 {}", byte_list(tiny, b"a zebra!")));
    // The request's own guard has other phrases, in either place; the tenant's goes on with its own.
    let guard = |tiny: &Tiny, phrases: &str| tiny.policy("guard", &[("phrases", phrases)]);
    let others = |tiny: &Tiny| vec![required(guard(tiny, "zebra")), insert(tiny)];
    for response in both_ways(&setup, |tiny| guard(tiny, "horse"), others) {
        assert!(!text_of(&response).contains("zebra"), "{:?}", text_of(&response));
    }
}
