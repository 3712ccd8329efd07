//! The embedding example as a module: the very file that a reader sees, run on a tiny model.
//!
//! What it promises is length and form: a model, a policy and a callback, in under 60 lines. That the policy
//! does what it says is tested with the policy.

use std::path::Path;

use vassal::host::HostOptions;
use vassal::model::synthetic::SyntheticModel;

use crate::support::compilation;

#[path = "../host/examples/embed.rs"]
#[allow(dead_code, unreachable_pub, reason = "in its own file it is a program")]
mod example;

#[test]
fn the_example_answers_piece_by_piece() {
    let model = Path::new(env!("CARGO_TARGET_TMPDIR")).join("embed.gguf");
    SyntheticModel::default().write(&model).unwrap();
    let options = HostOptions { compilation: compilation(), ..HostOptions::new(model) };
    let mut pieces = Vec::new();
    let response = example::answer(&options, "the one", |text| pieces.push(text.to_owned())).unwrap();
    assert_eq!(pieces.concat(), response.text);
    assert!(pieces.len() > 1 && response.tokens.len() > 1, "{pieces:?}");
}

#[test]
fn the_example_is_short() {
    let lines = include_str!("../host/examples/embed.rs").lines().count();
    assert!(lines < 60, "{lines} lines");
}
