//! Rules for documents: files, names, tests and commands in backticks exist.
//!
//! What a span of code means is told by its form: with a slash or a source file's ending it is a file, a
//! name of four words or more is a test (or another function), other names with `_` or `::` are words of
//! the sources, and what begins with `vassal` or `cargo` is a command. Anything else is left alone. Names
//! beginning with `./` are the reader's own, and words in capitals stand for something.

use std::collections::HashSet;

use super::commands::{self, Form};
use super::{Repository, sources};

/// Endings by which a span without a slash is known as a file.
const ENDINGS: [&str; 13] =
    [".rs", ".md", ".toml", ".wasm", ".wit", ".py", ".json", ".jsonl", ".safetensors", ".lock", ".txt", ".yml", ".sh"];

/// A name of so many words is taken for a test.
const TEST_WORDS: usize = 4;

/// What documents may name.
pub(crate) struct Known<'a> {
    repository: Option<&'a Repository>,
    /// Files, in the rules' own tests.
    files: HashSet<String>,
    functions: HashSet<&'a str>,
    words: HashSet<&'a str>,
    command: clap::Command,
}

impl<'a> Known<'a> {
    /// All names of the sources; the rules' own tests, which make names up, are left out.
    pub(crate) fn read(repository: &'a Repository) -> Self {
        let mut known = Self::nothing();
        known.repository = Some(repository);
        for (_, text) in
            repository.texts(&[".rs", ".wit", ".py", ".toml"]).filter(|(path, _)| !path.starts_with("tests/tidy/"))
        {
            known.take(text);
        }
        known
    }

    fn nothing() -> Self {
        let command = vassal::cli::command();
        Self { repository: None, files: HashSet::new(), functions: HashSet::new(), words: HashSet::new(), command }
    }

    fn take(&mut self, text: &'a str) {
        self.words.extend(text.split(|c| !sources::is_word(c)).filter(|word| !word.is_empty()));
        self.functions.extend(text.lines().filter_map(|line| sources::function_name(line.trim_start())));
    }

    fn has_file(&self, path: &str) -> bool {
        self.files.contains(path) || self.repository.is_some_and(|repository| repository.has(path))
    }

    fn has_at_root(&self, path: &str) -> bool {
        self.files.contains(path) || self.repository.is_some_and(|repository| repository.has_at_root(path))
    }
}

/// Complaints about one document.
pub(crate) fn document(path: &str, text: &str, known: &Known<'_>) -> Vec<String> {
    let mut complaints: Vec<String> =
        prose(text).iter().flat_map(|line| spans(line)).filter_map(|code| span(code, known)).collect();
    complaints.extend(fenced(text).iter().filter_map(|line| fenced_line(line, known)));
    complaints.extend(prose(text).iter().flat_map(|line| links(line)).filter_map(|target| link(path, target, known)));
    complaints.into_iter().map(|complaint| format!("{path}: {complaint}")).collect()
}

/// Complaints about the files that doc comments name.
pub(crate) fn comments(path: &str, text: &str, known: &Known<'_>) -> Vec<String> {
    let lines = text.lines().map(str::trim_start).filter(|line| line.starts_with("//!") || line.starts_with("///"));
    let files = lines.flat_map(spans).filter(|code| is_file(code)).filter_map(|code| span(code, known));
    files.map(|complaint| format!("{path}: {complaint}")).collect()
}

/// The folders that the code map has to name: those at the top, and the host's.
pub(crate) fn folders<'a>(files: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut folders = HashSet::new();
    for file in files {
        let parts: Vec<&str> = file.split('/').collect();
        match parts[..] {
            ["host", "src", folder, _, ..] => folders.insert(format!("host/src/{folder}/")),
            [folder, _, ..] => folders.insert(format!("{folder}/")),
            _ => false,
        };
    }
    let mut folders: Vec<String> = folders.into_iter().collect();
    folders.sort();
    folders
}

/// Lines outside fenced blocks.
fn prose(text: &str) -> Vec<&str> {
    let mut block = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        block ^= fence;
        !block && !fence
    });
    lines.collect()
}

/// Lines of fenced blocks of commands (`sh`), those that end in a backslash joined with the next.
pub(crate) fn fenced(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut block, mut shell, mut open) = (false, false, String::new());
    for line in text.lines().map(str::trim) {
        if let Some(language) = line.strip_prefix("```") {
            block = !block;
            shell = block && language == "sh";
        } else if shell && let Some(start) = line.strip_suffix('\\') {
            open.push_str(start);
        } else if shell {
            lines.push(std::mem::take(&mut open) + line);
        }
    }
    lines
}

/// What stands between backticks in a line.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Targets of links in a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

fn is_file(code: &str) -> bool {
    let written = code.chars().all(|c| c.is_ascii_alphanumeric() || "_./{},-".contains(c));
    let own = ["./", "/", "~", "target/"].iter().any(|start| code.starts_with(start));
    // A quotient or an ending alone is no file.
    let letters = code
        .split('/')
        .all(|part| part.is_empty() || part.trim_start_matches(['.', '{']).starts_with(|c: char| c.is_alphabetic()));
    let alone = code.starts_with('.') && !code.contains('/');
    let placeholder = code.split('/').any(|part| {
        let stem = part.split('.').next().unwrap_or_default();
        let ending = part.ends_with(".md") || part.starts_with("LICENSE");
        !ending && stem.len() > 1 && stem.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    });
    written
        && letters
        && !own
        && !alone
        && !placeholder
        && (code.contains('/') || ENDINGS.iter().any(|ending| code.ends_with(ending)))
}

