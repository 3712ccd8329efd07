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
    /// A gain or bias that is stored as something else than F32 or F16.
    #[error("tensor {name:?} is stored as {found}; a vector must be F32 or F16")]
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

/// The weights of one layer, each checked against the model's numbers. Matrices are `[n, k]`, row-major.
#[derive(Debug, Clone)]
pub struct LayerTensors {
    /// Gain of the norm before attention, `[H]`.
    pub attention_norm: TensorInfo,
    /// `[A*D, H]`.
    pub query: TensorInfo,
    /// `[KV*D, H]`.
    pub key: TensorInfo,
    /// `[KV*D, H]`.
    pub value: TensorInfo,
    /// Biases of query, key and value, `[A*D]`, `[KV*D]`, `[KV*D]`, in a model that has them.
    pub biases: Option<[TensorInfo; 3]>,
    /// `[H, A*D]`.
    pub attention_output: TensorInfo,
    /// Gain of the norm before the feed-forward part, `[H]`.
    pub feed_forward_norm: TensorInfo,
    /// `[F, H]`.
    pub gate: TensorInfo,
    /// `[F, H]`.
    pub up: TensorInfo,
    /// `[H, F]`.
    pub down: TensorInfo,
}

/// All weights of a model.
#[derive(Debug, Clone)]
pub struct TensorSet {
    /// The embedding, `[V, H]`.
    pub embedding: TensorInfo,
    /// Gain of the last norm, `[H]`.
    pub output_norm: TensorInfo,
    /// The LM head, `[V, H]`; none where the embedding serves as one.
    pub output: Option<TensorInfo>,
    /// The layers, in order.
    pub layers: Vec<LayerTensors>,
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
            return Err(ConfigError::Architecture {
                found: architecture.chars().take(64).collect(),
            });
        }
        refuse_unsupported(gguf)?;
        let numbers = Numbers::read(gguf)?;
        let (tensors, factors) = find_tensors(gguf, &numbers)?;
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
const ONE_KEYS: [&str; 3] = [
    "llama.logit_scale",
    "llama.embedding_scale",
    "llama.residual_scale",
];

fn refuse_unsupported(gguf: &Gguf) -> Result<(), ConfigError> {
    for (keys, neutral) in [(&ZERO_KEYS[..], 0.0), (&ONE_KEYS[..], 1.0)] {
        for key in keys {
            if let Some(given) = gguf.float(key)?
                && given != 0.0
                && given != neutral
            {
                return Err(ConfigError::Unsupported {
                    what: format!("{key} = {given}"),
                });
            }
        }
    }
    Ok(())
}

struct Numbers {
    layers: u64,
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    head_width: u64,
    feed_forward: u64,
    vocabulary: u64,
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
                return Err(bound(
                    key,
                    given as f64,
                    format!("{head_width}, a head's width"),
                ));
            }
        }
        let vocabulary = vocabulary(gguf)?;
        let epsilon_key = "llama.attention.layer_norm_rms_epsilon";
        let norm_epsilon = required(epsilon_key, gguf.float(epsilon_key)?)?;
        if !(norm_epsilon > 0.0 && norm_epsilon <= 0.1) {
            return Err(bound(
                epsilon_key,
                norm_epsilon,
                "above 0, at most 0.1".into(),
            ));
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
    let embedding = tensor(gguf, "token_embd.weight")?;
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
            return Err(bound(
                key,
                given as f64,
                format!("{rows}, the embedding's rows"),
            ));
        }
    }
    Ok(rows)
}

fn bound(key: &str, given: f64, accepted: String) -> ConfigError {
    ConfigError::Bound {
        key: key.to_owned(),
        given,
        accepted,
    }
}

fn count(gguf: &Gguf, key: &str, max: u64) -> Result<u64, ConfigError> {
    let given = required(key, gguf.integer(key)?)?;
    if (1..=max).contains(&given) {
        Ok(given)
    } else {
        Err(bound(key, given as f64, format!("1 to {max}")))
    }
}

fn tensor<'a>(gguf: &'a Gguf, name: &str) -> Result<&'a TensorInfo, ConfigError> {
    gguf.tensor(name).ok_or_else(|| ConfigError::MissingTensor {
        name: name.to_owned(),
    })
}

/// Finds weights by name and shape, and counts them, so that a tensor nobody asked for is noticed.
struct Finder<'a> {
    gguf: &'a Gguf,
    found: usize,
}

impl Finder<'_> {
    fn shaped(&mut self, name: &str, expected: &[u64]) -> Result<TensorInfo, ConfigError> {
        let tensor = tensor(self.gguf, name)?;
        if tensor.shape != expected {
            return Err(ConfigError::TensorShape {
                name: name.to_owned(),
                found: tensor.shape.clone(),
                expected: expected.to_vec(),
            });
        }
        self.found += 1;
        Ok(tensor.clone())
    }

    /// A matrix of `n` rows and `k` columns.
    fn matrix(&mut self, name: &str, n: u64, k: u64) -> Result<TensorInfo, ConfigError> {
        self.shaped(name, &[k, n])
    }

    fn vector(&mut self, name: &str, n: u64) -> Result<TensorInfo, ConfigError> {
        let tensor = self.shaped(name, &[n])?;
        match tensor.format {
            Format::F32 | Format::F16 => Ok(tensor),
            found => Err(ConfigError::VectorFormat {
                name: name.to_owned(),
                found,
            }),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }
}

