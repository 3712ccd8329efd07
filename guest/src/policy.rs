//! The trait that an author implements, and the macro that makes a component of it.

use crate::{Decision, HeadOffer, Manifest, Plan, Request, Schedule, Step};

/// A policy: an ordinary Rust type, of which one value serves one response.
///
/// The host calls [`manifest`](Policy::manifest) when it loads the policy, [`start`](Policy::start) and
/// [`plan`](Policy::plan) before a response's first step, and [`decide`](Policy::decide) once a step.
/// A panic is a guest fault: the instance is dropped, its message is left in the audit log, and the
/// tenant's fault policy decides what becomes of the response.
pub trait Policy: Sized + 'static {
    /// What the policy is and uses, given the heads that the tenant offers. Must depend on nothing
    /// else: the host may ask again and compare.
    fn manifest(offered: &[HeadOffer]) -> Manifest;

    /// A policy for one response, with its settings.
    ///
    /// # Errors
    /// Refuses the request, in words for the person who made it.
    fn start(request: &Request) -> Result<Self, String>;

    /// How the steps shall be prepared. By default: all the candidates that the manifest allows, none
    /// left out, and every head's values in every step. Less is cheaper: a head that is not prefetched
    /// costs the host nothing.
    fn plan(&self, request: &Request) -> Plan {
        Plan {
            candidates: Self::manifest(&request.heads).candidates_max,
            candidates_floor: 0.0,
            prefetch: vec![Schedule::EVERY_STEP; request.heads.len()],
        }
    }

    /// One step. The default budget is 250,000 units of fuel, of which 20 candidates with a head or
    /// two need a thousand.
    fn decide(&mut self, step: &Step) -> Decision;
}

/// Makes the component's exports from a type that is a [`Policy`]. Once a crate, whose kind is
/// `cdylib`. Natively it only checks the type, so that the crate's tests run.
#[macro_export]
macro_rules! export {
    ($policy:ty) => {
        const _: fn() = || {
            fn is_a_policy<P: $crate::Policy>() {}
            is_a_policy::<$policy>();
        };
        $crate::export_component!($policy);
    };
}

/// The half of [`export!`] that knows the generated bindings.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! export_component {
    ($policy:ty) => {
        type VassalComponent = $crate::component::Component<$policy>;
        $crate::component::bindings::export!(VassalComponent with_types_in $crate::component::bindings);
    };
}

/// The half of [`export!`] that knows the generated bindings: natively there are none.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
#[macro_export]
macro_rules! export_component {
    ($policy:ty) => {};
}
