//! What a component is to the host: a policy or a reward.
//!
//! The two keep different contracts and are asked different questions, but they go the same road from bytes to
//! machine code and run under the same limits. Whatever goes wrong there names its guest by this type.

use std::fmt;

/// What a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestKind {
    /// Steers a response while it is decoded.
    Policy,
    /// Scores finished responses.
    Reward,
}

impl GuestKind {
    /// What to do with one, for whoever took it for something else.
    pub fn usage(self) -> &'static str {
        match self {
            Self::Policy => "`vassal run --policy` steers with it, `vassal policy check` tries it",
            Self::Reward => "`vassal reward` scores responses with it, `vassal policy check` tries it",
        }
    }
}

impl fmt::Display for GuestKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Policy => "policy",
            Self::Reward => "reward",
        })
    }
}

/// A component by its kind and the host's name for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// What it is, or was taken for.
    pub kind: GuestKind,
    /// The host's name for it.
    pub name: String,
}

impl Guest {
    /// A policy.
    pub fn policy(name: &str) -> Self {
        Self { kind: GuestKind::Policy, name: name.to_owned() }
    }

    /// A reward.
    pub fn reward(name: &str) -> Self {
        Self { kind: GuestKind::Reward, name: name.to_owned() }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} `{}`", self.kind, self.name)
    }
}
