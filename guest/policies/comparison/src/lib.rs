//! The shipped policy `comparison`: what Value Augmented Sampling is set against, with its dial.
//!
//! Three methods that steer as `vas` does, by the same dials over the same candidates, and differ only in what stands
//! where the values stood. `fudge`: a head's value is the log-odds that the finished response is good, and ln of that
//! probability steers (Yang and Klein, *FUDGE*, arXiv 2104.05218). `shuffled`: the values of a step are dealt anew among its
//! candidates. `random`: independent normal numbers of the head's spread. The last two know nothing of what a
//! token is worth: what they gain, any steering of that strength gains. Start at [`Comparison::decide`].

use vassal_guest::*;

/// Past this a weight would be refused by the host; no useful dial comes near.
const WEIGHT_MAX: f64 = 10_000.0;

/// The settings that are not dials. A head of such a name gets no dial.
const RESERVED: [&str; 4] = ["method", "candidates", "floor", "tail"];

#[derive(Clone, Copy, PartialEq)]
enum Method {
    Fudge,
    Shuffled,
    Random,
}

struct Term {
    head: u32,
    weight: f32,
    spread: f32,
}

/// The policy of one response.
pub struct Comparison {
    method: Method,
    /// The heads whose dials are not 0, in manifest order.
    terms: Vec<Term>,
    heads: u32,
    candidates: u32,
    candidates_floor: f32,
    tail: Tail,
    seed: u64,
}

fn dialled(offer: &&HeadOffer) -> bool {
    let usable = offer.spread.is_finite() && offer.spread > 0.0;
    usable && !RESERVED.contains(&offer.name.as_str())
}

impl Policy for Comparison {
    fn manifest(offered: &[HeadOffer]) -> Manifest {
        let heads: Vec<String> = offered.iter().filter(dialled).take(16).map(|offer| offer.name.clone()).collect();
        let dial = |name: &String| {
            let summary = format!("how strongly what stands for `{name}` steers");
            Setting::number(name, &summary, -30.0..=30.0, 0.0)
        };
        let mut settings: Vec<Setting> = heads.iter().map(dial).collect();
        settings.extend([
            Setting::choice("method", "what stands for the values", &["fudge", "shuffled", "random"]),
            Setting::number("candidates", "how many of the likeliest tokens a step has", 1.0..=256.0, 20.0).of_tenant(),
            Setting::number("floor", "the base probability below which a token is no candidate", 0.0..=0.5, 0.0),
            Setting::choice("tail", "what becomes of other tokens: keep or mask them", &["keep", "mask"]),
        ]);
        Manifest {
            name: "comparison".into(),
            version: "0.1.0".into(),
            summary: "FUDGE, and controls without knowledge, with the dials of vas".into(),
            candidates_max: 256,
            heads,
            settings,
            ..Manifest::default()
        }
    }

    fn start(request: &Request) -> Result<Self, String> {
        let temperature = if request.temperature > 0.0 { f64::from(request.temperature) } else { 1.0 };
        let term = |(head, offer): (u32, &HeadOffer)| {
            let weight = request.number(&offer.name) * temperature / f64::from(offer.spread);
            Term { head, weight: weight.clamp(-WEIGHT_MAX, WEIGHT_MAX) as f32, spread: offer.spread }
        };
        Ok(Comparison {
            method: match request.choice("method") {
                "shuffled" => Method::Shuffled,
                "random" => Method::Random,
                _ => Method::Fudge,
            },
            terms: (0..).zip(&request.heads).map(term).filter(|term| term.weight != 0.0).collect(),
            heads: request.heads.len() as u32,
            candidates: request.number("candidates").round() as u32,
            candidates_floor: request.number("floor") as f32,
            tail: if request.choice("tail") == "mask" { Tail::Mask } else { Tail::Keep },
            seed: request.seed,
        })
    }

    /// Random numbers need no head: they cost no rows, but the candidates must be the same.
    fn plan(&self, _request: &Request) -> Plan {
        let reads = |head| self.method != Method::Random && self.terms.iter().any(|term| term.head == head);
        let prefetched = |head| if reads(head) { Schedule::EVERY_STEP } else { Schedule::Never };
        Plan {
            candidates: self.candidates,
            candidates_floor: self.candidates_floor,
            prefetch: (0..self.heads).map(prefetched).collect(),
        }
    }

    fn decide(&mut self, step: &Step) -> Decision {
        if step.ended {
            return Decision::Keep;
        }
        let length = u64::from(step.kept) + step.appended.len() as u64;
        let mut adjust = vec![0.0f32; step.candidates.len()];
        for term in &self.terms {
            // A generator of its own for each step and head, the same again after a splice. Its state is mixed: the
            // generator counts in steps, and neighbours would share most of their numbers.
            let mut random = Random(Random(self.seed ^ (length << 8) ^ u64::from(term.head)).bits());
            let values = step.values_of(term.head).unwrap_or_default();
            let values: Vec<f32> = match self.method {
                Method::Fudge => values.iter().map(|&odds| ln_probability(odds)).collect(),
                Method::Shuffled => shuffled(values, &mut random),
                Method::Random => adjust.iter().map(|_| random.normal() * term.spread).collect(),
            };
            let baseline = blend::baseline(Baseline::Weighted, &values, &step.logits, 0.0);
            blend::add_term(&mut adjust, term.weight, &values, baseline);
        }
        Decision::Steer(Steering { adjust, tail: self.tail, ..Steering::default() })
    }
}

/// ln of the probability with these log-odds, without overflow on either side.
fn ln_probability(odds: f32) -> f32 {
    odds.min(0.0) - blend::exp(-odds.abs()).ln_1p()
}

/// The same values in another order, each order equally likely (Fisher and Yates).
fn shuffled(values: &[f32], random: &mut Random) -> Vec<f32> {
    let mut values = values.to_vec();
    for last in (1..values.len()).rev() {
        values.swap(last, random.below(last + 1));
    }
    values
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.bits()) * count as u128) >> 64) as usize
    }

    /// Nearly normal, of mean 0 and deviation 1: the sum of twelve uniform numbers less 6 needs no function of libm.
    fn normal(&mut self) -> f32 {
        let uniform = |random: &mut Self| (random.bits() >> 40) as f32 / (1_u32 << 24) as f32;
        (0..12).map(|_| uniform(self)).sum::<f32>() - 6.0
    }
}

export!(Comparison);

#[cfg(test)]
mod tests;
