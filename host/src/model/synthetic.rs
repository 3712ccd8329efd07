//! Tiny Llama models out of a seed: whole GGUF files with a toy tokenizer and a chat template.
//!
//! Tests of the engine, the sandbox and the learner run on these within milliseconds, without a
//! download. The weights are noise, so the text is too, but everything a real file has is there: norms,
//! grouped heads, every format, special tokens, merges. The same parameters give the same bytes.
//!
//! Not a quantiser for real models, and no claim about how real weights are distributed. Start at
//! [`SyntheticModel`].

use std::io;
use std::path::Path;

use vassal_kernels::Format;

use super::gguf::write::{Writer, quantize};
use super::gguf::{Gguf, GgufError};
use super::token_bytes::character_of;

/// The token that ends a text, and a response.
pub const END_OF_TEXT: u32 = 0;
/// The token that starts a turn.
pub const TURN_START: u32 = 1;
/// The token that ends a turn, and a response.
pub const TURN_END: u32 = 2;
/// The token of byte 0; that of byte b is this plus b.
pub const FIRST_BYTE: u32 = 3;

/// Merges of the toy tokenizer: each makes a token of its own, in this order after the bytes.
pub const MERGES: [(&str, &str); 24] = [
    ("Ġ", "t"),
    ("h", "e"),
    ("i", "n"),
    ("Ġ", "a"),
    ("r", "e"),
    ("Ġt", "he"),
    ("o", "n"),
    ("e", "r"),
    ("n", "d"),
    ("Ġ", "s"),
    ("o", "u"),
    ("a", "t"),
    ("Ġ", "w"),
    ("in", "g"),
    ("Ġa", "nd"),
    ("o", "r"),
    ("Ġ", "b"),
    ("l", "l"),
    ("Ġ", "i"),
    ("Ġ", "o"),
    ("Ġ", "y"),
    ("Ġy", "ou"),
    ("g", "o"),
    ("Ġ", "go"),
];

/// The chat template: every turn between its two tokens, with the role in the first line.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What a synthetic model is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticModel {
    /// Where the weights come from.
    pub seed: u64,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream; a multiple of 32 for block formats, and of `2 * heads`.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of the feed-forward part; a multiple of 32 for block formats.
    pub feed_forward: usize,
    /// The longest sequence.
    pub context_tokens: usize,
    /// Tokens; raised to what the toy tokenizer needs. Further ones are words that no merge makes, so
    /// that they can be drawn and never come from text.
    pub vocabulary: usize,
    /// Format of the layers' matrices.
    pub matrices: Format,
    /// Format of the embedding, and of the LM head where there is one.
    pub embedding: Format,
    /// Whether the LM head is a matrix of its own.
    pub own_output: bool,
    /// Whether query, key and value have biases.
    pub biases: bool,
}

impl Default for SyntheticModel {
    fn default() -> SyntheticModel {
        SyntheticModel {
            seed: 1,
            layers: 3,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            feed_forward: 96,
            context_tokens: 512,
            vocabulary: 0,
            matrices: Format::Q4_1,
            embedding: Format::Q8_0,
            own_output: false,
            biases: false,
        }
    }
}

impl SyntheticModel {
    /// Tokens that the model has.
    pub fn vocabulary_size(&self) -> usize {
        let least = FIRST_BYTE as usize + 256 + MERGES.len();
        self.vocabulary.max(least)
    }

