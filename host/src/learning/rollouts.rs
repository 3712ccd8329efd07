//! Rollouts: responses that the base model gave, in a file.
//!
//! JSON lines. The first is the [`Header`] that says where the rollouts come from; every other is one
//! [`Rollout`]. A [`Writer`] works under a name with `.part` appended and renames at the end, so a file
//! under its final name is whole. [`Rollouts::parse`] trusts nothing: it refuses rollouts of another
//! shape, too long, doubled, or filed under a split that is not their prompt's.
//!
//! Sampling is the engine's. Rewards are not in the file: they are computed when it is read, so that one
//! set of rollouts serves every reward.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::prompts::Split;
use crate::error::Error;
use crate::learning::rewards::{Exchange, Reward, Scores};

/// The value of [`Header::format`]; a change of the lines' meaning changes it.
pub const FORMAT: &str = "vassal-rollouts-1";

/// The most bytes of one line: some 60,000 tokens.
pub const LINE_BYTES_MAX: u64 = 1 << 20;

/// The most rollouts of one file, so that a wrong file cannot take all memory.
pub const ROLLOUTS_MAX: usize = 1_000_000;

/// Where rollouts come from: enough to make them again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// SHA-256 of the model file, lower-case hexadecimal.
    pub model_sha256: String,
    /// SHA-256 of the prompts file.
    pub prompts_sha256: String,
    /// The seed of every draw.
    pub seed: u64,
    /// Rollouts a prompt.
    pub samples: u32,
    /// Temperature of the draws.
    pub temperature: f32,
    /// Nucleus of the draws; 1 keeps all.
    pub top_p: f32,
    /// The most tokens of a response.
    pub token_limit: u32,
    /// The command that wrote the file.
    pub command: String,
    /// The version of this program.
    pub version: String,
}

/// Why a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The model ended it; its last token is an end-of-text token.
    EndOfText,
    /// It was cut at the token limit.
    TokenLimit,
}

/// One response of the base model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The prompt's id.
    pub id: String,
    /// The prompt's text.
    pub prompt: String,
    /// The prompt's split.
    pub split: Split,
    /// 0 to `samples` - 1 within its prompt.
    pub sample: u32,
    /// The response's tokens, an end-of-text token at the end included: 1 to `token_limit`.
    pub tokens: Vec<u32>,
    /// The response's text, without the end-of-text token.
    pub text: String,
    /// Why it ended.
    pub end: End,
}

/// Why a rollouts file was refused or could not be written. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum RolloutsError {
    /// Reading or writing failed.
    #[error("rollouts file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The first line is not a header of this format.
    #[error("rollouts, line 1: expected the header of a {FORMAT} file: {reason}")]
    Header {
        /// What is wrong.
        reason: String,
    },
    /// A line is not a rollout that the header allows.
    #[error("rollouts, line {line}: {reason}")]
    Line {
        /// Where.
        line: usize,
        /// What is accepted and what was given.
        reason: String,
    },
    /// The rollouts are another model's or another prompts file's.
    #[error("the rollouts were made with the {what} {theirs}, this is {ours}")]
    Other {
        /// `model` or `prompts file`.
        what: &'static str,
        /// The hash in the file.
        theirs: String,
        /// The hash at hand.
        ours: String,
    },
    /// Not enough to learn from.
    #[error("{split} needs at least {prompts} prompts with {samples} rollouts each; {enough} have as many")]
    TooFew {
        /// The split's name.
        split: &'static str,
        /// Prompts needed.
        prompts: usize,
        /// Rollouts a prompt needed.
        samples: usize,
        /// Prompts that have enough.
        enough: usize,
    },
}

/// All rollouts of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollouts {
    /// Where they come from.
    pub header: Header,
    /// In order of the file.
    pub all: Vec<Rollout>,
}

impl Rollouts {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, RolloutsError> {
        let failed = |source| RolloutsError::File { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(failed)?;
        Self::parse(io::BufReader::new(file), path)
    }

