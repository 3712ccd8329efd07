//! Why a rollouts file, or the journal of one, was refused or could not be written.
//!
//! Each names the file, and what in it is accepted and what was given. Rows count from 1. Whose fault one is,
//! `host/src/error.rs` says.

use std::io;
use std::path::PathBuf;

use super::super::journal::JournalError;
use super::FORMAT;

/// See each.
#[derive(Debug, thiserror::Error)]
pub enum RolloutsError {
    /// Reading or writing failed.
    #[error("rollouts file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Not a whole Parquet file of this format, or one that says something else than it holds.
    #[error("rollouts file {path}: expected a whole {FORMAT} file: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A rollout that the file's header does not allow.
    #[error("rollouts file {path}, row {number}: {reason}")]
    Rollout {
        /// The file.
        path: PathBuf,
        /// Which row.
        number: usize,
        /// What is accepted and what was given.
        reason: String,
    },
    /// A journal of another command.
    #[error(
        "{path} is left of a command that was ended before its time and had another {what} ({theirs}, this has {ours}): \
         give that command again to go on with it, or delete the file to start over"
    )]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What differs first.
        what: &'static str,
        /// What is in the journal.
        theirs: String,
        /// What was asked for.
        ours: String,
    },
    /// The journal itself, or what stands in its place.
    #[error(transparent)]
    Lines(#[from] JournalError),
    /// The rollouts are another model's or another prompts file's.
    #[error("the rollouts were made with the {what} {theirs}, this is {ours}")]
    Other {
        /// `model` or `prompts file`.
        what: &'static str,
        /// The hash in the file.
        theirs: String,
        /// The hash at hand.
        ours: String,
    },
    /// None of a split at all.
    #[error("there are no rollouts of {split} prompts: the file was made with --splits {splits}")]
    NoSplit {
        /// The split's name.
        split: &'static str,
        /// Those that the file has.
        splits: String,
    },
    /// Not enough to learn from.
    #[error("{split} needs at least {prompts} prompts with {samples} rollouts each; {enough} have as many")]
    TooFew {
        /// The split's name.
        split: &'static str,
        /// Prompts needed.
        prompts: usize,
        /// Rollouts a prompt needed.
        samples: usize,
        /// Prompts that have enough.
        enough: usize,
    },
    /// No column of a reward at all.
    #[error("no reward has scored these rollouts yet: `vassal reward` does that")]
    NoRewards,
    /// A reward that has no column.
    #[error("no reward {name:?} has scored these rollouts (`vassal reward` does that); they have: {all}")]
    NoReward {
        /// What was asked for.
        name: String,
        /// Those there are.
        all: String,
    },
    /// A column that is there already, of another reward.
    #[error("the rollouts have a reward {name:?} already that is {theirs:?}, not {ours:?}: --replace takes its place")]
    OtherReward {
        /// The name.
        name: String,
        /// Its definition in the file.
        theirs: String,
        /// That of the reward asked for.
        ours: String,
    },
}
