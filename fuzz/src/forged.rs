//! A fixed guest whose memory is chosen: what it answers are the input's bytes, as the host finds them there.
//!
//! The module is written in text once for each of its allocators, and its memory's image is patched into the component
//! for every input, so that an input costs no encoding.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, WorldId};

const WIT: &str = include_str!("../../wit/policy-0.1/policy.wit");

/// Where the manifest lies, where the plan, and where the four decisions, one after the other; then numbers that lists
/// point to: tokens, and behind them floats.
const MANIFEST: usize = 64;
const PLAN: usize = 256;
const DECISIONS: usize = 512;
const DECISION_BYTES: usize = 128;
const TOKENS: usize = 1_024;
const FLOATS: usize = 1_536;

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

type Image = [u8; IMAGE_BYTES];

fn put(image: &mut Image, place: usize, words: &[u32]) {
    for (at, word) in words.iter().enumerate() {
        image[place + 4 * at..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

/// The image of a guest that behaves: it may do everything, has 20 candidates, and keeps what the model says.
fn plain() -> Image {
    let mut image = [0; IMAGE_BYTES];
    image[16..41].copy_from_slice(b"forged1.0rewindinsertstop");
    // Name, version and summary as pointers and lengths, candidates, rewind, heads, settings, needs.
    put(&mut image, MANIFEST, &[16, 6, 22, 3, 16, 6, 20, 4, 0, 0, 0, 0, 160, 3]);
    put(&mut image, 160, &[25, 6, 31, 6, 37, 4]);
    image[PLAN + 4] = 20;
    for at in 0..128u32 {
        put(&mut image, TOKENS + 4 * at as usize, &[70 + at % 32]);
        put(&mut image, FLOATS + 4 * at as usize, &[(at as f32 / 8.0 - 4.0).to_bits()]);
    }
    image
}

/// A decision as the canonical ABI lays it out, within the contract's bounds for a step of four candidates.
fn decision(u: &mut Unstructured) -> Result<Vec<u32>> {
    let (tokens, floats) = (TOKENS as u32, FLOATS as u32);
    let count = u.int_in_range(0..=3)?;
    Ok(match u.int_in_range(0..=7)? {
        0..=3 => {
            let given = |u: &mut Unstructured| Ok(u32::from(u.arbitrary::<bool>()?));
            let adjust = 4 * given(u)?;
            let bias = [given(u)?, tokens, count, floats, count];
            let vocabulary = [given(u)?, tokens, 5, 0x3f00_0000, 0xff80_0000];
            // No heads, so no blend; the tail comes last.
            [&[1, floats, adjust, 0, 0], &bias[..], &vocabulary, &[given(u)?]].concat()
        }
        4 | 5 => vec![2, u.int_in_range(0..=1)?, tokens, count],
        6 => vec![3, 16, 9],
        _ => vec![0],
    })
}

/// A component whose image is the plain one with other decisions and up to 12 numbers changed.
///
/// # Errors
/// Only where the input has an end before a choice that needs one.
pub fn component(u: &mut Unstructured) -> Result<Vec<u8>> {
    // The one that works, mostly: little is lifted past the others.
    let allocator = if u.ratio(7, 8)? { 0 } else { u.choose_index(GUESTS.len())? };
    let (mut component, at) = GUESTS[allocator].clone();
    let mut image = plain();
    for step in 0..4 {
        let words = decision(u)?;
        put(&mut image, DECISIONS + step * DECISION_BYTES, &words);
    }
    for _ in 0..u.int_in_range(0..=12)? {
        // Numbers are aligned; a manifest and a decision have some fifteen, and most inputs change only the latter.
        let start = match u.int_in_range(0..=15)? {
            0 => MANIFEST,
            1 => PLAN,
            2 => TOKENS,
            3 => FLOATS,
            _ => DECISIONS + DECISION_BYTES * u.int_in_range(0..=3)?,
        };
        let number: u32 = match u.int_in_range(0..=7)? {
            0 => u.arbitrary()?,
            1 | 2 => TOKENS as u32 + 4 * u.int_in_range(0..=255)?,
            3 => 0xffff_0000 | u32::from(u.arbitrary::<u16>()?),
            4 => u.arbitrary::<f32>()?.to_bits(),
            _ => u.int_in_range(0..=40)?,
        };
        put(&mut image, start + 4 * u.int_in_range(0..=16)?, &[number]);
    }
    component[at..at + IMAGE_BYTES].copy_from_slice(&image);
    Ok(component)
}
