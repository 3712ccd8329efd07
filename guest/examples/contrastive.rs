//! Sketch: contrastive decoding. Another model's log-probabilities push (the expert) and a weaker or
//! worse model's push back (the anti-expert), among the tokens that the expert finds plausible
//! (Li et al., arXiv 2210.15097; Liu et al., arXiv 2105.03023). Shows heads of kind
//! `log-probability` and a cut that forbids candidates.
#![forbid(unsafe_code)]

use vassal_guest::*;

/// Adds `strength * (expert - anti-expert)` to the plausible candidates.
pub struct Contrastive {
    strength: f32,
    plausible: f32,
}

impl Policy for Contrastive {
    fn manifest(_offered: &[HeadOffer]) -> Manifest {
        Manifest {
            name: "contrastive".into(),
            version: "0.1.0".into(),
            summary: "An expert model against an anti-expert".into(),
            heads: vec!["expert".into(), "anti-expert".into()],
            settings: vec![
                Setting::number("strength", "nats a nat of difference", 0.0..=5.0, 0.5),
                Setting::number("plausible", "the least share of the expert's likeliest token", 0.0..=1.0, 0.1),
            ],
            ..Manifest::default()
        }
    }

    fn start(request: &Request) -> Result<Self, String> {
        match request.heads.iter().find(|head| head.kind != "log-probability") {
            Some(head) => Err(format!("`{}` is of kind {}, not log-probability", head.name, head.kind)),
            None => Ok(Contrastive {
                strength: request.number("strength") as f32,
                plausible: request.number("plausible").ln() as f32,
            }),
        }
    }

    fn decide(&mut self, step: &Step) -> Decision {
        let (Some(expert), Some(anti)) = (step.values_of(0), step.values_of(1)) else { return Decision::Keep };
        let best = expert.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let delta = |(expert, anti): (&f32, &f32)| {
            if expert - best >= self.plausible { self.strength * (expert - anti) } else { f32::NEG_INFINITY }
        };
        let adjust = expert.iter().zip(anti).map(delta).collect();
        Decision::Steer(Steering { adjust, tail: Tail::Mask, ..Steering::default() })
    }
}

export!(Contrastive);

#[cfg(test)]
mod tests {
    use super::*;
    use vassal_guest::test::{FakeHost, Harness};

    fn harness(kind: &str) -> Harness<Contrastive> {
        let log_probabilities = [[-0.5, -1.5, -6.0, -7.0], [-0.5, -3.5, -1.0, -9.0]];
        let host = FakeHost::new(&["a", "b", "c", "d"])
            .values(move |head, tokens| log_probabilities[head as usize][tokens[0] as usize]);
        Harness::new(host).offer("expert", kind, 1.0).offer("anti-expert", kind, 1.0)
    }

    #[test]
    fn the_expert_wins_among_the_plausible() {
        let mut harness = harness("log-probability");
        harness.start().unwrap();
        let steered = harness.steered(&[3.0, 2.0, 1.0, 0.0]);
        assert_eq!(steered, [3.0, 3.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
    }

    #[test]
    fn other_kinds_of_head_are_refused() {
        assert!(harness("value").start().unwrap_err().contains("log-probability"));
    }
}
