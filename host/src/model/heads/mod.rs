//! Value heads in files: safetensors with everything that says where a head comes from.
//!
//! A [`HeadFile`] is one head: a look-ahead head (F32: `residual` `[H]`, `mean` `[H]`, `scalars` `[2]` =
//! remaining, bias, and `share` `[H]` where it has one) or a one-pass head (F16: `state` `[r, 2H + 2]`, `embedding` `[r, H]`,
//! `token_bias` `[V]`; F32: `scale` `[r]`, which multiplies the rows of `state`). What else is known
//! of it is one JSON object under the metadata key [`METADATA_KEY`]: a single key, because the format's
//! writer puts several in random order and equal heads are to be equal files.
//!
//! A file is not trusted: sizes, names and numbers are checked before anything is allocated for them.
//! Which layer feeds a head is in the file; which tap of a cache that is, the engine sets.

mod description;
pub mod text;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use vassal_kernels::{LinearHead, ModelShape, OnePassHead};

use crate::files;

pub use self::description::{Description, FORMAT, HeadKind, NAME_BYTES_MAX, Provenance};
pub use self::text::{Readings, SharedReading, TextReading, TextTerm};

/// The metadata key that holds the description.
pub const METADATA_KEY: &str = "vassal_head";

/// A larger file is refused: a one-pass head of rank 64 for a hidden width of 16,384 has 7 MB.
pub const FILE_BYTES_MAX: usize = 16 << 20;

/// A larger description is refused.
pub const DESCRIPTION_BYTES_MAX: usize = 64 << 10;

/// The largest rank of a one-pass head.
pub const RANK_MAX: usize = 64;

/// The numbers of a head. The `tap` inside is always 0 here.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadWeights {
    /// A look-ahead head.
    LookAhead(LinearHead),
    /// A one-pass head.
    OnePass(OnePassHead),
}

/// One head with its description.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadFile {
    /// What it is.
    pub description: Description,
    /// Its numbers.
    pub weights: HeadWeights,
}

/// The model at hand, as far as heads depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelIdentity<'a> {
    /// SHA-256 of the model file, lower-case hexadecimal.
    pub sha256: &'a str,
    /// Layers, L.
    pub layers: usize,
    /// Width of the residual stream, H.
    pub hidden: usize,
    /// Vocabulary, V.
    pub vocabulary: usize,
}

impl<'a> ModelIdentity<'a> {
    /// Of a model with these numbers.
    pub fn of(sha256: &'a str, shape: &ModelShape) -> Self {
        Self { sha256, layers: shape.layers, hidden: shape.hidden, vocabulary: shape.vocabulary }
    }
}

/// Why a head was refused or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// Reading or writing failed.
    #[error("head file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// What a file holds is refused.
    #[error("head file {path}: {error}")]
    Contents {
        /// The file.
        path: PathBuf,
        /// Why.
        error: Box<HeadError>,
    },
    /// More bytes than any head has.
    #[error("a head file has at most {most} bytes in its {part}, this has {got}")]
    Size {
        /// `file` or `description`.
        part: &'static str,
        /// The bound.
        most: usize,
        /// What was given.
        got: usize,
    },
    /// Not safetensors.
    #[error("not a safetensors file: {0}")]
    Container(String),
    /// The description is missing or says something impossible.
    #[error("head description: {what} must be {expected}, got {got}")]
    Description {
        /// Which entry.
        what: &'static str,
        /// What is accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A tensor is missing, of another shape or type, or holds a number that is not finite.
    #[error("head {head:?}, tensor {tensor:?} must be {expected}, got {got}")]
    Tensor {
        /// The head's name.
        head: String,
        /// The tensor's name.
        tensor: String,
        /// What is accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// It reads a reward off the text that nobody here can read.
    #[error(
        "head {head:?} reads {reward:?} off the text so far, with {weights} weights; this program has no such reward to read so"
    )]
    NoReading {
        /// The head's name.
        head: String,
        /// The reward's definition.
        reward: String,
        /// Weights that it brings.
        weights: usize,
    },
    /// The head reads a model of another shape.
    #[error("head {head:?} is for a model with {what} {theirs}, this model has {ours}")]
    OtherShape {
        /// The head's name.
        head: String,
        /// `layers`, `hidden width` or `vocabulary`.
        what: &'static str,
        /// The head's model's.
        theirs: usize,
        /// The model's at hand.
        ours: usize,
    },
    /// The head was learned from another model of the same shape.
    #[error("head {head:?} was learned from the model with SHA-256 {theirs}, this model has {ours}")]
    OtherModel {
        /// The head's name.
        head: String,
        /// The hash in the head.
        theirs: String,
        /// The hash at hand.
        ours: String,
    },
}

