//! Rules for code: headers, lengths, unsafe code, and what names somebody's machine.
//!
//! Each takes a path and a text and gives complaints. They read text, not syntax: the formatter's layout is
//! what they rely on (a function ends at the brace under its first letter). The two tables are ratchets:
//! what stands there may not grow past its number, and leaves the table when it has become short.

/// Lines of a file without an entry in [`LONG_FILES`].
const FILE_LINES_MAX: usize = 400;

/// Lines of a function without an entry in [`LONG_FUNCTIONS`].
const FUNCTION_LINES_MAX: usize = 70;

/// Prose lines of a module's header, blank ones and blocks of code left out.
const HEADER_LINES: std::ops::RangeInclusive<usize> = 3..=15;

/// A file shorter than this says enough in one line.
const SHORT_FILE_LINES: usize = 70;

/// A file that may be longer: path, lines at most, reason.
type LongFile = (&'static str, usize, &'static str);

/// A function that may be longer: path, name, lines at most, reason.
type LongFunction = (&'static str, &'static str, usize, &'static str);

pub(crate) const LONG_FILES: &[LongFile] = &[
    ("guest/src/types.rs", 450, "the contract's records, one page of documentation each"),
    (
        "host/src/engine/mod.rs",
        650,
        "the engine's state and its way in and out; passes and rounds are files of their own",
    ),
    ("host/src/learning/one_pass.rs", 650, "one fit in stages that share their arrays, and its planted test"),
    ("host/src/learning/ridge.rs", 525, "one solver, and tests against the normal equations"),
    ("host/src/model/gguf/mod.rs", 500, "one file format: what a file holds, and why one is refused"),
    ("host/src/model/heads/mod.rs", 600, "one file format in two kinds: writer, reader and their tests"),
    ("host/src/model/source/tests.rs", 600, "a server on loopback, and every way a download goes wrong"),
    ("host/src/model/tokenizer.rs", 525, "pre-tokenizers by name, and tests of each"),
    ("kernels/src/cpu/attention.rs", 475, "one algorithm: tiles, merging and its kernels"),
    ("kernels/src/cpu/device.rs", 550, "one method an operation of the device trait, in its order"),
    ("kernels/src/cpu/lanes.rs", 450, "each operation of eight lanes twice, side by side"),
    ("kernels/src/cpu/sample.rs", 475, "one draw, stage by stage"),
    ("kernels/src/device.rs", 475, "the device trait: mostly documentation"),
    ("tests/compare/llama_cpp.py", 450, "one script that can be copied to another machine"),
    ("tests/loader.rs", 600, "a catalogue of broken files, each beside its error"),
];

pub(crate) const LONG_FUNCTIONS: &[LongFunction] = &[
    ("host/src/cli/fit.rs", "fit", 140, "a command's stages in order, each a call and a report"),
    ("host/src/engine/pass.rs", "lower_half", 80, "one plan: candidate rows, pending rows, run"),
    ("host/src/engine/teacher.rs", "candidate_states", 100, "a pass with two kinds of rows, in order"),
    ("host/src/sandbox/limits.rs", "default", 80, "one line a limit"),
    ("tests/hostile/src/lib.rs", "decide", 100, "a match with an arm an attack"),
    ("tests/policies.rs", "run", 90, "two hosts in step, compared at each answer"),
];

/// A module's header: `//!` lines that say what it is, what it is not, and where to start.
pub(crate) fn header(path: &str, text: &str) -> Option<String> {
    let mut lines = 0;
    let mut block = false;
    for line in text.lines().map_while(|line| line.strip_prefix("//!")) {
        let line = line.trim();
        let fence = line.starts_with("```");
        block ^= fence;
        lines += usize::from(!line.is_empty() && !block && !fence);
    }
    let short = text.lines().count() < SHORT_FILE_LINES;
    let least = if short { 1 } else { *HEADER_LINES.start() };
    // The page of a whole crate may be a guide.
    let most = if path.ends_with("/lib.rs") { usize::MAX } else { *HEADER_LINES.end() };
    let accepted = least..=most;
    (!accepted.contains(&lines))
        .then(|| format!("{path}: a header of {lines} lines of prose, expected {least} to {}", HEADER_LINES.end()))
}

/// Files past [`FILE_LINES_MAX`] without an entry or past it, and entries that are not needed.
pub(crate) fn long_files(files: &[(&str, &str)], table: &[LongFile]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in files {
        let lines = text.lines().count();
        let entry = table.iter().find(|entry| entry.0 == *path);
        let most = entry.map_or(FILE_LINES_MAX, |entry| entry.1);
        if lines > most {
            complaints.push(format!("{path}: {lines} lines, at most {most}: split it by concept"));
        } else if entry.is_some() && lines <= FILE_LINES_MAX {
            complaints.push(format!("{path}: {lines} lines, its entry among the long files is stale"));
        }
    }
    let gone = table.iter().filter(|entry| !files.iter().any(|(path, _)| *path == entry.0));
    complaints.extend(gone.map(|entry| format!("{}: is gone, its entry among the long files is stale", entry.0)));
    complaints
}

/// The same for functions.
pub(crate) fn long_functions(files: &[(&str, &str)], table: &[LongFunction]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut needed = vec![false; table.len()];
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".rs")) {
        for (name, lines) in functions(text) {
            if lines <= FUNCTION_LINES_MAX {
                continue;
            }
            let entry = table.iter().position(|entry| entry.0 == *path && entry.1 == name);
            let most = entry.map_or(FUNCTION_LINES_MAX, |entry| table[entry].2);
            if let Some(entry) = entry {
                needed[entry] = true;
            }
            if lines > most {
                complaints
                    .push(format!("{path}: `{name}` has {lines} lines, at most {most}: a function fits on a screen"));
            }
        }
    }
    let stale = table.iter().zip(needed).filter(|(_, needed)| !needed);
    complaints
        .extend(stale.map(|(entry, _)| format!("{}: `{}` is short now or gone, its entry is stale", entry.0, entry.1)));
    complaints
}

