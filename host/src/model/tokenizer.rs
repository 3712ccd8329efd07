//! Text to tokens and back, as the model's own GGUF file describes it.
//!
//! Byte-level BPE (`tokenizer.ggml.model = gpt2`) through the `tokenizers` crate, with the
//! pre-tokenizer that `tokenizer.ggml.pre` names; any other is refused by name, because a wrong one
//! gives plausible, worse text. Special tokens are kept out of the BPE model and found by a search of
//! our own, so that whether text may contain them is decided call by call.
//!
//! The bytes of all tokens lie in one flat table ([`TokenBytes`]), which policies' questions about the
//! vocabulary scan. Start at [`Tokenizer::from_gguf`].

use std::ops::Range;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::config::VOCABULARY_MAX;
use super::gguf::{Gguf, GgufError, required};
use super::token_bytes::{ByteAlphabet, TokenBytes};
use crate::token::{Token, Vocabulary};

/// Bytes of one text to encode: twice what fills a context of 131,072 tokens with English.
pub const ENCODE_BYTES_MAX: usize = 1 << 20;
/// Bytes after which a long text is cut where words part anyway: the `tokenizers` crate takes some 140
/// bytes of memory a byte of text.
const PIECE_BYTES: usize = 16 << 10;
/// Tokens that are found in text in one piece; each position of a text is compared with those of one first
/// byte. Llama 3 has 256, and models with many reserved ones some 6,000.
const WHOLE_MAX: usize = 8192;
/// Words whose tokens are remembered, some 100 bytes each.
const CACHE_WORDS: usize = 4096;

/// Why a file's tokenizer cannot be used, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A key is missing or of another kind.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Another kind of tokenizer.
    #[error("tokenizer model {found:?} is not supported; supported: \"gpt2\" (byte-level BPE)")]
    Model {
        /// The file's `tokenizer.ggml.model`.
        found: String,
    },
    /// Another pre-tokenizer.
    #[error("pre-tokenizer {found:?} is not supported; supported: {}", supported())]
    PreTokenizer {
        /// The file's `tokenizer.ggml.pre`.
        found: String,
    },
    /// Lists that do not fit together.
    #[error("{what}: {given}, expected {expected}")]
    Mismatch {
        /// What was counted.
        what: &'static str,
        /// What the file has.
        given: String,
        /// What it must have.
        expected: String,
    },
    /// The vocabulary contradicts itself.
    #[error("the vocabulary is inconsistent: {message}")]
    Vocabulary {
        /// How.
        message: String,
    },
    /// A text that is too long.
    #[error("a text of {given} bytes is too long; the limit is {ENCODE_BYTES_MAX}")]
    TooLong {
        /// Its bytes.
        given: usize,
    },
    /// The `tokenizers` crate failed.
    #[error("encoding failed: {message}")]
    Encode {
        /// Its words.
        message: String,
    },
}

/// GPT-2's word pattern is built into [`ByteLevel`]; this is Llama 3's, with its groups of digits.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's: the same, but every digit stands alone.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut into words before merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// GPT-2's pattern.
    Gpt2,
    /// GPT-2's pattern, with every digit alone.
    Gpt2Digits,
    /// Llama 3's pattern; a word that is a token needs no merges.
    Llama3,
    /// Qwen 2's pattern over composed characters.
    Qwen2,
}

/// The names that `tokenizer.ggml.pre` may have.
const PRE_TOKENIZERS: [(&str, Words); 13] = [
    ("gpt-2", Words::Gpt2),
    ("gpt2", Words::Gpt2),
    ("phi-2", Words::Gpt2),
    ("olmo", Words::Gpt2),
    ("mpt", Words::Gpt2),
    ("smollm", Words::Gpt2Digits),
    ("starcoder", Words::Gpt2Digits),
    ("refact", Words::Gpt2Digits),
    ("codeshell", Words::Gpt2Digits),
    ("llama-bpe", Words::Llama3),
    ("llama3", Words::Llama3),
    ("llama-v3", Words::Llama3),
    ("qwen2", Words::Qwen2),
];

