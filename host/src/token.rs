//! Tokens, and what the rest of the host needs to know of a tokenizer.
//!
//! The sandbox and the engine see a tokenizer only through [`Vocabulary`]: bytes of a token, tokens of a
//! text, and which tokens end one. How a tokenizer is read and run is the model's business.

/// An index into the base model's vocabulary.
pub type Token = u32;

/// A base model's vocabulary: `size` tokens, numbered from 0.
pub trait Vocabulary: Send + Sync {
    /// How many tokens there are.
    fn size(&self) -> usize;
    /// The bytes that `token` stands for: its text where it is special, nothing outside the vocabulary.
    fn bytes(&self, token: Token) -> &[u8];
    /// Whether `token` is a mark of the format rather than text.
    fn is_special(&self, token: Token) -> bool;
    /// The tokens that encode `text`: no special tokens are added or recognised.
    fn tokens(&self, text: &str) -> Vec<Token>;
    /// The tokens that end a response.
    fn end_of_text(&self) -> &[Token];
}
