//! Sketch: a toy grammar. The response is so many digits with commas between them, and nothing else.
//! Where the grammar leaves a choice, the vocabulary is cut to it; where it leaves none, the text is
//! inserted without asking the model. Shows `text::find`, a vocabulary bias and an insertion.
#![forbid(unsafe_code)]

use vassal_guest::*;

/// Lets digits be drawn, and inserts what stands between them.
pub struct Grammar {
    response: Response,
    count: usize,
    digits: TokenSet,
    separator: Vec<Token>,
    end: TokenSet,
}

impl Policy for Grammar {
    fn manifest(_offered: &[HeadOffer]) -> Manifest {
        Manifest {
            name: "grammar".into(),
            version: "0.1.0".into(),
            summary: "A list of digits".into(),
            settings: vec![Setting::number("count", "how many digits", 1.0..=100.0, 3.0)],
            needs: vec!["insert".into()],
            ..Manifest::default()
        }
    }

    fn start(request: &Request) -> Result<Self, String> {
        let mut digit = Pattern::new();
        digit.push((b'0'..=b'9').map(|digit| [digit]));
        let mut end = TokenSet::empty(request.vocabulary_size);
        request.end_of_text.iter().for_each(|token| end.insert(*token));
        let (digits, separator) = (text::find(&digit, Place::Whole), text::tokens(", "));
        if digits.is_empty() || separator.is_empty() || end.is_empty() {
            return Err("this vocabulary cannot write a list of digits".into());
        }
        let count = request.number("count") as usize;
        Ok(Grammar { response: Response::default(), count, digits, separator, end })
    }

    fn decide(&mut self, step: &Step) -> Decision {
        self.response.follow(step);
        let tokens = self.response.tokens();
        let is_digit = |token: &&Token| self.digits.contains(**token);
        let allowed = if tokens.iter().filter(is_digit).count() == self.count {
            &self.end
        } else if tokens.last().is_some_and(|token| self.digits.contains(*token)) {
            return Decision::Splice(Splice { remove: 0, insert: self.separator.clone() });
        } else {
            &self.digits
        };
        Decision::Steer(Steering { vocabulary: Some(allowed.allow_only()), ..Steering::default() })
    }
}

export!(Grammar);

#[cfg(test)]
mod tests {
    use super::*;
    use vassal_guest::test::{FakeHost, Harness};

    #[test]
    fn the_response_is_a_list_of_digits() {
        let vocabulary = ["the", "7", ", ", "4", "44", " 7", ""];
        let mut harness = Harness::<Grammar>::new(FakeHost::new(&vocabulary).end_of_text(6)).set("count", 4.0);
        harness.start().unwrap();
        // The base model wants to say `the` and to end, and likes 4 the more the less it was said.
        let model = |tokens: &[Token]| vec![9.0, 1.0, 0.0, 2.0 - tokens.len() as f32 / 3.0, 5.0, 5.0, 8.0];
        let likeliest =
            |logits: &[f32]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as Token;
        let outcome = harness.generate(model, likeliest);
        assert_eq!(harness.host().text(&outcome.tokens), b"4, 4, 7, 7");
        assert_eq!(outcome.tokens.last(), Some(&6), "it ends by itself");
    }

    #[test]
    fn a_vocabulary_without_digits_is_refused() {
        assert!(Harness::<Grammar>::new(FakeHost::new(&["a", ", ", ""]).end_of_text(2)).start().is_err());
    }
}
