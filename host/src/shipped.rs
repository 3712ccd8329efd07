//! What ships inside the program: policies as components, trained heads, and the first prompt.
//!
//! Policies are built from `guest/policies` and committed; a test rebuilds them and compares byte for
//! byte. Heads are learned by the commands in `docs/evaluation.md`.

/// A shipped policy.
pub struct ShippedPolicy {
    /// What `--policy` takes.
    pub name: &'static str,
    /// The component.
    pub component: &'static [u8],
}

/// The shipped policies.
pub const POLICIES: [ShippedPolicy; 3] = [
    ShippedPolicy { name: "vas", component: include_bytes!("../../guest/policies/vas.wasm") },
    ShippedPolicy { name: "guard", component: include_bytes!("../../guest/policies/guard.wasm") },
    ShippedPolicy { name: "comparison", component: include_bytes!("../../guest/policies/comparison.wasm") },
];

/// Whether these are the bytes of a shipped policy, wherever they come from.
pub fn is_shipped(component: &[u8]) -> bool {
    POLICIES.iter().any(|policy| policy.component == component)
}

/// The component that ships under this name.
pub fn component(name: &str) -> Option<&'static [u8]> {
    POLICIES.iter().find(|policy| policy.name == name).map(|policy| policy.component)
}

/// `vas` built without its mode `evaluate`: it does not import `values`, so the host calls it plainly.
/// What `vassal bench sandbox` measures such a call with.
pub const VAS_PLAIN: &[u8] = include_bytes!("../../guest/policies/vas_plain.wasm");

/// A shipped value head, for the default model.
pub struct ShippedHead {
    /// `NAME.KIND`, for messages.
    pub name: &'static str,
    /// The safetensors file.
    pub file: &'static [u8],
}

/// The shipped value heads.
pub const HEADS: [ShippedHead; 4] = [
    ShippedHead {
        name: "sentiment.look-ahead",
        file: include_bytes!("../data/heads/sentiment.look-ahead.safetensors"),
    },
    ShippedHead {
        name: "simplicity.look-ahead",
        file: include_bytes!("../data/heads/simplicity.look-ahead.safetensors"),
    },
    ShippedHead { name: "sentiment.one-pass", file: include_bytes!("../data/heads/sentiment.one-pass.safetensors") },
    ShippedHead { name: "simplicity.one-pass", file: include_bytes!("../data/heads/simplicity.one-pass.safetensors") },
];

/// What `vassal run` answers when it is given no prompt.
pub const PROMPT: &str = "I have to give a talk in front of my whole team tomorrow. What should I expect?";
