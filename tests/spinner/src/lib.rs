//! A policy that works up to its limit in every step, and then keeps: within the contract, and as slow as it gets.
//!
//! The work is divisions of denormal numbers, some 20 ns a unit of fuel. Settings say how many in a step and in
//! `start`, and how many calls of a host function in a step. It is the slow neighbour of tests and of `vassal bench engine`.
#![forbid(unsafe_code)]

use std::hint::black_box;
use vassal_guest::*;

struct Spinner {
    divisions: u32,
    calls: u32,
}

impl Policy for Spinner {
    fn manifest(_: &[HeadOffer]) -> Manifest {
        Manifest {
            name: "spinner".into(),
            version: "0.1.0".into(),
            summary: "Works to its limit in every step".into(),
            candidates_max: 1,
            rewind_max: 0,
            heads: Vec::new(),
            settings: vec![
                Setting::number("divisions", "divisions a step", 0.0..=1e6, 60_000.0),
                Setting::number("calls", "calls of the host a step", 0.0..=1e6, 0.0),
                Setting::number("start", "divisions in start", 0.0..=1e6, 0.0),
            ],
            needs: Vec::new(),
        }
    }

    fn start(request: &Request) -> Result<Self, String> {
        divide(request.number("start") as u32);
        Ok(Spinner { divisions: request.number("divisions") as u32, calls: request.number("calls") as u32 })
    }

    fn plan(&self, _: &Request) -> Plan {
        Plan { candidates: 1, candidates_floor: 0.0, prefetch: Vec::new() }
    }

    fn decide(&mut self, step: &Step) -> Decision {
        if !step.ended {
            divide(self.divisions);
            for _ in 0..self.calls {
                black_box(text::bytes(&[0]));
            }
        }
        Decision::Keep
    }
}

/// Divides a denormal number, over and over.
fn divide(times: u32) {
    let mut number = black_box(f64::MIN_POSITIVE / 3.0);
    for _ in 0..times {
        number /= 1.000_000_1;
    }
    black_box(number);
}

export!(Spinner);
