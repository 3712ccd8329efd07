//! A stranger's reward: a component in the sandbox, asked like any other reward.
//!
//! What its author says of it (name, range, a line of words) is the sandbox's to check; here it becomes a [`Reward`]. A fault that is
//! the host's, as where no instance is free, ends the scoring: no response is to blame for it. Start at [`open`].

use std::ops::RangeInclusive;
use std::path::Path;

use super::{Exchange, Reward, Score, SharedReward, Unscored};
use crate::error::Error;
use crate::hex::hexadecimal;
use crate::host::read_component;
use crate::sandbox::{Compilation, CompiledReward, Limits, LoadError, RewardManifest, Sandbox, ScoreFault};

struct Component {
    name: String,
    compiled: CompiledReward,
    manifest: RewardManifest,
}

/// A component's file as a reward, under its own name or another.
///
/// # Errors
/// The file's, and why the component is refused.
pub(super) fn open(path: &Path, name: Option<String>, compilation: &Compilation) -> Result<SharedReward, Error> {
    let shown = path.display().to_string();
    let bytes = read_component("reward", &shown)?;
    let sandbox = Sandbox::new(Limits { sequences: 4, ..Limits::default() }, compilation.clone())?;
    let short = path.file_stem().map_or(shown.clone(), |stem| stem.to_string_lossy().into_owned());
    let compiled = sandbox.compile_reward(&short, &bytes)?;
    let manifest = compiled.describe()?;
    Ok(std::sync::Arc::new(Component { name: name.unwrap_or_else(|| manifest.name.clone()), compiled, manifest }))
}

impl Reward for Component {
    fn name(&self) -> &str {
        &self.name
    }

    fn summary(&self) -> String {
        self.manifest.summary.clone()
    }

    /// The component's hash: its name and version are its author's words.
    fn definition(&self) -> String {
        format!("component {}", hexadecimal(self.compiled.sha256()))
    }

    fn range(&self) -> RangeInclusive<f64> {
        self.manifest.minimum..=self.manifest.maximum
    }

    fn score(&self, exchanges: &[Exchange<'_>]) -> Result<Vec<Score>, Error> {
        self.compiled.score(exchanges).into_iter().map(score).collect()
    }
}

/// A score, or why there is none; an error where the host is to blame.
fn score(given: Result<f64, ScoreFault>) -> Result<Score, Error> {
    match given {
        Ok(score) => Ok(Ok(score)),
        Err(ScoreFault::Fault(fault)) if fault.kind.is_the_hosts() => Err(Error::Fault(fault)),
        Err(ScoreFault::Refused(error)) => Err(LoadError::into(*error)),
        Err(ScoreFault::NotANumber) => Ok(Err(Unscored::NotANumber)),
        Err(ScoreFault::OutOfRange { given, minimum, maximum }) => {
            Ok(Err(Unscored::OutOfRange { given, minimum, maximum }))
        }
        Err(fault) => Ok(Err(Unscored::Fault(fault.to_string()))),
    }
}
