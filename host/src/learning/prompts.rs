//! Prompts for learning: the file they come in, and which split each belongs to.
//!
//! A file holds one JSON object a line, `{"id", "kind", "prompt"}`; `source` does for a `kind` that is not there, and
//! other fields are passed over, so that data sets can be read as they come. The split is not in the file: it is
//! a function of the normalised text alone ([`Split::of`]), so a prompt never changes sides when the
//! file grows, and two spellings of one prompt cannot stand on two sides. The project's own prompts are
//! [`BUILT_IN`].

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hex::hexadecimal;

/// The project's own prompts, the text of `host/data/prompts.jsonl`.
pub const BUILT_IN: &str = include_str!("../../data/prompts.jsonl");

/// More prompts than this are refused: far above any use, and it bounds what a wrong file can cost.
pub const PROMPTS_MAX: usize = 100_000;

/// A longer prompt is refused; the default model's context is 2,048 tokens.
pub const PROMPT_BYTES_MAX: usize = 8_192;

/// What a prompt may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Heads are fitted on these: five of eight.
    Learn,
    /// Ridge strengths and dials are chosen on these: one of eight.
    Tune,
    /// Reported results come from these, and nothing else may look at them: two of eight.
    Test,
}

impl Split {
    /// The split of a prompt: the first four bytes, big-endian, of the SHA-256 of [`normalize`]d text,
    /// modulo 8. 0 and 1 are test, 2 is tune, the rest learn.
    pub fn of(prompt: &str) -> Self {
        let hash = Sha256::digest(normalize(prompt).as_bytes());
        let start = hash.iter().take(4).fold(0_u32, |number, &byte| (number << 8) | u32::from(byte));
        match start % 8 {
            0 | 1 => Self::Test,
            2 => Self::Tune,
            _ => Self::Learn,
        }
    }

    /// The name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Learn => "learn",
            Self::Tune => "tune",
            Self::Test => "test",
        }
    }
}

/// Lower-case runs of letters and digits, joined by single spaces: what makes two prompts the same.
pub fn normalize(text: &str) -> String {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Unique within its file.
    pub id: String,
    /// A free label such as `question`, for tables.
    pub kind: String,
    /// What the user says to the model.
    pub text: String,
    /// What it may be used for.
    pub split: Split,
}

/// The prompts of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    /// In order of the file.
    pub prompts: Vec<Prompt>,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
}

/// Why a prompts file was refused. Lines count from 1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PromptsError {
    /// Not the expected JSON object.
    #[error("prompts, line {line}: expected an object with \"id\", \"kind\" and \"prompt\": {reason}")]
    Syntax {
        /// Where.
        line: usize,
        /// The parser's words.
        reason: String,
    },
    /// The text has no letters or digits, or is too long.
    #[error(
        "prompts, line {line}: a prompt must have letters or digits and at most {PROMPT_BYTES_MAX} bytes, got {bytes}"
    )]
    Length {
        /// Where.
        line: usize,
        /// Bytes of the prompt.
        bytes: usize,
    },
    /// An id or a normalised text occurs twice.
    #[error("prompts, line {line}: {what} is the same as in line {first}: {text:?}")]
    Twice {
        /// Where.
        line: usize,
        /// `id` or `prompt`.
        what: &'static str,
        /// Where it stood before.
        first: usize,
        /// What is the same.
        text: String,
    },
    /// Too many or none.
    #[error("a prompts file must hold 1 to {PROMPTS_MAX} prompts, got {count}")]
    Count {
        /// Prompts in the file, or one more than the most.
        count: usize,
    },
}

#[derive(Deserialize)]
struct Line {
    id: String,
    kind: Option<String>,
    source: Option<String>,
    prompt: String,
}

