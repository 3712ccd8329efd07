//! GGUF files through everything that reads one: header, configuration, tokenizer, chat template, weights.
//!
//! An input that begins with the format's magic number is a file. Any other is choices by which a file is made: a valid
//! header, the keys that the readers look for with values near those of a tiny model, tensors with its names.

use arbitrary::{Result, Unstructured};
use vassal::model::config::LlamaConfig;
use vassal::model::gguf::Gguf;
use vassal::model::gguf::write::Writer;
use vassal::model::llama::Llama;
use vassal::model::synthetic::{CHAT_TEMPLATE, SyntheticModel};
use vassal::model::template::{ChatTemplate, Message};
use vassal::model::tokenizer::Tokenizer;
use vassal_kernels::cpu::{Cpu, Isa};

/// The first bytes of a file.
pub const MAGIC: &[u8] = b"GGUF";

/// A model so small that its file is a few kilobytes beside its vocabulary.
pub fn model() -> SyntheticModel {
    SyntheticModel { layers: 1, hidden: 32, heads: 2, kv_heads: 1, feed_forward: 32, ..SyntheticModel::default() }
}

/// Keys that somebody reads, with the type that they read.
const KEYS: [(&str, Kind); 27] = [
    ("general.alignment", Kind::Integer),
    ("general.name", Kind::Text),
    ("llama.block_count", Kind::Integer),
    ("llama.context_length", Kind::Integer),
    ("llama.embedding_length", Kind::Integer),
    ("llama.feed_forward_length", Kind::Integer),
    ("llama.attention.head_count", Kind::Integer),
    ("llama.attention.head_count_kv", Kind::Integer),
    ("llama.attention.key_length", Kind::Integer),
    ("llama.attention.value_length", Kind::Integer),
    ("llama.attention.sliding_window", Kind::Integer),
    ("llama.rope.dimension_count", Kind::Integer),
    ("llama.vocab_size", Kind::Integer),
    ("llama.expert_count", Kind::Integer),
    ("llama.rope.freq_base", Kind::Float),
    ("llama.rope.scale_linear", Kind::Float),
    ("llama.rope.scaling.type", Kind::Text),
    ("llama.rope.scaling.factor", Kind::Float),
    ("llama.attention.layer_norm_rms_epsilon", Kind::Float),
    ("tokenizer.ggml.model", Kind::Text),
    ("tokenizer.ggml.pre", Kind::Text),
    ("tokenizer.ggml.tokens", Kind::Texts),
    ("tokenizer.ggml.merges", Kind::Texts),
    ("tokenizer.ggml.token_type", Kind::Integers),
    ("tokenizer.ggml.bos_token_id", Kind::Integer),
    ("tokenizer.ggml.eos_token_id", Kind::Integer),
    ("tokenizer.ggml.add_bos_token", Kind::Flag),
];

#[derive(Clone, Copy)]
enum Kind {
    Integer,
    Float,
    Text,
    Texts,
    Integers,
    Flag,
    Raw,
}

impl Kind {
    const ALL: [Kind; 7] = [Kind::Integer, Kind::Float, Kind::Text, Kind::Texts, Kind::Integers, Kind::Flag, Kind::Raw];
}

/// Reads a file, or makes one.
pub fn run(data: &[u8]) {
    if data.starts_with(MAGIC) {
        return read(data.to_vec());
    }
    if let Ok(file) = made(&mut Unstructured::new(data)) {
        read(file);
    }
}

fn read(bytes: Vec<u8>) {
    let length = bytes.len() as u64;
    let Ok(gguf) = Gguf::from_bytes(bytes) else { return };
    let mut buffer = Vec::new();
    for tensor in gguf.tensors() {
        assert!(tensor.offset + tensor.size_bytes <= length, "{tensor:?} lies outside the file");
        assert!(gguf.read(tensor, &mut buffer).is_ok(), "{tensor:?} cannot be read");
    }
    if let Ok(template) = ChatTemplate::from_gguf(&gguf) {
        let _ = template.render(&[Message::new("user", "a <|im_end|> b")], true);
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf)
        && let Ok(tokens) = tokenizer.encode("You and the naïve 😀: in 3 words\n<|im_end|>", true)
    {
        let _ = tokenizer.decode(&tokens);
    }
    let Ok(config) = LlamaConfig::from_gguf(&gguf) else { return };
    let mut device = Cpu::with(Isa::Scalar, 1).expect("every processor has it");
    let _ = Llama::load(&mut device, &gguf, &config, 4);
}