fn supported() -> String {
    let names: Vec<&str> = PRE_TOKENIZERS.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

/// What kind of token the file calls one (`tokenizer.ggml.token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Found in any text, in one piece, but not special.
    Added,
    Special,
    Unused,
}

/// A model's tokenizer.
pub struct Tokenizer {
    words: tokenizers::Tokenizer,
    bytes: TokenBytes,
    /// One bit a token.
    special: Vec<u64>,
    /// Tokens that are found in text in one piece, by first byte, the longest first.
    whole: Vec<Whole>,
    begin: Option<Token>,
    add_begin: bool,
    end_of_text: Vec<Token>,
}

#[derive(Debug)]
struct Whole {
    text: String,
    token: Token,
    special: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("size", &self.bytes.len())
            .field("end_of_text", &self.end_of_text)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer that a file describes. Afterwards the file's copy of the vocabulary can be
    /// freed with [`Gguf::forget`]`("tokenizer.")` (the chat template goes with it: read it first).
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
        let model_key = "tokenizer.ggml.model";
        let model = required(model_key, gguf.text(model_key)?)?;
        if model != "gpt2" {
            return Err(TokenizerError::Model { found: model.chars().take(64).collect() });
        }
        let pre = gguf.text("tokenizer.ggml.pre")?.unwrap_or("gpt-2");
        let Some((_, pattern)) = PRE_TOKENIZERS.iter().find(|(name, _)| *name == pre) else {
            return Err(TokenizerError::PreTokenizer { found: pre.chars().take(64).collect() });
        };
        let kinds = kinds(gguf)?;
        let tokens_key = "tokenizer.ggml.tokens";
        let texts = required(tokens_key, gguf.texts(tokens_key)?)?;

        let mut bytes = TokenBytes::default();
        let mut special = vec![0u64; kinds.len().div_ceil(64)];
        let mut whole = Vec::new();
        let mut byte_of = ByteAlphabet::new();
        for (index, (text, kind)) in texts.iter().zip(&kinds).enumerate() {
            let token = index as Token;
            match kind {
                Kind::Normal => bytes.push(byte_of.decode(text)),
                Kind::Added | Kind::Special | Kind::Unused => bytes.push(text.as_bytes()),
            }
            if matches!(kind, Kind::Special | Kind::Unused) {
                special[index / 64] |= 1 << (index % 64);
            }
            if matches!(kind, Kind::Added | Kind::Special) && !text.is_empty() {
                whole.push(Whole { text: text.to_owned(), token, special: *kind == Kind::Special });
            }
        }
        if whole.len() > WHOLE_MAX {
            return Err(TokenizerError::Mismatch {
                what: "special and added tokens",
                given: whole.len().to_string(),
                expected: format!("at most {WHOLE_MAX}"),
            });
        }
        whole.sort_by(|a, b| {
            let first = |whole: &Whole| whole.text.as_bytes()[0];
            (first(a), b.text.len(), &a.text).cmp(&(first(b), a.text.len(), &b.text))
        });

