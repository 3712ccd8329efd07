//! A reward's side of its contract: the generated bindings, and the conversions between their types and the SDK's.
//! Compiled for wasm32 only, and public only for the export macro's sake. A module of its own, so that a component
//! takes from the SDK the contract of what it is: `component.rs` is the policies'.
#![allow(missing_docs, reason = "hidden from the documentation; an author sees the SDK's own types")]

use std::marker::PhantomData;

use crate::reward::{Exchange, Manifest, Reward, scores};

/// What wit-bindgen generates, alone in its module, as in `component.rs`.
pub mod bindings {
    wit_bindgen::generate!({
        world: "judge",
        path: "../wit/reward-0.1",
        pub_export_macro: true,
    });
}

use bindings::exports::vassal::reward::reward as wit;

/// The generated trait for any reward.
pub struct Component<R>(PhantomData<R>);

impl<R: Reward> wit::Guest for Component<R> {
    fn describe() -> wit::Manifest {
        let Manifest { name, version, summary, minimum, maximum } = R::manifest();
        wit::Manifest { name, version, summary, minimum, maximum }
    }

    fn score(exchanges: Vec<wit::Exchange>) -> Vec<f64> {
        let own = |exchange: wit::Exchange| Exchange { prompt: exchange.prompt, response: exchange.response };
        scores::<R>(&exchanges.into_iter().map(own).collect::<Vec<_>>())
    }
}
