//! Attacks on the model loader: files that are cut short, flipped, absurd or contradictory. The answer is
//! an error that names the thing, or a model that is valid; never a panic, and nothing is allocated for a
//! count that the file cannot hold.
//!
//! A checksum that differs is tested beside the downloads (`host/src/model/source/tests.rs`), a head for
//! another model beside the heads.

use proptest::prelude::*;
use vassal::model::config::{ConfigError, LlamaConfig};
use vassal::model::gguf::parse::{KEY_BYTES_MAX, LIST_ITEMS_MAX, METADATA_MAX, TENSORS_MAX, TEXT_BYTES_MAX};
use vassal::model::gguf::write::Writer;
use vassal::model::gguf::{Gguf, GgufError};
use vassal::model::synthetic::SyntheticModel;
use vassal::model::template::{ChatTemplate, Message};
use vassal::model::tokenizer::{Tokenizer, TokenizerError};
use vassal::token::Vocabulary;
use vassal_kernels::Format;

use crate::support::default_model;

const U32: u32 = 4;
const F32: u32 = 6;
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Everything that is read of a file, and a use of it; the first error in words.
fn load(bytes: Vec<u8>) -> Result<(), String> {
    let gguf = Gguf::from_bytes(bytes).map_err(|error| error.to_string())?;
    let config = LlamaConfig::from_gguf(&gguf).map_err(|error| error.to_string())?;
    let mut buffer = Vec::new();
    gguf.read(&config.tensors.embedding, &mut buffer).map_err(|error| error.to_string())?;
    let template = ChatTemplate::from_gguf(&gguf).map_err(|error| error.to_string())?;
    let tokenizer = Tokenizer::from_gguf(&gguf).map_err(|error| error.to_string())?;
    let text =
        template.render(&[Message::new("user", "you and I, 12 naïve 😀")], true).map_err(|error| error.to_string())?;
    let tokens = tokenizer.encode_prompt(&text, &[]).map_err(|error| error.to_string())?;
    assert!(tokens.iter().all(|token| (*token as usize) < tokenizer.size()));
    tokenizer.decode(&tokens);
    Ok(())
}

fn small() -> Vec<u8> {
    let model =
        SyntheticModel { layers: 1, hidden: 32, heads: 2, kv_heads: 1, feed_forward: 32, ..SyntheticModel::default() };
    model.bytes()
}

/// Where the tensors' data begins.
fn data_start(bytes: &[u8]) -> usize {
    let gguf = Gguf::from_bytes(bytes.to_vec()).unwrap();
    let first = gguf.tensors().iter().map(|tensor| tensor.offset).min();
    first.unwrap() as usize
}

