//! The program as tests of the command line run it, and what those tests ask of its answers.
//!
//! [`Run`] is one run of the program, which is built with the tests and so never a stale one. Files of these tests
//! lie in [`folder`]; [`tiny`] is a model and [`hostile`] a policy among them. What the program should say stands in
//! `tests/cli.rs` and the files beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use vassal::model::source::{DEFAULT_MODEL, Models};
use vassal::model::synthetic::SyntheticModel;

use crate::support::component;

/// The response's words in the JSON of `vassal run`, besides those of rows and time.
pub(crate) const REPORT_KEYS: [&str; 9] =
    ["text", "tokens", "finish", "reward", "kl", "cross_entropy", "tokens_per_second", "forwards_per_token", "seconds"];

/// A folder of these tests.
pub(crate) fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The program's home in these tests: its caches are none of the user's. The default model is there where the user
/// has it.
fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        let home = folder().join("home");
        std::fs::create_dir_all(&home).unwrap();
        if let Ok(model) = Models::from_env().unwrap().find(DEFAULT_MODEL) {
            let link = home.join(model.file_name().unwrap());
            // Tests' children do the same beside us, so it is there whole or not at all.
            let ours = home.join(format!("link-{}", std::process::id()));
            std::os::unix::fs::symlink(model, &ours).unwrap();
            std::fs::rename(ours, link).unwrap();
        }
        home
    })
}

/// The tiny model's file: a context of 512 tokens.
pub(crate) fn tiny() -> &'static str {
    static TINY: OnceLock<String> = OnceLock::new();
    TINY.get_or_init(|| written("tiny.gguf", &SyntheticModel::default().bytes()))
}

/// A component with a mode for each attack.
pub(crate) fn hostile() -> &'static str {
    static HOSTILE: OnceLock<String> = OnceLock::new();
    HOSTILE.get_or_init(|| written("hostile.wasm", &component("hostile")))
}

/// A component that works to its limit in every step.
pub(crate) fn spinner() -> &'static str {
    static SPINNER: OnceLock<String> = OnceLock::new();
    SPINNER.get_or_init(|| written("spinner.wasm", &component("spinner")))
}

/// A file of these tests, by its name. It is never half there: tests' children write the same ones.
pub(crate) fn written(name: &str, bytes: &[u8]) -> String {
    let path = folder().join(name);
    let ours = folder().join(format!("{name}-{}", std::process::id()));
    std::fs::write(&ours, bytes).unwrap();
    std::fs::rename(ours, &path).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The program with these arguments, about to be started.
pub(crate) fn started(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vassal-under-test"));
    command.args(arguments).stdin(Stdio::null()).env("VASSAL_HOME", home());
    command
}

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Run {
    pub(crate) fn of(arguments: &[&str]) -> Self {
        Self::command(arguments, |_| {})
    }

    pub(crate) fn command(arguments: &[&str], set: impl FnOnce(&mut Command)) -> Self {
        let mut command = started(arguments);
        set(&mut command);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self { code: output.status.code(), out: text(&output.stdout), error: text(&output.stderr) }
    }

    /// `vassal run` of a prompt on the tiny model.
    pub(crate) fn tiny(prompt: &str, arguments: &[&str]) -> Self {
        Self::of(&[&["run", prompt, "--model", tiny()], arguments].concat())
    }

    /// It ended with this code, and said all of this on standard error and nothing on standard output.
    #[track_caller]
    pub(crate) fn refuses(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
        self.says(words);
    }

    /// All of this is on standard error, and no trace of a panic.
    #[track_caller]
    pub(crate) fn says(&self, words: &[&str]) {
        for word in words {
            assert!(self.error.contains(word), "`{word}` is not in {}", self.error);
        }
        assert!(!self.error.contains("panicked"), "{}", self.error);
    }

    /// It ended with this code, and standard output is one JSON object.
    #[track_caller]
    pub(crate) fn object(&self, code: i32) -> Value {
        assert_eq!(self.code, Some(code), "{self:?}");
        let value: Value = serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert!(value.is_object(), "{self:?}");
        value
    }
}

/// Figures by their names, each a finite number.
#[track_caller]
pub(crate) fn finite<const N: usize>(value: &Value, keys: [&str; N]) -> [f64; N] {
    keys.map(|key| {
        let figure = value[key].as_f64().unwrap_or_else(|| panic!("`{key}` is no number in {value:#}"));
        assert!(figure.is_finite(), "`{key}` is {figure}");
        figure
    })
}

#[track_caller]
pub(crate) fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no `{key}` in {value:#}");
    }
}
