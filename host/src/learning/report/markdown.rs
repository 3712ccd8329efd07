//! The report's tables in Markdown, for a pull request or an issue.
//!
//! They are those of the page, without its plots. What anyone wrote is cleaned and every character escaped that
//! Markdown, HTML or a table would read, so a response can neither leave its cell nor become a link or a
//! picture.

use super::markup::cleaned;
use super::tables::{self, Kind, Table};
use super::{Report, html, wording};

/// The tables of a report, as Markdown.
pub fn tables(report: &Report) -> String {
    let mut text = format!("# Evaluation of {}\n\n", escaped(&report.about.model));
    if report.about.settings_missing > 0 {
        let missing = report.about.settings_missing;
        text.push_str(&format!("> **A partial report.** Settings planned and not decoded: {missing}.\n\n"));
    }
    let mut section = |title: &str, tables: Vec<Table>| {
        text.push_str(&format!("## {}\n\n", escaped(title)));
        tables.iter().for_each(|table| write(&mut text, table));
    };
    section("What was run", vec![tables::about(report), tables::rewards(report)]);
    for reward in html::rewards(report) {
        let all =
            vec![tables::points(report, reward), tables::comparisons(report, reward), tables::compute(report, reward)];
        section(&format!("Reward: {reward}"), all);
    }
    for (name, head) in &report.heads {
        let mut all = vec![tables::head(name, head)];
        all.extend(tables::head_plots(name, head));
        section(&format!("Value head: {name}"), all);
    }
    if let Some(grid) = &report.grid {
        section("Two dials", vec![tables::grid_means(grid, 0), tables::grid_means(grid, 1), tables::trends(grid)]);
    }
    text.push_str("## What failed\n\n");
    if report.failed.is_empty() {
        text.push_str("Nothing.\n\n");
    }
    for sentence in &report.failed {
        text.push_str(&format!("- {}\n", escaped(sentence)));
    }
    text.push_str("\n## Side by side\n\n");
    write(&mut text, &side_by_side(report));
    text
}

fn side_by_side(report: &Report) -> Table {
    let columns = [
        ("Reward", Kind::Words),
        ("Prompt", Kind::Words),
        ("Base", Kind::Words),
        ("Its reward", Kind::Number),
        ("Guided", Kind::Words),
        ("Its reward", Kind::Number),
    ];
    let rows = report.side_by_side.iter().map(|pair| {
        vec![
            pair.reward.clone(),
            pair.prompt.clone(),
            pair.base.clone(),
            wording::reward(pair.base_reward),
            pair.aligned.clone(),
            wording::reward(pair.aligned_reward),
        ]
    });
    Table {
        caption: "Responses of the base model and guided ones, drawn at random".to_owned(),
        columns: columns.map(|(title, kind)| (title.to_owned(), kind)).to_vec(),
        rows: rows.collect(),
        note: "",
    }
}

fn write(text: &mut String, table: &Table) {
    text.push_str(&format!("**{}**\n\n", escaped(&table.caption)));
    if table.rows.is_empty() {
        text.push_str("None.\n\n");
        return;
    }
    let mut row = |cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = cells.collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    };
    row(&mut table.columns.iter().map(|(title, _)| escaped(title)));
    row(&mut table.columns.iter().map(|(_, kind)| if *kind == Kind::Number { "---:" } else { "---" }.to_owned()));
    for cells in &table.rows {
        row(&mut cells.iter().map(|cell| escaped(cell)));
    }
    text.push('\n');
    if !table.note.is_empty() {
        text.push_str(&format!("{}\n\n", escaped(table.note)));
    }
}

/// Text on one line in which Markdown sees letters only.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in cleaned(text).chars() {
        match character {
            '\n' => escaped.push(' '),
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            // As an entity: a backslash does not keep a pipe from ending the cell everywhere.
            '|' => escaped.push_str("&#124;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '~' | '$' | '#' | '!' => escaped.extend(['\\', character]),
            // A name after an at sign would become a message to somebody.
            '@' => escaped.push_str("&#64;"),
            plain => escaped.push(plain),
        }
    }
    // An address would become a link by itself.
    escaped.replace("://", "&#58;//")
}
