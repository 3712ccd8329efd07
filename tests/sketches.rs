//! The sketches of `guest/examples` as modules: the very files that are built as components, so that a test
//! can compare the two.
#![allow(unreachable_pub, reason = "in their own files they are crates, and public")]

#[path = "../guest/examples/contrastive.rs"]
pub(crate) mod contrastive;
#[path = "../guest/examples/grammar.rs"]
pub(crate) mod grammar;
#[path = "../guest/examples/segment_rejection.rs"]
pub(crate) mod segment_rejection;
#[path = "../guest/examples/watermark.rs"]
pub(crate) mod watermark;