/// Overwrites the value of a key that has the type `kind`; the new value is as long as the old one.
fn patch(mut bytes: Vec<u8>, key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut pattern = (key.len() as u64).to_le_bytes().to_vec();
    pattern.extend(key.as_bytes());
    pattern.extend(kind.to_le_bytes());
    let at = bytes.windows(pattern.len()).position(|window| window == pattern);
    let at = at.expect("the key is there") + pattern.len();
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

/// Renames a key or tensor by another name of the same length.
fn rename(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut pattern = (from.len() as u64).to_le_bytes().to_vec();
    pattern.extend(from.as_bytes());
    let at = bytes.windows(pattern.len()).position(|window| window == pattern);
    let at = at.expect("the name is there") + 8;
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

fn refused(bytes: Vec<u8>, expected: &str) {
    match load(bytes) {
        Ok(()) => panic!("accepted, expected {expected:?}"),
        Err(error) => assert!(error.contains(expected), "{error:?} does not say {expected:?}"),
    }
}

/// The first 24 bytes of a file, with these counts.
fn head(tensors: u64, metadata: u64) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(metadata.to_le_bytes());
    bytes
}

/// A file with one metadata value.
fn one_value(kind: u32, value: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.raw("key", kind, value);
    writer.finish()
}

fn list_of(kind: u32, count: u64) -> Vec<u8> {
    let mut value = kind.to_le_bytes().to_vec();
    value.extend(count.to_le_bytes());
    value
}

#[test]
fn a_whole_file_loads() {
    load(small()).unwrap();
}

#[test]
fn every_prefix_of_a_file_is_refused() {
    let bytes = small();
    let start = data_start(&bytes);
    for length in (0..start).chain((start..bytes.len()).step_by(97)) {
        let error = Gguf::from_bytes(bytes[..length].to_vec()).expect_err("a prefix loads");
        let cut = matches!(error, GgufError::Truncated { .. } | GgufError::Outside { .. });
        assert!(cut, "{length} bytes: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_file_is_refused_or_valid(flips in proptest::collection::vec((any::<u32>(), 0u8..8), 1..4)) {
        let mut bytes = small();
        // Weights may be anything; what is read and believed is the header.
        let start = data_start(&bytes);
        for (at, bit) in flips {
            bytes[at as usize % start] ^= 1 << bit;
        }
        let _ = load(bytes);
    }

    #[test]
    fn a_header_with_noise_in_it_is_refused_or_valid(
        at in any::<u32>(),
        noise in proptest::collection::vec(any::<u8>(), 1..40),
    ) {
        let mut bytes = small();
        let start = data_start(&bytes);
        let at = at as usize % (start - noise.len());
        bytes[at..at + noise.len()].copy_from_slice(&noise);
        let _ = load(bytes);
    }

    #[test]
    fn noise_is_no_model(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = head(3, 5);
        bytes.extend(noise);
        prop_assert!(Gguf::from_bytes(bytes).is_err());
    }
}

#[test]
fn counts_are_compared_with_limits_and_with_the_bytes_left() {
    let limit = |bytes: Vec<u8>, expected_max: u64| match Gguf::from_bytes(bytes) {
        Err(GgufError::Limit { max, .. }) => assert_eq!(max, expected_max),
        other => panic!("{other:?}"),
    };
    let truncated = |bytes: Vec<u8>| match Gguf::from_bytes(bytes) {
        Err(GgufError::Truncated { .. }) => {}
        other => panic!("{other:?}"),
    };
    limit(head(u64::MAX, 0), TENSORS_MAX);
    limit(head(0, u64::MAX), METADATA_MAX);
    truncated(head(TENSORS_MAX, 0));
    truncated(head(0, METADATA_MAX));
    for (count, max) in [(u64::MAX, KEY_BYTES_MAX), (KEY_BYTES_MAX + 1, KEY_BYTES_MAX)] {
        let mut key = head(0, 1);
        key.extend(count.to_le_bytes());
        limit(key, max);
    }
    limit(one_value(TEXT, &u64::MAX.to_le_bytes()), TEXT_BYTES_MAX);
    truncated(one_value(TEXT, &TEXT_BYTES_MAX.to_le_bytes()));
    limit(one_value(LIST, &list_of(F32, u64::MAX)), LIST_ITEMS_MAX);
    for kind in [F32, TEXT, LIST] {
        truncated(one_value(LIST, &list_of(kind, LIST_ITEMS_MAX)));
    }
    let nested: Vec<u8> = (0..5).flat_map(|_| list_of(LIST, 1)).collect();
    let mut deep = one_value(LIST, &nested);
    deep.extend([0; 64]);
    limit(deep, 4);
    let mut long_name = Writer::new();
    long_name.tensor(&"x".repeat(65), &[4], Format::F32, &[0; 16]);
    limit(long_name.finish(), 64);
}

#[test]
fn what_the_format_does_not_have_is_refused() {
    refused(b"GGML\x03\0\0\0".to_vec(), "not a GGUF file");
    let mut version = head(0, 0);
    version[4] = 1;
    refused(version, "version 1 is not supported");
    let mut big_endian = head(0, 0);
    big_endian[4..8].copy_from_slice(&3u32.to_be_bytes());
    refused(big_endian, "is not supported; supported: 2 and 3, little-endian");
    refused(one_value(99, &[0; 8]), "unknown type 99");
    let mut text = 2u64.to_le_bytes().to_vec();
    text.extend([0xC3, 0x28]);
    refused(one_value(TEXT, &text), "not valid UTF-8");
    for alignment in [0u32, 4, 48, 1 << 17] {
        let mut writer = Writer::new();
        writer.integer("general.alignment", alignment);
        refused(writer.finish(), &format!("general.alignment is {alignment}"));
    }
    let mut twice = Writer::new();
    twice.integer("key", 1);
    twice.integer("key", 2);
    refused(twice.finish(), "metadata key \"key\" comes twice");
}

#[test]
fn tensors_lie_in_the_file_aligned_and_apart() {
    let file = |entries: &[(&str, &[u64], u32, u64)]| {
        let mut writer = Writer::new();
        for (name, shape, format, offset) in entries {
            writer.tensor_entry(name, shape, *format, *offset);
        }
        let mut bytes = writer.finish();
        bytes.extend([0; 256]);
        bytes
    };
    let row: &[u64] = &[8];
    assert!(Gguf::from_bytes(file(&[("a", row, 0, 0), ("b", row, 0, 32)])).is_ok());
    refused(file(&[("b", row, 0, 32), ("a", &[9], 0, 0)]), "\"a\" and \"b\" overlap");
    refused(file(&[("a", row, 0, 0), ("b", row, 0, 0)]), "overlap");
    refused(file(&[("a", row, 0, 0), ("a", row, 0, 32)]), "tensor \"a\" comes twice");
    refused(file(&[("a", row, 0, 8)]), "no multiple of 32");
    refused(file(&[("a", row, 0, 256)]), "outside the file");
    refused(file(&[("a", row, 0, u64::MAX - 31)]), "outside the file");
    refused(file(&[("a", &[1 << 40], 0, 0)]), "outside the file");
    for shape in [&[0][..], &[8, 0], &[1 << 62, 1 << 62], &[u64::MAX], &[1 << 32; 4]] {
        refused(file(&[("a", shape, 0, 0)]), "cannot have the shape");
    }
    refused(file(&[("a", &[33], 8, 0)]), "of Q8_0 cannot have the shape [33]");
    refused(file(&[("a", &[], 0, 0)]), "has 0 dimensions");
    refused(file(&[("a", &[1; 5], 0, 0)]), "has 5 dimensions");
    let supported = "is not supported (tensor \"a\"); supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1";
    refused(file(&[("a", row, 14, 0)]), &format!("Q6_K {supported}"));
    refused(file(&[("a", row, 39, 0)]), &format!("MXFP4 {supported}"));
    refused(file(&[("a", row, 4, 0)]), &format!("tensor type 4 {supported}"));
}

#[test]
fn missing_keys_are_named() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
        "tokenizer.chat_template",
    ] {
        let mut other = key.to_owned();
        other.replace_range(key.len() - 1.., "!");
        refused(rename(small(), key, &other), &format!("metadata key {key:?} is missing"));
    }
    let kind = rename(small(), "llama.context_length", "x".repeat(20).as_str());
    let kind = rename(kind, "llama.rope.freq_base", "llama.context_length");
    refused(kind, "must be an integer, not negative, the file has a float");
}

