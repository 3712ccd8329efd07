//! Sketch: a watermark. The token before decides, by a keyed hash, which half of the vocabulary is
//! green, and green tokens are made a little likelier; who has the key counts them and knows (Kirchenbauer
//! et al., arXiv 2301.10226). Shows a vocabulary bias in every step.
#![forbid(unsafe_code)]

use vassal_guest::*;

/// The green tokens among 64: bit i is token `64 * word + i`. A detector needs nothing else.
pub fn green(key: u64, previous: Token, word: u32) -> u64 {
    let mut mixed = key ^ (u64::from(previous) << 32 | u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The key that a secret text stands for (FNV-1a).
pub fn key(secret: &str) -> u64 {
    secret.bytes().fold(0xcbf2_9ce4_8422_2325, |key, byte| (key ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Adds `nats` to the green tokens.
pub struct Watermark {
    response: Response,
    key: u64,
    nats: f32,
    words: u32,
}

impl Policy for Watermark {
    fn manifest(_offered: &[HeadOffer]) -> Manifest {
        Manifest {
            name: "watermark".into(),
            version: "0.1.0".into(),
            summary: "Marks the response so that the tenant recognises it".into(),
            settings: vec![
                Setting::text("secret", "what the key is made of", "").of_tenant(),
                Setting::number("nats", "how much likelier green tokens are", 0.0..=10.0, 2.0).of_tenant(),
            ],
            ..Manifest::default()
        }
    }

    fn start(request: &Request) -> Result<Self, String> {
        Ok(Watermark {
            response: Response::default(),
            key: key(request.text("secret")),
            nats: request.number("nats") as f32,
            words: request.vocabulary_size.div_ceil(64),
        })
    }

    fn decide(&mut self, step: &Step) -> Decision {
        self.response.follow(step);
        let Some(previous) = self.response.tokens().last() else { return Decision::Keep };
        let bits = (0..self.words).map(|word| green(self.key, *previous, word)).collect();
        let vocabulary = Some(VocabularyBias { bits, set: self.nats, unset: 0.0 });
        Decision::Steer(Steering { vocabulary, ..Steering::default() })
    }
}

export!(Watermark);

#[cfg(test)]
mod tests {
    use super::*;
    use vassal_guest::test::{FakeHost, Harness};

    /// How many standard deviations more green tokens a text has than chance gives it.
    fn detect(tokens: &[Token], secret: &str) -> f64 {
        let green_at = |pair: &&[Token]| green(key(secret), pair[0], pair[1] / 64) >> (pair[1] % 64) & 1 == 1;
        let found = tokens.windows(2).filter(green_at).count() as f64;
        let chance = (tokens.len() - 1) as f64 / 2.0;
        (found - chance) / (chance / 2.0).sqrt()
    }

    /// 200 tokens of a flat base model, drawn by their steered logits (the Gumbel trick).
    fn write(nats: f64) -> Vec<Token> {
        let mut harness =
            Harness::<Watermark>::new(FakeHost::new(&["word"; 500])).set("secret", "of the house").set("nats", nats);
        harness.request.max_tokens = 200;
        harness.start().unwrap();
        let mut state = 1u64;
        let mut noise = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            -(-((state >> 40) as f32 + 0.5).mul_add(1.0 / (1 << 24) as f32, 0.0).ln()).ln()
        };
        let draw = move |logits: &[f32]| {
            let noisy: Vec<f32> = logits.iter().map(|logit| logit + noise()).collect();
            (0..500).max_by(|a, b| noisy[*a].total_cmp(&noisy[*b])).unwrap() as Token
        };
        harness.generate(|_| vec![0.0; 500], draw).tokens
    }

    #[test]
    fn the_detector_finds_the_mark_and_only_with_the_key() {
        assert!(detect(&write(2.0), "of the house") > 6.0);
        assert!(detect(&write(2.0), "of another").abs() < 4.0);
        assert!(detect(&write(0.0), "of the house").abs() < 4.0);
    }
}
