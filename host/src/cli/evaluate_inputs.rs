//! What an evaluation is of: prompts, pool and rewards, read and found to belong together.
//!
//! Everything that can be refused without the model is refused here, before a minute is spent: a pool of other prompts, a
//! judge of a reward that nobody guides, no prompts to calibrate dials on. Start at [`Inputs::read`].

use super::evaluate::EvaluateArguments;
use super::learn::{find_rewards, read_prompts, warn_of_limits};
use crate::error::Error;
use crate::learning::prompts::{Prompt, PromptSet, Split};
use crate::learning::report::tuned::Tuned;
use crate::learning::rewards::{SharedReward, SpecError};
use crate::learning::rollouts::{Rollout, Rollouts};

/// Tune prompts that dials are calibrated on.
const TUNE_PROMPTS: usize = 12;

/// Prompts of a quick evaluation.
const QUICK_PROMPTS: usize = 60;

/// What an evaluation reads, but for model and heads.
pub(super) struct Inputs {
    /// The prompts that the pool was made from.
    pub(super) set: PromptSet,
    /// The prompts among which those are that dials are calibrated on.
    calibrating: PromptSet,
    /// The pool.
    pub(super) rollouts: Rollouts,
    /// The rewards that guide.
    pub(super) rewards: Vec<SharedReward>,
    /// The rewards that only judge.
    pub(super) judges: Vec<SharedReward>,
    /// The name of each of these, with that of the reward whose responses it judges.
    pub(super) judging: Vec<(String, String)>,
}

impl Inputs {
    /// Reads all of it.
    ///
    /// # Errors
    /// The files', and what does not belong together.
    pub(super) fn read(arguments: &EvaluateArguments) -> Result<Self, Error> {
        let set = read_prompts(arguments.prompts.as_deref())?;
        let rewards = find_rewards(&arguments.rewards, &arguments.model)?;
        if let Some(other) = arguments.tuned.iter().find(|tuned| rewards.iter().all(|own| own.name() != tuned.reward)) {
            let known: Vec<&str> = rewards.iter().map(|reward| reward.name()).collect();
            return Err(Error::unknown("reward that is guided", &other.reward, known.iter().copied()));
        }
        for (place, tuned) in arguments.tuned.iter().enumerate() {
            if arguments.tuned[..place].iter().any(|other| other.setting(0) == tuned.setting(0)) {
                let Tuned { method, reward, strength, .. } = tuned;
                return Err(Error::Usage(format!("--tuned {method}:{reward}:{strength} is given twice")));
            }
        }
        let (judges, judging) = judges(arguments, &rewards)?;
        let rollouts = Rollouts::read(&arguments.pool)?;
        check_pool(arguments, &rollouts, &set)?;
        warn_of_limits(rewards.iter().chain(&judges), rollouts.header.token_limit);
        let calibrating = match &arguments.tune_prompts {
            Some(path) => read_prompts(Some(path))?,
            None => set.clone(),
        };
        let inputs = Self { set, calibrating, rollouts, rewards, judges, judging };
        if inputs.tune().is_empty() {
            return Err(Error::Usage(
                "none of the prompts is of the tune split, by which dials are calibrated: --tune-prompts names a file that \
                 has some"
                    .into(),
            ));
        }
        Ok(inputs)
    }

    /// The prompts that dials are calibrated on.
    pub(super) fn tune(&self) -> Vec<&Prompt> {
        self.calibrating.of(Split::Tune).take(TUNE_PROMPTS).collect()
    }

    /// The pool's rollouts by prompt, of those prompts that are evaluated, and the prompts.
    ///
    /// # Errors
    /// Too few.
    pub(super) fn groups(&self, arguments: &EvaluateArguments) -> Result<(Vec<Vec<&Rollout>>, Vec<&Prompt>), Error> {
        let mut groups = self.rollouts.groups(arguments.split, 2, 2)?;
        let quick = if arguments.quick { QUICK_PROMPTS } else { usize::MAX };
        groups.truncate(arguments.limit.unwrap_or(usize::MAX).min(quick));
        if groups.len() < 2 {
            return Err(Error::Usage(format!("an evaluation needs at least 2 prompts, got {}", groups.len())));
        }
        let find = |id: &str| self.set.prompts.iter().find(|prompt| prompt.id == id);
        let prompts = groups.iter().filter_map(|group| find(&group.first()?.id)).collect();
        Ok((groups, prompts))
    }
}

/// The rewards that judge only, and the name of each with that of the one whose responses it judges.
type Judges = (Vec<SharedReward>, Vec<(String, String)>);

fn judges(arguments: &EvaluateArguments, rewards: &[SharedReward]) -> Result<Judges, Error> {
    let specs: Vec<String> = arguments.judges.iter().map(|(_, judge)| judge.clone()).collect();
    let judges = find_rewards(&specs, &arguments.model)?;
    let mut judging = Vec::new();
    for (judge, (of, _)) in judges.iter().zip(&arguments.judges) {
        let names = rewards.iter().map(|reward| reward.name());
        if !names.clone().any(|name| name == of) {
            return Err(Error::unknown("reward to judge", of, names));
        }
        if names.clone().any(|name| name == judge.name()) {
            return Err(SpecError::Twice(judge.name().to_owned()).into());
        }
        if rewards.iter().any(|reward| reward.name() == of && reward.definition() == judge.definition()) {
            return Err(Error::Usage(format!(
                "--judge {of}={}: a reward cannot judge what it guides itself",
                judge.name()
            )));
        }
        judging.push((judge.name().to_owned(), of.clone()));
    }
    Ok((judges, judging))
}

/// Refuses a pool that is not of the base model as the methods run it, or of other prompts.
fn check_pool(arguments: &EvaluateArguments, rollouts: &Rollouts, set: &PromptSet) -> Result<(), Error> {
    rollouts.require_prompts(&set.sha256)?;
    let header = &rollouts.header;
    if (header.temperature, header.top_p) != (1.0, 1.0) {
        return Err(Error::Usage(format!(
            "{}: the pool must be samples at temperature 1 and top-p 1, as the methods are; its are {} and {}",
            arguments.pool.display(),
            header.temperature,
            header.top_p
        )));
    }
    if arguments.seeds.is_empty() || arguments.kl.is_empty() {
        return Err(Error::Usage("--seeds and --kl need at least one number each".into()));
    }
    if arguments.split == Split::Learn {
        return Err(Error::Usage("--split is test or tune: heads are fitted on the learn prompts".into()));
    }
    Ok(())
}
