//! The responses that a policy is driven through: as it is given, and at the ends of everything that can be turned.
//!
//! Every dial at its least and its most, alone and all at once, besides other seeds, temperatures, few candidates and heads
//! that fail. Start at [`cases`].

use crate::sandbox::{Manifest, Setting, SettingKind, SettingValue};

/// The text that a text setting is tried with, beside none: a list as a tenant would write it.
const SAMPLE_TEXT: &str = "nervous\ndon't worry\nÄrger\n日本";

/// One response to drive.
pub(super) struct Case {
    /// For messages.
    pub(super) label: String,
    pub(super) settings: Vec<SettingValue>,
    pub(super) seed: u64,
    pub(super) temperature: f32,
    /// Candidates of a step at most.
    pub(super) candidates: u32,
    /// Whether heads answer.
    pub(super) heads_answer: bool,
}

/// The responses to drive; the first is the policy as it is given.
pub(super) fn cases(manifest: &Manifest, given: &[SettingValue]) -> Vec<Case> {
    let case = |label: String, settings: Vec<SettingValue>| Case {
        label,
        settings,
        seed: 1,
        temperature: 1.0,
        candidates: 256,
        heads_answer: true,
    };
    let base = |label: &str| case(label.to_owned(), given.to_vec());
    let mut cases = vec![
        base("as given"),
        Case { seed: u64::MAX, ..base("another seed") },
        Case { temperature: 0.0, seed: 0, ..base("greedy, seed 0") },
        Case { temperature: 100.0, ..base("temperature 100") },
        Case { candidates: 1, ..base("one candidate") },
        Case { heads_answer: false, ..base("heads that fail") },
    ];
    for (place, setting) in manifest.settings.iter().enumerate() {
        for value in extremes(setting) {
            let mut settings = given.to_vec();
            settings[place] = value;
            let shown = match &settings[place] {
                SettingValue::Text(text) => format!("{text:?}"),
                other => other.to_string(),
            };
            cases.push(case(format!("{}={shown}", setting.name), settings));
        }
    }
    // The least and the most of all dials at once.
    for (label, last) in [("every dial at its first", false), ("every dial at its last", true)] {
        let of = |setting: &Setting| {
            let mut extremes = extremes(setting);
            let place = if last { extremes.len() - 1 } else { 0 };
            extremes.swap_remove(place)
        };
        cases.push(case(label.to_owned(), manifest.settings.iter().map(of).collect()));
    }
    cases
}

/// The values of a dial that are worth a try; at least one.
fn extremes(setting: &Setting) -> Vec<SettingValue> {
    match &setting.kind {
        SettingKind::Number { minimum, maximum, .. } => {
            vec![SettingValue::Number(*minimum), SettingValue::Number(*maximum)]
        }
        SettingKind::Flag(_) => vec![SettingValue::Flag(false), SettingValue::Flag(true)],
        SettingKind::Choice(words) if words.is_empty() => vec![setting.initial()],
        SettingKind::Choice(words) => words.iter().cloned().map(SettingValue::Choice).collect(),
        SettingKind::Text(_) => vec![SettingValue::Text(String::new()), SettingValue::Text(SAMPLE_TEXT.to_owned())],
    }
}
