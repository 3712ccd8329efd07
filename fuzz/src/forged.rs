//! A fixed guest whose memory is chosen: what it answers are the input's bytes, as the host finds them there.
//!
//! The module is written in text once for each of its allocators, and its memory's image is patched into the component
//! for every input, so that an input costs no encoding.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, WorldId};

const WIT: &str = include_str!("../../wit/policy-0.1/policy.wit");

/// Where the manifest lies, where the plan, and where the four decisions, one after the other.
const MANIFEST: usize = 64;
const PLAN: usize = 256;
const DECISIONS: usize = 512;
const DECISION_BYTES: usize = 128;

/// The image's length; what lies behind it in memory is the allocator's.
const IMAGE_BYTES: usize = 2_048;

/// Bodies of `cabi_realloc`: one that works, one that always gives the same place, three that misbehave.
const ALLOCATORS: [&str; 5] = [
    "(local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
        (global.set $next (i32.add (local.get $at) (local.get 3)))
        (local.get $at)",
    "(i32.const 512)",
    "(return (i32.const -16))",
    "(unreachable)",
    "(loop $forever (br $forever)) (i32.const 0)",
];

/// A core module that imports and exports all of the contract, and does nothing.
#[cfg(feature = "smith")]
pub static SHAPE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (resolve, world) = &*WORLD;
    let abi = wit_parser::ManglingAndAbi::Legacy(wit_parser::LiftLowerAbi::Sync);
    wit_component::dummy_module(resolve, *world, abi)
});

static WORLD: LazyLock<(Resolve, WorldId)> = LazyLock::new(|| {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("policy.wit", WIT).expect("the contract parses");
    let world = resolve.select_world(&[package], Some("aligner")).expect("the world of policies");
    (resolve, world)
});

/// A component for each allocator, and where its image begins.
static GUESTS: LazyLock<Vec<(Vec<u8>, usize)>> = LazyLock::new(|| ALLOCATORS.map(guest).into());

/// Wraps a core module as a component of the contract's world.
///
/// # Errors
/// The encoder's, for a module that does not keep to it.
pub fn componentize(mut module: Vec<u8>) -> std::result::Result<Vec<u8>, String> {
    let (resolve, world) = &*WORLD;
    embed_component_metadata(&mut module, resolve, *world, StringEncoding::UTF8).map_err(|error| error.to_string())?;
    let mut encoder = ComponentEncoder::default();
    let encoded = encoder.module(&module).and_then(|encoder| encoder.encode());
    encoded.map_err(|error| error.to_string())
}

fn guest(allocator: &str) -> (Vec<u8>, usize) {
    let mark = "\\a5".repeat(IMAGE_BYTES);
    let module = format!(
        r#"(module
        (memory (export "memory") 2)
        (global $next (mut i32) (i32.const 4096))
        (global $steps (mut i32) (i32.const -1))
        (data (i32.const 0) "{mark}")
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32) {allocator})
        (func (export "vassal:policy/policy@0.1.0#describe") (param i32 i32) (result i32) i32.const {MANIFEST})
        (func (export "vassal:policy/policy@0.1.0#start")
            (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 f32 f32 i64) (result i32) i32.const {PLAN})
        (func (export "vassal:policy/policy@0.1.0#decide")
            (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 f32 f32 i32) (result i32)
            (global.set $next (i32.const 4096))
            (global.set $steps (i32.add (global.get $steps) (i32.const 1)))
            (i32.add (i32.const {DECISIONS}) (i32.mul (global.get $steps) (i32.const {DECISION_BYTES})))))"#
    );
    let module = wat::parse_str(module).expect("the module's text");
    let component = componentize(module).expect("a component");
    let mark = [0xa5; IMAGE_BYTES];
    let at = component.windows(IMAGE_BYTES).position(|window| window == mark).expect("the image");
    (component, at)
}

/// The image of a guest that behaves: its name is `forged`, it has 20 candidates and keeps what the model says.
fn plain() -> [u8; IMAGE_BYTES] {
    let mut image = [0; IMAGE_BYTES];
    image[16..25].copy_from_slice(b"forged1.0");
    // Name, version and summary as pointers and lengths; no rewind, heads, settings or needs.
    for (place, number) in [16, 6, 22, 3, 16, 6, 20].into_iter().enumerate() {
        image[MANIFEST + 4 * place] = number;
    }
    image[PLAN + 4] = 20;
    image
}

/// A component whose image is the plain one with up to 24 numbers changed.
///
/// # Errors
/// Only where the input has an end before a choice that needs one.
pub fn component(u: &mut Unstructured) -> Result<Vec<u8>> {
    // The one that works, mostly: little is lifted past the others.
    let allocator = if u.ratio(7, 8)? { 0 } else { u.choose_index(GUESTS.len())? };
    let (mut component, at) = GUESTS[allocator].clone();
    let mut image = plain();
    for _ in 0..u.int_in_range(0..=24)? {
        // Numbers are aligned, and a record has some twenty of them.
        let start = *u.choose(&[MANIFEST, PLAN, DECISIONS, DECISIONS + DECISION_BYTES, 1_024, 0])?;
        let place = start + 4 * u.int_in_range(0..=31)?;
        let number: u32 = match u.int_in_range(0..=7)? {
            0 => u.arbitrary()?,
            1 | 2 => 1_024 + 4 * u.int_in_range(0..=255)?,
            3 => 0xffff_0000 | u32::from(u.arbitrary::<u16>()?),
            4 => u.arbitrary::<f32>()?.to_bits(),
            _ => u.int_in_range(0..=40)?,
        };
        image[place..place + 4].copy_from_slice(&number.to_le_bytes());
    }
    component[at..at + IMAGE_BYTES].copy_from_slice(&image);
    Ok(component)
}