/// `a/{b,c}.rs` is two files.
fn alternatives(code: &str) -> Vec<String> {
    let Some((start, rest)) = code.split_once('{') else { return vec![code.to_owned()] };
    let Some((inside, end)) = rest.split_once('}') else { return vec![code.to_owned()] };
    inside.split(',').map(|word| format!("{start}{word}{end}")).collect()
}

fn span(code: &str, known: &Known<'_>) -> Option<String> {
    if code.starts_with("vassal ") || code.starts_with("cargo ") {
        return commands::check(&known.command, code, Form::Mention).err();
    }
    if is_file(code) {
        let missing = alternatives(code).into_iter().find(|path| !known.has_file(path));
        return missing.map(|path| format!("there is no file `{path}`"));
    }
    name(code, known)
}

/// A test, or a path of names.
fn name(code: &str, known: &Known<'_>) -> Option<String> {
    let code = code.trim_end_matches("()").trim_end_matches('!');
    let written = code.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_uppercase())
        && code.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
    let mixed = code.chars().any(char::is_uppercase) && code.chars().any(char::is_lowercase);
    if !written || !(code.contains('_') || code.contains("::") || mixed) {
        return None;
    }
    if !code.contains("::") && code == code.to_lowercase() && code.split('_').count() >= TEST_WORDS {
        return (!known.functions.contains(code)).then(|| format!("there is no test `{code}`"));
    }
    let missing = code.split("::").find(|part| !known.words.contains(part));
    missing.map(|part| format!("nothing is called `{part}` (in `{code}`)"))
}

/// A line of a shell: a whole command of ours, or one that names files and tests of ours.
fn fenced_line(line: &str, known: &Known<'_>) -> Option<String> {
    if let Err(complaint) = commands::check(&known.command, line, Form::Whole) {
        return Some(complaint);
    }
    for word in line.split_whitespace().take_while(|word| *word != "#") {
        if is_file(word) && !word.contains('=') {
            let top = word.split('/').next().unwrap_or_default();
            if known.has_at_root(top) && !known.has_at_root(word) {
                return Some(format!("there is no file `{word}` (in `{line}`)"));
            }
        } else if line.starts_with("cargo test")
            && let Some(complaint) = name(word, known)
        {
            return Some(complaint);
        }
    }
    None
}

/// A link to a file beside the document.
fn link(document: &str, target: &str, known: &Known<'_>) -> Option<String> {
    let file = target.split('#').next().unwrap_or_default();
    if file.is_empty() || file.contains("://") {
        return None;
    }
    let mut path: Vec<&str> = document.split('/').collect();
    path.pop();
    for part in file.split('/') {
        match part {
            ".." => drop(path.pop()),
            "." | "" => {}
            part => path.push(part),
        }
    }
    let path = path.join("/");
    (!known.has_at_root(&path)).then(|| format!("a link leads to `{path}`, which is not there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known<'static> {
        let mut known = Known::nothing();
        known.files = ["host/src/host.rs", "docs/a.md", "docs", "host"].map(str::to_owned).into();
        known.take("struct Engine;\nimpl Engine {\n    fn step() {}\n}\n#[test]\nfn rows_do_not_depend() {}\nlet rows_max = 1;\n");
        known
    }

    #[test]
    fn spans_are_files_names_tests_or_left_alone() {
        let known = known();
        for good in [
            "`host/src/host.rs`, `host/src/{host}.rs`",
            "`rows_do_not_depend`, `rows_max`, `Engine::step`, `Engine`",
            "`--json`, `./my.wasm`, `.wasm`, `a/127`, `Q4_1/Q8_0`, `FILE.gguf`, `d·T/spread`, `blend`, `hub:OWNER/NAME/FILE.gguf`",
            "`vassal run`, `cargo test`",
        ] {
            assert_eq!(document("README.md", good, &known), Vec::<String>::new(), "{good}");
        }
        for bad in [
            "`host/src/gone.rs`",
            "`gone.md`",
            "`host/src/{host,gone}.rs`",
            "`rows_do_depend_on`",
            "`rows_min`",
            "`Engine::stop`",
            "`MotorCar`",
            "`vassal rum`",
        ] {
            assert_eq!(document("README.md", bad, &known).len(), 1, "{bad}");
        }
    }

    #[test]
    fn blocks_hold_whole_commands() {
        let known = known();
        let block = |line: &str| document("README.md", &format!("```sh\n{line}\n```\n"), &known);
        assert!(block("vassal run \"hello\" \\\n  --seed 7").is_empty());
        assert_eq!(block("vassal run --sed 7").len(), 1);
        assert_eq!(block("python3 docs/gone.py").len(), 1);
        assert_eq!(block("cargo test --release rows_do_depend_on").len(), 1);
        assert!(document("README.md", "```text\nvassal rum\n```\n", &known).is_empty());
    }

    #[test]
    fn links_lead_somewhere() {
        let known = known();
        assert!(document("README.md", "[a](docs/a.md#part), [b](https://example.org/x)", &known).is_empty());
        assert!(document("docs/b.md", "[a](a.md), [h](../host/src/host.rs)", &known).is_empty());
        assert_eq!(document("docs/b.md", "[a](docs/a.md)", &known).len(), 1);
    }

    #[test]
    fn folders_are_those_at_the_top_and_the_hosts() {
        let files = ["a.md", "docs/a.md", "host/src/host.rs", "host/src/engine/mod.rs"];
        assert_eq!(folders(files.into_iter()), ["docs/", "host/", "host/src/engine/"]);
    }

    #[test]
    fn comments_are_checked_for_files_only() {
        let known = known();
        assert_eq!(comments("a.rs", "//! See `gone.rs` and `some_local_name_here`.\n", &known).len(), 1);
        assert!(comments("a.rs", "// `gone.rs`\n/// `host.rs`, as `host/src/host.rs`\n", &known).len() <= 1);
    }
}
