//! `vassal pull`: a model fetched or checked, with a progress bar on standard error.
//!
//! Where models come from, what is checked and what resumes is [`crate::model::source`]'s. Other commands
//! come by their model through [`fetch`].

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{complain, print, print_json};
use crate::error::Error;
use crate::hex::hexadecimal;
use crate::model::gguf::Gguf;
use crate::model::source::download::Progress;
use crate::model::source::{DEFAULT_MODEL, Models, SourceError};

#[derive(Debug, Args)]
pub(super) struct PullArguments {
    /// A known model's name, `hub:OWNER/NAME/FILE.gguf`, or a path to check.
    #[arg(default_value = DEFAULT_MODEL)]
    model: String,
    /// One JSON object on standard output: path, size and SHA-256.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &PullArguments) -> Result<(), Error> {
    let path = Models::from_env()?.pull(&arguments.model, &mut Bar::default())?;
    let gguf = Gguf::open(&path)?;
    let sha256 = hexadecimal(&gguf.sha256()?);
    if arguments.json {
        print_json(&json!({ "path": path, "size_bytes": gguf.length_bytes(), "sha256": sha256 }));
    } else {
        print(&format!("{}\n{} bytes, SHA-256 {sha256}\n", path.display(), gguf.length_bytes()));
    }
    Ok(())
}

/// The model's file: found, or fetched first.
pub(super) fn fetch(model: &str) -> Result<PathBuf, Error> {
    let models = Models::from_env()?;
    match models.find(model) {
        Ok(path) => Ok(path),
        Err(SourceError::NotPulled { .. }) => Ok(models.pull(model, &mut Bar::default())?),
        Err(error) => Err(error.into()),
    }
}

/// A progress bar a file.
#[derive(Default)]
struct Bar {
    bar: Option<(String, ProgressBar)>,
}

impl Progress for Bar {
    fn advance(&mut self, name: &str, done: u64, total: Option<u64>) {
        if self.bar.as_ref().is_none_or(|(of, _)| of != name) {
            let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total.unwrap_or(0)).with_style(style).with_message(name.to_owned());
            self.bar = Some((name.to_owned(), bar));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_position(done);
            if total == Some(done) {
                bar.finish();
            }
        }
    }

    fn note(&mut self, text: &str) {
        complain(text);
    }
}
