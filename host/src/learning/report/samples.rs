//! What was decoded for a report, and the journal that keeps it, so that a killed evaluation goes on.
//!
//! A [`Setting`] is one way of answering all prompts; what came of it is [`Decoded`]. The [`Journal`] is a file of JSON
//! lines: the [`Header`] that says what the work is, then a line for each setting that is done. Everything in a report is
//! computed from these lines, the pool and the heads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::decoding::{Decoding, respond};
use super::super::journal::{self, JournalError};
use super::super::prompts::Prompt;
use super::super::rewards::{Exchange, Scores, SharedReward};
use super::methods::Wanted;
use crate::engine::Response;
use crate::error::Error;
use crate::host::Host;
use crate::request::PolicyUse;

/// The value of [`Header::format`].
pub const FORMAT: &str = "vassal-evaluation-1";

/// How every journal begins.
const HEADER_START: &str = "{\"format\":\"vassal-evaluation-";

/// What a journal is of: work under another header is other work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// SHA-256 of the model's file.
    pub model_sha256: String,
    /// SHA-256 of the pool's file.
    pub pool_sha256: String,
    /// SHA-256 of each head's file, by file name.
    pub heads: BTreeMap<String, String>,
    /// Each reward's name and definition, in order; those that judge only come last.
    pub rewards: Vec<(String, String)>,
    /// The name of each reward that judges only, with that of the one whose responses it judges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub judges: Vec<(String, String)>,
    /// Ids of the prompts, in order.
    pub prompts: Vec<String>,
    /// Ids of the prompts that dials are calibrated on.
    pub tune_prompts: Vec<String>,
    /// Response tokens at most.
    pub token_limit: u32,
    /// Candidates of a step.
    pub candidates: usize,
    /// keep or mask.
    pub tail: String,
    /// Divergences, seeds and grid: one folder is one evaluation, so that nothing is chosen among several afterwards.
    pub wanted: Wanted,
    /// States, next tokens and continuations that heads are judged by.
    pub judged_by: [usize; 3],
}

/// One way of answering all prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// As in [`Point::method`](super::Point::method).
    pub method: String,
    /// As in [`Point::variant`](super::Point::variant).
    pub variant: String,
    /// The rewards whose dials are turned.
    pub dials: Vec<(String, f64)>,
    /// Responses a prompt.
    pub samples: usize,
    /// Fixes every draw.
    pub seed: u64,
    /// On the tune prompts instead, to calibrate a dial.
    pub tune: bool,
    /// SHA-256 of the file of a tuned model that answered in place of the base. Such models may join an evaluation later: nothing of
    /// what is guided is chosen by them, and all that were decoded are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_sha256: Option<String>,
}

/// One response, as far as reports need it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The response's tokens.
    pub tokens: Vec<u32>,
    /// Its text.
    pub text: String,
    /// A score a reward, in the header's order; none where there is none.
    pub scores: Vec<Option<f64>>,
    /// Nats of divergence from the base, in all.
    pub kl: f64,
    /// Sum of ln base probability over the drawn tokens.
    pub log_probability: f64,
    /// Drawn tokens.
    pub drawn: usize,
    /// Plain rows of arithmetic after the prompt.
    pub forwards: f64,
    /// Seconds after the prompt, shared passes divided.
    pub seconds: f64,
    /// V of the end state by the look-ahead head of the reward that was guided, of the samples that one is chosen from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
}

/// A setting with what came of it, `[prompts][samples]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decoded {
    /// The setting.
    pub setting: Setting,
    /// The responses.
    pub samples: Vec<Vec<Sample>>,
    /// Reasons for missing scores with their counts, by reward.
    pub unscored: BTreeMap<String, BTreeMap<String, usize>>,
}

