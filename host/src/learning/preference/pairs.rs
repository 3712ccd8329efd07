//! Preference pairs: two answers to one conversation, and which of them people preferred.
//!
//! A file holds one JSON object a line, `{"id", "prompt": [{"role", "content"}], "chosen", "rejected"}`; other fields are passed over, and
//! a file whose name ends in `.gz` is decompressed. Which part of a fit a pair belongs to is a function of the
//! normalised opening request, so that one request is never on two sides. Start at [`PairSet::open`].

use std::collections::{BTreeSet, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::prompts::normalize;
use crate::files;
use crate::hex::hexadecimal;

/// A larger file, decompressed, is refused.
pub const FILE_BYTES_MAX: usize = 256 << 20;

/// More pairs are refused.
pub const PAIRS_MAX: usize = 200_000;

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// Two answers to one conversation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pair {
    /// For messages.
    pub id: String,
    /// What came before the answers; the last message is the user's.
    pub prompt: Vec<Turn>,
    /// The answer that people preferred.
    pub chosen: String,
    /// The other.
    pub rejected: String,
}

/// Which of two fits on disjoint pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Half {
    /// The reward that guides.
    Proxy,
    /// The reward that judges what the proxy has guided.
    Gold,
}

/// The pairs of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairSet {
    /// In the file's order.
    pub pairs: Vec<Pair>,
    /// SHA-256 of the file as it stands, lower-case hexadecimal.
    pub sha256: String,
}

/// Why a file of pairs was refused. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum PairsError {
    /// Reading failed.
    #[error("pairs {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// Not the expected object.
    #[error("pairs {path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Too many bytes or pairs, or too few pairs.
    #[error("pairs {path}: {what} must be {expected}, got {got}")]
    Amount {
        /// The file.
        path: PathBuf,
        /// What is counted.
        what: &'static str,
        /// What is accepted.
        expected: String,
        /// What was given.
        got: usize,
    },
    /// A request is on both sides.
    #[error(
        "pairs {path}: {count} opening requests are in the other file too, the first is {first:?}; nothing may be judged by pairs that it was fitted to"
    )]
    Leak {
        /// The file to judge by.
        path: PathBuf,
        /// Requests.
        count: usize,
        /// The first of them.
        first: String,
    },
}

impl Pair {
    /// The normalised first request of the user.
    pub(super) fn opening(&self) -> String {
        normalize(self.prompt.iter().find(|turn| turn.role == "user").map_or("", |turn| &turn.content))
    }

    /// Two bytes that the opening alone decides, others than those that decide a prompt's split.
    fn dealt(&self) -> [u8; 2] {
        let hash = Sha256::digest(self.opening().as_bytes());
        [hash[8], hash[9]]
    }

    /// Which of the two fits it belongs to.
    pub fn half(&self) -> Half {
        if self.dealt()[0].is_multiple_of(2) { Half::Proxy } else { Half::Gold }
    }

    /// Whether it is among the quarter of a fit's pairs that its penalty is chosen by.
    pub fn chooses_penalty(&self) -> bool {
        self.dealt()[1].is_multiple_of(4)
    }

    fn check(&self) -> Result<(), String> {
        let role = |turn: &Turn| ["system", "user", "assistant"].contains(&turn.role.as_str());
        if let Some(turn) = self.prompt.iter().find(|turn| !role(turn)) {
            return Err(format!("a role is system, user or assistant, got {:?}", turn.role));
        }
        if self.prompt.last().is_none_or(|turn| turn.role != "user") {
            return Err("the last message of \"prompt\" must be the user's".into());
        }
        let words = |text: &str| !normalize(text).is_empty();
        if !words(&self.chosen) || !words(&self.rejected) {
            return Err("\"chosen\" and \"rejected\" must have letters or digits".into());
        }
        if self.chosen == self.rejected {
            return Err("\"chosen\" and \"rejected\" are the same".into());
        }
        Ok(())
    }
}

impl PairSet {
    /// Reads a file.
    ///
    /// # Errors
    /// [`PairsError`], with the line.
    pub fn open(path: &Path) -> Result<Self, PairsError> {
        let failed = |source| PairsError::File { path: path.to_path_buf(), source };
        let bytes = files::read(path, FILE_BYTES_MAX).map_err(failed)?;
        let sha256 = hexadecimal(&Sha256::digest(&bytes));
        let mut text = bytes;
        if path.extension().is_some_and(|ending| ending == "gz") {
            let compressed = std::mem::take(&mut text);
            let most = FILE_BYTES_MAX as u64 + 1;
            flate2::read::MultiGzDecoder::new(compressed.as_slice())
                .take(most)
                .read_to_end(&mut text)
                .map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
        }
        if text.len() > FILE_BYTES_MAX {
            let (expected, got) = (format!("at most {FILE_BYTES_MAX}"), text.len());
            return Err(PairsError::Amount { path: path.to_path_buf(), what: "bytes", expected, got });
        }
        let text = String::from_utf8(text).map_err(|error| {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
            PairsError::Line { path: path.to_path_buf(), line, reason: "it is not UTF-8".into() }
        })?;
        Ok(Self { pairs: Self::parse(path, &text)?, sha256 })
    }