/// Name and length of every function with a body of several lines.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line.trim_start()) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        for (count, line) in lines[first..].iter().enumerate() {
            let here = line.strip_prefix(indent).filter(|rest| !rest.starts_with(' '));
            match here {
                Some("}") => found.push((name, count + 1)),
                Some(rest) if rest.ends_with(';') || (count == 0 && rest.ends_with('}')) => {}
                _ => continue,
            }
            break;
        }
    }
    found
}

/// The name in `pub(crate) const unsafe fn name<T>(`.
pub(crate) fn function_name(mut line: &str) -> Option<&str> {
    const QUALIFIERS: [&str; 7] =
        ["pub ", "pub(crate) ", "pub(super) ", "const ", "async ", "unsafe ", "extern \"C\" "];
    while let Some(rest) = QUALIFIERS.iter().find_map(|qualifier| line.strip_prefix(qualifier)) {
        line = rest;
    }
    let rest = line.strip_prefix("fn ")?;
    let end = rest.find(|c: char| !is_word(c))?;
    (end > 0).then(|| &rest[..end])
}

/// Whether a character may stand in a name.
pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The one file outside of `kernels/` that has unsafe code: machine code is taken into the process there.
pub(crate) const UNSAFE_FILE: &str = "host/src/sandbox/compiled.rs";

/// Unsafe code of a file outside of `kernels/`: none, but for one block of the one exception.
pub(crate) fn unsafe_outside_kernels(path: &str, text: &str) -> Vec<String> {
    let found = unsafe_words(path, text);
    match (path == UNSAFE_FILE, found.len()) {
        (true, 1) => Vec::new(),
        (true, 0) => vec![format!("{path}: has no unsafe code, its exception is stale")],
        _ => found,
    }
}

/// Lines with `unsafe` as a word of the language.
pub(crate) fn unsafe_words(path: &str, text: &str) -> Vec<String> {
    let code = without_comments_and_strings(text);
    let lines = code.lines().enumerate().filter(|(_, line)| line.split(|c| !is_word(c)).any(|word| word == "unsafe"));
    lines.map(|(at, _)| format!("{path}:{}: unsafe code belongs into kernels/", at + 1)).collect()
}

/// The text with comments, strings and characters blanked out, lines kept.
fn without_comments_and_strings(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            string_end(rest)
        } else if let Some(raw) = raw_string_end(rest, out.chars().next_back()) {
            raw
        } else {
            character_end(rest).unwrap_or(0)
        };
        if skipped == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.push(' ');
            out.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            rest = &rest[skipped..];
        }
    }
    out
}

/// The length of the string that begins here.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of the raw string that begins here, if one does.
fn raw_string_end(text: &str, before: Option<char>) -> Option<usize> {
    let rest = text.strip_prefix('r').filter(|_| !before.is_some_and(is_word))?;
    let marks = rest.len() - rest.trim_start_matches('#').len();
    let body = rest[marks..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(marks));
    Some(body.find(&end).map_or(text.len(), |at| 1 + marks + 1 + at + end.len()))
}

/// The length of the character literal that begins here; none where it is a lifetime.
fn character_end(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    if body.starts_with('\\') {
        return body[2..].find('\'').map(|end| end + 4);
    }
    let c = body.chars().next()?;
    body[c.len_utf8()..].starts_with('\'').then(|| c.len_utf8() + 2)
}

/// Absolute paths of somebody's machine.
pub(crate) fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for folder in ["home", "root", "work", "Users"] {
        let needle = format!("/{folder}/");
        for (at, line) in text.lines().enumerate() {
            // A folder of that name further down in some other path is nobody's home, and the bare prefix
            // is a pattern.
            let named = line.match_indices(&needle).any(|(place, _)| {
                let before = line[..place].chars().next_back();
                let after = line[place + needle.len()..].chars().next();
                !before.is_some_and(|c| is_word(c) || "./-~}".contains(c)) && after.is_some_and(is_word)
            });
            if named {
                complaints.push(format!("{path}:{}: names a machine's path below /{folder}", at + 1));
            }
        }
    }
    complaints
}