    /// Reads lines; `path` is for messages only.
    pub fn parse(mut reader: impl BufRead, path: &Path) -> Result<Self, RolloutsError> {
        let mut line = Vec::new();
        let mut next = |line: &mut Vec<u8>, number: usize| -> Result<bool, RolloutsError> {
            line.clear();
            let read = io::Read::take(&mut reader, LINE_BYTES_MAX + 1)
                .read_until(b'\n', line)
                .map_err(|source| RolloutsError::File { path: path.to_path_buf(), source })?;
            if read as u64 > LINE_BYTES_MAX {
                let reason = format!("a line has at most {LINE_BYTES_MAX} bytes");
                return Err(RolloutsError::Line { line: number, reason });
            }
            Ok(read > 0)
        };
        next(&mut line, 1)?;
        let header: Header =
            serde_json::from_slice(&line).map_err(|error| RolloutsError::Header { reason: error.to_string() })?;
        if header.format != FORMAT {
            return Err(RolloutsError::Header { reason: format!("its format is {:?}", header.format) });
        }
        let mut rollouts = Self { header, all: Vec::new() };
        let mut seen = HashSet::new();
        for number in 2.. {
            if !next(&mut line, number)? {
                break;
            }
            let refused = |reason: String| RolloutsError::Line { line: number, reason };
            let rollout: Rollout = serde_json::from_slice(&line).map_err(|error| refused(error.to_string()))?;
            rollouts.check(&rollout).map_err(refused)?;
            if !seen.insert((rollout.id.clone(), rollout.sample)) {
                return Err(refused(format!("sample {} of prompt {:?} occurs twice", rollout.sample, rollout.id)));
            }
            if rollouts.all.len() == ROLLOUTS_MAX {
                return Err(refused(format!("a file has at most {ROLLOUTS_MAX} rollouts")));
            }
            rollouts.all.push(rollout);
        }
        Ok(rollouts)
    }

    fn check(&self, rollout: &Rollout) -> Result<(), String> {
        let Header { samples, token_limit, .. } = self.header;
        let (count, sample) = (rollout.tokens.len(), rollout.sample);
        if count == 0 || count > token_limit as usize {
            return Err(format!("a response has 1 to {token_limit} tokens, this has {count}"));
        }
        if sample >= samples {
            return Err(format!("samples are numbered 0 to {}, this is {sample}", samples.saturating_sub(1)));
        }
        let split = Split::of(&rollout.prompt);
        if split != rollout.split {
            let (right, wrong) = (split.name(), rollout.split.name());
            return Err(format!("prompt {:?} belongs to the split {right} but is filed under {wrong}", rollout.id));
        }
        Ok(())
    }

    /// Refuses rollouts of another model.
    pub fn require_model(&self, sha256: &str) -> Result<(), RolloutsError> {
        same("model", &self.header.model_sha256, sha256)
    }

    /// Refuses rollouts of another prompts file.
    pub fn require_prompts(&self, sha256: &str) -> Result<(), RolloutsError> {
        same("prompts file", &self.header.prompts_sha256, sha256)
    }

    /// The rollouts of one split by prompt: ids ascending, samples ascending. Prompts with fewer than
    /// `samples` rollouts are an error when fewer than `prompts` prompts are left without them; otherwise
    /// they are left out.
    pub fn groups(&self, split: Split, prompts: usize, samples: usize) -> Result<Vec<Vec<&Rollout>>, RolloutsError> {
        let mut groups: BTreeMap<&str, Vec<&Rollout>> = BTreeMap::new();
        for rollout in self.all.iter().filter(|rollout| rollout.split == split) {
            groups.entry(&rollout.id).or_default().push(rollout);
        }
        let mut groups: Vec<_> = groups.into_values().filter(|group| group.len() >= samples).collect();
        if groups.len() < prompts {
            return Err(RolloutsError::TooFew { split: split.name(), prompts, samples, enough: groups.len() });
        }
        for group in &mut groups {
            group.sort_by_key(|rollout| rollout.sample);
        }
        Ok(groups)
    }
}

/// The scores of grouped rollouts, in the groups' shape; those without one are left out.
///
/// # Errors
/// The reward's, and too many without a score.
pub fn score(groups: &[Vec<&Rollout>], reward: &dyn Reward) -> Result<Vec<Vec<f64>>, Error> {
    let exchanges: Vec<Exchange<'_>> =
        groups.iter().flatten().map(|rollout| Exchange { prompt: &rollout.prompt, response: &rollout.text }).collect();
    let mut scores = Scores::of(reward, &exchanges)?.accept()?.scores.into_iter();
    Ok(groups.iter().map(|group| scores.by_ref().take(group.len()).flatten().collect()).collect())
}

fn same(what: &'static str, theirs: &str, ours: &str) -> Result<(), RolloutsError> {
    if theirs == ours {
        return Ok(());
    }
    Err(RolloutsError::Other { what, theirs: theirs.to_string(), ours: ours.to_string() })
}

/// Writes a rollouts file. Dropped before [`Writer::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    part: PathBuf,
    out: Option<BufWriter<File>>,
}