#[test]
fn numbers_agree_with_each_other_and_with_the_weights() {
    let integer = |key: &str, value: u32| patch(small(), key, U32, &value.to_le_bytes());
    let float = |key: &str, value: f32| patch(small(), key, F32, &value.to_le_bytes());
    for (bytes, expected) in [
        (integer("llama.block_count", 0), "llama.block_count is 0; accepted: 1 to 256"),
        (integer("llama.block_count", 2), "tensor \"blk.1.attn_norm.weight\" is missing"),
        (integer("llama.block_count", u32::MAX), "accepted: 1 to 256"),
        (integer("llama.context_length", u32::MAX), "accepted: 1 to 16777216"),
        (integer("llama.embedding_length", 64), "has the shape [32, 283]"),
        (integer("llama.embedding_length", u32::MAX), "accepted: 1 to 32768"),
        (integer("llama.feed_forward_length", 64), "\"blk.0.ffn_gate.weight\" has the shape"),
        (integer("llama.attention.head_count", 5), "divisors of"),
        (integer("llama.attention.head_count", 0), "accepted: 1 to 256"),
        (integer("llama.attention.head_count", 32), "accepted: even numbers from 2 to 256"),
        (integer("llama.attention.head_count_kv", 3), "accepted: divisors of 2"),
        (integer("llama.attention.head_count_kv", 0), "accepted: divisors of 2"),
        (integer("llama.vocab_size", 282), "accepted: 283, the embedding's rows"),
        (float("llama.attention.layer_norm_rms_epsilon", f32::NAN), "must be a finite number"),
        (float("llama.attention.layer_norm_rms_epsilon", 0.0), "above 0, at most 0.1"),
        (float("llama.rope.freq_base", f32::INFINITY), "must be a finite number"),
        (float("llama.rope.freq_base", -1.0), "accepted: 1 to 1e9"),
        (integer("tokenizer.ggml.eos_token_id", 283), "eos_token_id = 283, expected below 283"),
    ] {
        refused(bytes, expected);
    }
    let missing = rename(small(), "output_norm.weight", "other__norm.weight");
    refused(missing, "tensor \"output_norm.weight\" is missing");
}