/// Packages come from the public registries, whatever mirror this machine uses.
pub(crate) fn registries(path: &str, text: &str) -> Vec<String> {
    const PUBLIC: &str = "registry+https://github.com/rust-lang/crates.io-index";
    let mut complaints = Vec::new();
    let settings = [".toml", ".txt", ".lock", ".cfg"].iter().any(|ending| path.ends_with(ending));
    for (at, line) in text.lines().enumerate().filter(|_| settings) {
        let source = line.strip_prefix("source = \"").and_then(|rest| rest.strip_suffix('"'));
        let named = ["index-url", "find-links", "replace-with"].iter().any(|word| line.contains(word));
        if named || (path.ends_with("Cargo.lock") && source.is_some_and(|source| source != PUBLIC)) {
            complaints.push(format!("{path}:{}: names a registry of its own", at + 1));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_prose_of_some_lines() {
        let code = "fn f() {}\n".repeat(100);
        assert!(header("a.rs", &code).is_some());
        assert!(header("a.rs", &format!("//! One.\n//! Two.\n{code}")).is_some());
        assert!(
            header("a.rs", &format!("//! One.\n//!\n//! ```text\n//! x\n//! ```\n//! Two.\n//! Three.\n{code}"))
                .is_none()
        );
        assert!(header("a.rs", "//! Enough for a short file.\n").is_none());
        assert!(header("a.rs", "fn f() {}\n").is_some());
        let long = "//! Prose.\n".repeat(16);
        assert!(header("a.rs", &long).is_some());
        assert!(header("guest/src/lib.rs", &long).is_none());
    }

    #[test]
    fn long_files_need_an_entry_and_entries_a_file() {
        let long = "x\n".repeat(401);
        assert_eq!(long_files(&[("a.rs", &long)], &[]).len(), 1);
        assert_eq!(long_files(&[("a.rs", &long)], &[("a.rs", 450, "")]), Vec::<String>::new());
        assert_eq!(long_files(&[("a.rs", &long)], &[("a.rs", 400, "")]).len(), 1);
        assert!(long_files(&[("a.rs", "x")], &[("a.rs", 450, "")])[0].contains("stale"));
        assert!(long_files(&[], &[("a.rs", 450, "")])[0].contains("gone"));
    }

    #[test]
    fn functions_are_measured_from_name_to_brace() {
        let text = "trait T {\n    fn declared(&self);\n}\npub(crate) const fn one() {}\nfn two(\n    a: u8,\n) {\n    if a > 0 {\n    }\n}\n";
        assert_eq!(functions(text), vec![("two", 6)]);
        let long = format!("fn long() {{\n{}}}\n", "    x();\n".repeat(80));
        assert_eq!(long_functions(&[("a.rs", &long)], &[]).len(), 1);
        assert!(long_functions(&[("a.rs", &long)], &[("a.rs", "long", 90, "")]).is_empty());
        assert!(long_functions(&[("a.rs", "fn long() {\n}\n")], &[("a.rs", "long", 90, "")])[0].contains("stale"));
    }

    #[test]
    fn unsafe_is_found_in_code_and_nowhere_else() {
        assert_eq!(
            unsafe_words("a.rs", "fn f() {\n    unsafe { g() }\n}\n"),
            vec!["a.rs:2: unsafe code belongs into kernels/"]
        );
        for harmless in [
            "// unsafe\n",
            "/* unsafe\n */",
            "#![forbid(unsafe_code)]",
            "let x = \"\\\" unsafe\";",
            "let x = r#\"\" unsafe\"#;",
            "let x: &'static str = f('\"', '\\'', \"unsafe\");",
        ] {
            assert!(unsafe_words("a.rs", harmless).is_empty(), "{harmless}");
        }
        assert_eq!(unsafe_words("a.rs", "let x = '\"'; unsafe {}").len(), 1);
    }

    #[test]
    fn one_block_of_one_file_may_be_unsafe() {
        let (one, two) = ("unsafe { f() }\n", "unsafe { f() }\nunsafe { g() }\n");
        assert!(unsafe_outside_kernels(UNSAFE_FILE, one).is_empty());
        assert_eq!(unsafe_outside_kernels(UNSAFE_FILE, two).len(), 2);
        assert!(unsafe_outside_kernels(UNSAFE_FILE, "f()\n")[0].contains("stale"));
        assert_eq!(unsafe_outside_kernels("host/src/sandbox/mod.rs", one).len(), 1);
    }

    #[test]
    fn machines_are_found_and_patterns_are_not() {
        let home = ["see ", "/home", "/me/models"].concat();
        assert_eq!(machine_paths("a.md", &home).len(), 1);
        assert!(machine_paths("a.md", "https://host/root/x, a/work/b, \"/home/\"").is_empty());
        assert_eq!(registries("r.txt", "--index-url https://mirror/simple").len(), 1);
        assert_eq!(registries("Cargo.lock", "source = \"registry+https://mirror/index\"").len(), 1);
        assert!(
            registries("Cargo.lock", "source = \"registry+https://github.com/rust-lang/crates.io-index\"").is_empty()
        );
    }
}
