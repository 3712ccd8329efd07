//! Models whose weights were tuned for a reward (by DPO, by PPO), beside the base model that is guided.
//!
//! A tuned model answers the same prompts through the same engine, with no policy. What it costs in divergence is measured as for
//! everything else: KL(tuned ‖ base) over the whole vocabulary along its own samples, by running them through both models. Start at
//! [`Tuned::decode`].

use std::path::{Path, PathBuf};

use super::super::prompts::Prompt;
use super::super::rewards::SharedReward;
use super::samples::{Decoded, Setting, decode};
use crate::error::Error;
use crate::host::{Host, HostOptions};
use crate::token::{Token, Vocabulary};

/// The methods by which a model may have been tuned.
pub const METHODS: [&str; 2] = ["dpo", "ppo"];

/// A tuned model.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    /// One of [`METHODS`].
    pub method: String,
    /// The reward that it was tuned for, by name.
    pub reward: String,
    /// How strongly it was held to the base model, as its method counts: β.
    pub strength: f64,
    /// Its file.
    pub path: PathBuf,
    /// SHA-256 of that; empty before it was read.
    pub sha256: String,
}

impl Tuned {
    /// Reads `METHOD:REWARD:STRENGTH`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(words: &str, path: &Path) -> Result<Self, String> {
        let expected = || format!("expected METHOD:REWARD:STRENGTH=FILE with METHOD dpo or ppo, got {words:?}");
        let [method, reward, strength] = words.split(':').collect::<Vec<_>>()[..] else { return Err(expected()) };
        let strength = strength.parse().ok().filter(|strength: &f64| strength.is_finite() && *strength > 0.0);
        let (Some(strength), true) = (strength, METHODS.contains(&method)) else { return Err(expected()) };
        Ok(Self {
            method: method.to_owned(),
            reward: reward.to_owned(),
            strength,
            path: path.to_path_buf(),
            sha256: String::new(),
        })
    }

    /// What it is decoded as.
    pub fn setting(&self, seed: u64) -> Setting {
        Setting {
            method: self.method.clone(),
            variant: String::new(),
            dials: vec![(self.reward.clone(), self.strength)],
            samples: 1,
            seed,
            tune: false,
            model_sha256: Some(self.sha256.clone()),
        }
    }

    /// Opens it in place of the base model, which must have the same tokens and render these prompts alike.
    ///
    /// # Errors
    /// The file's, the device's, other tokens, and another chat template.
    pub fn open(&self, base: &Host, options: &HostOptions, prompts: &[&Prompt]) -> Result<Host, Error> {
        let options = HostOptions {
            model: self.path.clone(),
            model_sha256: None,
            heads: Vec::new(),
            head_kind: None,
            ..options.clone()
        };
        let host = Host::open(&options)?;
        let (own, theirs) = (host.tokenizer(), base.tokenizer());
        let same = own.size() == theirs.size()
            && own.end_of_text() == theirs.end_of_text()
            && (0..own.size() as Token).all(|token| {
                own.bytes(token) == theirs.bytes(token) && own.is_special(token) == theirs.is_special(token)
            });
        if !same {
            return Err(Error::Usage(format!(
                "{} has other tokens than the base model: it was not tuned from it",
                self.path.display()
            )));
        }
        for prompt in prompts {
            if host.request(&prompt.text)?.prompt != base.request(&prompt.text)?.prompt {
                return Err(Error::Usage(format!(
                    "{} renders a prompt otherwise than the base model: its chat template is another",
                    self.path.display()
                )));
            }
        }
        Ok(host)
    }

    /// Answers every prompt by the tuned model and measures what that costs against the base.
    ///
    /// # Errors
    /// The engines' and the rewards'.
    pub fn decode(
        &self,
        (base, own): (&mut Host, &mut Host),
        prompts: &[&Prompt],
        rewards: &[SharedReward],
        max_tokens: usize,
        seed: u64,
        done: impl FnMut(),
    ) -> Result<Decoded, Error> {
        let mut decoded = decode(own, prompts, rewards, self.setting(seed), Vec::new(), max_tokens, done)?;
        for (prompt, group) in prompts.iter().zip(&mut decoded.samples) {
            let prompt = base.request(&prompt.text)?.prompt;
            for sample in group {
                let mut all = Vec::new();
                own.engine().logits_along(&prompt, &sample.tokens, &mut |_, logits| all.extend_from_slice(logits))?;
                let (mut kl, mut log_probability) = (0.0, 0.0);
                base.engine().logits_along(&prompt, &sample.tokens, &mut |place, logits| {
                    let width = logits.len();
                    let (divergence, drawn) = against(&all[place * width..][..width], logits, sample.tokens[place]);
                    kl += divergence;
                    log_probability += drawn;
                })?;
                if !(kl.is_finite() && log_probability.is_finite()) {
                    return Err(Error::Usage(format!("{} gives logits that are no numbers", self.path.display())));
                }
                (sample.kl, sample.log_probability) = (kl, log_probability);
            }
        }
        Ok(decoded)
    }
}

/// KL(own ‖ base) of two rows of logits at temperature 1, nats, and the base's ln probability of a token.
fn against(own: &[f32], base: &[f32], token: Token) -> (f64, f64) {
    let normaliser = |logits: &[f32]| {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(most) + logits.iter().map(|&logit| f64::from(logit - most).exp()).sum::<f64>().ln()
    };
    let (of_own, of_base) = (normaliser(own), normaliser(base));
    let kl = own.iter().zip(base).map(|(&own, &base)| {
        let (own, base) = (f64::from(own) - of_own, f64::from(base) - of_base);
        own.exp() * (own - base)
    });
    let kl: f64 = kl.sum();
    // Rounding may leave a little less than nothing; a NaN stays one.
    (if kl < 0.0 { 0.0 } else { kl }, f64::from(base[token as usize]) - of_base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_and_probability_are_those_of_the_softmaxes() {
        let (own, base) = ([1.0_f32.ln(), 3.0_f32.ln()], [2.0_f32.ln() + 5.0, 2.0_f32.ln() + 5.0]);
        let (kl, drawn) = against(&own, &base, 1);
        let expected = 0.25 * (0.25_f64 / 0.5).ln() + 0.75 * (0.75_f64 / 0.5).ln();
        assert!((kl - expected).abs() < 1e-6 && (drawn - 0.5_f64.ln()).abs() < 1e-6, "{kl} {drawn}");
        assert_eq!(against(&base, &base, 0).0, 0.0);
        assert!(against(&[f32::NAN, 0.0], &base, 0).0.is_nan(), "a broken model is not free of divergence");
    }

    #[test]
    fn a_tuned_model_is_named_by_method_reward_and_strength() {
        let parse = |words: &str| Tuned::parse(words, Path::new("m.gguf"));
        let tuned = parse("dpo:sentiment:0.1").expect("valid");
        assert_eq!((tuned.method.as_str(), tuned.reward.as_str(), tuned.strength), ("dpo", "sentiment", 0.1));
        for wrong in ["dpo", "dpo:sentiment", "sft:sentiment:0.1", "dpo:sentiment:0", "dpo:sentiment:nan", "dpo:a:b:1"]
        {
            assert!(parse(wrong).expect_err(wrong).contains("dpo or ppo"), "{wrong}");
        }
    }
}