/// Why the journal of an evaluation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DecodedError {
    /// The journal itself, or what stands in its place.
    #[error(transparent)]
    Lines(#[from] JournalError),
    /// It is of other work.
    #[error("{path} is of an evaluation with another {what}: give another --out, or remove it to start over")]
    Other {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}

/// The most bytes of a line: a thousand prompts' eight responses of some thousand bytes each, many times over.
const LINE_BYTES_MAX: u64 = 1 << 30;

/// Settings that are done, and the file that keeps them.
#[derive(Debug)]
pub struct Journal {
    lines: journal::Journal,
    done: Vec<Decoded>,
}

impl Journal {
    /// Opens the journal of this work, or begins it.
    ///
    /// # Errors
    /// [`DecodedError`]: it is of other work, broken, or cannot be written.
    pub fn open(path: &Path, header: &Header) -> Result<Self, DecodedError> {
        let mut done = Vec::new();
        let other = |found: &Header| {
            difference(found, header).map(|what| DecodedError::Other { path: path.to_path_buf(), what })
        };
        let (lines, _) = journal::Journal::open(path, (HEADER_START, LINE_BYTES_MAX), header, other, |line| {
            done.push(serde_json::from_str(line).map_err(|error| error.to_string())?);
            Ok(())
        })?;
        Ok(Self { lines, done })
    }

    /// All that is done, in order.
    pub fn done(&self) -> &[Decoded] {
        &self.done
    }

    /// What came of a setting, if it is done.
    pub fn find(&self, setting: &Setting) -> Option<&Decoded> {
        self.done.iter().find(|decoded| decoded.setting == *setting)
    }

    /// Adds a setting that is done.
    ///
    /// # Errors
    /// The file's.
    pub fn add(&mut self, decoded: Decoded) -> Result<(), DecodedError> {
        self.lines.add(&decoded)?;
        self.lines.flush()?;
        self.done.push(decoded);
        Ok(())
    }
}

/// The first thing in which two pieces of work differ.
fn difference(found: &Header, wanted: &Header) -> Option<String> {
    let parts: [(&str, bool); 11] = [
        ("format", found.format == wanted.format),
        ("model", found.model_sha256 == wanted.model_sha256),
        ("pool", found.pool_sha256 == wanted.pool_sha256),
        ("set of heads", found.heads == wanted.heads),
        ("set of rewards", found.rewards == wanted.rewards && found.judges == wanted.judges),
        ("set of prompts", found.prompts == wanted.prompts && found.tune_prompts == wanted.tune_prompts),
        ("token limit", found.token_limit == wanted.token_limit),
        ("number of candidates", found.candidates == wanted.candidates),
        ("tail", found.tail == wanted.tail),
        ("choice of --kl, --seeds, --grid or --quick", found.wanted == wanted.wanted),
        ("amount that heads are judged by", found.judged_by == wanted.judged_by),
    ];
    parts.iter().find(|(_, same)| !same).map(|(what, _)| (*what).to_owned())
}

/// Decodes a setting: every prompt, under these policies.
///
/// # Errors
/// The engine's and the rewards'; too many responses without a score.
pub fn decode(
    host: &mut Host,
    prompts: &[&Prompt],
    rewards: &[SharedReward],
    setting: Setting,
    policies: Vec<PolicyUse>,
    max_tokens: usize,
    done: impl FnMut(),
) -> Result<Decoded, Error> {
    let decoding = Decoding { policies, samples: setting.samples, max_tokens, seed: setting.seed };
    let responses = respond(host, prompts, &decoding, done)?;
    let exchanges: Vec<Exchange<'_>> = prompts
        .iter()
        .zip(&responses)
        .flat_map(|(prompt, group)| group.iter().map(|own| Exchange { prompt: &prompt.text, response: &own.text }))
        .collect();
    let mut unscored = BTreeMap::new();
    let mut columns = Vec::new();
    for reward in rewards {
        let scores = Scores::of(&**reward, &exchanges)?.accept()?;
        if scores.failed() > 0 {
            unscored.insert(scores.reward.clone(), scores.failures.clone());
        }
        columns.push(scores.scores);
    }
    let mut place = 0;
    let samples = responses
        .iter()
        .map(|group| {
            let of_group = group.iter().map(|response| {
                place += 1;
                sample(response, columns.iter().map(|column| column[place - 1]).collect())
            });
            of_group.collect()
        })
        .collect();
    Ok(Decoded { setting, samples, unscored })
}

fn sample(response: &Response, scores: Vec<Option<f64>>) -> Sample {
    let draws = || response.tokens.iter().filter_map(|token| token.draw);
    Sample {
        tokens: response.token_ids(),
        text: response.text.clone(),
        scores,
        kl: response.kl(),
        log_probability: draws().map(|draw| f64::from(draw.base_log_probability)).sum(),
        drawn: draws().count(),
        forwards: response.counters.forward_equivalents,
        seconds: response.timing.decode_seconds(),
        value: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            format: FORMAT.into(),
            model_sha256: "aa".into(),
            pool_sha256: "bb".into(),
            heads: BTreeMap::new(),
            rewards: vec![("length".into(), "length 1: 20".into())],
            judges: Vec::new(),
            prompts: vec!["a".into()],
            tune_prompts: Vec::new(),
            token_limit: 60,
            candidates: 20,
            tail: "keep".into(),
            wanted: Wanted { rewards: vec!["length".into()], kls: vec![0.25], seeds: vec![1], grid: 0 },
            judged_by: [1, 2, 3],
        }
    }

    fn decoded(seed: u64) -> Decoded {
        let sample = Sample {
            tokens: vec![1, 2],
            text: "a b".into(),
            scores: vec![Some(0.1)],
            kl: 0.25,
            log_probability: -3.0,
            drawn: 2,
            forwards: 2.0,
            seconds: 0.5,
            value: Some(0.25),
        };
        let setting = Setting {
            method: "vas".into(),
            variant: String::new(),
            dials: vec![("length".into(), 0.7)],
            samples: 1,
            seed,
            tune: false,
            model_sha256: None,
        };
        Decoded { setting, samples: vec![vec![sample]], unscored: BTreeMap::new() }
    }

    #[test]
    fn a_killed_evaluation_goes_on_from_its_last_whole_line() {
        let folder = std::env::temp_dir().join(format!("vassal-journal-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let path = folder.join("decoded.jsonl");
        let mut journal = Journal::open(&path, &header()).expect("begun");
        journal.add(decoded(1)).expect("written");
        let second = Journal::open(&path, &header()).expect_err("in use");
        assert!(matches!(second, DecodedError::Lines(JournalError::Busy { .. })), "{second}");
        drop(journal);
        let whole = std::fs::read(&path).expect("a file");
        let mut torn = whole.clone();
        torn.extend(b"{\"setting\": {");
        std::fs::write(&path, torn).expect("written");

        let mut journal = Journal::open(&path, &header()).expect("goes on");
        assert_eq!(journal.done(), [decoded(1)]);
        assert!(journal.find(&decoded(1).setting).is_some() && journal.find(&decoded(2).setting).is_none());
        assert_eq!(std::fs::read(&path).expect("a file"), whole);
        journal.add(decoded(2)).expect("written");
        drop(journal);
        assert_eq!(Journal::open(&path, &header()).expect("whole").done(), [decoded(1), decoded(2)]);

        let other = Header { candidates: 40, ..header() };
        let error = Journal::open(&path, &other).expect_err("other work").to_string();
        assert!(error.contains("another number of candidates"), "{error}");
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
