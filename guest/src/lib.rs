//! The SDK for authors of Vassal policies: one trait, one macro. Rewards, which score finished responses, have theirs in
//! [`reward`].
//!
//! A policy steers a language model while it decodes. The host owns the model; the policy is a
//! WebAssembly component that the host calls once a token. It sees the likeliest next tokens, may know
//! *values* of them (how good will the finished response be, if this token comes next?), and answers
//! with a [`Decision`]. It has no clock, no files, no network and no randomness, and it need not be
//! trusted: the worst it can do is to spoil its own response.
//!
//! # The loop
//! 1. **Loading.** The host calls [`Policy::manifest`] with the heads that the tenant offers. The answer
//!    names the heads, settings and rights that the policy uses.
//! 2. **A response starts.** [`Policy::start`] makes a policy from the settings, and [`Policy::plan`] says
//!    how many candidates it wants and which heads' values should come along.
//! 3. **Every token** the host runs the model, evaluates the prefetched heads and calls
//!    [`Policy::decide`] with a [`Step`]. This is the only call that has to be quick: a
//!    short one costs the host about a microsecond. [`values::evaluate`] is the one slow thing
//!    in it: it waits for the other sequences of the batch, and costs rows of the model.
//! 4. The host adds up the answers of all policies, draws a token, and goes on. Where the response would
//!    end, `decide` is asked once more, with [`Step::ended`].
//!
//! What a policy must remember it keeps in `self`. A splice, its own or another's, may take tokens
//! back: [`Step::kept`] says how many still stand, and [`Response`] keeps the account.
//!
//! # A whole policy
//! This one makes the response longer, by making its end less likely:
//!
//! ```
//! #![forbid(unsafe_code)]
//! use vassal_guest::*;
//!
//! struct Longer {
//!     nats: f32,
//!     end_of_text: Vec<Token>,
//! }
//!
//! impl Policy for Longer {
//!     fn manifest(_offered: &[HeadOffer]) -> Manifest {
//!         Manifest {
//!             name: "longer".into(),
//!             version: "0.1.0".into(),
//!             summary: "Makes the end of the response less likely".into(),
//!             settings: vec![Setting::number("nats", "how much less", 0.0..=20.0, 2.0)],
//!             ..Manifest::default()
//!         }
//!     }
//!
//!     fn start(request: &Request) -> Result<Self, String> {
//!         Ok(Longer { nats: request.number("nats") as f32, end_of_text: request.end_of_text.clone() })
//!     }
//!
//!     fn decide(&mut self, _step: &Step) -> Decision {
//!         let deltas = vec![-self.nats; self.end_of_text.len()];
//!         let bias = Some(TokenBias { tokens: self.end_of_text.clone(), deltas });
//!         Decision::Steer(Steering { bias, ..Steering::default() })
//!     }
//! }
//!
//! export!(Longer);
//!
//! // A policy is an ordinary type: a test steps it, here against a model of three tokens.
//! # #[cfg(not(target_arch = "wasm32"))] {
//! use vassal_guest::test::{FakeHost, Harness};
//! let mut harness = Harness::<Longer>::new(FakeHost::new(&["yes", "no", ""]).end_of_text(2)).set("nats", 5.0);
//! harness.start().unwrap();
//! assert_eq!(harness.steered(&[1.0, 2.0, 3.0]), [1.0, 2.0, -2.0]);
//! # }
//! ```
//!
//! `vassal policy build .` makes a component of a crate with such a source file, `vassal policy check` says
//! what a host would refuse it for, and `vassal run --policy ./my.wasm` runs it. `docs/policies.md` in the
//! repository is the guide, `wit/policy-0.1/policy.wit` the contract.

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod component;
#[cfg(all(target_arch = "wasm32", feature = "reward"))]
#[doc(hidden)]
pub mod reward_component;

pub mod blend;
mod host;
mod policy;
pub mod reward;
#[cfg(not(target_arch = "wasm32"))]
pub mod test;
mod tokens;
mod types;

pub use host::{audit, text, values};
pub use policy::Policy;
pub use tokens::{Pattern, Response, TokenSet};
pub use types::{
    Baseline, Decision, HeadOffer, HeadWeight, Manifest, NamedValue, Place, Plan, Request, Schedule, Scope, Setting,
    SettingKind, SettingValue, Splice, Steering, Step, Tail, Token, TokenBias, ValueError, VocabularyBias,
};

/// A small allocator: under fuel, the standard one costs a policy a tenth of its step.
#[cfg(all(target_arch = "wasm32", feature = "allocator"))]
#[global_allocator]
static ALLOCATOR: vassal_guest_allocator::Blocks<vassal_guest_allocator::Memory> =
    vassal_guest_allocator::Blocks::new();
