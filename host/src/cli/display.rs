//! Two texts side by side, redrawn as they grow.
//!
//! On a terminal the block is drawn over itself; elsewhere only the last state is written. Text is cut
//! into lines by width in characters, words whole where they fit.

use std::io::{IsTerminal, Write};

/// The narrowest and the widest column.
const COLUMN_MIN: usize = 24;
const COLUMN_MAX: usize = 60;

/// A block of two columns.
pub(super) struct SideBySide {
    titles: [String; 2],
    texts: [String; 2],
    column: usize,
    terminal: bool,
    drawn_lines: usize,
}

impl SideBySide {
    /// An empty block.
    pub(super) fn new(titles: [&str; 2]) -> Self {
        let width = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(100usize);
        Self {
            titles: titles.map(str::to_owned),
            texts: [String::new(), String::new()],
            column: (width.saturating_sub(3) / 2).clamp(COLUMN_MIN, COLUMN_MAX),
            terminal: std::io::stdout().is_terminal(),
            drawn_lines: 0,
        }
    }

    /// Adds text to a column (0 or 1) and draws it where there is a terminal.
    pub(super) fn push(&mut self, column: usize, text: &str) {
        self.texts[column].push_str(text);
        if self.terminal {
            self.draw();
        }
    }

    /// Draws the last state.
    pub(super) fn finish(&mut self) {
        self.draw();
    }

    fn draw(&mut self) {
        let columns = [0, 1].map(|index| wrap(&self.texts[index], self.column));
        let lines = columns[0].len().max(columns[1].len());
        let mut out = String::new();
        if self.drawn_lines > 0 {
            out.push_str(&format!("\x1b[{}A\x1b[J", self.drawn_lines));
        }
        let rule = "-".repeat(self.column);
        let mut row = |left: &str, right: &str| {
            let pad = self.column.saturating_sub(left.chars().count());
            out.push_str(&format!("{left}{} | {right}\n", " ".repeat(pad)));
        };
        row(&self.titles[0], &self.titles[1]);
        row(&rule, &rule);
        for line in 0..lines {
            let cell = |index: usize| columns[index].get(line).map_or("", String::as_str);
            row(cell(0), cell(1));
        }
        self.drawn_lines = lines + 2;
        let mut stdout = std::io::stdout().lock();
        // A closed pipe shows at the next write of the command.
        let _ = stdout.write_all(out.as_bytes()).and_then(|()| stdout.flush());
    }
}

/// Lines of at most `width` characters; control characters become spaces, so that nothing a model
/// writes can move the cursor.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        let mut length = 0;
        for word in paragraph.split(' ') {
            let mut word: Vec<char> = word.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            if length > 0 && length + 1 + word.len() > width {
                lines.push(std::mem::take(&mut line));
                length = 0;
            } else if length > 0 {
                line.push(' ');
                length += 1;
            }
            while word.len() > width {
                let rest = word.split_off(width);
                lines.push(word.into_iter().collect());
                word = rest;
            }
            length += word.len();
            line.extend(word);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::wrap;

    #[test]
    fn lines_break_at_words_and_never_pass_the_width() {
        assert_eq!(wrap("one two three\nfour", 8), ["one two", "three", "four"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("a\x1b[2Jb", 20), ["a [2Jb"]);
    }
}