impl HeadFile {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<Self, HeadError> {
        let failed = |source| HeadError::File { path: path.to_path_buf(), source };
        let bytes = files::read(path, FILE_BYTES_MAX).map_err(failed)?;
        Self::read(&bytes).map_err(|error| HeadError::Contents { path: path.to_path_buf(), error: Box::new(error) })
    }

    /// Reads the bytes of a file.
    pub fn read(bytes: &[u8]) -> Result<Self, HeadError> {
        if bytes.len() > FILE_BYTES_MAX {
            return Err(HeadError::Size { part: "file", most: FILE_BYTES_MAX, got: bytes.len() });
        }
        let container = |error: safetensors::SafeTensorError| HeadError::Container(error.to_string());
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(container)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(container)?;
        let text = metadata.metadata().as_ref().and_then(|map| map.get(METADATA_KEY)).map_or("", String::as_str);
        if text.len() > DESCRIPTION_BYTES_MAX {
            return Err(HeadError::Size { part: "description", most: DESCRIPTION_BYTES_MAX, got: text.len() });
        }
        let description: Description = serde_json::from_str(text).map_err(|error| HeadError::Description {
            what: METADATA_KEY,
            expected: "an object that describes a head".into(),
            got: format!("{error}"),
        })?;
        description.check()?;
        let weights = Tensors { tensors, head: &description.name }.weights(&description)?;
        Ok(Self { description, weights })
    }

    /// The bytes of a file, the same for equal heads.
    pub fn to_bytes(&self) -> Result<Vec<u8>, HeadError> {
        self.description.check()?;
        let text = serde_json::to_string(&self.description).map_err(|error| HeadError::Container(error.to_string()))?;
        if text.len() > DESCRIPTION_BYTES_MAX {
            return Err(HeadError::Size { part: "description", most: DESCRIPTION_BYTES_MAX, got: text.len() });
        }
        let tensors = self.tensors();
        let views: Result<Vec<_>, _> = tensors
            .iter()
            .map(|(name, format, shape, bytes)| Ok((*name, TensorView::new(*format, shape.clone(), bytes)?)))
            .collect();
        let bytes = views
            .and_then(|views| safetensors::serialize(views, Some(HashMap::from([(METADATA_KEY.to_string(), text)]))))
            .map_err(|error| HeadError::Container(error.to_string()))?;
        // What cannot be read back must not be written: numbers that are not finite, foreign shapes.
        Self::read(&bytes)?;
        Ok(bytes)
    }

    /// Writes the file under a temporary name and renames it, so that it is never seen in part.
    pub fn write(&self, path: &Path) -> Result<(), HeadError> {
        let bytes = self.to_bytes()?;
        files::replace(path, &bytes).map_err(|source| HeadError::File { path: path.to_path_buf(), source })
    }

