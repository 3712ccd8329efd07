//! A guest's words, made fit for a terminal, a log line or JSON; and names close to a mistyped one.
//!
//! Nothing that a guest wrote leaves the sandbox except through [`clean`].

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

/// The names `among` that somebody who wrote `name` may have meant, best first: at most three, each within
/// a third of its length in edits (at least two).
pub fn near_names<'a>(name: &str, among: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut near: Vec<(usize, &str)> = among
        .into_iter()
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(2))
        .collect();
    near.sort_unstable();
    near.truncate(3);
    near.into_iter().map(|(_, candidate)| candidate.to_owned()).collect()
}

/// Levenshtein's distance in characters; only the first 64 of each are compared.
fn edit_distance(a: &str, b: &str) -> usize {
    const COMPARED: usize = 64;
    let b: Vec<char> = b.chars().take(COMPARED).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(COMPARED).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
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

    #[test]
    fn near_names_are_few_and_sorted() {
        let names = ["sentiment", "simplicity", "strength"];
        assert_eq!(near_names("sentimant", names), ["sentiment"]);
        assert!(near_names("zzzzzz", names).is_empty());
    }
}
