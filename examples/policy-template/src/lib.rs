//! My policy: it makes some letters likelier. `CHANGE` marks what you want to change.
#![forbid(unsafe_code)]

use vassal_guest::*;

/// What the policy remembers through one response. CHANGE: whatever `decide` needs.
pub struct My {
    nats: f32,
    liked: Vec<Token>,
    response: Response,
}

impl Policy for My {
    /// What it is called, and its dials. CHANGE: all of it. To use value heads, name some of `offered` in
    /// `heads`; to take tokens back or insert some, put "rewind" or "insert" into `needs`.
    fn manifest(_offered: &[HeadOffer]) -> Manifest {
        Manifest {
            name: "my".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Makes some letters likelier".into(),
            settings: vec![
                Setting::text("letters", "which letters", "!"),
                Setting::number("nats", "how much likelier", -20.0..=20.0, 3.0),
            ],
            ..Manifest::default()
        }
    }

    /// Called once a response, with the settings. CHANGE: what can be prepared before the first token.
    fn start(request: &Request) -> Result<Self, String> {
        // The tokens with these letters anywhere in them, out of the whole vocabulary. `bias` takes 1,024.
        let liked = text::find(&Pattern::text(request.text("letters")), Place::Anywhere);
        let liked = liked.iter().take(1024).collect();
        Ok(My { nats: request.number("nats") as f32, liked, response: Response::default() })
    }

    /// Called once a token. CHANGE: the decision. `step` has the candidates, their logits, and the values of
    /// the heads; `Decision` has what can be answered.
    fn decide(&mut self, step: &Step) -> Decision {
        self.response.follow(step);
        // Not twice in a row: what was just said needs no help.
        if self.response.tokens().last().is_some_and(|last| self.liked.contains(last)) {
            return Decision::Keep;
        }
        let bias = TokenBias { tokens: self.liked.clone(), deltas: vec![self.nats; self.liked.len()] };
        Decision::Steer(Steering { bias: Some(bias), ..Steering::default() })
    }
}

export!(My);

#[cfg(test)]
mod tests {
    use super::*;
    use vassal_guest::test::{FakeHost, Harness};

    #[test]
    fn the_letters_are_likelier_once() {
        // A vocabulary of three tokens; their logits before and after.
        let mut harness = Harness::<My>::new(FakeHost::new(&["oh", "!", "?!"])).set("nats", 2.0);
        harness.start().unwrap();
        assert_eq!(harness.steered(&[5.0, 1.0, 0.0]), [5.0, 3.0, 2.0]);
        harness.commit(1);
        assert_eq!(harness.steered(&[5.0, 1.0, 0.0]), [5.0, 1.0, 0.0]);
    }
}
