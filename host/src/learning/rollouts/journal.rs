//! The journal of a command that samples: `OUT.part` beside `OUT`.
//!
//! The header comes first, then a rollout a line in the order in which they ended. It is never taken over by a command that
//! would sample something else, and goes away when `OUT` is written. How lines are kept is the journals' own affair
//! (`host/src/learning/journal.rs`).

use std::path::{Path, PathBuf};

use super::super::journal::{self, JournalError};
use super::{Checker, Header, Rollout, Rollouts, RolloutsError};

/// The most bytes of a line: the longest text and the most tokens.
const LINE_BYTES_MAX: u64 = 1 << 22;

/// How every journal begins.
const HEADER_START: &str = "{\"format\":\"vassal-rollouts-";

/// Where what is unfinished of a file stands.
pub fn part_of(out: &Path) -> PathBuf {
    let mut part = out.as_os_str().to_os_string();
    part.push(".part");
    PathBuf::from(part)
}

/// A journal, open and locked.
#[derive(Debug)]
pub struct Journal {
    lines: journal::Journal,
    rollouts: Rollouts,
}

impl Journal {
    /// Starts the journal of `out`, or takes up the one that an earlier run of the same command left.
    ///
    /// # Errors
    /// [`RolloutsError::Journal`] where it is another command's, and those of [`journal::Journal::open`].
    pub fn open(out: &Path, header: &Header) -> Result<Self, RolloutsError> {
        let (path, mut all) = (part_of(out), Vec::new());
        let in_the_way = |reason: String| JournalError::Foreign { path: path.clone(), reason };
        let mut checker = Checker::new(header, &[]).map_err(in_the_way)?;
        let other = |found: &Header| {
            let (what, theirs, ours) = found.difference(header)?;
            Some(RolloutsError::Journal { path: path.clone(), what, theirs, ours })
        };
        let (lines, header) = journal::Journal::open(&path, (HEADER_START, LINE_BYTES_MAX), header, other, |line| {
            let rollout: Rollout = serde_json::from_str(line).map_err(|error| error.to_string())?;
            checker.check(&rollout)?;
            all.push(rollout);
            Ok(())
        })?;
        Ok(Self { lines, rollouts: Rollouts { header, rewards: Vec::new(), all } })
    }

    /// What there is so far, in no order. Its header is that of the run that began, whose command may have been
    /// worded otherwise.
    pub fn rollouts(&self) -> &Rollouts {
        &self.rollouts
    }

    /// Adds a rollout. It is safe from a kill after [`Journal::flush`].
    ///
    /// # Errors
    /// The system's.
    pub fn append(&mut self, rollout: Rollout) -> Result<(), RolloutsError> {
        self.lines.add(&rollout)?;
        self.rollouts.all.push(rollout);
        Ok(())
    }

    /// Hands everything over to the system.
    ///
    /// # Errors
    /// The system's.
    pub fn flush(&mut self) -> Result<(), RolloutsError> {
        Ok(self.lines.flush()?)
    }

    /// Removes the journal, whose file is written.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(self) -> Result<(), RolloutsError> {
        Ok(self.lines.remove()?)
    }
}
