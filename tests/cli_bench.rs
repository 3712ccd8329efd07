//! `vassal bench --json`: the figures that scripts read, by their names. No time is judged here, only that each
//! is one: machines are slow and noisy, and speed is measured by the commands themselves.

use serde_json::Value;

use crate::program::{Run, finite, has_keys, spinner, tiny};

#[track_caller]
fn positive<const N: usize>(value: &Value, keys: [&str; N]) {
    for (key, figure) in keys.iter().zip(finite(value, keys)) {
        assert!(figure > 0.0, "`{key}` is {figure}");
    }
}

#[test]
fn bench_sandbox_has_a_row_a_number_of_candidates() {
    let object = Run::of(&["bench", "sandbox", "--sequences", "3", "--rounds", "1", "--json"]).object(0);
    let rows = object["rows"].as_array().unwrap();
    for row in rows {
        positive(row, ["candidates", "sequences", "plain_call_ns", "prefetched_ns", "suspended_ns", "start_us"]);
        assert_eq!(row["sequences"], 3, "{row:#}");
    }
    let candidates: Vec<u64> = rows.iter().map(|row| row["candidates"].as_u64().unwrap()).collect();
    assert_eq!(candidates, [20, 64, 256]);
}

#[test]
fn bench_decode_has_a_time_for_each_kind_of_step() {
    let arguments = ["bench", "decode", "--rounds", "1", "--threads", "2", "--isa", "scalar", "--json"];
    let object = Run::of(&[&arguments[..], &["--model", tiny()]].concat()).object(0);
    positive(&object, ["plain_ms", "rows20_ms", "lookahead20_ms", "lookahead20_floor_ms", "prefill512_ms"]);
    positive(&object, ["batch_step_ms", "batch_sequences"]);
    has_keys(&object, &["threads", "isa"]);
    assert_eq!((&object["threads"], &object["isa"]), (&2.into(), &"scalar".into()));
}

#[test]
fn bench_engine_has_neighbours_throughput_and_audit() {
    let arguments = ["bench", "engine", "--rounds", "1", "--model", tiny(), "--slow", spinner(), "--json"];
    let object = Run::of(&arguments).object(0);
    let neighbours = &object["neighbours"];
    assert_eq!(
        (&neighbours["tokens_unchanged"], &neighbours["sequences"]),
        (&true.into(), &16.into()),
        "{neighbours:#}"
    );
    positive(neighbours, ["p99_ratio"]);
    for steps in ["alone", "beside"] {
        positive(&neighbours[steps], ["p50_ms", "p99_ms"]);
    }
    let throughput = object["throughput"].as_array().unwrap();
    let sequences: Vec<u64> = throughput.iter().map(|row| row["sequences"].as_u64().unwrap()).collect();
    assert_eq!(sequences, [64, 256, 64], "the last on the model itself");
    throughput.iter().for_each(|row| positive(row, ["policy_tokens_per_second", "base_tokens_per_second", "ratio"]));
    positive(&object, ["audit_us_per_token"]);
}
