//! What ships inside the program: policies as components, trained heads, and the first prompt.
//!
//! Policies are built from `guest/policies` and committed; a test rebuilds them and compares byte for
//! byte. Heads are learned by the commands in `docs/evaluation.md`.

use sha2::{Digest, Sha256};

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

/// The component that ships under this name.
pub fn component(name: &str) -> Option<&'static [u8]> {
    POLICIES.iter().find(|policy| policy.name == name).map(|policy| policy.component)
}

/// Whether this component, by its SHA-256, is what ships under the name by which it was asked for. It needs no signature
/// then: it is trusted as the program is. A file in its place is anybody's, even one that holds the same bytes.
pub fn ships(name: &str, sha256: &[u8; 32]) -> bool {
    component(name).is_some_and(|component| Sha256::digest(component).as_slice() == sha256)
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