    fn parse(path: &Path, text: &str) -> Result<Vec<Pair>, PairsError> {
        let mut pairs = Vec::new();
        for (line, content) in (1..).zip(text.lines()).filter(|(_, content)| !content.trim().is_empty()) {
            let refused = |reason| PairsError::Line { path: path.to_path_buf(), line, reason };
            let pair: Pair = serde_json::from_str(content).map_err(|error| refused(error.to_string()))?;
            pair.check().map_err(refused)?;
            pairs.push(pair);
            if pairs.len() > PAIRS_MAX {
                break;
            }
        }
        if pairs.is_empty() || pairs.len() > PAIRS_MAX {
            let (expected, got) = (format!("1 to {PAIRS_MAX}"), pairs.len());
            return Err(PairsError::Amount { path: path.to_path_buf(), what: "pairs", expected, got });
        }
        Ok(pairs)
    }

    /// Refuses pairs to judge by whose opening requests others were fitted to.
    ///
    /// # Errors
    /// [`PairsError::Leak`].
    pub fn apart_from(&self, fitted: &Self, path: &Path) -> Result<(), PairsError> {
        let known: HashSet<String> = fitted.pairs.iter().map(Pair::opening).collect();
        let both: BTreeSet<String> = self.pairs.iter().map(Pair::opening).filter(|own| known.contains(own)).collect();
        match both.first() {
            None => Ok(()),
            Some(first) => {
                let first = first.chars().take(80).collect();
                Err(PairsError::Leak { path: path.to_path_buf(), count: both.len(), first })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(opening: &str, chosen: &str, rejected: &str) -> String {
        serde_json::json!({
            "id": "x", "prompt": [{"role": "user", "content": opening}], "chosen": chosen, "rejected": rejected, "axis": "helpful",
        })
        .to_string()
    }

    fn parse(text: &str) -> Result<Vec<Pair>, String> {
        PairSet::parse(Path::new("pairs.jsonl"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_no_pair_is_refused_by_its_line() {
        let good = line("One?", "a", "b");
        assert_eq!(parse(&format!("{good}\n\n{good}")).map(|pairs| pairs.len()), Ok(2));
        let check = |second: &str, expected: &str| {
            let error = parse(&format!("{good}\n{second}")).expect_err(second);
            assert!(error.starts_with("pairs pairs.jsonl, line 2: ") && error.contains(expected), "{error}");
        };
        check("{}", "missing field");
        check(&line("One?", "a", "a"), "are the same");
        check(&line("One?", "a", " ?"), "must have letters");
        check(&good.replace("\"user\"", "\"human\""), "got \"human\"");
        check(&good.replace("\"user\"", "\"assistant\""), "must be the user's");
        assert!(parse("").expect_err("empty").contains("pairs must be 1 to 200000, got 0"));
    }

    #[test]
    fn compressed_files_are_read_whole_and_bombs_are_not() {
        use std::io::Write;
        let folder = std::env::temp_dir().join(format!("vassal-pairs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let path = folder.join("pairs.jsonl.gz");
        let member = |bytes: &mut dyn Read| {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::copy(bytes, &mut out).expect("compressed");
            out.finish().expect("compressed")
        };
        let [one, two] = ["One?", "Two?"].map(|opening| line(opening, "a", "b") + "\n");
        let both = [member(&mut one.as_bytes()), member(&mut two.as_bytes())].concat();
        let opened = |bytes: &[u8]| {
            std::fs::File::create(&path).and_then(|mut file| file.write_all(bytes)).expect("written");
            PairSet::open(&path).map(|set| set.pairs.len()).map_err(|error| error.to_string())
        };
        assert_eq!(opened(&both), Ok(2), "a file may have several members");
        assert!(opened(&both[..both.len() - 9]).is_err(), "cut");
        assert!(opened(b"plain").expect_err("no gzip").contains("pairs.jsonl.gz"));
        assert!(opened(&member(&mut &b"\n\xff"[..])).expect_err("bytes").contains("line 2: it is not UTF-8"));
        let bomb = member(&mut std::io::repeat(b' ').take(FILE_BYTES_MAX as u64 + 1_000));
        assert!(opened(&bomb).expect_err("a bomb").contains("bytes must be at most"));
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn an_opening_is_on_one_side_and_sides_are_about_equal() {
        let pairs: Vec<Pair> =
            parse(&(0..2_000).map(|n| line(&format!("Question {n}?"), "a", "b") + "\n").collect::<String>())
                .expect("pairs");
        let proxy = pairs.iter().filter(|pair| pair.half() == Half::Proxy).count();
        let choosing = pairs.iter().filter(|pair| pair.chooses_penalty()).count();
        assert!((900..1_100).contains(&proxy) && (400..600).contains(&choosing), "{proxy} {choosing}");
        let spelled = parse(&line("QUESTION, 7", "c", "d")).expect("a pair");
        assert_eq!(spelled[0].half(), pairs[7].half());
        let set = |pairs: &[Pair]| PairSet { pairs: pairs.to_vec(), sha256: String::new() };
        let error = set(&spelled).apart_from(&set(&pairs), Path::new("v")).expect_err("the same request").to_string();
        assert!(error.contains("1 opening requests") && error.contains("question 7"), "{error}");
        set(&pairs[..9]).apart_from(&set(&pairs[9..]), Path::new("v")).expect("apart");
    }
}
