//! Rewards: the number that a finished response earns, in the same sandbox and with the same tools as a policy.
//!
//! A reward is an ordinary Rust type that is a [`Reward`]; [`export_reward!`](crate::export_reward) makes a component
//! of it, with the crate's feature `reward`. It is shown finished exchanges and imports nothing, so a score depends on
//! the texts alone, and what ran natively in a test is what the host runs. `docs/rewards.md` in the repository is the
//! guide, `wit/reward-0.1/reward.wit` the contract.
//!
//! ```
//! #![forbid(unsafe_code)]
//! use vassal_guest::reward::{Exchange, Manifest, Reward};
//!
//! /// One for a response that asks back.
//! #[derive(Default)]
//! struct Curious;
//!
//! impl Reward for Curious {
//!     fn manifest() -> Manifest {
//!         Manifest {
//!             name: "curious".into(),
//!             version: "0.1.0".into(),
//!             summary: "whether the response asks something: 0 no, 1 yes".into(),
//!             ..Manifest::default()
//!         }
//!     }
//!
//!     fn score(&self, exchange: &Exchange) -> f64 {
//!         if exchange.response.contains('?') { 1.0 } else { 0.0 }
//!     }
//! }
//!
//! vassal_guest::export_reward!(Curious);
//!
//! assert_eq!(Curious.score(&Exchange::new("Hello!", "How are you?")), 1.0);
//! ```

/// A reward: how good a finished response is.
///
/// The value that scores is made by [`Default`] once a call, and a call has an instance of its own: what is prepared
/// there (a list of words) serves all exchanges of the call. [`score`](Reward::score) cannot change it, so
/// that no score depends on the exchanges before it.
///
/// A panic is a guest fault: the exchange that caused it has no score. A reward imports nothing, so nobody hears
/// the panic's message; the same text panics in a native test too.
pub trait Reward: Default + 'static {
    /// What the reward is. Always the same: the host asks twice and compares.
    fn manifest() -> Manifest;

    /// The score of one exchange: finite, within the manifest's range. Its budget is 5,000,000 units of fuel, and 1,000
    /// more for each byte of its text.
    fn score(&self, exchange: &Exchange) -> f64;
}

/// What a reward is, before it scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its name on command lines and in files: 1 to 64 bytes, each of a to z, 0 to 9 or `-`.
    pub name: String,
    /// Its version, at most 32 bytes.
    pub version: String,
    /// One line that says what is measured and what the ends of the range mean, at most 256 bytes.
    pub summary: String,
    /// The lowest score that there is, finite.
    pub minimum: f64,
    /// The highest score that there is, finite and above the minimum. Higher is better.
    pub maximum: f64,
}

impl Default for Manifest {
    /// No name yet, and scores from 0 to 1.
    fn default() -> Manifest {
        Manifest { name: String::new(), version: String::new(), summary: String::new(), minimum: 0.0, maximum: 1.0 }
    }
}

/// A finished response, and what it answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// What the user wrote; may be empty.
    pub prompt: String,
    /// What the model answered; may be empty, or cut off at a limit of tokens.
    pub response: String,
}

impl Exchange {
    /// An exchange of these texts.
    pub fn new(prompt: &str, response: &str) -> Exchange {
        Exchange { prompt: prompt.to_owned(), response: response.to_owned() }
    }
}

/// The scores of some exchanges by a reward that is made for them: what a call of the component answers.
pub fn scores<R: Reward>(exchanges: &[Exchange]) -> Vec<f64> {
    let reward = R::default();
    exchanges.iter().map(|exchange| reward.score(exchange)).collect()
}

/// Makes the component's exports from a type that is a [`Reward`]. Once a crate, whose kind is
/// `cdylib`, and not beside [`export!`](crate::export). Natively it only checks the type, so that the crate's tests run.
#[macro_export]
macro_rules! export_reward {
    ($reward:ty) => {
        const _: fn() = || {
            fn is_a_reward<R: $crate::reward::Reward>() {}
            is_a_reward::<$reward>();
        };
        $crate::export_reward_component!($reward);
    };
}

/// The half of [`export_reward!`] that knows the generated bindings.
#[cfg(all(target_arch = "wasm32", feature = "reward"))]
#[doc(hidden)]
#[macro_export]
macro_rules! export_reward_component {
    ($reward:ty) => {
        type VassalReward = $crate::reward_component::Component<$reward>;
        $crate::reward_component::bindings::export!(VassalReward with_types_in $crate::reward_component::bindings);
    };
}

/// The half of [`export_reward!`] that knows the generated bindings, where they are left out.
#[cfg(all(target_arch = "wasm32", not(feature = "reward")))]
#[doc(hidden)]
#[macro_export]
macro_rules! export_reward_component {
    ($reward:ty) => {
        compile_error!("a reward needs the SDK's feature `reward`: vassal-guest = { ..., features = [\"reward\"] }");
    };
}

/// The half of [`export_reward!`] that knows the generated bindings: natively there are none.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
#[macro_export]
macro_rules! export_reward_component {
    ($reward:ty) => {};
}
