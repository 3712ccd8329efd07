//! Whom a tenant trusts, until when, and what that makes of the signatures beside a component.
//!
//! One signature by a trusted key is enough; signatures by others are neither needed nor in the way. Questions are
//! asked from the cheapest on: whether the key is known, whether its time is over, whether the signature is from the
//! future, and only then whether it holds. A key's time is measured by the host's clock: the date in a signature is
//! its signer's word, and whoever stole a key can write an old one. It is checked only where it cannot be true.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use time::{Date, OffsetDateTime};

use super::{FILE_BYTES_MAX, PublicKey, SIGNATURES_MAX, Signature, parse};

/// How far a signer's clock may be ahead of the host's.
const CLOCKS_APART: Duration = Duration::from_secs(600);

/// A key that a tenant trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    /// The tenant's name for whoever has it.
    pub name: String,
    /// The key.
    pub key: PublicKey,
    /// The last day on which it is trusted, in UTC.
    pub expires: Date,
}

/// Whom a tenant trusts. By default nobody, and signatures are not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustStore {
    /// A policy without a signature by one of the keys is refused.
    pub required: bool,
    /// No key twice.
    pub keys: Vec<TrustedKey>,
}

/// Who signed a policy, as its tenant knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The tenant's name for them.
    pub name: String,
    /// Their key.
    pub key: PublicKey,
    /// When they signed, seconds since 1970, as they say.
    pub signed_unix: u64,
}

/// What a tenant makes of a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is by somebody whom the tenant trusts.
    Trusted(Signer),
    /// Its key is not in the trust store: never was, or was taken out.
    Unknown(PublicKey),
    /// Its key's time is over.
    Expired(TrustedKey),
    /// It says that it was made later than now.
    Future(Signer),
    /// It is not of these bytes, or was changed.
    Wrong(Signer),
}

/// Why a policy's signatures do not let it in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy `{policy}`: {fault}")]
pub struct SignatureError {
    /// The policy.
    pub policy: String,
    /// Why.
    pub fault: SignatureFault,
}

/// What is wrong with a policy's signatures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureFault {
    /// There are none.
    #[error(
        "unsigned, and only signed policies are taken here; a signature lies beside the component, in a file of its \
         name with `.sig` at the end"
    )]
    Unsigned,
    /// None is by a key that is trusted now.
    #[error("no signature is trusted: {}", .0.iter().map(Verdict::to_string).collect::<Vec<_>>().join("; "))]
    Untrusted(Vec<Verdict>),
    /// More bytes than signatures have.
    #[error("its file of signatures has {bytes} bytes or more, at most {FILE_BYTES_MAX} are read")]
    TooLarge {
        /// As far as was read.
        bytes: usize,
    },
    /// More signatures than are checked.
    #[error("its file of signatures has more than the {SIGNATURES_MAX} lines allowed")]
    TooMany,
    /// A line that is no signature.
    #[error("line {line} of its signatures: expected {accepted}, got {given:?}")]
    Malformed {
        /// Which, from 1.
        line: usize,
        /// What is accepted.
        accepted: &'static str,
        /// What is there, cut and cleaned.
        given: String,
    },
}

impl TrustStore {
    /// Whether signatures matter to this tenant at all.
    pub fn is_empty(&self) -> bool {
        !self.required && self.keys.is_empty()
    }

    /// Who signed a component, of those whom the tenant trusts now. `signatures` are the bytes of the file beside the
    /// component, where there is one; `component` are those that will be loaded.
    ///
    /// # Errors
    /// [`SignatureError`] where signatures are required and nobody who is trusted has signed.
    pub fn check(
        &self,
        policy: &str,
        component: &[u8],
        signatures: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<Vec<Signer>, SignatureError> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let refuse = |fault| SignatureError { policy: policy.to_owned(), fault };
        let verdicts = parse(signatures.unwrap_or_default()).map(|found| self.judge(component, &found, now));
        let signers = verdicts.map(|verdicts| {
            let trusted = verdicts.iter().filter_map(Verdict::trusted).cloned().collect::<Vec<_>>();
            (trusted, verdicts)
        });
        match signers {
            Ok((signers, _)) if !signers.is_empty() || !self.required => Ok(signers),
            Ok((_, verdicts)) if verdicts.is_empty() => Err(refuse(SignatureFault::Unsigned)),
            Ok((_, verdicts)) => Err(refuse(SignatureFault::Untrusted(verdicts))),
            Err(_) if !self.required => Ok(Vec::new()),
            Err(fault) => Err(refuse(fault)),
        }
    }

    /// What the tenant makes of each signature.
    pub fn judge(&self, component: &[u8], signatures: &[Signature], now: SystemTime) -> Vec<Verdict> {
        let sha256 = Sha256::digest(component).into();
        let now_unix = unix_seconds(now);
        signatures.iter().map(|signature| self.judge_one(&sha256, signature, now_unix)).collect()
    }

    fn judge_one(&self, sha256: &[u8; 32], signature: &Signature, now_unix: u64) -> Verdict {
        let Some(trusted) = self.keys.iter().find(|trusted| trusted.key == signature.key) else {
            return Verdict::Unknown(signature.key);
        };
        if day(now_unix) > trusted.expires {
            return Verdict::Expired(trusted.clone());
        }
        let signed_unix = signature.signed_unix;
        let signer = Signer { name: trusted.name.clone(), key: signature.key, signed_unix };
        if signed_unix > now_unix.saturating_add(CLOCKS_APART.as_secs()) {
            return Verdict::Future(signer);
        }
        if signature.holds(sha256) { Verdict::Trusted(signer) } else { Verdict::Wrong(signer) }
    }
}

impl Verdict {
    /// The signer, where the signature is trusted.
    pub fn trusted(&self) -> Option<&Signer> {
        if let Self::Trusted(signer) = self { Some(signer) } else { None }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trusted(signer) => write!(formatter, "signed by {signer}"),
            Self::Unknown(key) => write!(formatter, "{key} is no key that is trusted here"),
            Self::Expired(TrustedKey { name, key, expires }) => {
                write!(formatter, "{key} of {name:?} was trusted until {expires}")
            }
            Self::Future(signer) => write!(formatter, "signed by {signer}, which is later than now"),
            Self::Wrong(Signer { name, key, .. }) => {
                write!(formatter, "the signature by {key} of {name:?} is of other bytes, or was changed")
            }
        }
    }
}

impl fmt::Display for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} on {} ({})", self.name, day(self.signed_unix), self.key)
    }
}

/// Seconds since 1970. A clock that is set before is taken for 1970: every signature is then from the future.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The day of a time, in UTC.
pub fn day(unix: u64) -> Date {
    let time = i64::try_from(unix).ok().and_then(|unix| OffsetDateTime::from_unix_timestamp(unix).ok());
    time.map_or(Date::MAX, OffsetDateTime::date)
}
