//! Rules for command lines in documents: compared with the program's own definition, never run.
//!
//! `vassal …` and `cargo run --release -- …` are parsed by the program's definition: as a whole where the
//! document shows a command to type, and word by word (each subcommand and option exists) where it only
//! mentions one, perhaps with parts in brackets. Of other cargo commands, packages and examples are checked.

/// How a document has a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// To be typed as it stands.
    Whole,
    /// In passing: arguments may be missing or in brackets.
    Mention,
}

/// What is wrong with a command line; commands of others are not.
///
/// # Errors
/// The complaint.
pub(crate) fn check(program: &clap::Command, line: &str, form: Form) -> Result<(), String> {
    let mut words = words(line);
    while words.first().is_some_and(|word| is_variable(word)) {
        words.remove(0);
    }
    let arguments = match words.first().map(String::as_str) {
        Some("vassal") => &words[1..],
        Some("cargo")
            if words.get(1).is_some_and(|word| word == "run") && !words.iter().any(|word| word == "--example") =>
        {
            let dashes = words.iter().position(|word| word == "--");
            dashes.map_or(&[][..], |at| &words[at + 1..])
        }
        _ => return Ok(()),
    };
    if form == Form::Whole {
        if arguments.is_empty() {
            return Ok(());
        }
        let parsed = program.clone().no_binary_name(true).try_get_matches_from(arguments);
        return match parsed {
            Err(error) if error.use_stderr() => Err(format!("`{line}` is no command of ours: {error}")),
            _ => Ok(()),
        };
    }
    mention(program, arguments).map_err(|word| format!("`{line}`: `{word}` does not exist"))
}

/// The first subcommand or option that does not exist.
fn mention(program: &clap::Command, arguments: &[String]) -> Result<(), String> {
    let mut command = program;
    for word in arguments {
        let word = word.trim_matches(|c| "[]…,.".contains(c));
        if let Some(option) = word.strip_prefix("--") {
            let option = option.split('=').next().unwrap_or_default();
            let own = command.get_arguments().any(|argument| argument.get_long() == Some(option));
            if !own && !["help", "version", ""].contains(&option) {
                return Err(format!("--{option}"));
            }
        } else if command.has_subcommands() && !word.is_empty() {
            command = command.find_subcommand(word).ok_or_else(|| word.to_owned())?;
        }
    }
    Ok(())
}

/// `NAME=value` before a command.
fn is_variable(word: &str) -> bool {
    word.split_once('=')
        .is_some_and(|(name, _)| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
}

/// Splits as a shell would, up to a comment, a pipe or a redirection.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut started) = (String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                started = true;
            }
            (None, c) if c.is_whitespace() => {
                if started {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            (None, '#' | '|' | '>' | '&') if !started => return words,
            (_, c) => {
                word.push(c);
                started = true;
            }
        }
    }
    if started {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_split_as_in_a_shell() {
        assert_eq!(words("a \"b c\"  'd' --e=\"f g\" # h"), ["a", "b c", "d", "--e=f g"]);
        assert_eq!(words("a > b"), ["a"]);
        assert_eq!(words("a \"\""), ["a", ""]);
    }

    #[test]
    fn commands_are_compared_with_the_definition() {
        let program = vassal::cli::command();
        let check = |line, form| check(&program, line, form).is_ok();
        for good in [
            "cargo run --release -- run --compare",
            "vassal run \"hi\" --seed 7",
            "vassal bench decode --json > x",
            "A=1 vassal pull",
            "ls --nothing",
        ] {
            assert!(check(good, Form::Whole), "{good}");
        }
        for bad in ["vassal rum", "cargo run --release -- run --compar", "vassal run --seed seven", "vassal bench"] {
            assert!(!check(bad, Form::Whole), "{bad}");
        }
        for good in ["vassal bench", "vassal run --compare", "vassal run [--json]", "vassal pull [MODEL|PATH]"] {
            assert!(check(good, Form::Mention), "{good}");
        }
        for bad in ["vassal rum", "vassal run --compar", "vassal bench decod"] {
            assert!(!check(bad, Form::Mention), "{bad}");
        }
    }

    #[test]
    fn variables_stand_before_a_command() {
        assert!(is_variable("CI=true") && !is_variable("a=b") && !is_variable("--set=x"));
    }
}
