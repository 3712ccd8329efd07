//! A learned reward in a file: safetensors with what it reads and where it comes from.
//!
//! F32 `residual` `[H]`, `mean` `[H]` and `bias` `[1]`; the description is one JSON object under the metadata key [`METADATA_KEY`]. The
//! file is not trusted: sizes, names and numbers are checked before they are used.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::super::spec::check_name;
use crate::files;
use crate::learning::preference::pairs::Half;
use crate::model::heads::ModelIdentity;
use crate::sandbox::words::clean;

/// The value of [`Description::format`].
pub const FORMAT: &str = "vassal-reward-1";

/// The metadata key of the description.
pub const METADATA_KEY: &str = "vassal_reward";

/// A larger file is refused: two rows of 65,536 numbers have half a megabyte.
pub const FILE_BYTES_MAX: usize = 1 << 20;

const HIDDEN_MAX: usize = 1 << 16;
const TOKENS_MAX: usize = 1 << 16;
const SUMMARY_BYTES_MAX: usize = 200;

/// What a learned reward is, and of which model it reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// [`FORMAT`].
    pub format: String,
    /// The reward's name.
    pub name: String,
    /// One line for people.
    pub summary: String,
    /// It reads the residual stream after this many layers.
    pub layer: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Width of its residual stream, H.
    pub hidden: usize,
    /// Its vocabulary.
    pub vocabulary: usize,
    /// SHA-256 of its file, lower-case hexadecimal.
    pub model_sha256: String,
    /// It reads so many tokens of a response at most.
    pub token_limit: usize,
    /// SHA-256 of the pairs' file.
    pub pairs_sha256: String,
    /// Which half of them it was fitted to.
    pub half: Half,
    /// Pairs that it was fitted to.
    pub pairs: usize,
    /// The penalty that was chosen.
    pub penalty: f64,
    /// Share of validation pairs that it orders as people did, with its 95 % interval; none where there were none.
    pub accuracy: Option<(f64, f64, f64)>,
    /// The command that made it.
    pub command: String,
    /// The version of the program that made it.
    pub version: String,
}

/// A learned reward: σ(residual · r + mean · m + bias) of a response's end.
#[derive(Debug, Clone, PartialEq)]
pub struct RewardFile {
    /// What it is.
    pub description: Description,
    /// Weights of the residual stream at the response's last token, `[H]`.
    pub residual: Vec<f32>,
    /// Weights of the residual stream's mean over the response, `[H]`.
    pub mean: Vec<f32>,
    /// The constant.
    pub bias: f32,
}

