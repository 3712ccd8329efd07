//! The catalogue of responses: chains, splices, stops, notes, guests' faults and the host's.
//!
//! [`mixed`] gives the request of a number; what comes of it and of its replay is compared in `tests/replay.rs`. Every
//! twentieth has the same chain, with other settings, and another fault policy in turn.

use vassal::engine::{InjectedFault, Replay};
use vassal::request::{FaultPolicy, PolicyUse, ValidRequest};
use vassal::sandbox::FaultKind;

use crate::support::{PROMPT, Tiny};

/// Every component that the catalogue uses.
pub(super) const POLICIES: [&str; 7] =
    ["vas", "guard", "scripted", "hostile", "segment_rejection", "watermark", "grammar"];

fn on_fault(number: usize, used: PolicyUse) -> PolicyUse {
    PolicyUse { fault_policy: [FaultPolicy::Abort, FaultPolicy::Base][number / 20 % 2], ..used }
}

fn required(used: PolicyUse) -> PolicyUse {
    PolicyUse { required: true, ..used }
}

/// The chain of a response of the catalogue.
fn chain(tiny: &Tiny, number: usize) -> Vec<PolicyUse> {
    let dial = ["0.4", "-0.8", "1.1"][number % 3];
    let vas = || tiny.policy("vas", &[("sentiment", dial), ("simplicity", "0.3"), ("candidates", "8")]);
    let guard = || required(tiny.policy("guard", &[("phrases", "the\nq")]));
    let hostile = |mode: &str| on_fault(number, tiny.policy("hostile", &[("mode", mode)]));
    match number % 20 {
        0 => vec![],
        1 => vec![vas()],
        2 => vec![vas(), guard()],
        3 => vec![tiny.scripted("3! splice 2 70,71\n7! splice 0 72,73,74"), vas()],
        4 => vec![required(tiny.scripted("* forbid 81")), tiny.scripted("3! splice 0 80,81,82"), vas()],
        5 => vec![
            on_fault(number, tiny.scripted("* note here\n3 panic")),
            on_fault(number, tiny.scripted("* note beside")),
            vas(),
        ],
        6 => vec![hostile("loop"), vas()],
        7 => vec![hostile("start-panic"), guard()],
        8 => vec![tiny.policy("segment_rejection", &[("entropy", "5")])],
        9 => vec![tiny.policy("watermark", &[("secret", "s")]), vas()],
        10 => vec![tiny.policy("grammar", &[]), vas()],
        11 => vec![hostile("note-flood"), vas()],
        12 => {
            let asks =
                tiny.scripted("* note asks\n2 evaluate 0 33,210\n5 evaluate 1 40\n5 current 0\n9 evaluate-widely 1");
            vec![on_fault(number, asks), vas(), tiny.scripted("* note after")]
        }
        13 | 14 => vec![on_fault(number, tiny.scripted("* note seen")), vas(), guard()],
        15 => vec![vas(), tiny.scripted("6 stop enough")],
        16 => vec![tiny.scripted("5 splice 3 -")],
        17 => vec![required(tiny.scripted("4 stop no")), tiny.scripted("4! splice 1 80,81")],
        18 => vec![tiny.policy("vas", &[("mode", "evaluate"), ("sentiment", dial)]), hostile("nan")],
        _ => vec![tiny.scripted("end! splice 4 70,71"), tiny.policy("vas", &[("brevity", dial)])],
    }
}

/// A request of the catalogue.
pub(super) fn mixed(tiny: &Tiny, number: usize) -> ValidRequest {
    let mut request = tiny.request(&PROMPT[number % 5..], chain(tiny, number));
    request.seed = Some(number as u64 / 7);
    request.stream = number as u64 % 7;
    request.temperature = Some([1.0, 0.7, 1.3, 0.0][number / 3 % 4]);
    request.top_p = Some([1.0, 0.9][number / 2 % 2]);
    request.max_tokens = Some(12 + number % 13);
    let mut valid = tiny.endless(request);
    // The host's clock and pool, at work: at the start, and in a step.
    let fault = match number % 20 {
        // After it was suspended once, and others were asked in the meantime.
        12 if !number.is_multiple_of(3) => Some((6, 0, 1, FaultKind::Deadline)),
        // Required policies rank first: `guard` is 0, the scripted one 1.
        13 => Some((4, 1, 0, FaultKind::Deadline)),
        14 => Some((0, 1, 0, FaultKind::Capacity)),
        _ => None,
    };
    if let Some((step, place, resumed, kind)) = fault {
        let (notes, detail) = (if step > 0 { vec!["in the middle".into()] } else { Vec::new() }, String::new());
        let fuel = (step > 0).then_some(1_234);
        valid.replay = Replay {
            faults: vec![InjectedFault { step, place, resumed, kind, detail, fuel, notes }],
            cancelled_after: None,
        };
    }
    valid
}
