//! The shipped policy `vas`: Value Augmented Sampling (Han et al., arXiv 2405.06639) in the dial of
//! the design, for any number of value heads.
//!
//! It has one number setting a head offered. A dial d is worth `d * temperature / spread` nats of logit
//! per unit of value, so that the divergence from the base model is about d²/2 nats a token for small d,
//! alike for every head; 0 is the base model, negative dials steer away. It does not learn and does not
//! know what a head measures. Its three modes compute the same bits: `blend` leaves the arithmetic to
//! the host and moves no values, `adjust` computes it from prefetched values, `evaluate` asks for the
//! values first. Start at [`Vas::decide`].

use vassal_guest::*;

/// Past this a weight would be refused by the host; no useful dial comes near.
const WEIGHT_MAX: f64 = 10_000.0;

/// The settings that are not dials. A head of such a name gets no dial.
const RESERVED: [&str; 5] = ["mode", "candidates", "floor", "tail", "baseline"];

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Blend,
    Adjust,
    #[cfg(feature = "evaluate")]
    Evaluate,
}

/// The policy of one response.
pub struct Vas {
    mode: Mode,
    /// The heads whose dials are not 0, in manifest order.
    terms: Vec<HeadWeight>,
    heads: u32,
    candidates: u32,
    candidates_floor: f32,
    tail: Tail,
    failed: bool,
}

fn dialled(offer: &&HeadOffer) -> bool {
    let usable = offer.spread.is_finite() && offer.spread > 0.0;
    usable && !RESERVED.contains(&offer.name.as_str())
}

impl Policy for Vas {
    fn manifest(offered: &[HeadOffer]) -> Manifest {
        let heads: Vec<String> = offered.iter().filter(dialled).take(16).map(|offer| offer.name.clone()).collect();
        let dial = |name: &String| {
            let summary =
                format!("how strongly `{name}` steers: 0 not at all, useful up to 1.5, negative away from it");
            Setting::number(name, &summary, -3.0..=3.0, 0.0)
        };
        let mut settings: Vec<Setting> = heads.iter().map(dial).collect();
        let modes: &[&str] =
            if cfg!(feature = "evaluate") { &["blend", "adjust", "evaluate"] } else { &["blend", "adjust"] };
        let candidates = "how many of the likeliest tokens are valued in a step";
        let floor = "the base probability below which a token is no candidate: fewer rows, weaker steering";
        let tail = "what becomes of the tokens that are not candidates: keep their base logits, or mask them";
        let baseline = "what is subtracted from a value: a mean over the candidates, the state's value, or nothing";
        settings.extend([
            Setting::choice("mode", "who computes the adjustments; all modes give the same bits", modes),
            Setting::number("candidates", candidates, 1.0..=256.0, 20.0).of_tenant(),
            Setting::number("floor", floor, 0.0..=0.5, 0.0),
            Setting::choice("tail", tail, &["keep", "mask"]),
            Setting::choice("baseline", baseline, &["weighted", "candidates", "state", "none"]),
        ]);
        Manifest {
            name: "vas".into(),
            version: "0.1.0".into(),
            summary: "Value Augmented Sampling: likelier where a value head expects a better response".into(),
            candidates_max: 256,
            heads,
            settings,
            ..Manifest::default()
        }
    }

