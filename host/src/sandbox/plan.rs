//! What a policy answers to `start`: how the steps of its response shall be prepared.
//!
//! A plan is a guest's word, so `Plan::check` compares it with the manifest before anybody acts on it. What
//! becomes of the plans of several policies is the engine's.

use super::bindings;
use super::manifest::Manifest;

/// How a response's steps shall be prepared, validated against the manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// How many candidates a step shall have, 1 to the manifest's most.
    pub candidates: u32,
    /// Candidates less likely than this under the base model are left out, 0 to 1.
    pub candidates_floor: f32,
    /// When each of the manifest's heads is prefetched.
    pub prefetch: Vec<Schedule>,
}

/// When a head's values are delivered with the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// Never: the policy asks, or does without.
    Never,
    /// Where the response's length in tokens is a multiple of this, which is at least 1.
    Every(u32),
    /// Where the likeliest token's base probability is below this, 0 to 1.
    Unsure(f32),
}

/// Why a plan is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadPlan {
    /// A number of candidates that the manifest does not announce.
    #[error("{given} candidates, but the manifest has 1 to {most}")]
    Candidates {
        /// What was given.
        given: u32,
        /// The manifest's most.
        most: u32,
    },
    /// A floor that is no probability.
    #[error("a candidate floor of {0}, but it must be 0 to 1")]
    Floor(f32),
    /// Not one schedule a head.
    #[error("{given} schedules for {heads} heads")]
    Schedules {
        /// What was given.
        given: usize,
        /// The manifest's heads.
        heads: usize,
    },
    /// A schedule whose number is outside its range.
    #[error("head {head}'s schedule {given}")]
    Schedule {
        /// The head's index in the manifest.
        head: usize,
        /// What was given, and what is accepted.
        given: BadSchedule,
    },
}

/// A schedule's number outside its range.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum BadSchedule {
    /// Every so many tokens.
    #[error("is `every` {0}, but it must be 1 or more")]
    Every(u32),
    /// Below such a probability.
    #[error("is `unsure` {0}, but it must be 0 to 1")]
    Unsure(f32),
}

impl Plan {
    pub(super) fn check(raw: &bindings::Plan, manifest: &Manifest) -> Result<Self, BadPlan> {
        let most = manifest.candidates_max;
        if !(1..=most).contains(&raw.candidates) {
            return Err(BadPlan::Candidates { given: raw.candidates, most });
        }
        if !(0.0..=1.0).contains(&raw.candidates_floor) {
            return Err(BadPlan::Floor(raw.candidates_floor));
        }
        let heads = manifest.heads.len();
        if raw.prefetch.len() != heads {
            return Err(BadPlan::Schedules { given: raw.prefetch.len(), heads });
        }
        let prefetch = raw.prefetch.iter().enumerate();
        let prefetch = prefetch.map(|(head, schedule)| match *schedule {
            bindings::Schedule::Never => Ok(Schedule::Never),
            bindings::Schedule::Every(n) if n >= 1 => Ok(Schedule::Every(n)),
            bindings::Schedule::Unsure(below) if (0.0..=1.0).contains(&below) => Ok(Schedule::Unsure(below)),
            bindings::Schedule::Every(n) => Err(BadPlan::Schedule { head, given: BadSchedule::Every(n) }),
            bindings::Schedule::Unsure(below) => Err(BadPlan::Schedule { head, given: BadSchedule::Unsure(below) }),
        });
        Ok(Self {
            candidates: raw.candidates,
            candidates_floor: raw.candidates_floor,
            prefetch: prefetch.collect::<Result<_, _>>()?,
        })
    }
}