        let words = words(gguf, &kinds, *pattern)?;
        let id = |key: &str| token_id(gguf, key, kinds.len());
        let begin = id("tokenizer.ggml.bos_token_id")?;
        // Llama 3's files often leave the key out and mean yes; everybody else's mean no.
        let add_begin = gguf.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(*pattern == Words::Llama3);
        let mut end_of_text = Vec::new();
        for key in ["eos", "eot", "eom"] {
            end_of_text.extend(id(&format!("tokenizer.ggml.{key}_token_id"))?);
        }
        for text in END_TEXTS {
            let found = whole.iter().find(|w| w.special && w.text == text);
            end_of_text.extend(found.map(|whole| whole.token));
        }
        end_of_text.sort_unstable();
        end_of_text.dedup();
        Ok(Tokenizer { words, bytes, special, whole, begin, add_begin, end_of_text })
    }

    /// The tokens of a text; with `parse_special`, names of special tokens become these tokens.
    ///
    /// A byte that the vocabulary has no token for (some control characters, in some models) is left
    /// out, as the model's authors' own tokenizer does.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<Token>, TokenizerError> {
        if text.len() > ENCODE_BYTES_MAX {
            return Err(TokenizerError::TooLong { given: text.len() });
        }
        let mut tokens = Vec::new();
        let mut start = 0;
        let mut at = 0;
        while at < text.len() {
            match self.whole_at(&text[at..], parse_special) {
                Some(found) => {
                    self.encode_words(&text[start..at], &mut tokens)?;
                    tokens.push(found.token);
                    at += found.text.len();
                    start = at;
                }
                None => at += text[at..].chars().next().map_or(1, char::len_utf8),
            }
        }
        self.encode_words(&text[start..], &mut tokens)?;
        Ok(tokens)
    }

    /// Whether a text spells a special token's name.
    pub fn names_special(&self, text: &str) -> bool {
        let special = |at: usize| self.whole_at(&text[at..], true).is_some_and(|whole| self.is_special(whole.token));
        text.char_indices().any(|(at, _)| special(at))
    }

    /// The tokens of a rendered chat template: special tokens are recognised but in the ranges of bytes that are
    /// `plain` (ascending, apart, on character boundaries), and the model's begin token comes first where the model
    /// wants one and the template did not write it.
    pub fn encode_prompt(&self, text: &str, plain: &[Range<usize>]) -> Result<Vec<Token>, TokenizerError> {
        let mut tokens = Vec::new();
        let mut at = 0;
        for range in plain {
            tokens.extend(self.encode(&text[at..range.start], true)?);
            tokens.extend(self.encode(&text[range.clone()], false)?);
            at = range.end;
        }
        tokens.extend(self.encode(&text[at..], true)?);
        if let Some(begin) = self.begin
            && self.add_begin
            && tokens.first() != Some(&begin)
        {
            tokens.insert(0, begin);
        }
        Ok(tokens)
    }

    /// The text of some tokens, special ones by name; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[Token]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| self.bytes(*t)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The longest token that `rest` starts with and that is found in text in one piece.
    fn whole_at(&self, rest: &str, parse_special: bool) -> Option<&Whole> {
        let first = *rest.as_bytes().first()?;
        let from = self.whole.partition_point(|w| w.text.as_bytes()[0] < first);
        self.whole[from..]
            .iter()
            .take_while(|whole| whole.text.as_bytes()[0] == first)
            .find(|whole| (parse_special || !whole.special) && rest.starts_with(&whole.text))
    }

    fn encode_words(&self, text: &str, tokens: &mut Vec<Token>) -> Result<(), TokenizerError> {
        let mut rest = text;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(piece_end(rest));
            let encoding = self
                .words
                .encode_fast(piece, false)
                .map_err(|error| TokenizerError::Encode { message: error.to_string() })?;
            tokens.extend_from_slice(encoding.get_ids());
            rest = after;
        }
        Ok(())
    }
}

/// Where the first piece of a text ends: past [`PIECE_BYTES`], between a letter and a space with a letter
/// behind it. Every pattern above parts words there, so cutting changes no token.
fn piece_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let from = PIECE_BYTES.min(bytes.len());
    let parts = |w: &[u8]| w[0].is_ascii_alphabetic() && w[1] == b' ' && w[2].is_ascii_alphabetic();
    match bytes[from..].windows(3).position(parts) {
        Some(at) => from + at + 1,
        None => bytes.len(),
    }
}

impl Vocabulary for Tokenizer {
    fn size(&self) -> usize {
        self.bytes.len()
    }

    fn bytes(&self, token: Token) -> &[u8] {
        self.bytes.get(token)
    }

    fn is_special(&self, token: Token) -> bool {
        let word = self.special.get(token as usize / 64).copied();
        word.is_some_and(|word| word >> (token % 64) & 1 == 1)
    }

    /// Empty for a text longer than [`ENCODE_BYTES_MAX`]; [`Tokenizer::encode`] says so instead.
    fn tokens(&self, text: &str) -> Vec<Token> {
        self.encode(text, false).unwrap_or_default()
    }

    fn end_of_text(&self) -> &[Token] {
        &self.end_of_text
    }
}

/// Names of special tokens that end a turn, whatever the file's ids say: files converted for
/// completion often name only one of them.
const END_TEXTS: [&str; 5] = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"];