fn find_tensors(
    gguf: &Gguf,
    numbers: &Numbers,
) -> Result<(TensorSet, Option<TensorInfo>), ConfigError> {
    let (hidden, feed_forward) = (numbers.hidden, numbers.feed_forward);
    let query_width = numbers.heads * numbers.head_width;
    let kv_width = numbers.kv_heads * numbers.head_width;
    let mut finder = Finder { gguf, found: 0 };
    let embedding = finder.matrix("token_embd.weight", numbers.vocabulary, hidden)?;
    let output_norm = finder.vector("output_norm.weight", hidden)?;
    let output = match finder.has("output.weight") {
        true => Some(finder.matrix("output.weight", numbers.vocabulary, hidden)?),
        false => None,
    };
    let factors = match finder.has("rope_freqs.weight") {
        true => Some(finder.vector("rope_freqs.weight", numbers.head_width / 2)?),
        false => None,
    };
    let mut layers = Vec::with_capacity(numbers.layers as usize);
    for layer in 0..numbers.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let biases = match finder.has(&name("attn_q.bias")) {
            true => Some([
                finder.vector(&name("attn_q.bias"), query_width)?,
                finder.vector(&name("attn_k.bias"), kv_width)?,
                finder.vector(&name("attn_v.bias"), kv_width)?,
            ]),
            false => None,
        };
        layers.push(LayerTensors {
            attention_norm: finder.vector(&name("attn_norm.weight"), hidden)?,
            query: finder.matrix(&name("attn_q.weight"), query_width, hidden)?,
            key: finder.matrix(&name("attn_k.weight"), kv_width, hidden)?,
            value: finder.matrix(&name("attn_v.weight"), kv_width, hidden)?,
            biases,
            attention_output: finder.matrix(&name("attn_output.weight"), hidden, query_width)?,
            feed_forward_norm: finder.vector(&name("ffn_norm.weight"), hidden)?,
            gate: finder.matrix(&name("ffn_gate.weight"), feed_forward, hidden)?,
            up: finder.matrix(&name("ffn_up.weight"), feed_forward, hidden)?,
            down: finder.matrix(&name("ffn_down.weight"), hidden, feed_forward)?,
        });
    }
    let set = TensorSet {
        embedding,
        output_norm,
        output,
        layers,
    };
    // Names are unique in a file, so equal counts mean that every tensor has its place.
    if finder.found != gguf.tensors().len() {
        let known = set.names();
        let stranger = gguf
            .tensors()
            .iter()
            .find(|tensor| tensor.name != "rope_freqs.weight" && !known.contains(&&*tensor.name));
        let name = stranger.map_or("", |tensor| &tensor.name);
        return Err(ConfigError::Unsupported {
            what: format!("tensor {name:?}, which a Llama of these numbers does not have,"),
        });
    }
    Ok((set, factors))
}

impl TensorSet {
    /// The names of all weights.
    fn names(&self) -> std::collections::HashSet<&str> {
        let mut all = vec![&self.embedding, &self.output_norm];
        all.extend(&self.output);
        for layer in &self.layers {
            all.extend([
                &layer.attention_norm,
                &layer.query,
                &layer.key,
                &layer.value,
            ]);
            all.extend(layer.biases.iter().flatten());
            all.extend([&layer.attention_output, &layer.feed_forward_norm]);
            all.extend([&layer.gate, &layer.up, &layer.down]);
        }
        all.into_iter().map(|tensor| tensor.name.as_str()).collect()
    }
}

/// RoPE's frequencies, `base^(-2i/D)`, divided by the file's factors (Llama 3.1's long-context scaling,
/// precomputed by the converter) and by a linear scale.
fn inverse_frequencies(
    gguf: &Gguf,
    numbers: &Numbers,
    factors: Option<TensorInfo>,
) -> Result<Vec<f64>, ConfigError> {
    let base_key = "llama.rope.freq_base";
    let base = gguf.float(base_key)?.unwrap_or(10_000.0);
    if !(base >= 1.0 && base <= 1e9) {
        return Err(bound(base_key, base, "1 to 1e9".into()));
    }
    let scale = linear_scale(gguf)?;
    let half = numbers.head_width as usize / 2;
    let mut frequencies: Vec<f64> = (0..half)
        .map(|i| base.powf(-(2.0 * i as f64) / numbers.head_width as f64) / scale)
        .collect();
    if let Some(factors) = factors {
        let values = read_vector(gguf, &factors)?;
        for (index, (frequency, factor)) in frequencies.iter_mut().zip(values).enumerate() {
            if !(factor > 0.0 && factor.is_finite()) {
                return Err(ConfigError::Factor {
                    name: factors.name,
                    index,
                    given: factor,
                });
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
            return Err(ConfigError::Unsupported {
                what: format!("{type_key} = {other:?}"),
            });
        }
    };
    if scale >= 1.0 && scale <= 1024.0 {
        Ok(scale)
    } else {
        Err(bound(key, scale, "1 to 1024".into()))
    }
}

/// Reads a vector stored as F32 or F16 (gains, biases, factors).
pub fn read_vector(gguf: &Gguf, tensor: &TensorInfo) -> Result<Vec<f32>, GgufError> {
    let mut bytes = Vec::new();
    gguf.read(tensor, &mut bytes)?;
    let elements: u64 = tensor.shape.iter().product();
    let mut values = vec![0.0; elements as usize];
    // The sizes agree, since both come from the checked header.
    tensor.format.dequantize(&bytes, &mut values);
    Ok(values)
}