    /// Refuses a head for another model: by shape, then by hash.
    pub fn check_model(&self, model: ModelIdentity<'_>) -> Result<(), HeadError> {
        let own = &self.description;
        let shapes = [
            ("layers", own.layers, model.layers),
            ("hidden width", own.hidden, model.hidden),
            ("vocabulary", own.vocabulary, model.vocabulary),
        ];
        for (what, theirs, ours) in shapes {
            if theirs != ours {
                return Err(HeadError::OtherShape { head: own.name.clone(), what, theirs, ours });
            }
        }
        if own.model_sha256 != model.sha256 {
            let (theirs, ours) = (own.model_sha256.clone(), model.sha256.to_string());
            return Err(HeadError::OtherModel { head: own.name.clone(), theirs, ours });
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)> {
        match &self.weights {
            HeadWeights::LookAhead(head) => {
                let mut out = vec![
                    ("residual", Dtype::F32, vec![head.residual.len()], f32_bytes(&head.residual)),
                    ("mean", Dtype::F32, vec![head.mean.len()], f32_bytes(&head.mean)),
                    ("scalars", Dtype::F32, vec![2], f32_bytes(&[head.remaining, head.bias])),
                ];
                if !head.share.is_empty() {
                    out.push(("share", Dtype::F32, vec![head.share.len()], f32_bytes(&head.share)));
                }
                out
            }
            HeadWeights::OnePass(head) => {
                let rank = head.rank.max(1);
                let (state, embedding, scale) = balanced(head);
                vec![
                    ("state", Dtype::F16, vec![rank, state.len() / rank], f16_bytes(&state)),
                    ("embedding", Dtype::F16, vec![rank, embedding.len() / rank], f16_bytes(&embedding)),
                    ("scale", Dtype::F32, vec![rank], f32_bytes(&scale)),
                    ("token_bias", Dtype::F16, vec![head.token_bias.len()], f16_bytes(&head.token_bias)),
                ]
            }
        }
    }
}

/// Rows of a one-pass head in halves: each row of both factors is scaled by a power of two so that its
/// largest number lies in 1..2, and `scale` `[r]` has the product of both. Without it the smaller numbers
/// of a factor fall below what a half can hold. Only where both together would leave what a float holds is less scaled.
fn balanced(head: &OnePassHead) -> (Vec<f16>, Vec<f16>, Vec<f32>) {
    let rank = head.rank.max(1);
    let mut exponents = vec![0.0_f32; rank];
    let mut halves = |factor: &[f32]| -> Vec<f16> {
        let width = (factor.len() / rank).max(1);
        let mut out = Vec::with_capacity(factor.len());
        for (row, sum) in factor.chunks(width).zip(&mut exponents) {
            let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            // A file that was read has the whole scale in one factor.
            let room = -126.0 - *sum..=126.0 - *sum;
            let exponent = if largest > 0.0 { largest.log2().floor().clamp(*room.start(), *room.end()) } else { 0.0 };
            out.extend(row.iter().map(|x| f16::from_f32(x / exponent.exp2())));
            *sum += exponent;
        }
        out
    };
    let (state, embedding) = (halves(&head.state), halves(&head.embedding));
    (state, embedding, exponents.into_iter().map(f32::exp2).collect())
}

struct Tensors<'a> {
    tensors: SafeTensors<'a>,
    head: &'a str,
}

