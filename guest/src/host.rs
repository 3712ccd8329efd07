//! What a policy may ask of its host: values, the vocabulary's text, and the audit log.
//!
//! In a component these are the contract's imports, and one that is never called is not imported.
//! Natively there is no host: the calls go to the double that [`crate::test`] installs for the
//! running test, and without one they panic.

#[cfg(not(target_arch = "wasm32"))]
use crate::test::with_host;

/// Values on request, for a policy that does not want every value at every step.
///
/// A policy that calls nothing here has no `values` among its imports, and the host then calls it
/// through a path that costs a third less.
pub mod values {
    use crate::{Token, ValueError};

    /// The values of this sequence followed by each token: one row a head of `heads` (indices into the
    /// manifest), one value a token. To the policy it is a function call; the host waits meanwhile
    /// for the other sequences of its batch and evaluates them together. What is known already,
    /// prefetched or asked before in this step, is not computed again.
    ///
    /// # Errors
    /// What [`ValueError`] names.
    pub fn evaluate(heads: &[u32], tokens: &[Token]) -> Result<Vec<f32>, ValueError> {
        #[cfg(target_arch = "wasm32")]
        return crate::component::evaluate(heads, tokens);
        #[cfg(not(target_arch = "wasm32"))]
        super::with_host(|host| host.evaluate(heads, tokens))
    }

    /// The value of this sequence as it stands, before the next token.
    ///
    /// # Errors
    /// What [`ValueError`] names.
    pub fn current(head: u32) -> Result<f32, ValueError> {
        #[cfg(target_arch = "wasm32")]
        return crate::component::current(head);
        #[cfg(not(target_arch = "wasm32"))]
        super::with_host(|host| host.current(head))
    }
}

/// Tokens as bytes and back. Special tokens are not text: they have no bytes and are never found.
pub mod text {
    use crate::{Pattern, Place, Token, TokenSet};

    /// Each token's bytes. Costs 1 unit of fuel a token and 1 a byte.
    pub fn bytes(tokens: &[Token]) -> Vec<Vec<u8>> {
        let (bytes, ends) = joined(tokens);
        let mut start = 0;
        let pieces = ends.iter().map(|end| {
            let piece = bytes.get(start..*end as usize).unwrap_or_default().to_vec();
            start = *end as usize;
            piece
        });
        pieces.collect()
    }

    /// The tokens' bytes one after the other. Costs 1 unit of fuel a token and 1 a byte.
    pub fn concat(tokens: &[Token]) -> Vec<u8> {
        joined(tokens).0
    }

    fn joined(tokens: &[Token]) -> (Vec<u8>, Vec<u32>) {
        #[cfg(target_arch = "wasm32")]
        return crate::component::bytes(tokens);
        #[cfg(not(target_arch = "wasm32"))]
        super::with_host(|host| host.bytes(tokens))
    }

    /// The tokens that encode this text, at most 4 KiB. Costs 32 units of fuel a byte.
    pub fn tokens(text: &str) -> Vec<Token> {
        #[cfg(target_arch = "wasm32")]
        return crate::component::tokens(text);
        #[cfg(not(target_arch = "wasm32"))]
        super::with_host(|host| host.tokens(text))
    }

    /// Which tokens of the vocabulary match a pattern. A phrase of 12 letters in both cases costs some 2,000
    /// units of fuel, and what is kept need not be asked again. A pattern beyond its bounds is a fault.
    pub fn find(pattern: &Pattern, place: Place) -> TokenSet {
        #[cfg(target_arch = "wasm32")]
        return TokenSet::from_words(crate::component::find(pattern, place));
        #[cfg(not(target_arch = "wasm32"))]
        TokenSet::from_words(super::with_host(|host| host.find(pattern, place)))
    }
}

/// Notes for the tenant's audit log.
pub mod audit {
    /// Writes a note: at most 1 KiB, 64 a response; more are dropped and counted.
    pub fn note(message: &str) {
        #[cfg(target_arch = "wasm32")]
        return crate::component::note(message);
        #[cfg(not(target_arch = "wasm32"))]
        super::with_host(|host| host.note(message));
    }
}