    fn start(request: &Request) -> Result<Self, String> {
        let baseline = match request.choice("baseline") {
            "candidates" => Baseline::Candidates,
            "state" => Baseline::State,
            "none" => Baseline::None,
            _ => Baseline::Weighted,
        };
        let mode = match request.choice("mode") {
            "adjust" => Mode::Adjust,
            #[cfg(feature = "evaluate")]
            "evaluate" => Mode::Evaluate,
            _ => Mode::Blend,
        };
        if mode == Mode::Adjust && baseline == Baseline::State && cfg!(not(feature = "evaluate")) {
            return Err("this build of vas cannot ask for the state's value: use mode=blend".into());
        }
        // Greedy decoding has no temperature to measure a dial against; 1 is the model's own.
        let temperature = if request.temperature > 0.0 { f64::from(request.temperature) } else { 1.0 };
        let term = |(head, offer): (u32, &HeadOffer)| {
            let weight = request.number(&offer.name) * temperature / f64::from(offer.spread);
            HeadWeight { head, weight: weight.clamp(-WEIGHT_MAX, WEIGHT_MAX) as f32, baseline }
        };
        Ok(Vas {
            mode,
            terms: (0..).zip(&request.heads).map(term).filter(|term| term.weight != 0.0).collect(),
            heads: request.heads.len() as u32,
            candidates: request.number("candidates").round() as u32,
            candidates_floor: request.number("floor") as f32,
            tail: if request.choice("tail") == "mask" { Tail::Mask } else { Tail::Keep },
            failed: false,
        })
    }

    /// A head whose dial is 0 costs nothing.
    fn plan(&self, _request: &Request) -> Plan {
        let prefetched = |head| {
            #[cfg(feature = "evaluate")]
            if self.mode == Mode::Evaluate {
                return Schedule::Never;
            }
            let used = self.terms.iter().any(|term| term.head == head);
            if used { Schedule::EVERY_STEP } else { Schedule::Never }
        };
        Plan {
            candidates: self.candidates,
            candidates_floor: self.candidates_floor,
            prefetch: (0..self.heads).map(prefetched).collect(),
        }
    }

    fn decide(&mut self, step: &Step) -> Decision {
        if step.ended || (self.terms.is_empty() && self.tail == Tail::Keep) {
            return Decision::Keep;
        }
        if self.mode == Mode::Blend || self.terms.is_empty() {
            return Decision::Steer(Steering { blend: self.terms.clone(), tail: self.tail, ..Steering::default() });
        }
        match self.adjust(step) {
            Ok(adjust) => Decision::Steer(Steering { adjust, tail: self.tail, ..Steering::default() }),
            Err(error) => {
                if !self.failed {
                    audit::note(&format!("no values, base logits stand: {error}"));
                }
                self.failed = true;
                Decision::Steer(Steering { tail: self.tail, ..Steering::default() })
            }
        }
    }
}

impl Vas {
    /// The adjustments that the host computes from `terms`, bit for bit: a term at a time, in the
    /// order of the blend.
    fn adjust(&self, step: &Step) -> Result<Vec<f32>, ValueError> {
        let asked = self.ask(step)?;
        let width = step.candidates.len();
        let mut adjust = vec![0.0f32; width];
        for (place, term) in self.terms.iter().enumerate() {
            let row = match &asked {
                Some(rows) => rows.get(place * width..(place + 1) * width),
                None => step.values_of(term.head),
            };
            let values = row.ok_or(ValueError::Unavailable)?;
            let state = state_value(term)?;
            let baseline = blend::baseline(term.baseline, values, &step.logits, state);
            blend::add_term(&mut adjust, term.weight, values, baseline);
        }
        Ok(adjust)
    }

    /// The values of the terms' heads, where they are asked for and not prefetched.
    #[cfg(feature = "evaluate")]
    fn ask(&self, step: &Step) -> Result<Option<Vec<f32>>, ValueError> {
        if self.mode != Mode::Evaluate {
            return Ok(None);
        }
        let heads: Vec<u32> = self.terms.iter().map(|term| term.head).collect();
        values::evaluate(&heads, &step.candidates).map(Some)
    }

    #[cfg(not(feature = "evaluate"))]
    fn ask(&self, _step: &Step) -> Result<Option<Vec<f32>>, ValueError> {
        Ok(None)
    }
}

/// The value of the sequence as it stands, where a term's baseline wants it. [`Vas::start`] has
/// refused it for a build that may not ask.
fn state_value(term: &HeadWeight) -> Result<f32, ValueError> {
    #[cfg(feature = "evaluate")]
    if term.baseline == Baseline::State {
        return values::current(term.head);
    }
    let _ = term;
    Ok(0.0)
}

export!(Vas);

#[cfg(test)]
mod tests;
