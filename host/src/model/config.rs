//! What a Llama-family GGUF file says of itself: shapes, RoPE, and which tensor is which weight.
//!
//! Every number is capped and agrees with the others, and every tensor with the shape that follows
//! from them, before any weight is read; so whoever loads the weights needs no checks of its own. A
//! file that holds something this forward pass would silently ignore (experts, a sliding window, an
//! unknown tensor) is refused, because its text would be wrong without a sign of it.
//!
//! Start at [`LlamaConfig::from_gguf`].

use vassal_kernels::{Format, ModelShape, RopePairing};

use super::gguf::{Gguf, GgufError, TensorInfo, required};
use super::tensors;
pub use super::tensors::{LayerTensors, TensorSet};

/// Decoder layers. Llama 3.1 405B has 126.
pub const LAYERS_MAX: u64 = 256;
/// Width of the residual stream. Llama 3.1 405B has 16,384.
pub const HIDDEN_MAX: u64 = 32_768;
/// Query heads. Llama 3.1 405B has 128.
pub const HEADS_MAX: u64 = 256;
/// Width of one head. Llamas have 64 or 128.
pub const HEAD_WIDTH_MAX: u64 = 256;
/// Width of the feed-forward part. Llama 3.1 405B has 53,248.
pub const FEED_FORWARD_MAX: u64 = 131_072;
/// Tokens. Gemma has 262,144.
pub const VOCABULARY_MAX: u64 = 524_288;
/// Context. Models with longer training exist; positions here are exact in f32 up to 2^24.
pub const CONTEXT_MAX: u64 = 1 << 24;

/// Why a file's model cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key is missing or of another kind.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Another architecture.
    #[error("architecture {found:?} is not supported; supported: \"llama\"")]
    Architecture {
        /// The file's `general.architecture`.
        found: String,
    },
    /// A number outside its bounds.
    #[error("{key} is {given}; accepted: {accepted}")]
    Bound {
        /// The metadata key.
        key: String,
        /// The number in the file.
        given: f64,
        /// What is accepted.
        accepted: String,
    },
    /// Something that the forward pass does not compute.
    #[error("{what} is not supported")]
    Unsupported {
        /// The key and its value, or the tensor.
        what: String,
    },
    /// A weight is missing.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A weight of another shape than the numbers ask for.
    #[error("tensor {name:?} has the shape {found:?}, the model's numbers ask for {expected:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// Its dimensions, the fastest first.
        found: Vec<u64>,
        /// Those that the numbers ask for.
        expected: Vec<u64>,
    },
    /// A gain or bias that is stored as something else than a plain format.
    #[error("tensor {name:?} is stored as {found}; a vector must be F32, F16 or BF16")]
    VectorFormat {
        /// Its name.
        name: String,
        /// Its format.
        found: Format,
    },
    /// A vector holds a number that makes no sense.
    #[error("tensor {name:?} holds {given} at {index}; accepted: finite and > 0")]
    Factor {
        /// Its name.
        name: String,
        /// Where.
        index: usize,
        /// What it holds.
        given: f32,
    },
}

/// A model's numbers and weights, checked.
#[derive(Debug, Clone)]
pub struct LlamaConfig {
    /// What the file calls itself.
    pub name: String,
    /// The shapes, with RoPE's frequencies.
    pub shape: ModelShape,
    /// Where the weights are.
    pub tensors: TensorSet,
}

impl LlamaConfig {
    /// Reads a model's numbers and finds its weights.
    pub fn from_gguf(gguf: &Gguf) -> Result<LlamaConfig, ConfigError> {
        let architecture = required(ARCHITECTURE, gguf.text(ARCHITECTURE)?)?;
        if architecture != "llama" {
            return Err(ConfigError::Architecture { found: architecture.chars().take(64).collect() });
        }
        refuse_unsupported(gguf)?;
        let numbers = Numbers::read(gguf)?;
        let (tensors, factors) = tensors::find(gguf, &numbers)?;
        let rope_inverse_frequencies = inverse_frequencies(gguf, &numbers, factors)?;
        let name = match gguf.text("general.name")? {
            Some(name) => name.chars().filter(|c| !c.is_control()).take(128).collect(),
            None => "unnamed".to_owned(),
        };
        Ok(LlamaConfig {
            name,
            shape: ModelShape {
                layers: numbers.layers as usize,
                hidden: numbers.hidden as usize,
                heads: numbers.heads as usize,
                kv_heads: numbers.kv_heads as usize,
                head_width: numbers.head_width as usize,
                feed_forward: numbers.feed_forward as usize,
                vocabulary: numbers.vocabulary as usize,
                context_tokens: numbers.context as usize,
                norm_epsilon: numbers.norm_epsilon as f32,
                rope_pairing: RopePairing::Interleaved,
                rope_inverse_frequencies,
            },
            tensors,
        })
    }
}

