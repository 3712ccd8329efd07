//! Quotas: what a tenant may use in any minute, counted over the 60 seconds behind each moment.
//!
//! Responses are counted when they end, and a request is refused while what is counted has reached a quota. So a
//! tenant can exceed a quota by what its running responses still use, and each of those is bounded by its own
//! limits. A meter is one process's: another process, or the same file opened once more, counts for itself. The clock
//! is handed in: this module has none.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::engine::Response;

/// The window.
const MINUTE: Duration = Duration::from_secs(60);

/// What a tenant may use in a minute; none is without bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Quotas {
    /// Milliseconds that its policies run, the host's side of their calls included.
    pub policy_ms: Option<u64>,
    /// Plain rows of arithmetic after prompts.
    pub forwards: Option<u64>,
    /// Notes in its audit log.
    pub notes: Option<u64>,
}

/// A quota is used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{used} of {quota} {what} a minute are used; there is room again in {wait_s} s")]
pub struct QuotaError {
    /// Of what.
    pub what: &'static str,
    /// The quota.
    pub quota: u64,
    /// What was used in the last minute.
    pub used: u64,
    /// Seconds until enough of it lies further back than a minute, rounded up.
    pub wait_s: u64,
}

/// What one response used.
#[derive(Debug, Clone, Copy)]
struct Use {
    at: Instant,
    policy_us: u64,
    forwards: f64,
    notes: u64,
}

/// Counts what a tenant used in the last minute.
#[derive(Debug)]
pub struct Meter {
    quotas: Quotas,
    /// Oldest first; nothing older than a minute.
    used: VecDeque<Use>,
}

impl Meter {
    /// Nothing used yet.
    pub fn new(quotas: Quotas) -> Self {
        Self { quotas, used: VecDeque::new() }
    }

    /// Counts a finished response.
    pub fn account(&mut self, response: &Response, now: Instant) {
        self.forget(now);
        self.used.push_back(Use {
            at: now,
            policy_us: (response.timing.policy_seconds * 1e6) as u64,
            forwards: response.counters.forward_equivalents,
            notes: response.notes.len() as u64,
        });
    }

    /// Whether another request may begin.
    ///
    /// # Errors
    /// The first quota that is used up, and when there is room again.
    pub fn admit(&mut self, now: Instant) -> Result<(), QuotaError> {
        self.forget(now);
        let quotas = &self.quotas;
        type Of = fn(&Use) -> f64;
        let checks: [(&'static str, Option<u64>, Of); 3] = [
            ("milliseconds of policies", quotas.policy_ms, |used| used.policy_us as f64 / 1e3),
            ("forwards", quotas.forwards, |used| used.forwards),
            ("notes", quotas.notes, |used| used.notes as f64),
        ];
        for (what, quota, of) in checks {
            let Some(quota) = quota else { continue };
            let mut left: f64 = self.used.iter().map(of).sum();
            let used = left as u64;
            if left < quota as f64 {
                continue;
            }
            // The oldest leave first; room is where less than the quota is left.
            let room = self.used.iter().find(|used| {
                left -= of(used);
                left < quota as f64
            });
            let wait = room.map_or(MINUTE, |used| (used.at + MINUTE).saturating_duration_since(now));
            return Err(QuotaError { what, quota, used, wait_s: wait.as_secs_f64().ceil() as u64 });
        }
        Ok(())
    }

    /// Drops what lies further back than a minute.
    fn forget(&mut self, now: Instant) {
        while self.used.front().is_some_and(|used| now.saturating_duration_since(used.at) >= MINUTE) {
            self.used.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(quotas: Quotas, uses: &[(u64, u64, f64, u64)], start: Instant) -> Meter {
        let mut meter = Meter::new(quotas);
        for &(second, policy_ms, forwards, notes) in uses {
            let at = start + Duration::from_secs(second);
            meter.used.push_back(Use { at, policy_us: policy_ms * 1000, forwards, notes });
        }
        meter
    }

    #[test]
    fn a_quota_is_a_minutes() {
        let start = Instant::now();
        let quotas = Quotas { forwards: Some(100), ..Quotas::default() };
        let mut meter = meter(quotas, &[(0, 0, 60.0, 0), (10, 0, 39.5, 0)], start);
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(meter.admit(at(10)), Ok(()), "99.5 of 100");
        meter.used.push_back(Use { at: at(20), policy_us: 0, forwards: 0.5, notes: 0 });
        let refused = meter.admit(at(30)).unwrap_err();
        assert_eq!(refused, QuotaError { what: "forwards", quota: 100, used: 100, wait_s: 30 });
        assert_eq!(refused.to_string(), "100 of 100 forwards a minute are used; there is room again in 30 s");
        assert_eq!(meter.admit(at(59)).unwrap_err().wait_s, 1);
        assert_eq!(meter.admit(at(60)), Ok(()), "the first use lies a minute back");
    }

    #[test]
    fn each_quota_has_its_name() {
        let start = Instant::now();
        let used = [(0, 50, 10.0, 3)];
        let of = |quotas| meter(quotas, &used, start).admit(start).map_err(|error| error.what);
        assert_eq!(of(Quotas::default()), Ok(()));
        assert_eq!(of(Quotas { policy_ms: Some(50), ..Quotas::default() }), Err("milliseconds of policies"));
        assert_eq!(of(Quotas { policy_ms: Some(51), ..Quotas::default() }), Ok(()));
        assert_eq!(of(Quotas { forwards: Some(10), ..Quotas::default() }), Err("forwards"));
        assert_eq!(of(Quotas { notes: Some(3), ..Quotas::default() }), Err("notes"));
        assert_eq!(of(Quotas { notes: Some(0), ..Quotas::default() }), Err("notes"), "0 lets nothing begin");
    }
}
