//! The table of attacks: every test that it names exists, and every mode of the hostile guest and every limit is in it.
//!
//! Modes are the arms of the guest's matches, limits the fields of the one struct, both read off their sources' text.
//! A row names modes and limits in its first cell, in backticks, and tests in its last.

use std::collections::HashSet;

use super::sources::function_name;

/// The issue's own number.
const ROWS_MIN: usize = 60;

/// Names of tests in a file's text.
pub(crate) fn tests(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().zip(text.lines().skip(1));
    lines
        .filter(|(attribute, _)| attribute.trim() == "#[test]")
        .filter_map(|(_, line)| function_name(line.trim_start()))
}

/// Modes of the hostile guest: `"mode" =>`, `"mode" if`.
pub(crate) fn modes(guest: &str) -> Vec<&str> {
    guest
        .lines()
        .filter_map(|line| {
            let (mode, rest) = line.trim_start().strip_prefix('"')?.split_once('"')?;
            (rest.starts_with(" =>") || rest.starts_with(" if ")).then_some(mode)
        })
        .collect()
}

/// Fields of the struct of limits.
pub(crate) fn limits(source: &str) -> Vec<&str> {
    let fields = source.lines().filter_map(|line| line.strip_prefix("    pub ")?.split_once(": "));
    fields.map(|(name, _)| name).filter(|name| !name.starts_with("fn ")).collect()
}

/// Complaints about the table.
pub(crate) fn table(text: &str, tests: &HashSet<&str>, modes: &[&str], limits: &[&str]) -> Vec<String> {
    let mut complaints = Vec::new();
    let (attempts, bounds) = text.split_once("| limit |").unwrap_or((text, ""));
    let mut named = [HashSet::new(), HashSet::new()];
    for (part, named) in [attempts, bounds].into_iter().zip(&mut named) {
        for row in part.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attempt |")) {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
            let (Some(first), Some(last)) = (cells.first(), cells.last()) else { continue };
            named.extend(spans(first));
            let of_row: Vec<&str> = spans(last).collect();
            if of_row.is_empty() {
                complaints.push(format!("no test stands for `{}`", first.trim()));
            }
            let unknown = of_row.into_iter().filter(|test| !tests.contains(test));
            complaints.extend(unknown.map(|test| format!("there is no test `{test}`")));
        }
    }
    let rows = attempts.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| attempt |")).count();
    if rows < ROWS_MIN {
        complaints.push(format!("{rows} attempts, expected {ROWS_MIN} or more"));
    }
    let missing = modes.iter().filter(|mode| !named[0].contains(*mode));
    complaints.extend(missing.map(|mode| format!("the guest's mode `{mode}` is in no row")));
    let missing = limits.iter().filter(|limit| !named[1].contains(*limit));
    complaints.extend(missing.map(|limit| format!("the limit `{limit}` is in no row")));
    let stale = named[1].iter().filter(|name| !limits.contains(name));
    complaints.extend(stale.map(|name| format!("there is no limit `{name}`")));
    complaints
}

/// What stands in backticks.
fn spans(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_table_of_attacks_names_every_mode_limit_and_an_existing_test() {
        let guest = "match mode {\n    \"loop\" => spin(),\n    \"late\" if true => spin(),\n    other => \"x\",\n}";
        assert_eq!(modes(guest), ["loop", "late"]);
        let source = "pub struct L {\n    /// One.\n    pub notes: usize,\n    pub fuel: u64,\n}\n    pub fn f(of: u8) -> u8 {}\n";
        assert_eq!(limits(source), ["notes", "fuel"]);
        let known: HashSet<&str> = tests("#[test]\nfn it_ends() {\n}\nfn no_test() {}\n").collect();
        assert_eq!(known, HashSet::from(["it_ends"]));
        let rows = "| `loop`, `late` | guest | `it_ends` |\n".repeat(60);
        let of = |rows: &str, bounds: &str| {
            let text =
                format!("| attempt | answer | test |\n|---|---|---|\n{rows}\n| limit | tests |\n|---|---|\n{bounds}");
            table(&text, &known, &modes(guest), &limits(source))
        };
        assert_eq!(of(&rows, "| `notes`, `fuel` | `it_ends` |\n"), Vec::<String>::new());
        let complaints = of("| `loop` | guest | `no_test` |\n", "| `notes`, `gone` | |\n").join("\n");
        for expected in
            ["no test `no_test`", "no test stands", "1 attempts", "mode `late`", "limit `fuel`", "no limit `gone`"]
        {
            assert!(complaints.contains(expected), "`{expected}` is not in {complaints}");
        }
    }
}