/// Why a learned reward's file was refused or not written.
#[derive(Debug, thiserror::Error)]
pub enum RewardFileError {
    /// Reading or writing failed.
    #[error("reward {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// What it holds is refused.
    #[error("reward {path}: {reason}")]
    Contents {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl RewardFile {
    /// Reads a file.
    ///
    /// # Errors
    /// The system's, and what is wrong with it.
    pub fn open(path: &Path) -> Result<(Self, Vec<u8>), RewardFileError> {
        let failed = |source| RewardFileError::File { path: path.to_path_buf(), source };
        let bytes = files::read(path, FILE_BYTES_MAX).map_err(failed)?;
        let read = Self::read(&bytes);
        let refused = |reason| RewardFileError::Contents { path: path.to_path_buf(), reason };
        Ok((read.map_err(refused)?, bytes))
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(format!("a learned reward has at most {FILE_BYTES_MAX} bytes"));
        }
        let container = |error: safetensors::SafeTensorError| format!("not a safetensors file: {error}");
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(container)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(container)?;
        let text = metadata.metadata().as_ref().and_then(|map| map.get(METADATA_KEY));
        let text = text.ok_or_else(|| format!("no {METADATA_KEY:?} in its metadata: not a learned reward"))?;
        let description: Description =
            serde_json::from_str(text).map_err(|error| format!("{METADATA_KEY}: {error}"))?;
        description.check()?;
        if tensors.len() != 3 {
            return Err(format!("it must have 3 tensors, got {}", tensors.len()));
        }
        let numbers = |name: &str, count: usize| {
            let tensor = tensors.tensor(name).map_err(|_| format!("the tensor {name:?} is missing"))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != [count] {
                return Err(format!(
                    "the tensor {name:?} must be F32 [{count}], got {:?} {:?}",
                    tensor.dtype(),
                    tensor.shape()
                ));
            }
            let numbers: Vec<f32> =
                tensor.data().chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
            match numbers.iter().find(|x| !x.is_finite()) {
                Some(bad) => Err(format!("the tensor {name:?} must be finite, got {bad}")),
                None => Ok(numbers),
            }
        };
        let (hidden, bias) = (description.hidden, numbers("bias", 1)?[0]);
        Ok(Self { residual: numbers("residual", hidden)?, mean: numbers("mean", hidden)?, bias, description })
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// The system's, and what no file may hold.
    pub fn write(&self, path: &Path) -> Result<(), RewardFileError> {
        let refused = |reason: String| RewardFileError::Contents { path: path.to_path_buf(), reason };
        let bytes = self.to_bytes().map_err(refused)?;
        files::replace(path, &bytes).map_err(|source| RewardFileError::File { path: path.to_path_buf(), source })
    }

    fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let text = serde_json::to_string(&self.description).map_err(|error| error.to_string())?;
        let raw = [("residual", &self.residual[..]), ("mean", &self.mean[..]), ("bias", &[self.bias][..])]
            .map(|(name, numbers)| (name, numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()));
        let views: Result<Vec<_>, _> = raw
            .iter()
            .map(|(name, bytes)| Ok((*name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?)))
            .collect();
        let bytes = views
            .and_then(|views| safetensors::serialize(views, Some(HashMap::from([(METADATA_KEY.to_owned(), text)]))))
            .map_err(|error| error.to_string())?;
        // What cannot be read back must not be written.
        Self::read(&bytes)?;
        Ok(bytes)
    }

    /// Refuses a reward that reads another model.
    ///
    /// # Errors
    /// What differs.
    pub fn check_model(&self, path: &Path, model: ModelIdentity<'_>) -> Result<(), RewardFileError> {
        let own = &self.description;
        let theirs = (own.model_sha256.as_str(), own.layers, own.hidden, own.vocabulary);
        if theirs == (model.sha256, model.layers, model.hidden, model.vocabulary) {
            return Ok(());
        }
        let reason = format!(
            "it reads the model with SHA-256 {} ({} layers of width {}), this model has {} ({} layers of width {})",
            own.model_sha256, own.layers, own.hidden, model.sha256, model.layers, model.hidden
        );
        Err(RewardFileError::Contents { path: path.to_path_buf(), reason })
    }
}

impl Description {
    fn check(&self) -> Result<(), String> {
        let ensure = |accepted: bool, what: &str, expected: String, got: String| {
            if accepted { Ok(()) } else { Err(format!("{what} must be {expected}, got {got}")) }
        };
        let between = |number: usize, most: usize| (1..=most).contains(&number);
        ensure(self.format == FORMAT, "format", FORMAT.into(), clean(&self.format, 40))?;
        check_name(&self.name).map_err(|error| error.to_string())?;
        let line = clean(&self.summary, SUMMARY_BYTES_MAX);
        ensure(
            line == self.summary,
            "summary",
            format!("a plain line of {SUMMARY_BYTES_MAX} bytes"),
            format!("{line:?}"),
        )?;
        let hash = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        for (what, text) in [("model_sha256", &self.model_sha256), ("pairs_sha256", &self.pairs_sha256)] {
            ensure(hash(text), what, "64 hexadecimal digits in lower case".into(), clean(text, 70))?;
        }
        ensure(between(self.layers, 1_000), "layers", "1 to 1000".into(), self.layers.to_string())?;
        ensure(between(self.layer, self.layers), "layer", format!("1 to {}", self.layers), self.layer.to_string())?;
        ensure(between(self.hidden, HIDDEN_MAX), "hidden", format!("1 to {HIDDEN_MAX}"), self.hidden.to_string())?;
        let limit = self.token_limit;
        ensure(between(limit, TOKENS_MAX), "token_limit", format!("1 to {TOKENS_MAX}"), limit.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> RewardFile {
        RewardFile {
            description: Description {
                format: FORMAT.into(),
                name: "helpful".into(),
                summary: "what people prefer".into(),
                layer: 2,
                layers: 3,
                hidden: 2,
                vocabulary: 9,
                model_sha256: "ab".repeat(32),
                token_limit: 60,
                pairs_sha256: "cd".repeat(32),
                half: Half::Proxy,
                pairs: 100,
                penalty: 0.1,
                accuracy: Some((0.6, 0.55, 0.65)),
                command: "vassal fit preference".into(),
                version: "0".into(),
            },
            residual: vec![1.0, -2.0],
            mean: vec![0.5, 0.25],
            bias: 0.125,
        }
    }

    #[test]
    fn a_reward_comes_back_as_it_was_written() {
        let bytes = small().to_bytes().expect("bytes");
        assert_eq!(RewardFile::read(&bytes), Ok(small()));
        assert_eq!(bytes, small().to_bytes().expect("bytes"), "equal rewards are equal files");
    }

    #[test]
    fn what_is_no_reward_is_refused() {
        let check = |change: &dyn Fn(&mut RewardFile), expected: &str| {
            let mut file = small();
            change(&mut file);
            let error = file.to_bytes().expect_err(expected);
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        };
        check(&|file| file.mean.push(1.0), "\"mean\" must be F32 [2], got F32 [3]");
        check(&|file| file.bias = f32::NAN, "\"bias\" must be finite, got NaN");
        check(&|file| file.description.layer = 4, "layer must be 1 to 3, got 4");
        check(&|file| file.description.name = "Nice!".into(), "a-z, 0-9 and -");
        check(&|file| file.description.summary = "a\u{202e}b".into(), "summary must be a plain line");
        check(&|file| file.description.token_limit = 0, "token_limit must be 1 to 65536, got 0");
        let bytes = small().to_bytes().expect("bytes");
        for end in 0..bytes.len() {
            assert!(RewardFile::read(&bytes[..end]).is_err(), "cut at {end}");
        }
        check(&|file| file.description.model_sha256 = "\u{1b}c".into(), "model_sha256 must be 64 hexadecimal digits");
        let sha256 = "ab".repeat(32);
        let model = ModelIdentity { sha256: &sha256, layers: 3, hidden: 2, vocabulary: 9 };
        small().check_model(Path::new("r"), model).expect("its model");
        let other = ModelIdentity { sha256: "ee", ..model };
        let error = small().check_model(Path::new("r"), other).expect_err("another").to_string();
        assert!(error.contains("SHA-256 abab") && error.contains("this model has ee"), "{error}");
    }
}