fn kinds(gguf: &Gguf) -> Result<Vec<Kind>, TokenizerError> {
    let tokens_key = "tokenizer.ggml.tokens";
    let count = required(tokens_key, gguf.texts(tokens_key)?)?.len();
    if !(1..=VOCABULARY_MAX).contains(&(count as u64)) {
        return Err(TokenizerError::Mismatch {
            what: "items of tokenizer.ggml.tokens",
            given: count.to_string(),
            expected: format!("1 to {VOCABULARY_MAX}"),
        });
    }
    let kinds_key = "tokenizer.ggml.token_type";
    let Some(list) = gguf.numbers(kinds_key)? else {
        return Ok(vec![Kind::Normal; count]);
    };
    if list.len() != count {
        return Err(TokenizerError::Mismatch {
            what: "items of tokenizer.ggml.token_type",
            given: list.len().to_string(),
            expected: format!("{count}, one a token"),
        });
    }
    list.iter()
        .map(|number| match number.as_u64() {
            Some(1) => Ok(Kind::Normal),
            // An unknown token is written like a special one and never comes from text.
            Some(2 | 3) => Ok(Kind::Special),
            Some(4) => Ok(Kind::Added),
            Some(5) => Ok(Kind::Unused),
            _ => Err(TokenizerError::Mismatch {
                what: "a type in tokenizer.ggml.token_type",
                given: format!("{number:?}"),
                expected: "1 to 5".into(),
            }),
        })
        .collect()
}

fn token_id(gguf: &Gguf, key: &str, size: usize) -> Result<Option<Token>, TokenizerError> {
    match gguf.integer(key)? {
        None => Ok(None),
        Some(id) if id < size as u64 => Ok(Some(id as Token)),
        Some(id) => Err(TokenizerError::Mismatch {
            what: "a special token's id",
            given: format!("{key} = {id}"),
            expected: format!("below {size}"),
        }),
    }
}

/// The `tokenizers` crate's side: everything but special tokens.
fn words(gguf: &Gguf, kinds: &[Kind], pattern: Words) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let failed = |error: tokenizers::Error| TokenizerError::Vocabulary { message: error.to_string() };
    let tokens_key = "tokenizer.ggml.tokens";
    let texts = required(tokens_key, gguf.texts(tokens_key)?)?;
    let mut vocabulary = Vocab::with_capacity(texts.len());
    for (index, (text, kind)) in texts.iter().zip(kinds).enumerate() {
        if matches!(kind, Kind::Normal | Kind::Added) {
            // Of two tokens with one text, the first is the one that text becomes.
            vocabulary.entry(text.to_owned()).or_insert(index as Token);
        }
    }
    let merges_key = "tokenizer.ggml.merges";
    let lines = required(merges_key, gguf.texts(merges_key)?)?;
    let mut merges = Vec::with_capacity(lines.len());
    for line in lines.iter() {
        // A space within a token is written as another character, so that one space separates.
        match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => {
                merges.push((left.to_owned(), right.to_owned()));
            }
            _ => {
                return Err(TokenizerError::Mismatch {
                    what: "a line of tokenizer.ggml.merges",
                    given: format!("{:?}", line.chars().take(64).collect::<String>()),
                    expected: "two tokens and a space between them".into(),
                });
            }
        }
    }
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .cache_capacity(CACHE_WORDS)
        .ignore_merges(pattern == Words::Llama3)
        .build()
        .map_err(failed)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let byte_level = |own_pattern| ByteLevel::new(false, false, own_pattern);
    let split = |pattern: &str| {
        Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false).map_err(failed)
    };
    let steps: Vec<PreTokenizerWrapper> = match pattern {
        Words::Gpt2 => vec![byte_level(true).into()],
        Words::Gpt2Digits => vec![Digits::new(true).into(), byte_level(true).into()],
        Words::Llama3 => vec![split(LLAMA3_WORDS)?.into(), byte_level(false).into()],
        Words::Qwen2 => vec![split(QWEN2_WORDS)?.into(), byte_level(false).into()],
    };
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    if pattern == Words::Qwen2 {
        tokenizer.with_normalizer(Some(NFC));
    }
    Ok(tokenizer)
}