const ARCHITECTURE: &str = "general.architecture";

/// Keys that change the arithmetic in ways that the forward pass does not know; zero is neutral.
const ZERO_KEYS: [&str; 6] = [
    "llama.expert_count",
    "llama.attention.sliding_window",
    "llama.attention.clamp_kqv",
    "llama.attention.scale",
    "llama.attn_logit_softcapping",
    "llama.final_logit_softcapping",
];
/// The same; one is neutral, and so is zero.
const ONE_KEYS: [&str; 3] = ["llama.logit_scale", "llama.embedding_scale", "llama.residual_scale"];

fn refuse_unsupported(gguf: &Gguf) -> Result<(), ConfigError> {
    for (keys, neutral) in [(&ZERO_KEYS[..], 0.0), (&ONE_KEYS[..], 1.0)] {
        for key in keys {
            if let Some(given) = gguf.float(key)?
                && given != 0.0
                && given != neutral
            {
                return Err(ConfigError::Unsupported { what: format!("{key} = {given}") });
            }
        }
    }
    Ok(())
}

/// A model's numbers, capped and in agreement with each other.
pub(super) struct Numbers {
    pub(super) layers: u64,
    pub(super) hidden: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head_width: u64,
    pub(super) feed_forward: u64,
    pub(super) vocabulary: u64,
    context: u64,
    norm_epsilon: f64,
}

impl Numbers {
    fn read(gguf: &Gguf) -> Result<Numbers, ConfigError> {
        let hidden = count(gguf, "llama.embedding_length", HIDDEN_MAX)?;
        let heads = count(gguf, "llama.attention.head_count", HEADS_MAX)?;
        let kv_key = "llama.attention.head_count_kv";
        let kv_heads = match gguf.integer(kv_key)? {
            None => heads,
            Some(given) if given >= 1 && given <= heads && heads.is_multiple_of(given) => given,
            Some(given) => return Err(bound(kv_key, given as f64, format!("divisors of {heads}"))),
        };
        let width_key = "llama.attention.key_length";
        let head_width = match gguf.integer(width_key)? {
            Some(given) => given,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let accepted = format!("divisors of llama.embedding_length, {hidden}");
                return Err(bound("llama.attention.head_count", heads as f64, accepted));
            }
        };
        if !((2..=HEAD_WIDTH_MAX).contains(&head_width) && head_width.is_multiple_of(2)) {
            let accepted = format!("even numbers from 2 to {HEAD_WIDTH_MAX}");
            return Err(bound(width_key, head_width as f64, accepted));
        }
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(given) = gguf.integer(key)?
                && given != head_width
            {
                return Err(bound(key, given as f64, format!("{head_width}, a head's width")));
            }
        }
        let vocabulary = vocabulary(gguf)?;
        let epsilon_key = "llama.attention.layer_norm_rms_epsilon";
        let norm_epsilon = required(epsilon_key, gguf.float(epsilon_key)?)?;
        if !(norm_epsilon > 0.0 && norm_epsilon <= 0.1) {
            return Err(bound(epsilon_key, norm_epsilon, "above 0, at most 0.1".into()));
        }
        Ok(Numbers {
            layers: count(gguf, "llama.block_count", LAYERS_MAX)?,
            hidden,
            heads,
            kv_heads,
            head_width,
            feed_forward: count(gguf, "llama.feed_forward_length", FEED_FORWARD_MAX)?,
            vocabulary,
            context: count(gguf, "llama.context_length", CONTEXT_MAX)?,
            norm_epsilon,
        })
    }
}

