//! Names close to a mistyped one, for every message that says "there is no such ...".
//!
//! One rule for policies, heads, settings, models and instruction sets alike, so that the same slip gets
//! the same help everywhere. Nothing is corrected here: whoever asks is only told. Start at
//! [`near_names`].

/// Names that a message lists where none is near.
const LISTED: usize = 16;

/// First characters that make two names near, however different their ends.
const SHARED_START: usize = 4;

/// The names `among` that somebody who wrote `name` may have meant, best first: at most three, each within
/// a third of its length in edits (at least two), or beginning with the same four characters. Letter case
/// counts for nothing.
pub fn near_names<'a>(name: &str, among: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let name = name.to_lowercase();
    let mut near: Vec<(usize, &str)> = among
        .into_iter()
        .map(|candidate| (edit_distance(&name, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            let close = *distance <= (candidate.chars().count() / 3).max(2);
            close || shared_start(&name, &candidate.to_lowercase()) >= SHARED_START
        })
        .collect();
    near.sort_unstable();
    near.truncate(3);
    near.into_iter().map(|(_, candidate)| candidate.to_owned()).collect()
}

/// The end of a message about an unknown name: the near names, else what there is.
pub fn hint(near: &[String], all: &[String]) -> String {
    match (near, all) {
        ([], []) => "; there are none".to_owned(),
        ([], all) if all.len() > LISTED => format!("; there are {}, ...", all[..LISTED].join(", ")),
        ([], all) => format!("; there are {}", all.join(", ")),
        (near, _) => format!("; near: {}", near.join(", ")),
    }
}

fn shared_start(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count()
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
    fn near_names_are_few_and_sorted() {
        let names = ["sentiment", "simplicity", "strength"];
        assert_eq!(near_names("sentimant", names), ["sentiment"]);
        assert_eq!(near_names("Simple", names), ["simplicity"]);
        assert!(near_names("zzzzzz", names).is_empty());
        assert_eq!(near_names("a3", ["a1", "a2", "a4", "a5"]), ["a1", "a2", "a4"]);
    }

    #[test]
    fn a_name_cut_short_is_near() {
        assert_eq!(near_names("smollm2-135m", ["smollm2-135m-instruct"]), ["smollm2-135m-instruct"]);
        assert!(near_names("gpt", ["smollm2-135m-instruct"]).is_empty());
    }

    #[test]
    fn the_hint_is_never_empty() {
        let names = |count: usize| (0..count).map(|number| format!("n{number}")).collect::<Vec<_>>();
        assert_eq!(hint(&[], &[]), "; there are none");
        assert_eq!(hint(&names(1), &names(9)), "; near: n0");
        assert_eq!(hint(&[], &names(2)), "; there are n0, n1");
        assert!(hint(&[], &names(40)).ends_with("n15, ..."));
    }
}