#[test]
fn what_the_forward_pass_would_ignore_is_refused() {
    let with = |add: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::new();
        writer.text("general.architecture", "llama");
        add(&mut writer);
        Gguf::from_bytes(writer.finish()).map(|gguf| LlamaConfig::from_gguf(&gguf))
    };
    let experts = with(&|writer| writer.integer("llama.expert_count", 8)).unwrap();
    let said = experts.unwrap_err().to_string();
    assert_eq!(said, "llama.expert_count = 8 is not supported");
    let none = with(&|writer| writer.integer("llama.expert_count", 0)).unwrap();
    assert!(matches!(none, Err(ConfigError::Gguf(GgufError::Missing { .. }))));

    let mut other = Writer::new();
    other.text("general.architecture", "mamba");
    refused(other.finish(), "architecture \"mamba\" is not supported; supported: \"llama\"");

    // A tensor that no Llama has, appended to a model with one layer more than its numbers say.
    let two = SyntheticModel { layers: 2, ..SyntheticModel::default() };
    let one = patch(two.bytes(), "llama.block_count", U32, &1u32.to_le_bytes());
    refused(one, "tensor \"blk.1.attn_q.weight\", which a Llama of these numbers does not have,");
}

#[test]
fn other_tokenizers_are_refused_by_name() {
    let text = |text: &str| {
        let mut value = (text.len() as u64).to_le_bytes().to_vec();
        value.extend(text.as_bytes());
        value
    };
    let model = patch(small(), "tokenizer.ggml.model", TEXT, &text("bert"));
    refused(model, "tokenizer model \"bert\" is not supported; supported: \"gpt2\"");
    let pre = patch(small(), "tokenizer.ggml.pre", TEXT, &text("other"));
    refused(pre, "pre-tokenizer \"other\" is not supported; supported: gpt-2");

    let mut merges = Writer::new();
    merges.text("tokenizer.ggml.model", "gpt2");
    merges.texts("tokenizer.ggml.tokens", ["a", "b"]);
    merges.texts("tokenizer.ggml.merges", ["a b"]);
    let gguf = Gguf::from_bytes(merges.finish()).unwrap();
    let error = Tokenizer::from_gguf(&gguf).unwrap_err();
    assert!(matches!(error, TokenizerError::Vocabulary { .. }), "{error}");
}

#[test]
fn a_file_and_its_bytes_are_the_same_model() {
    let model = SyntheticModel::default();
    let path = std::env::temp_dir().join(format!("vassal-loader-{}.gguf", std::process::id()));
    model.write(&path).unwrap();
    let (file, memory) = (Gguf::open(&path).unwrap(), model.gguf().unwrap());
    assert_eq!(file.tensors(), memory.tensors());
    assert_eq!(file.sha256().unwrap(), memory.sha256().unwrap());
    let (mut a, mut b) = (Vec::new(), vec![1; 3]);
    for tensor in file.tensors() {
        file.read(tensor, &mut a).unwrap();
        memory.read(tensor, &mut b).unwrap();
        assert_eq!(a, b);
    }
    // A file that shrinks after it was opened is an error, not a crash.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let error = file.read(&file.tensors()[0], &mut a).unwrap_err();
    assert!(matches!(error, GgufError::Read { .. }), "{error}");
    std::fs::remove_file(&path).unwrap();
    let gone = Gguf::open(&path).unwrap_err().to_string();
    assert!(gone.contains("vassal-loader-"), "{gone}");
}

#[test]
fn the_default_model_s_prompts_become_the_reference_s_tokens() {
    let Some(path) = default_model() else { return };
    let gguf = Gguf::open(&path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf).unwrap();
    let golden: serde_json::Value = serde_json::from_str(include_str!("goldens/smollm2_q4_1.json")).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 5);
    for prompt in prompts {
        let message = Message::new("user", prompt["prompt"].as_str().unwrap());
        let text = template.render(&[message], true).unwrap();
        let tokens = tokenizer.encode_prompt(&text, &[]).unwrap();
        let expected: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
        assert_eq!(tokens, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&tokens), text);
    }
}

#[test]
fn a_long_text_is_cut_without_a_trace() {
    let gguf = SyntheticModel::default().gguf().unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    // Longer than the pieces that go to the BPE library at once, with and without places to cut.
    for text in ["you and the other ", "naïve  \n\n", "x", " "] {
        let text = text.repeat(60_000 / text.len());
        let tokens = tokenizer.encode(&text, false).unwrap();
        assert!(tokenizer.decode(&tokens) == text);
    }
    let sentence = "you and the other ";
    let once = tokenizer.encode(sentence.trim_end(), false).unwrap();
    let again = tokenizer.encode(&format!(" {}", sentence.trim_end()), false).unwrap();
    let count = 60_000 / sentence.len();
    let expected = [once, again.repeat(count - 1)].concat();
    let text = sentence.repeat(count);
    assert!(tokenizer.encode(text.trim_end(), false).unwrap() == expected);
    let error = tokenizer.encode(&"x".repeat((1 << 20) + 1), false).unwrap_err();
    assert!(matches!(error, TokenizerError::TooLong { .. }), "{error}");
}
