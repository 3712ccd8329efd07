//! A guest's words, made fit for a terminal, a log line or JSON; and names close to a mistyped one.
//!
//! Nothing that a guest wrote leaves the sandbox except through [`clean`]. What the words mean is not judged
//! here.

/// `text` in at most `cap` bytes, on one line, without control or bidirectional characters.
///
/// White space becomes a space, what could move a cursor or turn the reading direction is dropped, and
/// what does not fit is cut with an ellipsis.
pub fn clean(text: &str, cap: usize) -> String {
    const ELLIPSIS: char = '…';
    let mut cleaned = String::with_capacity(text.len().min(cap));
    // The longest cleaned prefix that still leaves room for the ellipsis.
    let mut cut = 0;
    for character in text.chars() {
        let kept = match character {
            '\n' | '\r' | '\t' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}' => ' ',
            hidden if is_hidden(hidden) => continue,
            plain => plain,
        };
        if cleaned.len() + kept.len_utf8() > cap {
            cleaned.truncate(cut);
            if ELLIPSIS.len_utf8() <= cap {
                cleaned.push(ELLIPSIS);
            }
            return cleaned;
        }
        cleaned.push(kept);
        if cleaned.len() + ELLIPSIS.len_utf8() <= cap {
            cut = cleaned.len();
        }
    }
    cleaned
}

/// Characters that show nothing and change how others are shown.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            // Soft hyphen, Arabic letter mark, zero-width marks, byte-order mark.
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            // Embeddings, overrides; interlinear and tag characters.
            | '\u{202a}'..='\u{202e}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_keeps_plain_text_and_drops_what_moves_it() {
        assert_eq!(clean("häßlich, 日本", 100), "häßlich, 日本");
        assert_eq!(clean("a\u{1b}[31mred\u{202e}b\nc\0", 100), "a[31mredb c");
    }

    #[test]
    fn cleaning_cuts_at_a_character() {
        assert_eq!(clean("abcdef", 6), "abcdef");
        assert_eq!(clean("abcdefg", 6), "abc…");
        assert_eq!(clean("ääää", 7), "ää…");
        assert_eq!(clean("abc", 2), "");
    }
}
