//! Rewards as components: the template's is the same natively and sandboxed, whatever comes together in a call.
//!
//! What hostile rewards try is `tests/attacks/rewards.rs`. Here is an honest one, and an author's road to it: the
//! template is copied out of the repository, changed in a few lines, built by the one command, loaded, and scores.

use std::sync::OnceLock;

use vassal::sandbox::{CompiledReward, Exchange, GuestKind, Limits, Sandbox};
use vassal_guest::reward::{self, Reward};

use crate::support::{compilation, sandbox};
use crate::template;

/// The very file that is built as a component, so that a test can compare the two.
#[path = "../examples/reward-template/src/lib.rs"]
#[allow(unreachable_pub, reason = "in its own file it is a crate, and public")]
mod on_topic;

use on_topic::OnTopic;

/// The template's reward, as it stands.
pub(crate) fn on_topic() -> CompiledReward {
    static COMPILED: OnceLock<CompiledReward> = OnceLock::new();
    let build = || {
        let dir = template::copied_from("examples/reward-template", "on-topic");
        let component = template::built(&dir).unwrap_or_else(|error| panic!("{error}"));
        sandbox().compile_reward("on-topic", &component).unwrap()
    };
    COMPILED.get_or_init(build).clone()
}

/// Exchanges of many lengths and scripts.
pub(crate) fn exchanges() -> Vec<(String, String)> {
    let prompts =
        ["", "Why do cats purr?", "Erkläre die Größe der Ärzte", "猫 はなぜ?", "a \u{0}\u{feff} b", "List, list; list"];
    let pieces = ["cats ", "purr. ", "the ", "Größe ", "猫 ", "\n- ", "\u{0}", "bones ", "x", "lists ", "Ärzten, "];
    let mut mixed = 1_u64;
    let mut next = |most: usize| {
        mixed = mixed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (mixed >> 33) as usize % most
    };
    let mut exchanges = Vec::new();
    for length in (0..40).chain([300, 5_000]) {
        for prompt in prompts {
            let response = (0..length).map(|_| pieces[next(pieces.len())]).collect();
            exchanges.push((prompt.to_owned(), response));
        }
    }
    exchanges
}

pub(crate) fn borrowed(exchanges: &[(String, String)]) -> Vec<Exchange<'_>> {
    exchanges.iter().map(|(prompt, response)| Exchange { prompt, response }).collect()
}

#[test]
fn a_reward_is_the_same_natively_and_as_a_component() {
    let (compiled, exchanges) = (on_topic(), exchanges());
    let manifest = compiled.describe().unwrap();
    let native = OnTopic::manifest();
    assert_eq!(
        (&manifest.name, &manifest.version, &manifest.summary),
        (&native.name, &native.version, &native.summary)
    );
    assert_eq!((manifest.minimum, manifest.maximum), (0.0, 1.0));
    assert!(compiled.imports().is_empty() && compiled.name() == "on-topic");
    let scores = compiled.score(&borrowed(&exchanges));
    let own: Vec<_> = exchanges.iter().map(|(prompt, response)| reward::Exchange::new(prompt, response)).collect();
    let native = reward::scores::<OnTopic>(&own);
    assert_eq!(scores.len(), native.len());
    for ((score, native), exchange) in scores.iter().zip(&native).zip(&own) {
        let score = *score.as_ref().unwrap_or_else(|fault| panic!("{fault}: {exchange:?}"));
        assert_eq!(score.to_bits(), native.to_bits(), "{exchange:?}");
    }
    assert!(native.contains(&0.0) && native.contains(&1.0), "the texts tell nothing apart");
}

#[test]
fn a_score_is_the_same_whatever_comes_together() {
    let (compiled, exchanges) = (on_topic(), exchanges());
    let together = compiled.score(&borrowed(&exchanges));
    let alone = borrowed(&exchanges).iter().flat_map(|exchange| compiled.score(&[*exchange])).collect::<Vec<_>>();
    assert_eq!(together, alone);
    let backwards: Vec<_> = exchanges.iter().rev().cloned().collect();
    let mut again = compiled.score(&borrowed(&backwards));
    again.reverse();
    assert_eq!(together, again);
    // Clones serve threads at once.
    let threads = std::thread::scope(|scope| {
        let score = || scope.spawn(|| on_topic().score(&borrowed(&exchanges)));
        [score(), score(), score()].map(|thread| thread.join().unwrap())
    });
    assert!(threads.iter().all(|scores| *scores == together));
    assert_eq!(compiled.score(&[]), []);
}

#[test]
fn the_templates_reward_keeps_within_a_third_of_its_budget() {
    let whole = Limits::default();
    let (fuel_score, fuel_score_byte) = (whole.fuel_score / 3, whole.fuel_score_byte / 3);
    let sandbox = Sandbox::new(Limits { fuel_score, fuel_score_byte, ..Limits::default() }, compilation()).unwrap();
    let component = template::built(&template::copied_from("examples/reward-template", "third")).unwrap();
    let exchanges = exchanges();
    let scores = sandbox.compile_reward("on-topic", &component).unwrap().score(&borrowed(&exchanges));
    assert_eq!(scores, on_topic().score(&borrowed(&exchanges)));
}

#[test]
fn a_reward_without_the_sdks_feature_is_told_of_it() {
    let dir = template::copied_from("examples/reward-template", "featureless");
    template::edit(&dir.join("Cargo.toml"), &[("guest\", features = [\"reward\"]", "guest\"")]);
    let error = template::built(&dir).unwrap_err().to_string();
    assert!(error.contains("feature `reward`"), "{error}");
}

#[test]
fn a_copied_and_changed_reward_template_is_a_reward() {
    let dir = template::copied_from("examples/reward-template", "brief");
    template::edit(
        &dir.join("src/lib.rs"),
        &[
            ("name: \"on-topic\".into()", "name: \"brief\".into()"),
            ("takes up the prompt's words and adds its own: 0 neither, 1 all of them and 8 more", "few new words"),
            ("        taken_up * new\n", "        -taken_up * new\n"),
            ("..Manifest::default()", "minimum: -1.0, maximum: 0.0"),
        ],
    );
    let component = template::built(&dir).unwrap_or_else(|error| panic!("{error}"));
    assert!(component.len() <= 128 * 1024, "{} bytes", component.len());
    let compiled = sandbox().compile_reward("brief", &component).unwrap();
    let manifest = compiled.describe().unwrap();
    assert_eq!((manifest.name.as_str(), manifest.minimum, manifest.maximum), ("brief", -1.0, 0.0));
    let exchange = Exchange { prompt: "Why do cats purr?", response: "Cats purr. Nobody knows." };
    assert_eq!(compiled.score(&[exchange]), [Ok(-0.25)]);
    // It is not a policy, nor does it carry anything of one.
    let error = sandbox().compile("brief", &component).unwrap_err().to_string();
    assert!(error.contains("a reward, not a policy") && error.contains(GuestKind::Reward.usage()), "{error}");
    let text = String::from_utf8_lossy(&component);
    assert!(!text.contains("vassal:policy"), "a reward's component names the contract of policies");
}
