//! The chat template of a model: messages to the text that the model was trained to continue.
//!
//! Templates are Jinja programs that come with the model's file, so they run under fuel and under a
//! limit on what they write, and what goes wrong is told with the template's own line. One thing is
//! not bounded: a template can double a variable until memory runs out. A model's file is chosen by
//! whoever runs the host, never by a tenant or a request.
//!
//! The default system prompt is the template's business: it stands in the template itself. Start at
//! [`ChatTemplate::from_gguf`].

use std::io;

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};

use super::gguf::{Gguf, GgufError, required};
use super::tokenizer::ENCODE_BYTES_MAX;

/// Bytes that a template may write: what a tokenizer takes.
pub const RENDERED_BYTES_MAX: usize = ENCODE_BYTES_MAX;
/// Instructions that a template may run: some 30 a message, and ten thousand messages.
pub const FUEL: u64 = 300_000;
/// Nested calls and blocks; each takes some of the host's stack.
const RECURSION_MAX: usize = 64;

/// Why a template cannot be used or did not give a text.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The key is of another kind.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The template is not valid.
    #[error("the chat template is not valid, line {line}: {message}")]
    Syntax {
        /// The template's line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// Rendering failed, or the template refused the messages.
    #[error("the chat template failed, line {line}: {message}")]
    Failed {
        /// The template's line, from 1; 0 where it is not known.
        line: usize,
        /// What went wrong, or the template's own words.
        message: String,
    },
    /// The text grew too long.
    #[error("the chat template writes more than {RENDERED_BYTES_MAX} bytes, line {line}")]
    TooLong {
        /// The template's line, from 1; 0 where it is not known.
        line: usize,
    },
    /// The template ran too long.
    #[error("the chat template runs more than {FUEL} instructions, line {line}")]
    OutOfFuel {
        /// The template's line, from 1; 0 where it is not known.
        line: usize,
    },
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`; a template may know others.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A model's chat template, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").finish_non_exhaustive()
    }
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// The template of a file; a file without one is an error that names the key.
    pub fn from_gguf(gguf: &Gguf) -> Result<ChatTemplate, TemplateError> {
        let key = "tokenizer.chat_template";
        let source = required(key, gguf.text(key)?)?;
        let token = |key: &str| -> Result<String, GgufError> {
            let tokens = gguf.texts("tokenizer.ggml.tokens")?;
            let text = gguf.integer(key)?.zip(tokens).and_then(|(id, tokens)| tokens.get(usize::try_from(id).ok()?));
            Ok(text.unwrap_or_default().to_owned())
        };
        let begin = token("tokenizer.ggml.bos_token_id")?;
        let end = token("tokenizer.ggml.eos_token_id")?;
        ChatTemplate::new(source, begin, end)
    }

    /// A template from its source, with the names of the begin and end tokens.
    pub fn new(source: &str, begin: String, end: String) -> Result<ChatTemplate, TemplateError> {
        let mut environment = Environment::new();
        // What the templates' home, the transformers library, sets.
        let syntax = environment
            .syntax()
            .to_builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| failed(&error))?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TemplateError::Syntax { line: error.line().unwrap_or(0), message: words(&error) })?;
        Ok(ChatTemplate { environment, begin, end })
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the model's answer begins.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let template = self.environment.get_template(NAME).map_err(|error| failed(&error))?;
        let mut text = Bounded(Vec::new());
        let messages: Vec<Value> =
            messages.iter().map(|m| Value::from_pairs([("role", &m.role), ("content", &m.content)])).collect();
        let context = context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            bos_token => &self.begin,
            eos_token => &self.end,
            tools => Value::from(()),
            documents => Value::from(()),
        };
        match template.render_captured_to(context, &mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WriteFailure => {
                return Err(TemplateError::TooLong { line: error.line().unwrap_or(0) });
            }
            Err(error) if error.kind() == ErrorKind::OutOfFuel => {
                return Err(TemplateError::OutOfFuel { line: error.line().unwrap_or(0) });
            }
            Err(error) => return Err(failed(&error)),
        }
        // Only whole strings were written.
        Ok(String::from_utf8_lossy(&text.0).into_owned())
    }
}

fn failed(error: &Error) -> TemplateError {
    TemplateError::Failed { line: error.line().unwrap_or(0), message: words(error) }
}

/// What an error says, capped and without control characters, since a template may put anything in it.
fn words(error: &Error) -> String {
    let words = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    words.chars().filter(|c| !c.is_control()).take(256).collect()
}

/// A buffer that refuses to grow past [`RENDERED_BYTES_MAX`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > RENDERED_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, TemplateError> {
        let template = ChatTemplate::new(source, "<s>".into(), "</s>".into())?;
        template.render(&[Message::new("user", " hello ")], true)
    }

    #[test]
    fn what_published_templates_use_is_there() {
        for (source, expected) in [
            ("{{ bos_token }}{{ messages[0].content | trim }}{{ eos_token }}", "<s>hello</s>"),
            ("{{ messages[0]['content'].strip() }}", "hello"),
            (
                "{% for m in messages %}{% if loop.last %}{{ m['role'].upper() }}{% break %}{% endif %}{% endfor %}",
                "USER",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "1",
            ),
            ("{% if tools is none %}no{% endif %} {% if unknown is defined %}x{% endif %}", "no "),
            ("{%- macro f(x) -%}<{{ x }}>{%- endmacro -%}{{ f('a') }}", "<a>"),
            ("{{ messages[0] | tojson }}", r#"{"content": " hello ", "role": "user"}"#),
            ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
        ] {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn errors_carry_the_template_s_line() {
        let error = render("a\n{% if %}").unwrap_err();
        assert!(matches!(error, TemplateError::Syntax { line: 2, .. }), "{error}");
        let error = render("a\n\n{{ raise_exception('no system\u{7} turn') }}").unwrap_err();
        assert_eq!(error.to_string(), "the chat template failed, line 3: invalid operation: no system turn");
    }

    #[test]
    fn a_template_cannot_run_or_write_for_ever() {
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        let error = render(nested).unwrap_err();
        assert!(matches!(error, TemplateError::OutOfFuel { .. }), "{error}");
        let long = "{% for a in range(2000) %}{{ 'x' * 9999 }}{% endfor %}";
        let error = render(long).unwrap_err();
        assert!(matches!(error, TemplateError::TooLong { .. }), "{error}");
        let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        assert!(matches!(render(deep), Err(TemplateError::Failed { .. })));
    }
}
