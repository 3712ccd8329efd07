//! Tenants' configurations: any text, as a file's.
//!
//! TOML needs no help: its words are in a dictionary, and a seed is the guide's own example.

use std::path::Path;

use vassal::tenant::config::{ConfigError, TenantConfig};

/// The most policies that a configuration may have, by its guide.
const POLICIES_MAX: usize = 64;

/// Checks a configuration's text; what is accepted keeps the bounds that the guide states, and what is refused is so at
/// a line that the text has.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match TenantConfig::parse("tenant.toml", text, Path::new("folder")) {
        Ok(config) => accepted(&config),
        Err(ConfigError::Syntax { line, .. } | ConfigError::Value { line, .. } | ConfigError::Twice { line, .. }) => {
            let lines = text.split('\n').count();
            assert!((1..=lines).contains(&line), "line {line} of {lines}");
        }
        Err(error) => panic!("no file was read: {error}"),
    }
}

fn accepted(config: &TenantConfig) {
    let policies: Vec<_> = config.required.iter().chain(&config.policies).collect();
    assert!(policies.len() <= POLICIES_MAX);
    assert!((1..=64).contains(&config.name.len()));
    for (place, policy) in policies.iter().enumerate() {
        assert!((1..=64).contains(&policy.name.len()), "{:?}", policy.name);
        assert!(!policy.name.chars().any(char::is_control), "{:?}", policy.name);
        assert!(policies[..place].iter().all(|other| other.name != policy.name), "{:?} twice", policy.name);
    }
    assert!((1..=32_768).contains(&config.limits.max_tokens));
    assert!((1..=256).contains(&config.limits.candidates));
    assert!(config.limits.policies <= POLICIES_MAX);
}