/// The vocabulary's size: the embedding's rows. Where keys give it too, they must agree.
fn vocabulary(gguf: &Gguf) -> Result<u64, ConfigError> {
    let embedding = tensors::named(gguf, "token_embd.weight")?;
    let rows = embedding.shape.get(1).copied().unwrap_or(1);
    if !(1..=VOCABULARY_MAX).contains(&rows) {
        let accepted = format!("1 to {VOCABULARY_MAX}");
        return Err(bound("rows of token_embd.weight", rows as f64, accepted));
    }
    let size_key = "llama.vocab_size";
    let tokens_key = "tokenizer.ggml.tokens";
    let listed = gguf.texts(tokens_key)?.map(|tokens| tokens.len() as u64);
    for (key, given) in [(size_key, gguf.integer(size_key)?), (tokens_key, listed)] {
        if let Some(given) = given
            && given != rows
        {
            return Err(bound(key, given as f64, format!("{rows}, the embedding's rows")));
        }
    }
    Ok(rows)
}

fn bound(key: &str, given: f64, accepted: String) -> ConfigError {
    ConfigError::Bound { key: key.to_owned(), given, accepted }
}

fn count(gguf: &Gguf, key: &str, max: u64) -> Result<u64, ConfigError> {
    let given = required(key, gguf.integer(key)?)?;
    if (1..=max).contains(&given) { Ok(given) } else { Err(bound(key, given as f64, format!("1 to {max}"))) }
}

/// RoPE's frequencies, `base^(-2i/D)`, divided by the file's factors (Llama 3.1's long-context scaling,
/// precomputed by the converter) and by a linear scale.
fn inverse_frequencies(gguf: &Gguf, numbers: &Numbers, factors: Option<TensorInfo>) -> Result<Vec<f64>, ConfigError> {
    let base_key = "llama.rope.freq_base";
    let base = gguf.float(base_key)?.unwrap_or(10_000.0);
    if !(1.0..=1e9).contains(&base) {
        return Err(bound(base_key, base, "1 to 1e9".into()));
    }
    let scale = linear_scale(gguf)?;
    let half = numbers.head_width as usize / 2;
    let mut frequencies: Vec<f64> =
        (0..half).map(|i| base.powf(-(2.0 * i as f64) / numbers.head_width as f64) / scale).collect();
    if let Some(factors) = factors {
        let values = read_vector(gguf, &factors)?;
        for (index, (frequency, factor)) in frequencies.iter_mut().zip(values).enumerate() {
            if !(factor > 0.0 && factor.is_finite()) {
                return Err(ConfigError::Factor { name: factors.name, index, given: factor });
            }
            *frequency /= f64::from(factor);
        }
    }
    Ok(frequencies)
}

fn linear_scale(gguf: &Gguf) -> Result<f64, ConfigError> {
    let type_key = "llama.rope.scaling.type";
    let factor_key = "llama.rope.scaling.factor";
    let old_key = "llama.rope.scale_linear";
    let (key, scale) = match gguf.text(type_key)? {
        None | Some("none") => match gguf.float(old_key)? {
            Some(scale) => (old_key, scale),
            None => return Ok(1.0),
        },
        Some("linear") => (factor_key, required(factor_key, gguf.float(factor_key)?)?),
        Some(other) => {
            let other: String = other.chars().take(64).collect();
            return Err(ConfigError::Unsupported { what: format!("{type_key} = {other:?}") });
        }
    };
    if (1.0..=1024.0).contains(&scale) { Ok(scale) } else { Err(bound(key, scale, "1 to 1024".into())) }
}

/// Reads a vector stored in a plain format (gains, biases, factors).
pub fn read_vector(gguf: &Gguf, tensor: &TensorInfo) -> Result<Vec<f32>, GgufError> {
    let mut bytes = Vec::new();
    gguf.read(tensor, &mut bytes)?;
    let elements: u64 = tensor.shape.iter().product();
    let mut values = vec![0.0; elements as usize];
    // The sizes agree, since both come from the checked header.
    tensor.format.dequantize(&bytes, &mut values);
    Ok(values)
}