impl PromptSet {
    /// Reads the text of a prompts file. Empty lines are skipped.
    pub fn parse(text: &str) -> Result<Self, PromptsError> {
        let mut prompts = Vec::new();
        let mut ids = HashMap::new();
        let mut texts = HashMap::new();
        for (line, content) in (1..).zip(text.lines()) {
            if content.trim().is_empty() {
                continue;
            }
            if prompts.len() == PROMPTS_MAX {
                return Err(PromptsError::Count { count: PROMPTS_MAX + 1 });
            }
            let parsed: Line = serde_json::from_str(content)
                .map_err(|error| PromptsError::Syntax { line, reason: error.to_string() })?;
            let normal = normalize(&parsed.prompt);
            if normal.is_empty() || parsed.prompt.len() > PROMPT_BYTES_MAX {
                return Err(PromptsError::Length { line, bytes: parsed.prompt.len() });
            }
            if let Some(first) = ids.insert(parsed.id.clone(), line) {
                return Err(PromptsError::Twice { line, what: "id", first, text: parsed.id });
            }
            if let Some(first) = texts.insert(normal, line) {
                return Err(PromptsError::Twice { line, what: "prompt", first, text: parsed.prompt });
            }
            let split = Split::of(&parsed.prompt);
            let Some(kind) = parsed.kind.or(parsed.source) else {
                return Err(PromptsError::Syntax { line, reason: "missing field `kind`".to_owned() });
            };
            prompts.push(Prompt { id: parsed.id, kind, text: parsed.prompt, split });
        }
        if prompts.is_empty() {
            return Err(PromptsError::Count { count: 0 });
        }
        Ok(Self { prompts, sha256: hexadecimal(&Sha256::digest(text.as_bytes())) })
    }

    /// The project's own prompts.
    ///
    /// # Panics
    /// If the file built into the program is damaged, which a test rules out.
    pub fn built_in() -> Self {
        Self::parse(BUILT_IN).expect("the built-in prompts are well formed")
    }

    /// The prompts of one split, in order.
    pub fn of(&self, split: Split) -> impl Iterator<Item = &Prompt> {
        self.prompts.iter().filter(move |prompt| prompt.split == split)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_prompts_are_enough_for_every_split() {
        let set = PromptSet::built_in();
        let count = |split| set.of(split).count();
        assert!(set.prompts.len() >= 400);
        assert!(count(Split::Learn) >= 260, "{} learn", count(Split::Learn));
        assert!((40..=70).contains(&count(Split::Tune)), "{} tune", count(Split::Tune));
        assert!(count(Split::Test) >= 110, "{} test", count(Split::Test));
        for split in [Split::Learn, Split::Tune, Split::Test] {
            let kinds: std::collections::HashSet<_> = set.of(split).map(|prompt| prompt.kind.as_str()).collect();
            assert!(kinds.len() >= 9, "{} prompts are of {kinds:?} only", split.name());
        }
    }

    #[test]
    fn spelling_does_not_change_the_split() {
        assert_eq!(normalize("  What's \"UP\",\tDoc?"), "what s up doc");
        for prompt in PromptSet::built_in().prompts {
            assert_eq!(Split::of(&prompt.text.to_uppercase()), prompt.split);
            assert_eq!(Split::of(&format!(" {}!! ", prompt.text)), prompt.split);
        }
    }

    #[test]
    fn errors_name_the_line() {
        let good = r#"{"id": "a", "kind": "k", "prompt": "One?"}"#;
        let check = |text: &str, expected: &str| {
            let error = PromptSet::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        };
        check("", "got 0");
        check(&format!("{good}\n{{"), "line 2: expected an object");
        check(&format!("{good}\n{}", r#"{"id": "b", "kind": "k"}"#), "missing field `prompt`");
        check(
            r#"{"id": "b", "prompt": "Two?"}"#,
            "line 1: expected an object with \"id\", \"kind\" and \"prompt\": missing field `kind`",
        );
        let kind = |line: &str| PromptSet::parse(line).map(|set| set.prompts[0].kind.clone());
        assert_eq!(kind(r#"{"id": "b", "source": "s", "prompt": "Two?", "more": 1}"#), Ok("s".to_owned()));
        assert_eq!(kind(r#"{"id": "b", "kind": "k", "source": "s", "prompt": "Two?"}"#), Ok("k".to_owned()));
        check(&format!("\n\n{}", r#"{"id": "b", "kind": "k", "prompt": "?!"}"#), "line 3: a prompt must have letters");
        check(
            &format!("{good}\n{}", r#"{"id": "a", "kind": "k", "prompt": "Two"}"#),
            "line 2: id is the same as in line 1",
        );
        check(
            &format!("{good}\n{}", r#"{"id": "b", "kind": "k", "prompt": "one"}"#),
            "prompt is the same as in line 1",
        );
        let long = format!(r#"{{"id": "b", "kind": "k", "prompt": "{}"}}"#, "x".repeat(PROMPT_BYTES_MAX + 1));
        check(&long, "got 8193");
    }
}
