//! A record as a line of its file, and a line as a record.
//!
//! A line is one JSON object whose last entry is `sha256`: the hash of all bytes of the line before the comma that
//! leads to it. `previous` is the `sha256` of the line before, so the lines are a chain. Whoever has a shell can
//! check both.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::LineFault;
use super::record::{FORMAT, Record};
use crate::hex::hexadecimal;

/// Before the hash at a line's end, and after it.
const HASH_OPENS: &str = ",\"sha256\":\"";
const HASH_CLOSES: &str = "\"}";

impl Record {
    /// Its line, newline included, as the successor of `previous`.
    pub(super) fn seal(&mut self, previous: &str) -> String {
        previous.clone_into(&mut self.previous);
        self.sha256.clear();
        // Strings, numbers and lists: nothing that JSON cannot say.
        let open = serde_json::to_string(self).unwrap_or_default();
        let body = open.strip_suffix(&format!("{HASH_OPENS}{HASH_CLOSES}")).unwrap_or_default();
        self.sha256 = hexadecimal(&Sha256::digest(body));
        format!("{body}{HASH_OPENS}{}{HASH_CLOSES}\n", self.sha256)
    }

    /// Reads a line without its newline, and checks its own hash.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub fn parse(line: &[u8]) -> Result<Self, LineFault> {
        let stated = line_hash(line)?;
        let body = &line[..line.len() - HASH_OPENS.len() - stated.len() - HASH_CLOSES.len()];
        let found = hexadecimal(&Sha256::digest(body));
        if found != stated {
            return Err(LineFault::Changed { found, stated: stated.to_owned() });
        }
        /// The one entry that every version has.
        #[derive(Deserialize)]
        struct Any {
            format: String,
        }
        let not_a_record = |error: serde_json::Error| LineFault::NotARecord(error.to_string());
        let Any { format } = serde_json::from_slice(line).map_err(not_a_record)?;
        if format != FORMAT {
            return Err(LineFault::Format(crate::sandbox::words::clean(&format, 64)));
        }
        serde_json::from_slice(line).map_err(not_a_record)
    }
}

/// The hash at a line's end.
fn line_hash(line: &[u8]) -> Result<&str, LineFault> {
    let hash = line
        .strip_suffix(HASH_CLOSES.as_bytes())
        .and_then(|line| line.split_last_chunk::<64>())
        .filter(|(body, _)| body.ends_with(HASH_OPENS.as_bytes()))
        .and_then(|(_, hash)| std::str::from_utf8(hash).ok());
    let plain = |hash: &&str| hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    hash.filter(plain).ok_or(LineFault::NoHash)
}