    /// The GGUF file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.numbers(&mut writer);
        self.tokenizer(&mut writer);
        self.weights(&mut writer);
        writer.finish()
    }

    /// The file, opened in memory; refused where the parameters make no model.
    pub fn gguf(&self) -> Result<Gguf, GgufError> {
        Gguf::from_bytes(self.bytes())
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.bytes())
    }

    fn numbers(&self, writer: &mut Writer) {
        writer.text("general.architecture", "llama");
        writer.text("general.name", "Synthetic");
        for (key, value) in [
            ("llama.block_count", self.layers),
            ("llama.context_length", self.context_tokens),
            ("llama.embedding_length", self.hidden),
            ("llama.feed_forward_length", self.feed_forward),
            ("llama.attention.head_count", self.heads),
            ("llama.attention.head_count_kv", self.kv_heads),
            ("llama.vocab_size", self.vocabulary_size()),
        ] {
            writer.integer(key, value as u32);
        }
        writer.float("llama.rope.freq_base", 10_000.0);
        writer.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    }

    fn tokenizer(&self, writer: &mut Writer) {
        let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned).into();
        tokens.extend((0..=255u8).map(|byte| character_of(byte).to_string()));
        tokens.extend(MERGES.map(|(left, right)| format!("{left}{right}")));
        for index in tokens.len()..self.vocabulary_size() {
            tokens.push(format!("Ġw{index}"));
        }
        let kinds: Vec<i32> = (0..tokens.len() as u32).map(|token| if token < FIRST_BYTE { 3 } else { 1 }).collect();
        let merges = MERGES.map(|(left, right)| format!("{left} {right}"));
        writer.text("tokenizer.ggml.model", "gpt2");
        writer.text("tokenizer.ggml.pre", "gpt-2");
        writer.texts("tokenizer.ggml.tokens", tokens.iter().map(String::as_str));
        writer.integers("tokenizer.ggml.token_type", &kinds);
        writer.texts("tokenizer.ggml.merges", merges.iter().map(String::as_str));
        writer.integer("tokenizer.ggml.bos_token_id", TURN_START);
        writer.integer("tokenizer.ggml.eos_token_id", TURN_END);
        writer.boolean("tokenizer.ggml.add_bos_token", false);
        writer.text("tokenizer.chat_template", CHAT_TEMPLATE);
    }

    fn weights(&self, writer: &mut Writer) {
        let mut noise = Noise(self.seed);
        let (hidden, feed_forward) = (self.hidden, self.feed_forward);
        let head_width = hidden / self.heads.max(1);
        let kv_width = self.kv_heads * head_width;
        let query_width = self.heads * head_width;
        let vocabulary = self.vocabulary_size();
        // Rows of norm 2.5 give logits that spread over some e^±5: neither uniform nor decided.
        let spread = 2.5 / (hidden as f32).sqrt();
        let mut matrix = |name: &str, n: usize, k: usize, format: Format, scale: f32| {
            let values: Vec<f32> = (0..n * k).map(|_| noise.number() * scale).collect();
            let shape = [k as u64, n as u64];
            writer.tensor(name, &shape, format, &quantize(format, &values));
        };
        matrix("token_embd.weight", vocabulary, hidden, self.embedding, spread);
        if self.own_output {
            matrix("output.weight", vocabulary, hidden, self.embedding, spread);
        }
        let (into, out) = (1.0 / (hidden as f32).sqrt(), 1.0 / (feed_forward as f32).sqrt());
        for layer in 0..self.layers {
            for (part, n, k, scale) in [
                ("attn_q", query_width, hidden, 2.0 * into),
                ("attn_k", kv_width, hidden, 2.0 * into),
                ("attn_v", kv_width, hidden, into),
                ("attn_output", hidden, query_width, into),
                ("ffn_gate", feed_forward, hidden, 2.0 * into),
                ("ffn_up", feed_forward, hidden, 2.0 * into),
                ("ffn_down", hidden, feed_forward, out),
            ] {
                matrix(&format!("blk.{layer}.{part}.weight"), n, k, self.matrices, scale);
            }
        }
        let mut vector = |name: &str, n: usize, around: f32| {
            let values: Vec<f32> = (0..n).map(|_| around + 0.1 * noise.number()).collect();
            writer.tensor(name, &[n as u64], Format::F32, &quantize(Format::F32, &values));
        };
        vector("output_norm.weight", hidden, 1.0);
        for layer in 0..self.layers {
            vector(&format!("blk.{layer}.attn_norm.weight"), hidden, 1.0);
            vector(&format!("blk.{layer}.ffn_norm.weight"), hidden, 1.0);
            if self.biases {
                vector(&format!("blk.{layer}.attn_q.bias"), query_width, 0.0);
                vector(&format!("blk.{layer}.attn_k.bias"), kv_width, 0.0);
                vector(&format!("blk.{layer}.attn_v.bias"), kv_width, 0.0);
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014), as numbers of mean 0 and variance 1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform between ±√3.
    fn number(&mut self) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1u32 << 24) as f32;
        (2.0 * unit - 1.0) * 3f32.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::LlamaConfig;
    use crate::model::tokenizer::Tokenizer;
    use crate::token::Vocabulary;

    #[test]
    fn every_format_makes_a_model_that_loads() {
        for format in Format::ALL {
            let model = SyntheticModel {
                matrices: format,
                embedding: format,
                own_output: format == Format::F16,
                biases: format == Format::F32,
                vocabulary: 300,
                ..SyntheticModel::default()
            };
            let gguf = model.gguf().unwrap();
            let config = LlamaConfig::from_gguf(&gguf).unwrap();
            assert_eq!(config.shape.vocabulary, 300);
            assert_eq!(config.shape.head_width, 16);
            assert_eq!(config.tensors.layers.len(), 3);
            assert_eq!(config.tensors.output.is_some(), format == Format::F16);
            assert_eq!(config.tensors.layers[0].biases.is_some(), format == Format::F32);
        }
    }

    #[test]
    fn the_seed_decides_every_byte() {
        let model = SyntheticModel::default();
        assert_eq!(model.bytes(), model.bytes());
        let other = SyntheticModel { seed: 2, ..model.clone() };
        assert_ne!(model.bytes(), other.bytes());
    }

    #[test]
    fn the_toy_tokenizer_merges_and_comes_back() {
        let gguf = SyntheticModel::default().gguf().unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let text = "you and the naïve 😀 one\n\u{0}";
        let tokens = tokenizer.encode(text, false).unwrap();
        assert!(tokens.len() < text.len());
        assert_eq!(tokenizer.decode(&tokens), text);
        let turn = "<|im_start|>x<|im_end|>";
        let x = FIRST_BYTE + u32::from(b'x');
        assert_eq!(tokenizer.encode(turn, true).unwrap(), [TURN_START, x, TURN_END]);
        assert!(tokenizer.tokens(turn).iter().all(|t| !tokenizer.is_special(*t)));
        assert_eq!(tokenizer.end_of_text(), [END_OF_TEXT, TURN_END]);
    }
}
