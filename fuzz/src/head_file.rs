//! Files of value heads: safetensors with a description, and what is accepted written once more.
//!
//! An input whose ninth byte opens an object is a file: eight bytes of length come before it. Any other is choices
//! by which a file is made, so that descriptions and tensors nearly fit each other.

use arbitrary::{Result, Unstructured};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use vassal::model::heads::{FORMAT, HeadFile, HeadWeights, METADATA_KEY, ModelIdentity};
use vassal_kernels::OnePassHead;

/// Reads a file, or makes one.
pub fn run(data: &[u8]) {
    if data.get(8) == Some(&b'{') {
        return read(data);
    }
    if let Ok(file) = made(&mut Unstructured::new(data)) {
        read(&file);
    }
}

fn read(bytes: &[u8]) {
    let Ok(head) = HeadFile::read(bytes) else { return };
    // Whatever is accepted can be written, is accepted again, and is the same then, but for the rounding of halves.
    let written = head.to_bytes().expect("an accepted head can be written");
    let again = HeadFile::read(&written).expect("a written head can be read");
    assert_eq!(again.description, head.description);
    match (&head.weights, &again.weights) {
        (HeadWeights::OnePass(first), HeadWeights::OnePass(second)) => same_products(first, second),
        (first, second) => assert!(first == second, "a head reads back as another"),
    }
    let about = &head.description;
    let model = ModelIdentity {
        sha256: &about.model_sha256,
        layers: about.layers,
        hidden: about.hidden,
        vocabulary: about.vocabulary,
    };
    assert!(head.check_model(model).is_ok(), "a head fits the model that it names");
    assert!(head.check_model(ModelIdentity { hidden: about.hidden + 1, ..model }).is_err());
}

/// Products of states and embeddings are what counts of a one-pass head; the largest of each row is compared.
fn same_products(first: &OnePassHead, second: &OnePassHead) {
    assert_eq!((first.rank, &first.token_bias), (second.rank, &second.token_bias));
    let (state, embedding) = (first.state.len() / first.rank, first.embedding.len() / first.rank);
    for row in 0..first.rank {
        let largest = |head: &OnePassHead| {
            let most = |row: &[f32]| row.iter().fold(0.0_f64, |most, x| most.max(f64::from(x.abs())));
            most(&head.state[row * state..][..state]) * most(&head.embedding[row * embedding..][..embedding])
        };
        let (ours, theirs) = (largest(first), largest(second));
        // Below it is what a float's exponent cannot say; a half rounds to one part in 2,048, twice.
        assert!(ours < 1e-30 || (ours - theirs).abs() <= ours / 512.0, "row {row}: {ours} became {theirs}");
    }
}

/// The description of a head that is accepted, as JSON.
fn description(one_pass: bool) -> Value {
    json!({
        "format": FORMAT, "name": "fuzzed", "kind": if one_pass { "one-pass" } else { "look-ahead" },
        "layer": 1, "layers": 2, "hidden": 4, "vocabulary": 8, "model_sha256": "0".repeat(64),
        "spread": 1.0, "token_limit": 24,
        "provenance": {
            "prompts_sha256": "", "rollouts_sha256": "", "prompts": 0, "rollouts": 0, "samples": 1,
            "temperature": 1.0, "top_p": 1.0, "lambda": 1.0, "penalties": [], "explained": 0.0,
            "explained_by_position": [], "dial_to_kl": [[0.5, 0.1]], "seed": 0, "command": "", "version": "",
        },
    })
}

fn made(u: &mut Unstructured) -> Result<Vec<u8>> {
    let one_pass = u.arbitrary()?;
    let mut description = description(one_pass);
    for _ in 0..u.int_in_range(0..=2)? {
        let value = value(u)?;
        let target = if u.ratio(1, 4)? { &mut description["provenance"] } else { &mut description };
        let keys: Vec<String> = target.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default();
        if keys.is_empty() {
            continue;
        }
        target[u.choose(&keys)?.as_str()] = value;
    }
    let rank = u.int_in_range(1..=3)?;
    let shapes: Vec<(&str, Dtype, Vec<usize>)> = if one_pass {
        vec![
            ("embedding", Dtype::F16, vec![rank, 4]),
            ("scale", Dtype::F32, vec![rank]),
            ("state", Dtype::F16, vec![rank, 10]),
            ("token_bias", Dtype::F16, vec![8]),
        ]
    } else {
        vec![
            ("mean", Dtype::F32, vec![4]),
            ("residual", Dtype::F32, vec![4]),
            ("scalars", Dtype::F32, vec![2]),
            ("share", Dtype::F32, vec![4]),
        ]
    };
    let mut tensors = Vec::new();
    for (name, mut format, mut shape) in shapes {
        match u.int_in_range(0..=31)? {
            0 => continue,
            1 => shape.push(u.int_in_range(0..=3)?),
            2 => shape[0] = u.int_in_range(0..=70)?,
            3 => format = *u.choose(&[Dtype::F16, Dtype::F32, Dtype::BF16, Dtype::F64, Dtype::U8])?,
            _ => {}
        }
        let elements: usize = shape.iter().product();
        // Its numbers repeat a few bytes of the input, NaN and infinities among them.
        let some: [u8; 8] = u.arbitrary()?;
        let bytes: Vec<u8> = (0..elements * format.bitsize() / 8).map(|at| some[at % 8]).collect();
        tensors.push((name, format, shape, bytes));
    }
    let views: std::result::Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, format, shape, bytes)| Ok((*name, TensorView::new(*format, shape.clone(), bytes)?)))
        .collect();
    let metadata = [(METADATA_KEY.to_owned(), description.to_string())];
    let file = views.and_then(|views| safetensors::serialize(views, Some(metadata.into_iter().collect())));
    file.map_err(|_: safetensors::SafeTensorError| arbitrary::Error::IncorrectFormat)
}

/// A value of any kind, numbers at their edges among them.
fn value(u: &mut Unstructured) -> Result<Value> {
    Ok(match u.int_in_range(0..=7)? {
        0 => Value::Null,
        1 => json!(u.arbitrary::<i64>()?),
        2 => json!(u.arbitrary::<u64>()?),
        3 => json!(u.arbitrary::<f64>()?),
        4 => json!(u.arbitrary::<&str>()?),
        5 => json!(u.int_in_range(0..=65)?),
        6 => json!([[u.arbitrary::<f64>()?, 1e300]]),
        _ => json!({ "a": 1 }),
    })
}
