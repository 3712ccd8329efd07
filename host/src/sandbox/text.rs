//! The `text` interface: tokens as bytes and back, and the tokens that match a pattern.
//!
//! [`VocabularyText`] is made once a model and shared by all its instances; the index that `text.find`
//! needs is built when the first policy that imports it starts, outside any call's clock. Special tokens
//! are not text: they have no bytes and are never found.

use super::bindings::{Pattern, Place};
use super::fault::{BadCall, FaultKind, Raised};
use super::imports::{StoreData, charge, charge_call, charge_items, link_function};
use crate::token::{Token, Vocabulary};
use crate::token_search::{FindError, TokenSearch, TooLarge};
use std::sync::{Arc, OnceLock};
use wasmtime::component::LinkerInstance;
use wasmtime::{StoreContextMut, Trap};

/// A base model's vocabulary as policies may see it.
pub struct VocabularyText {
    vocabulary: Arc<dyn Vocabulary>,
    search: OnceLock<Result<TokenSearch, TooLarge>>,
}

impl VocabularyText {
    /// Wraps a model's vocabulary; share the result among all of the model's responses.
    pub fn new(vocabulary: Arc<dyn Vocabulary>) -> Arc<Self> {
        Arc::new(Self { vocabulary, search: OnceLock::new() })
    }

    /// A vocabulary that knows no tokens: what `describe` sees.
    pub(super) fn empty() -> Arc<Self> {
        Self::new(Arc::new(NoTokens))
    }

    /// Tokens in the vocabulary.
    pub fn size(&self) -> usize {
        self.vocabulary.size()
    }

    /// The vocabulary itself.
    pub fn vocabulary(&self) -> &Arc<dyn Vocabulary> {
        &self.vocabulary
    }

    /// The bytes of a token that is text; nothing for others.
    fn bytes(&self, token: Token) -> &[u8] {
        let known = usize::try_from(token).is_ok_and(|token| token < self.size());
        if known && !self.vocabulary.is_special(token) { self.vocabulary.bytes(token) } else { &[] }
    }

    /// The index of `text.find`, built at the first call.
    pub(super) fn search(&self) -> Result<&TokenSearch, &TooLarge> {
        let build = || TokenSearch::new(self.size(), |token| self.bytes(token));
        self.search.get_or_init(build).as_ref()
    }
}

struct NoTokens;

impl Vocabulary for NoTokens {
    fn size(&self) -> usize {
        0
    }
    fn bytes(&self, _: Token) -> &[u8] {
        &[]
    }
    fn is_special(&self, _: Token) -> bool {
        false
    }
    fn tokens(&self, _: &str) -> Vec<Token> {
        Vec::new()
    }
    fn end_of_text(&self) -> &[Token] {
        &[]
    }
}

pub(super) fn link(text: &mut LinkerInstance<'_, StoreData>, sliced: bool) -> wasmtime::Result<()> {
    link_function(text, "bytes", sliced, bytes)?;
    link_function(text, "tokens", sliced, tokens)?;
    link_function(text, "find", sliced, find)
}

type Store<'a> = StoreContextMut<'a, StoreData>;

/// The bytes of tokens, and where each ends.
fn bytes(store: &mut Store<'_>, (tokens,): (Vec<Token>,)) -> wasmtime::Result<((Vec<u8>, Vec<u32>),)> {
    charge_call(store, tokens.len())?;
    let text = Arc::clone(&store.data().text);
    // Paid for before a byte is copied.
    let total = tokens.iter().fold(0_usize, |total, token| total.saturating_add(text.bytes(*token).len()));
    charge_items(store, total)?;
    let mut bytes = Vec::with_capacity(total);
    let mut ends = Vec::with_capacity(tokens.len());
    for token in tokens {
        bytes.extend_from_slice(text.bytes(token));
        // Fuel bounds the total far below 4 GiB.
        ends.push(u32::try_from(bytes.len())?);
    }
    Ok(((bytes, ends),))
}

fn tokens(store: &mut Store<'_>, (text,): (String,)) -> wasmtime::Result<(Vec<Token>,)> {
    let limits = &store.data().limits;
    let (bytes, limit) = (text.len(), limits.text_bytes);
    if bytes > limit {
        return Err(Raised(FaultKind::BadCall(BadCall::TextTooLong { bytes, limit })).into());
    }
    let units = limits.fuel_text_byte.saturating_mul(bytes as u64).saturating_add(limits.fuel_call);
    charge(store, units)?;
    Ok((store.data().text.vocabulary.tokens(&text),))
}

fn find(store: &mut Store<'_>, (pattern, place): (Pattern, Place)) -> wasmtime::Result<(Vec<u64>,)> {
    charge_call(store, 0)?;
    let text = Arc::clone(&store.data().text);
    let mut fuel = store.get_fuel()?;
    let found = text.search().map_err(Clone::clone)?.find(pattern.as_search(), place.into(), &mut fuel);
    match found {
        Ok(words) => {
            store.set_fuel(fuel)?;
            Ok((words,))
        }
        Err(FindError::OutOfFuel) => {
            store.set_fuel(0)?;
            Err(Trap::OutOfFuel.into())
        }
        Err(refused) => Err(Raised(FaultKind::BadCall(BadCall::Pattern(refused))).into()),
    }
}