impl Tensors<'_> {
    fn weights(&self, description: &Description) -> Result<HeadWeights, HeadError> {
        let Description { hidden, vocabulary, kind, .. } = *description;
        let weights = match kind {
            HeadKind::LookAhead => {
                let scalars = self.f32("scalars", &[2])?;
                let shared = self.tensors.tensor("share").is_ok();
                HeadWeights::LookAhead(LinearHead {
                    tap: 0,
                    residual: self.f32("residual", &[hidden])?,
                    mean: self.f32("mean", &[hidden])?,
                    share: if shared { self.f32("share", &[hidden])? } else { Vec::new() },
                    remaining: scalars[0],
                    bias: scalars[1],
                })
            }
            HeadKind::OnePass => {
                let rank = self.tensors.tensor("scale").map_or(0, |tensor| tensor.shape().iter().product());
                if !(1..=RANK_MAX).contains(&rank) {
                    return Err(self.refused("scale", format!("F32 of 1 to {RANK_MAX} numbers"), rank.to_string()));
                }
                let scale = self.f32("scale", &[rank])?;
                let mut state = self.f16("state", &[rank, 2 * hidden + 2])?;
                for (row, scale) in state.chunks_exact_mut(2 * hidden + 2).zip(&scale) {
                    row.iter_mut().for_each(|x| *x *= scale);
                }
                if let Some(bad) = state.iter().find(|x| !x.is_finite()) {
                    return Err(self.refused("state", "finite after scaling".into(), bad.to_string()));
                }
                HeadWeights::OnePass(OnePassHead {
                    tap: 0,
                    rank,
                    state,
                    embedding: self.f16("embedding", &[rank, hidden])?,
                    token_bias: self.f16("token_bias", &[vocabulary])?.into_iter().map(f16::from_f32).collect(),
                })
            }
        };
        let expected = match &weights {
            HeadWeights::LookAhead(head) => 3 + usize::from(!head.share.is_empty()),
            HeadWeights::OnePass(_) => 4,
        };
        if self.tensors.len() != expected {
            let got = format!("{} tensors", self.tensors.len());
            return Err(self.refused("(all)", format!("{expected} tensors"), got));
        }
        Ok(weights)
    }

    fn bytes(&self, name: &'static str, format: Dtype, shape: &[usize]) -> Result<&[u8], HeadError> {
        let expected = || format!("{format:?} {shape:?}");
        let tensor = self.tensors.tensor(name).map_err(|_| self.refused(name, expected(), "nothing".into()))?;
        if tensor.dtype() != format || tensor.shape() != shape {
            return Err(self.refused(name, expected(), format!("{:?} {:?}", tensor.dtype(), tensor.shape())));
        }
        Ok(tensor.data())
    }

    fn f32(&self, name: &'static str, shape: &[usize]) -> Result<Vec<f32>, HeadError> {
        let bytes = self.bytes(name, Dtype::F32, shape)?;
        self.finite(name, bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    fn f16(&self, name: &'static str, shape: &[usize]) -> Result<Vec<f32>, HeadError> {
        let bytes = self.bytes(name, Dtype::F16, shape)?;
        self.finite(name, bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect())
    }

    fn finite(&self, name: &'static str, numbers: Vec<f32>) -> Result<Vec<f32>, HeadError> {
        match numbers.iter().find(|number| !number.is_finite()) {
            Some(bad) => Err(self.refused(name, "finite".into(), bad.to_string())),
            None => Ok(numbers),
        }
    }

    fn refused(&self, tensor: &str, expected: String, got: String) -> HeadError {
        HeadError::Tensor { head: self.head.to_string(), tensor: tensor.to_string(), expected, got }
    }
}

fn f32_bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn f16_bytes(numbers: &[f16]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIDDEN: usize = 3;
    const VOCABULARY: usize = 5;

    fn description(kind: HeadKind) -> Description {
        Description {
            format: FORMAT.into(),
            name: "sentiment".into(),
            kind,
            layer: 2,
            layers: 4,
            hidden: HIDDEN,
            vocabulary: VOCABULARY,
            model_sha256: "ab".repeat(32),
            spread: 0.05,
            token_limit: 60,
            text: None,
            provenance: Provenance {
                prompts_sha256: "cd".repeat(32),
                rollouts_sha256: "ef".repeat(32),
                reward: "sentiment 1".into(),
                prompts: 10,
                rollouts: 80,
                samples: 8,
                temperature: 1.0,
                top_p: 1.0,
                lambda: 1.0,
                penalties: vec![0.1, 0.3],
                ablation: Vec::new(),
                explained: 0.2,
                explained_by_position: vec![0.0, 0.1, 0.4],
                dial_to_kl: vec![(0.5, 0.12)],
                seed: 7,
                command: "vassal fit --reward sentiment".into(),
                version: "0.1.0".into(),
            },
        }
    }

    fn look_ahead(share: Vec<f32>) -> HeadFile {
        let head = LinearHead {
            tap: 0,
            residual: vec![1.0, -2.5, 1e-20],
            mean: vec![0.0, 4.0, 5.0],
            share,
            remaining: 0.5,
            bias: -1.0,
        };
        HeadFile { description: description(HeadKind::LookAhead), weights: HeadWeights::LookAhead(head) }
    }

    fn one_pass() -> HeadFile {
        let head = OnePassHead {
            tap: 0,
            rank: 2,
            state: (0..2 * (2 * HIDDEN + 2)).map(|i| 1e-6 * (i as f32 - 3.0)).collect(),
            embedding: (0..2 * HIDDEN).map(|i| 1e-5 * (i as f32 + 0.5)).collect(),
            token_bias: (0..VOCABULARY).map(|i| f16::from_f32(i as f32 / 8.0)).collect(),
        };
        HeadFile { description: description(HeadKind::OnePass), weights: HeadWeights::OnePass(head) }
    }

    #[test]
    fn a_look_ahead_head_reads_back_equal_and_equal_heads_are_equal_files() {
        for share in [vec![], vec![1.0, 2.0, 3.0]] {
            let file = look_ahead(share);
            let bytes = file.to_bytes().expect("valid");
            assert_eq!(bytes, file.to_bytes().expect("valid"));
            assert_eq!(HeadFile::read(&bytes).expect("valid"), file);
        }
    }

    #[test]
    fn a_head_that_reads_the_text_so_far_reads_back_equal_and_impossible_weights_are_refused() {
        let with = |weights: Vec<f32>| {
            let mut file = look_ahead(vec![]);
            file.description.text = Some(TextTerm { reward: "length 1: 8".into(), weights });
            file
        };
        let file = with((0..9).map(|i| 0.1 * i as f32 - 0.3).collect());
        assert_eq!(HeadFile::read(&file.to_bytes().expect("valid")).expect("valid"), file);
        for weights in [vec![], vec![0.5; 4], vec![0.5; 6], vec![0.5; 21], vec![1e7; 5], vec![f32::NAN; 5]] {
            let error = with(weights).to_bytes().expect_err("impossible").to_string();
            assert!(error.contains("text.weights must be 5, 9, 13 or 17 finite numbers"), "{error}");
        }
        let term = file.description.text.expect("a term");
        let error = term.reading("h", &|_| None).err().expect("nothing reads").to_string();
        assert!(error.contains("head \"h\" reads \"length 1: 8\" off the text so far, with 9 weights"), "{error}");
    }

    #[test]
    fn a_one_pass_head_reads_back_within_a_half_of_its_products() {
        let file = one_pass();
        let bytes = file.to_bytes().expect("valid");
        let read = HeadFile::read(&bytes).expect("valid");
        assert_eq!(read.to_bytes().expect("valid"), bytes);
        let (HeadWeights::OnePass(got), HeadWeights::OnePass(expected)) = (&read.weights, &file.weights) else {
            panic!("one-pass heads");
        };
        assert_eq!((got.rank, &got.token_bias), (2, &expected.token_bias));
        for r in 0..2 {
            for (&a, &b) in got.state[r * 8..][..8].iter().zip(&expected.state[r * 8..]) {
                for (&c, &d) in got.embedding[r * 3..][..3].iter().zip(&expected.embedding[r * 3..]) {
                    let (got, expected) = (f64::from(a) * f64::from(c), f64::from(b) * f64::from(d));
                    assert!((got - expected).abs() <= expected.abs() / 500.0, "{got} for {expected}");
                }
            }
        }
    }

    /// Found by the fuzz target `head_file`.
    #[test]
    fn a_head_that_was_read_is_written_without_loss() {
        let mut file = one_pass();
        let HeadWeights::OnePass(head) = &mut file.weights else { panic!("a one-pass head") };
        head.state.iter_mut().for_each(|x| *x *= 1e-12);
        head.embedding.iter_mut().for_each(|x| *x *= 1e-12);
        let once = HeadFile::read(&file.to_bytes().expect("valid")).expect("valid");
        assert_eq!(HeadFile::read(&once.to_bytes().expect("valid")).expect("valid"), once);
    }

    #[test]
    fn a_head_for_another_model_is_refused_by_shape_and_by_hash() {
        let file = look_ahead(vec![]);
        let sha256 = "ab".repeat(32);
        let own = ModelIdentity { sha256: &sha256, layers: 4, hidden: HIDDEN, vocabulary: VOCABULARY };
        assert!(file.check_model(own).is_ok());
        let check = |model, expected: &str| {
            let error = file.check_model(model).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(ModelIdentity { layers: 30, ..own }, "layers 4, this model has 30");
        check(ModelIdentity { hidden: 576, ..own }, "hidden width 3, this model has 576");
        check(ModelIdentity { vocabulary: 7, ..own }, "vocabulary 5, this model has 7");
        let other = "00".repeat(32);
        check(ModelIdentity { sha256: &other, ..own }, &format!("SHA-256 {sha256}, this model has {other}"));
    }

    #[test]
    fn impossible_descriptions_and_numbers_are_refused() {
        let check = |change: &dyn Fn(&mut HeadFile), expected: &str| {
            let mut file = look_ahead(vec![]);
            change(&mut file);
            let error = file.to_bytes().expect_err(expected).to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        };
        check(&|file| file.description.spread = f64::NAN, "spread must be finite and > 0");
        check(&|file| file.description.layer = 5, "layer must be 1 to 4, got 5");
        check(&|file| file.description.name = "a b".into(), "name must be 1 to 32 characters");
        check(&|file| file.description.hidden = 4, "\"residual\" must be F32 [4], got F32 [3]");
        check(&|file| file.description.hidden = usize::MAX, "hidden must be 1 to 65536");
        check(&|file| file.description.kind = HeadKind::OnePass, "\"scale\" must be F32 of 1 to 64 numbers, got 0");
        check(&|file| file.description.provenance.command = "x".repeat(1 << 20), "in its description, this has");
        check(
            &|file| file.weights = HeadWeights::LookAhead(LinearHead { bias: f32::NAN, ..linear(file) }),
            "\"scalars\" must be finite, got NaN",
        );
    }

    fn linear(file: &HeadFile) -> LinearHead {
        match &file.weights {
            HeadWeights::LookAhead(head) => head.clone(),
            HeadWeights::OnePass(_) => panic!("a look-ahead head"),
        }
    }

    #[test]
    fn damaged_files_are_refused_and_never_crash() {
        for file in [look_ahead(vec![]), one_pass()] {
            let bytes = file.to_bytes().expect("valid");
            for length in 0..bytes.len() {
                assert!(HeadFile::read(&bytes[..length]).is_err(), "cut at {length}");
            }
            for at in 0..bytes.len() {
                for bit in [1, 128] {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= bit;
                    // A flipped bit may give another valid head; it must not give a panic or a NaN.
                    if let Ok(read) = HeadFile::read(&damaged) {
                        assert!(read.to_bytes().is_ok());
                    }
                }
            }
        }
        assert!(matches!(HeadFile::read(&vec![0; FILE_BYTES_MAX + 1]), Err(HeadError::Size { .. })));
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("vassal-heads-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let path = folder.join("h.safetensors");
        let file = look_ahead(vec![]);
        file.write(&path).expect("written");
        assert_eq!(HeadFile::open(&path).expect("valid"), file);
        assert_eq!(std::fs::read_dir(&folder).expect("a folder").count(), 1);
        let missing = folder.join("none").join("h.safetensors");
        assert!(matches!(file.write(&missing), Err(HeadError::File { .. })));
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
