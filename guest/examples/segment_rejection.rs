//! Sketch: segment rejection. A response is drawn segment by segment; a segment ends where the base
//! model becomes unsure. There the policy asks what the response is worth, and either accepts the segment,
//! with a probability that grows with its value, or takes it back to be drawn anew (in the manner of
//! Li et al., arXiv 2406.16306). Shows `entropy`, `values::current`, the policy's own seeded draws,
//! and a splice.
#![forbid(unsafe_code)]

use vassal_guest::*;

/// How far a splice may reach, and so the longest segment.
const SEGMENT_MAX: usize = 64;

/// Accepts or rejects the segment since `segment_start`.
pub struct SegmentRejection {
    response: Response,
    segment_start: usize,
    tries: u32,
    entropy: f32,
    threshold: f32,
    temperature: f32,
    draws: u64,
}

impl Policy for SegmentRejection {
    fn manifest(offered: &[HeadOffer]) -> Manifest {
        Manifest {
            name: "segment-rejection".into(),
            version: "0.1.0".into(),
            summary: "Segments of low value are drawn anew".into(),
            rewind_max: SEGMENT_MAX as u32,
            heads: offered.iter().take(1).map(|offer| offer.name.clone()).collect(),
            settings: vec![
                Setting::number("entropy", "nats of entropy that end a segment", 0.0..=10.0, 2.5),
                Setting::number("threshold", "the value at which a segment is surely accepted", -100.0..=100.0, 0.5),
                Setting::number(
                    "temperature",
                    "units of value below it that divide the chance by e",
                    0.001..=100.0,
                    0.1,
                ),
            ],
            needs: vec!["rewind".into()],
            ..Manifest::default()
        }
    }

    fn start(request: &Request) -> Result<Self, String> {
        Ok(SegmentRejection {
            response: Response::default(),
            segment_start: 0,
            tries: 0,
            entropy: request.number("entropy") as f32,
            threshold: request.number("threshold") as f32,
            temperature: request.number("temperature") as f32,
            draws: request.seed,
        })
    }

    /// Nothing is prefetched: one value a segment is all that is needed.
    fn plan(&self, request: &Request) -> Plan {
        Plan { candidates: 1, candidates_floor: 0.0, prefetch: vec![Schedule::Never; request.heads.len()] }
    }

    fn decide(&mut self, step: &Step) -> Decision {
        self.response.follow(step);
        self.segment_start = self.segment_start.min(self.response.len());
        let length = self.response.len() - self.segment_start;
        if length == 0 || step.ended || (step.entropy < self.entropy && length < SEGMENT_MAX) {
            return Decision::Keep;
        }
        let Ok(value) = values::current(0) else { return Decision::Keep };
        let chance = blend::exp((value - self.threshold) / self.temperature);
        self.tries += 1;
        if self.tries < 8 && self.draw() >= chance {
            return Decision::Splice(Splice { remove: length as u32, insert: Vec::new() });
        }
        (self.segment_start, self.tries) = (self.response.len(), 0);
        Decision::Keep
    }
}

impl SegmentRejection {
    /// The next number in [0, 1) of the policy's own (SplitMix64).
    fn draw(&mut self) -> f32 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.draws;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) >> 40) as f32 / (1u32 << 24) as f32
    }
}

export!(SegmentRejection);

#[cfg(test)]
mod tests {
    use super::*;
    use vassal_guest::test::{FakeHost, Harness, Outcome};

    /// Two tokens as likely, worth 0 and 1; a response is worth what its last token is.
    fn run(threshold: f64, seed: u64) -> Outcome {
        let worth = |_, tokens: &[Token]| tokens.last().map_or(0.0, |token| *token as f32);
        let mut harness = Harness::<SegmentRejection>::new(FakeHost::new(&["bad", "good"]).values(worth))
            .offer("worth", "value", 0.5)
            .set("entropy", 0.5)
            .set("threshold", threshold);
        (harness.request.seed, harness.request.max_tokens) = (seed, 100);
        harness.start().unwrap();
        let mut draws = seed;
        harness.generate(
            |_| vec![0.0, 0.0],
            |_| {
                draws = draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                (draws >> 40 & 1) as Token
            },
        )
    }

    #[test]
    fn rejected_segments_make_the_response_better() {
        let (base, guided) = (run(-100.0, 5), run(0.9, 5));
        assert_eq!(base.removed, 0);
        assert!(guided.removed > 20, "{guided:?}");
        assert!(guided.tokens.iter().sum::<u32>() > base.tokens.iter().sum::<u32>() + 10);
        assert_eq!(guided.tokens.len(), 100);
    }

    #[test]
    fn the_same_seed_gives_the_same_response() {
        assert_eq!(run(0.9, 5), run(0.9, 5));
        assert_ne!(run(0.9, 5).tokens, run(0.9, 6).tokens);
    }
}
