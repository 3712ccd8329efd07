//! A first-time author's road: the template is copied out of the repository, changed in a few lines, built by
//! the one command, and loaded.
//!
//! What a crate that does it wrong is told is tested here too.

use std::fs;
use std::path::{Path, PathBuf};

use vassal::policy_build::{BuildError, Recipe};
use vassal::sandbox::{Limits, Needs, Sandbox};

use crate::rebuild::root;
use crate::support::compilation;

/// A copy of the policy template in a folder of its own, with its SDK found.
pub(crate) fn copied(name: &str) -> PathBuf {
    copied_from("examples/policy-template", name)
}

/// The same of one of the templates.
pub(crate) fn copied_from(template: &str, name: &str) -> PathBuf {
    let (from, to) = (root().join(template), Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
    fs::create_dir_all(to.join("src")).unwrap();
    for file in ["Cargo.toml", "Cargo.lock", "src/lib.rs"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let guest = root().join("guest").canonicalize().unwrap();
    edit(&to.join("Cargo.toml"), &[("../../guest", guest.to_str().unwrap())]);
    to
}

/// Changes a file, each passage of it exactly once.
pub(crate) fn edit(path: &Path, changes: &[(&str, &str)]) {
    let mut text = fs::read_to_string(path).unwrap();
    for (from, to) in changes {
        assert_eq!(text.matches(from).count(), 1, "`{from}` in {}", path.display());
        text = text.replace(from, to);
    }
    fs::write(path, text).unwrap();
}

/// Builds a copy, beside what other builds have made already.
pub(crate) fn built(dir: &Path) -> Result<Vec<u8>, BuildError> {
    let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().map(Path::to_owned);
    let recipe = Recipe { dir: dir.to_owned(), locked: true, quiet: true, target_dir, ..Recipe::default() };
    recipe.component()
}

#[test]
fn a_copied_and_changed_template_is_a_policy() {
    let dir = copied("longer");
    edit(
        &dir.join("src/lib.rs"),
        &[
            ("name: \"my\".into()", "name: \"longer\".into()"),
            ("summary: \"Makes some letters likelier\"", "summary: \"Ends the response later\""),
            ("                Setting::text(\"letters\", \"which letters\", \"!\"),\n", ""),
            ("\"how much likelier\"", "\"how much less likely its end is\""),
            ("        let liked = text::find(&Pattern::text(request.text(\"letters\")), Place::Anywhere);\n", ""),
            ("liked.iter().take(1024).collect()", "request.end_of_text.clone()"),
            ("vec![self.nats;", "vec![-self.nats;"),
        ],
    );
    let component = built(&dir).unwrap_or_else(|error| panic!("{error}"));
    let sandbox = Sandbox::new(Limits::default(), compilation()).unwrap();
    let compiled = sandbox.compile("longer", &component).unwrap();
    let manifest = compiled.describe(&[], Needs::default()).unwrap();
    assert_eq!((manifest.name.as_str(), manifest.settings.len()), ("longer", 1));
    assert_eq!(compiled.imports(), ["audit.note"]);
    assert!(component.len() <= 60 * 1024, "{} bytes", component.len());
}

#[test]
fn a_crate_that_exports_no_policy_is_told_so() {
    let dir = copied("nothing");
    edit(&dir.join("src/lib.rs"), &[("export!(My);\n", "")]);
    let error = built(&dir).unwrap_err().to_string();
    assert!(error.contains("export!") && error.contains("export_reward!"), "{error}");
}

#[test]
fn an_author_needs_no_unsafe_code_and_may_write_none() {
    let dir = copied("unsafe");
    let function = "/// No.\npub fn no() -> u8 {\n    unsafe { *(8 as *const u8) }\n}\n\nexport!(My);";
    edit(&dir.join("src/lib.rs"), &[("export!(My);", function)]);
    let error = built(&dir).unwrap_err().to_string();
    assert!(error.contains("unsafe"), "{error}");
}