impl Writer {
    /// Starts `path` with its header.
    pub fn create(path: &Path, header: &Header) -> Result<Self, RolloutsError> {
        let mut part = path.as_os_str().to_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).map_err(|source| RolloutsError::File { path: part.clone(), source })?;
        let mut writer = Self { path: path.to_path_buf(), part, out: Some(BufWriter::new(file)) };
        writer.line(header)?;
        Ok(writer)
    }

    /// Adds a rollout.
    pub fn append(&mut self, rollout: &Rollout) -> Result<(), RolloutsError> {
        self.line(rollout)
    }

    /// Makes the file durable and gives it its name.
    pub fn finish(mut self) -> Result<(), RolloutsError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| RolloutsError::File { path, source }
        };
        if let Some(out) = self.out.take() {
            let file = out.into_inner().map_err(|error| failed(&self.part)(error.into_error()))?;
            file.sync_all().map_err(failed(&self.part))?;
        }
        std::fs::rename(&self.part, &self.path).map_err(failed(&self.path))
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), RolloutsError> {
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        serde_json::to_writer(&mut *out, value)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"))
            .map_err(|source| RolloutsError::File { path: self.part.clone(), source })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            // Nothing useful can be done about a failure: the part's name says what it is.
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learning::rewards::BuiltIn;

    fn header() -> Header {
        Header {
            format: FORMAT.into(),
            model_sha256: "aa".into(),
            prompts_sha256: "bb".into(),
            seed: 7,
            samples: 2,
            temperature: 1.0,
            top_p: 1.0,
            token_limit: 3,
            command: "vassal rollout".into(),
            version: "0".into(),
        }
    }

    fn rollout(id: &str, sample: u32) -> Rollout {
        let prompt = format!("Prompt {id}");
        let split = Split::of(&prompt);
        Rollout {
            id: id.into(),
            prompt,
            split,
            sample,
            tokens: vec![1, 2],
            text: "the cat".into(),
            end: End::EndOfText,
        }
    }

    fn parse(lines: &[String]) -> Result<Rollouts, RolloutsError> {
        Rollouts::parse(lines.join("\n").as_bytes(), Path::new("x"))
    }

    fn json(value: &impl Serialize) -> String {
        serde_json::to_string(value).expect("plain data")
    }

    #[test]
    fn a_finished_file_reads_back_and_an_abandoned_one_is_gone() {
        let folder = std::env::temp_dir().join(format!("vassal-rollouts-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let path = folder.join("r.jsonl");
        let mut writer = Writer::create(&path, &header()).expect("created");
        writer.append(&rollout("a", 1)).expect("written");
        drop(writer);
        assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 0);

        let mut writer = Writer::create(&path, &header()).expect("created");
        for sample in [1, 0] {
            writer.append(&rollout("a", sample)).expect("written");
        }
        assert!(!path.exists());
        writer.finish().expect("renamed");
        let read = Rollouts::read(&path).expect("valid");
        assert_eq!(read.header, header());
        let groups = read.groups(Split::of("Prompt a"), 1, 2).expect("enough");
        assert_eq!(groups, [[&rollout("a", 0), &rollout("a", 1)]]);
        assert_eq!(score(&groups, &BuiltIn::simplicity()).expect("scored"), [[1.0, 1.0]]);
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn refusals_say_where_and_why() {
        let check = |lines: &[String], expected: &str| {
            let error = parse(lines).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        };
        let head = json(&header());
        check(&[], "line 1: expected the header");
        check(&[json(&Header { format: "other".into(), ..header() })], "\"other\"");
        check(&[head.clone(), "{}".into()], "line 2: missing field");
        check(&[head.clone(), json(&Rollout { tokens: vec![], ..rollout("a", 0) })], "1 to 3 tokens, this has 0");
        check(&[head.clone(), json(&Rollout { tokens: vec![1; 4], ..rollout("a", 0) })], "this has 4");
        check(&[head.clone(), json(&rollout("a", 2))], "numbered 0 to 1, this is 2");
        check(
            &[head.clone(), json(&rollout("a", 0)), json(&rollout("a", 0))],
            "line 3: sample 0 of prompt \"a\" occurs twice",
        );
        let wrong = if Split::of("Prompt a") == Split::Test { Split::Learn } else { Split::Test };
        check(&[head.clone(), json(&Rollout { split: wrong, ..rollout("a", 0) })], "but is filed under");
        let long = Rollout { text: "x".repeat(LINE_BYTES_MAX as usize), ..rollout("a", 0) };
        check(&[head, json(&long)], "at most 1048576 bytes");
    }

    #[test]
    fn another_model_and_too_few_rollouts_are_refused() {
        let read = parse(&[json(&header()), json(&rollout("a", 0))]).expect("valid");
        assert!(read.require_model("aa").is_ok() && read.require_prompts("bb").is_ok());
        let error = read.require_model("cc").expect_err("another model").to_string();
        assert_eq!(error, "the rollouts were made with the model aa, this is cc");
        let split = Split::of("Prompt a");
        let error = read.groups(split, 1, 2).expect_err("one rollout only").to_string();
        assert!(error.ends_with("at least 1 prompts with 2 rollouts each; 0 have as many"), "{error}");
    }
}
