//! HTML and SVG that are well-formed and harmless by construction.
//!
//! An element is closed by the call that opened it. Text and the values of attributes are cleaned of control
//! and bidirectional characters and escaped here, whoever wrote them; what goes in as it stands,
//! [`Markup::raw`], is part of the program. So a section of the page can neither leave a tag open nor let a
//! prompt become one.

use crate::sandbox::words;

/// Names and values of an element's attributes.
pub(super) type Attributes<'a> = &'a [(&'static str, &'a str)];

/// Markup as it is written.
#[derive(Debug, Default)]
pub(super) struct Markup {
    written: String,
}

impl Markup {
    /// Text of the program's own, as it stands.
    pub(super) fn raw(&mut self, text: &'static str) {
        self.written.push_str(text);
    }

    /// Text of anyone.
    pub(super) fn text(&mut self, text: &str) {
        escape(&cleaned(text), &mut self.written);
    }

    /// An element with elements in it.
    pub(super) fn element(&mut self, tag: &'static str, attributes: Attributes<'_>, inside: impl FnOnce(&mut Self)) {
        self.open(tag, attributes);
        self.written.push('>');
        inside(self);
        self.written.push_str("</");
        self.written.push_str(tag);
        self.written.push('>');
        if ENDS_LINE.contains(&tag) {
            self.written.push('\n');
        }
    }

    /// An element with text in it.
    pub(super) fn leaf(&mut self, tag: &'static str, attributes: Attributes<'_>, text: &str) {
        self.element(tag, attributes, |inside| inside.text(text));
    }

    /// An element with nothing in it.
    pub(super) fn empty(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.open(tag, attributes);
        self.written.push_str("/>");
    }

    /// All that was written.
    pub(super) fn finish(self) -> String {
        self.written
    }

    fn open(&mut self, tag: &'static str, attributes: Attributes<'_>) {
        self.written.push('<');
        self.written.push_str(tag);
        for (name, value) in attributes {
            self.written.push(' ');
            self.written.push_str(name);
            self.written.push_str("=\"");
            self.text(value);
            self.written.push('"');
        }
    }
}

/// Elements after which the file has a new line: it is read as text too, and no white space shows there.
const ENDS_LINE: [&str; 16] = [
    "head", "body", "title", "header", "nav", "main", "section", "article", "figure", "table", "caption", "tr", "p",
    "h2", "h3", "li",
];

/// `text` without control and bidirectional characters; its lines stay lines.
pub(super) fn cleaned(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| words::clean(line, usize::MAX)).collect();
    lines.join("\n")
}

fn escape(text: &str, written: &mut String) {
    for character in text.chars() {
        match character {
            '&' => written.push_str("&amp;"),
            '<' => written.push_str("&lt;"),
            '>' => written.push_str("&gt;"),
            '"' => written.push_str("&quot;"),
            '\'' => written.push_str("&#39;"),
            plain => written.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_wrote_is_cleaned_and_escaped_in_text_and_in_attributes() {
        let mut markup = Markup::default();
        markup.leaf("b", &[("title", "\"><i>")], "<script>'&\u{1b}[2J\u{202e}\nsecond\tline");
        let expected = "<b title=\"&quot;&gt;&lt;i&gt;\">&lt;script&gt;&#39;&amp;[2J\nsecond line</b>";
        assert_eq!(markup.finish(), expected);
    }

    #[test]
    fn elements_are_closed_in_order() {
        let mut markup = Markup::default();
        markup.element("div", &[], |div| {
            div.leaf("b", &[], "a");
            div.empty("br", &[]);
        });
        assert_eq!(markup.finish(), "<div><b>a</b><br/></div>");
    }
}