/// A file of the tiny model with some of its keys changed, or one of nothing but changes.
fn made(u: &mut Unstructured) -> Result<Vec<u8>> {
    let mut writer = Writer::new();
    for _ in 0..u.int_in_range(0..=12)? {
        key(u, &mut writer)?;
    }
    if u.ratio(3, 4)? {
        defaults(u, &mut writer)?;
    }
    for _ in 0..u.int_in_range(0..=12)? {
        tensor(u, &mut writer)?;
    }
    let mut file = writer.finish();
    file.extend(vec![u.arbitrary::<u8>()?; u.int_in_range(0..=4_096)?]);
    Ok(file)
}

fn key(u: &mut Unstructured, writer: &mut Writer) -> Result<()> {
    let (key, kind) = *u.choose(&KEYS)?;
    let kind = if u.ratio(1, 16)? { *u.choose(&Kind::ALL)? } else { kind };
    match kind {
        Kind::Integer => writer.integer(key, if u.ratio(1, 4)? { u.arbitrary()? } else { u.int_in_range(0..=600)? }),
        Kind::Float => writer.float(key, u.arbitrary()?),
        Kind::Text => {
            let words = ["llama", "gpt2", "gpt-2", "smollm", "llama-bpe", "qwen2", "default", "linear", "none", ""];
            writer.text(key, if u.ratio(1, 4)? { u.arbitrary()? } else { *u.choose(&words)? });
        }
        Kind::Texts => writer.texts(key, u.arbitrary::<Vec<&str>>()?),
        Kind::Integers => writer.integers(key, &u.arbitrary::<Vec<i32>>()?),
        Kind::Flag => writer.boolean(key, u.arbitrary()?),
        // Lists in lists among it, and counts that lie.
        Kind::Raw => writer.raw(key, u.int_in_range(0..=13)?, u.arbitrary()?),
    }
    Ok(())
}

/// What the tiny model says; keys that came before are there twice then, and the file is refused for it, unless each is
/// left out as the input says.
fn defaults(u: &mut Unstructured, writer: &mut Writer) -> Result<()> {
    let numbers = [
        ("llama.block_count", 1),
        ("llama.context_length", 64),
        ("llama.embedding_length", 32),
        ("llama.feed_forward_length", 32),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
    ];
    for (key, value) in numbers {
        if u.ratio(7, 8)? {
            writer.integer(key, value);
        }
    }
    writer.text("general.architecture", if u.ratio(7, 8)? { "llama" } else { u.arbitrary()? });
    writer.text("tokenizer.chat_template", if u.ratio(1, 2)? { CHAT_TEMPLATE } else { u.arbitrary()? });
    if u.ratio(7, 8)? {
        writer.texts("tokenizer.ggml.tokens", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ"]);
        writer.texts("tokenizer.ggml.merges", [if u.ratio(7, 8)? { "a b" } else { u.arbitrary()? }]);
    }
    if u.ratio(7, 8)? {
        writer.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    }
    Ok(())
}

fn tensor(u: &mut Unstructured, writer: &mut Writer) -> Result<()> {
    let parts =
        ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm"];
    let name = match u.int_in_range(0..=15)? {
        0 => u.arbitrary::<String>()?,
        1 => "rope_freqs.weight".to_owned(),
        2 | 3 => "output_norm.weight".to_owned(),
        4 | 5 => "token_embd.weight".to_owned(),
        6 => "output.weight".to_owned(),
        _ => format!("blk.0.{}.weight", u.choose(&parts)?),
    };
    let dimension = |u: &mut Unstructured| match u.int_in_range(0..=15)? {
        0 => u.arbitrary(),
        1 => Ok(7),
        _ => Ok(*u.choose(&[32, 16, 1, 64])?),
    };
    let shape = (0..u.int_in_range(0..=5)?).map(|_| dimension(u)).collect::<Result<Vec<u64>>>()?;
    let format = if u.ratio(1, 16)? { u.arbitrary()? } else { *u.choose(&[0, 1, 2, 3, 8])? };
    let offset = if u.ratio(1, 16)? { u.arbitrary()? } else { 32 * u.int_in_range(0..=127)? };
    writer.tensor_entry(&name, &shape, format, offset);
    Ok(())
}
