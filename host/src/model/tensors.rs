//! Which tensor is which weight: names and shapes of a Llama-family GGUF file.
//!
//! Every weight is found by its name and checked against the shape that the model's numbers ask for, so
//! whoever loads weights needs no checks of its own. A tensor that has no place is refused: the forward
//! pass would ignore it, and the text would be wrong without a sign of it.
//!
//! Start at [`TensorSet`].

use vassal_kernels::Format;

use super::config::{ConfigError, Numbers};
use super::gguf::{Gguf, TensorInfo};

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

/// A tensor that must be there.
pub(super) fn named<'a>(gguf: &'a Gguf, name: &str) -> Result<&'a TensorInfo, ConfigError> {
    gguf.tensor(name).ok_or_else(|| ConfigError::MissingTensor { name: name.to_owned() })
}

/// Finds weights by name and shape, and counts them, so that a tensor nobody asked for is noticed.
struct Finder<'a> {
    gguf: &'a Gguf,
    found: usize,
}

impl Finder<'_> {
    fn shaped(&mut self, name: &str, expected: &[u64]) -> Result<TensorInfo, ConfigError> {
        let tensor = named(self.gguf, name)?;
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
            Format::F32 | Format::F16 | Format::Bf16 => Ok(tensor),
            found => Err(ConfigError::VectorFormat { name: name.to_owned(), found }),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }
}

/// Finds every weight of a model with these numbers, and RoPE's factors where the file has them.
pub(super) fn find(gguf: &Gguf, numbers: &Numbers) -> Result<(TensorSet, Option<TensorInfo>), ConfigError> {
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
    let set = TensorSet { embedding, output_norm, output, layers };
    // Names are unique in a file, so equal counts mean that every tensor has its place.
    if finder.found != gguf.tensors().len() {
        let known = set.names();
        let stranger =
            gguf.tensors().iter().find(|tensor| tensor.name != "rope_freqs.weight" && !known.contains(&&*tensor.name));
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
            all.extend([&layer.attention_norm, &layer.query, &layer.key, &layer.value]);
            all.extend(layer.biases.iter().flatten());
            all.extend([&layer.attention_output, &layer.feed_forward_norm]);
            all.extend([&layer.gate, &layer.up, &layer.down]);
        }
        all.into_iter().map(|tensor| tensor.name.as_str()).collect()
    }
}
