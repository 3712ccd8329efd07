//! A hostile reward: a mode for each attack that safe Rust can make, named by the response's first word.
//!
//! Any other response scores by its length, so that neighbours of an attack have scores of their own. What needs a
//! forged binary (another number of scores, lies in `describe`, imports) is WebAssembly text in
//! `tests/attacks/rewards.rs`, where each attack stands beside the fault that it must end in.

use std::cell::Cell;
use std::hint::black_box;

use vassal_guest::reward::{Exchange, Manifest, Reward};

thread_local! {
    /// What no reward should have.
    static SEEN: Cell<u32> = const { Cell::new(0) };
}

#[derive(Default)]
struct Hostile;

impl Reward for Hostile {
    fn manifest() -> Manifest {
        Manifest {
            name: "hostile".into(),
            version: "0.1.0".into(),
            summary: "Misbehaves".into(),
            minimum: -1.0,
            maximum: 1.0,
        }
    }

    fn score(&self, exchange: &Exchange) -> f64 {
        SEEN.set(SEEN.get() + 1);
        let honest = exchange.response.len() as f64 / (exchange.response.len() + 100) as f64;
        match exchange.response.split(' ').next().unwrap_or_default() {
            "score-nan" => f64::NAN,
            "score-infinite" => f64::INFINITY,
            "score-forbids" => f64::NEG_INFINITY,
            "score-above" => 1.000_000_1,
            "score-below" => -1e300,
            "score-bounds" => [-1.0, 1.0][exchange.response.len() % 2],
            "score-panic" => panic!("\u{1b}[31mno opinion"),
            "score-loop" => loop {
                black_box(0);
            },
            "score-grow" => {
                let mut kept = Vec::new();
                loop {
                    kept.push(black_box(Vec::<u8>::with_capacity(1 << 20)));
                }
            }
            "score-recurse" => recurse(1) as f64,
            "score-remember" => f64::from(SEEN.get()) / 100.0,
            _ => honest,
        }
    }
}

fn recurse(depth: u64) -> u64 {
    if depth == u64::MAX {
        return 0;
    }
    let frame = black_box([depth; 64]);
    frame[(depth % 64) as usize] + recurse(black_box(depth + 1))
}

vassal_guest::export_reward!(Hostile);
