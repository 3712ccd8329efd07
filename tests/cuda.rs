//! The CUDA device behind the engine and the program, on the stand-in driver.
//!
//! What needs a card runs in a child process that finds the stand-in as its driver. [`take_the_card`] puts every engine of that
//! process on the card, and then bodies of tests that know nothing of it run once more: what holds of the engine holds
//! with a card's kernels. The interpreter is slow, so most of them wait for `cargo test --release cuda -- --ignored`;
//! kernels one by one are tested in `kernels/`.

use std::io::Write;

use vassal::engine::EngineError;
use vassal::error::Cause;
use vassal::model::synthetic::SyntheticModel;
use vassal_cuda_stand_in::child::{calls, configure};
use vassal_cuda_stand_in::in_child;
use vassal_kernels::cpu::Isa;
use vassal_kernels::cuda::Cuda;
use vassal_kernels::{DeviceError, Format};

use crate::program::{Run, written};
use crate::support::{PROMPT, Setup, Tiny, bits, processor, take_the_card};
use crate::{chains, engine, identities};

/// A test that runs others' bodies on the card.
macro_rules! on_the_card {
    ($(#[$attribute:meta])* $name:ident: $($module:ident::$test:ident),+ $(,)?) => {
        #[test]
        $(#[$attribute])*
        fn $name() {
            in_child!({
                take_the_card();
                $($module::$test();)+
            });
        }
    };
}

on_the_card!(chains_decide_as_on_the_processor:
    chains::stop_wins_over_splice_and_splice_over_steer,
    chains::insertions_are_offered_one_at_a_time_and_cut_before_the_first_that_is_forbidden,
    chains::where_nothing_is_left_the_policies_that_forbade_are_named,
    chains::what_evaluate_and_current_say_is_what_heads_say_of_the_sequence,
);

on_the_card!(rewound_tokens_leave_no_trace: identities::rewound_tokens_leave_no_trace_in_values_or_logits);

on_the_card!(a_look_ahead_run_counts_its_rows: engine::a_look_ahead_run_counts_candidate_rows_up_to_the_heads_layer);

on_the_card!(
    #[ignore = "three minutes on the interpreter"]
    identities_of_dials:
    identities::dial_0_with_tail_keep_is_the_base_model,
    identities::dial_0_with_mask_is_the_bases_top_k,
    identities::k_1_is_the_base_with_keep_and_greedy_with_mask,
    identities::a_constant_added_to_representable_values_changes_nothing,
    identities::a_constant_added_to_a_look_ahead_head_changes_rounding_at_most,
    identities::blend_adjust_and_evaluate_give_the_same_bits_in_the_engine,
);

on_the_card!(
    #[ignore = "eight minutes on the interpreter"]
    identities_of_batches:
    identities::alone_is_batched_in_ragged_batches_that_are_joined_and_left,
    identities::chunks_of_prompts_and_the_size_of_passes_change_nothing,
    identities::cached_is_uncached_in_ragged_batches_and_after_a_splice,
    identities::samples_that_share_a_prompt_are_each_as_alone,
);

on_the_card!(
    #[ignore = "two minutes on the interpreter"]
    identities_of_rewinds:
    identities::a_rewound_and_replayed_sequence_is_an_untouched_one,
    identities::a_paused_sequence_changes_nobody,
    identities::a_cancelled_sequence_changes_nobody,
);

on_the_card!(
    #[ignore = "three minutes on the interpreter"]
    the_engine:
    engine::a_plain_run_counts_one_row_a_token,
    engine::draws_from_the_tail_are_counted_and_run_as_one_pending_row_each,
    engine::a_one_pass_head_takes_no_rows,
    engine::a_head_gone_wild_neither_forbids_nor_undoes_what_is_forbidden,
);

on_the_card!(
    #[ignore = "two minutes on the interpreter"]
    chains_of_policies:
    chains::the_lowest_temperature_is_greedy_under_the_greatest_deltas,
    chains::two_vas_add_up_to_one_with_both_dials,
    chains::mask_wins_over_keep_and_masks_intersect,
    chains::a_required_policy_sees_each_inserted_token_as_the_only_candidate,
);

/// Weights are the same f16 on both, and the card rounds activations to f16: after three layers logits are within
/// a hundredth of the largest.
#[test]
fn a_whole_model_says_what_it_says_on_the_processor() {
    in_child!({
        take_the_card();
        let model =
            SyntheticModel { matrices: Format::F16, embedding: Format::F16, biases: true, ..SyntheticModel::default() };
        let setup = Setup { model, ..Setup::default() };
        let prompt = setup.open().tokenizer.encode(PROMPT, false).unwrap();
        let card = setup.open().logits_after(&prompt);
        let processor = Setup { device: processor(Isa::best(), 1), ..setup }.open().logits_after(&prompt);
        let largest = processor.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        let difference = card.iter().zip(&processor).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(largest > 1.0, "the model says something: {largest}");
        assert!(difference > 0.0 && difference <= 0.01 * largest, "{difference} of {largest}");
    });
}

/// Sequences of different prompts, lengths and policies in one batch, against each alone.
#[test]
fn a_ragged_batch_is_each_alone() {
    in_child!({
        take_the_card();
        let setup = Setup::with_heads();
        let mut tiny = setup.open();
        let of = |tiny: &Tiny, (prompt, tokens, policy): (&str, usize, Option<&str>)| {
            let policy =
                policy.map(|policy| tiny.policy(policy, if policy == "vas" { &[("sentiment", "0.9")] } else { &[] }));
            let mut request = tiny.request(prompt, policy.into_iter().collect());
            request.max_tokens = Some(tokens);
            request
        };
        let asked = [(PROMPT, 4, Some("vas")), ("go", 6, None), (PROMPT, 3, Some("guard"))];
        let requests = asked.map(|asked| tiny.endless(of(&tiny, asked)));
        let together: Vec<_> = tiny.run(requests.to_vec()).iter().map(bits).collect();
        for (asked, together) in asked.into_iter().zip(&together) {
            let request = of(&tiny, asked);
            assert_eq!(&bits(&tiny.alone(request)), together, "{asked:?}");
            assert_eq!(together.len(), asked.1);
        }
        assert_ne!(together[0][..3], together[2][..], "the policy steers");
    });
}

/// Steps of one row on three layers: launches of copies, logits and the draw, and one graph, whatever the layers.
#[test]
fn a_decoding_step_is_one_graph_and_a_few_launches() {
    in_child!("devices=1", {
        take_the_card();
        let mut tiny = Setup::default().open();
        tiny.engine.submit(tiny.endless(tiny.request(PROMPT, Vec::new()))).unwrap();
        let mut step = || {
            let before = [calls("cuGraphLaunch"), calls("cuLaunchKernel")];
            tiny.engine.step().unwrap();
            [calls("cuGraphLaunch") - before[0], calls("cuLaunchKernel") - before[1]]
        };
        // The prompt; then passes of one row, the first two of which are launched and captured.
        let steps: Vec<[u64; 2]> = (0..6).map(|_| step()).collect();
        assert_eq!(steps[4], steps[5], "{steps:?}");
        let [graphs, launches] = steps[5];
        assert!(graphs == 1 && launches <= 10, "{steps:?}");
        assert!(steps[1][1] >= 30, "three layers of ten launches, before there is a graph: {steps:?}");
    });
}

#[test]
fn the_program_runs_on_the_card_and_says_so() {
    in_child!({
        let card = ["--device", "cuda", "--max-tokens", "2"];
        let run = Run::tiny("x", &[&card[..], &["--compare"]].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        let card_isa = Cuda::find(0).unwrap().isa;
        assert!(card_isa.starts_with("sm_") && run.out.contains(&card_isa), "{run:?}");
        let auto = Run::tiny("x", &["--device", "auto", "--max-tokens", "1"]);
        assert_eq!(auto.code, Some(0), "{auto:?}");
        auto.says(&["--device auto: card 0"]);
        Run::tiny("x", &["--device", "cuda:1"]).refuses(2, &["there is no CUDA device 1: the driver has 1"]);
    });
}

#[test]
fn without_a_card_only_auto_takes_the_processor_and_says_so() {
    in_child!("no-device", {
        Run::tiny("x", &["--device", "cuda"]).refuses(2, &["there is no CUDA device 0: the driver has 0"]);
        let auto = Run::tiny("x", &["--device", "auto", "--max-tokens", "1"]);
        assert_eq!(auto.code, Some(0), "{auto:?}");
        auto.says(&["--device auto: the processor, because the driver has no card"]);
        let auto = Run::tiny("x", &["--device", "auto", "--threads", "1", "--max-tokens", "1"]);
        auto.says(&["--device auto: the processor, because --threads was given"]);
    });
}

#[test]
fn without_a_driver_a_card_is_refused() {
    match Cuda::count() {
        Err(DeviceError::NoDriver) => Run::tiny("x", &["--device", "cuda"]).refuses(2, &["there is no CUDA driver"]),
        // Not `eprintln!`, which the test harness swallows where a test passes.
        found => {
            writeln!(std::io::stderr(), "SKIPPED without_a_driver_a_card_is_refused: there is one ({found:?})").unwrap()
        }
    }
}

#[test]
fn devices_that_cannot_be_meant_are_refused() {
    let refuses = |arguments: &[&str], words: &[&str]| Run::tiny("x", arguments).refuses(2, words);
    refuses(&["--device", "gpu"], &["auto, cpu, cuda or cuda:N", "\"gpu\""]);
    refuses(&["--device", "cuda:-1"], &["auto, cpu, cuda or cuda:N", "\"cuda:-1\""]);
    refuses(&["--device", "cuda:"], &["auto, cpu, cuda or cuda:N"]);
    refuses(&["--device", "cuda", "--threads", "2"], &["--threads", "--device cuda"]);
    refuses(&["--device", "cuda", "--isa", "scalar"], &["--isa", "--device cuda"]);
}

#[test]
fn a_driver_that_is_too_old_is_named() {
    in_child!("driver=11020", {
        Run::tiny("x", &["--device", "cuda"]).refuses(2, &["supports CUDA 11.2, at least 11.4"]);
    });
}

#[test]
fn too_little_memory_names_what_is_needed_and_what_lowers_it() {
    in_child!("memory=4000000", {
        let words =
            ["the cache's keys needs", "weights need 1 MB", "--cache-tokens below 16384", "--rows-max below 512"];
        Run::tiny("x", &["--device", "cuda"]).refuses(4, &words);
        let less = ["--device", "cuda", "--cache-tokens", "64", "--rows-max", "16", "--max-tokens", "1"];
        let less = Run::tiny("x", &less);
        less.says(&[]);
        assert!(!less.error.contains("the cache's keys needs"), "what lowers it lowers it: {less:?}");
    });
}

#[test]
fn memory_that_runs_out_in_a_step_names_the_same() {
    in_child!("memory=8000000000", {
        take_the_card();
        let mut tiny = Setup::default().open();
        let request = tiny.endless(tiny.request(PROMPT, Vec::new()));
        tiny.engine.submit(request).unwrap();
        configure("memory=1");
        let error = tiny.engine.step().expect_err("the first pass needs scratch");
        assert!(matches!(error, EngineError::Memory { source: DeviceError::Memory { .. }, .. }), "{error}");
        let error = vassal::error::Error::from(error);
        assert_eq!(error.cause(), Cause::Capacity);
        let text = error.to_string();
        assert!(["weights need", "--cache-tokens", "--rows-max"].iter().all(|word| text.contains(word)), "{text}");
    });
}

#[test]
fn a_card_that_is_too_old_is_named_and_auto_leaves_it() {
    in_child!("sm=75", {
        let words = ["(cuda:0) has compute capability 7.5, at least 8.0 is needed"];
        Run::tiny("x", &["--device", "cuda"]).refuses(2, &words);
        let auto = Run::tiny("x", &["--device", "auto", "--max-tokens", "1"]);
        assert_eq!(auto.code, Some(0), "{auto:?}");
        auto.says(&["--device auto: the processor, because the card", words[0]]);
    });
}

/// The model's file is not even looked for.
#[test]
fn a_replay_on_another_kind_of_device_is_refused_before_a_model_is_loaded() {
    in_child!({
        let log = written("other-device.jsonl", b"");
        let recorded = Run::tiny("x", &["--audit", &log, "--max-tokens", "2"]);
        assert_eq!(recorded.code, Some(0), "{recorded:?}");
        let replay = Run::of(&["replay", &log, "--device", "cuda", "--model", "nowhere.gguf"]);
        replay.refuses(2, &["device's instruction set recorded", "here sm_"]);
        Run::of(&["replay", &log, "--model", "nowhere.gguf"]).refuses(2, &["nowhere.gguf"]);
    });
}

#[test]
fn a_failed_device_ends_its_sequences_and_not_the_process() {
    in_child!("fail-launch=150", { ends_sequences(false) });
}

#[test]
fn a_lost_device_ends_its_sequences_and_not_the_process() {
    in_child!("lose-device=150", { ends_sequences(true) });
}

fn ends_sequences(lost: bool) {
    take_the_card();
    let mut tiny = Setup::default().open();
    let request = tiny.endless(tiny.request(PROMPT, Vec::new()));
    tiny.engine.submit(request.clone()).unwrap();
    let failed = (0..100).find_map(|_| tiny.engine.step().err()).expect("the device fails");
    let EngineError::Device(error) = &failed else { panic!("{failed}") };
    assert_eq!(matches!(error, DeviceError::Lost { .. }), lost, "{error}");
    assert!(tiny.engine.is_idle(), "the sequence ended with its device");
    // Nothing falls back in silence: the engine goes on saying so.
    let refused = [tiny.engine.submit(request).expect_err("refused"), tiny.engine.step().expect_err("refused")];
    for error in refused {
        assert!(matches!(error, EngineError::Failed { .. }), "{error}");
        assert!(error.to_string().contains(&failed.to_string()), "{error}");
    }
    // The process is well.
    let mut processors = Setup { device: processor(Isa::best(), 1), ..Setup::default() }.open();
    let request = processors.request(PROMPT, Vec::new());
    assert_eq!(processors.alone(request).tokens.len(), 24);
}
