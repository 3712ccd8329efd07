//! From look-ahead heads to one-pass heads: candidates at states of rollouts, valued by the engine, and what is distilled of them.
//!
//! Spreads are measured over the same candidates. What a head adds for the text so far is known without a row: it is no part of what is
//! distilled, and is in the spreads. Start at [`Material::candidates`].

use std::collections::HashMap;

use vassal_kernels::Device;

use super::features::States;
use super::fitting::{FitError, FitOptions, Material};
use super::look_ahead::ValueHead;
use super::one_pass;
use super::panel::PanelMoments;
use super::quality::Spread;
use super::ridge::Covariance;
use super::rollouts::Rollout;
use crate::engine::teacher::CandidateState;
use crate::engine::{Engine, HeadId};
use crate::token::{Token, Vocabulary};

impl Material<'_> {
    /// Values candidates at states of the learn and tune rollouts by the engine's look-ahead heads.
    ///
    /// # Errors
    /// The engine's.
    pub fn candidates<D: Device>(
        &self,
        engine: &mut Engine<D>,
        prompts: &HashMap<String, Vec<Token>>,
        options: &FitOptions,
        mut done: impl FnMut(usize),
    ) -> Result<Candidates, FitError> {
        let mut count = 0;
        let mut counted = || {
            count += 1;
            done(count);
        };
        let (learn, tune) = ((&self.learn_groups, &self.learn), (&self.tune_groups, &self.tune));
        Ok(Candidates {
            learn: self.valued(engine, learn, prompts, options, &mut counted)?,
            tune: self.valued(engine, tune, prompts, options, &mut counted)?,
        })
    }

    fn valued<D: Device>(
        &self,
        engine: &mut Engine<D>,
        (groups, states): (&Vec<Vec<&Rollout>>, &States),
        prompts: &HashMap<String, Vec<Token>>,
        options: &FitOptions,
        done: &mut dyn FnMut(),
    ) -> Result<Vec<ValuedState>, FitError> {
        let heads: Vec<HeadId> = (0..engine.head_count()).map(HeadId).collect();
        let (mut out, mut rollout) = (Vec::new(), 0);
        for group in groups {
            for (place, sampled) in group.iter().enumerate() {
                if place < options.rollouts_per_prompt {
                    // States at even steps through the response, from a different one for each rollout.
                    let step = (sampled.tokens.len() / options.states_per_rollout).max(1);
                    let first = (rollout * 7 + options.seed as usize) % step;
                    let wanted: Vec<usize> = (first..sampled.tokens.len()).step_by(step).collect();
                    let prompt = prompts.get(&sampled.id).map_or(&[][..], Vec::as_slice);
                    let k = options.candidates;
                    let valued =
                        engine.candidate_states(&heads, prompt, &sampled.tokens, &wanted, k, self.token_limit)?;
                    let start = states.range(rollout).start;
                    out.extend(valued.into_iter().map(|found| ValuedState {
                        state: (start + found.response_count) as u32,
                        response: sampled.tokens[..found.response_count].to_vec(),
                        found,
                    }));
                    done();
                }
                rollout += 1;
            }
        }
        Ok(out)
    }

    /// The spread of each of the engine's look-ahead heads, what they add for the text included, over the tune prompts' candidates.
    ///
    /// # Errors
    /// The engine's, and [`FitError::NoSpread`] with the head's place.
    pub fn spreads<D: Device>(
        &self,
        engine: &mut Engine<D>,
        prompts: &HashMap<String, Vec<Token>>,
        options: &FitOptions,
    ) -> Result<Vec<f64>, FitError> {
        let valued = self.valued(engine, (&self.tune_groups, &self.tune), prompts, options, &mut || ())?;
        let of = |head: usize| {
            let mut spread = Spread::default();
            for ValuedState { found, .. } in &valued {
                spread.add(&found.values[head], &probabilities(found));
            }
            let positive = spread.get().filter(|spread| *spread > 0.0);
            positive.ok_or_else(|| FitError::NoSpread(format!("number {}", head + 1)))
        };
        (0..engine.head_count()).map(of).collect()
    }

    /// Distils head `place` of those that valued the candidates, which add nothing for the text, into a one-pass head; `head` is the same with
    /// what it adds. That is known without a row, so the one-pass head adds it too and learns the rest. The look-ahead head's spread
    /// comes back beside it, and the one-pass head's own, both over the tune prompts' candidates and with the text. `embeddings` are
    /// those of all tokens, `[V, H]`.
    ///
    /// # Errors
    /// The algebra's, and [`FitError::NoSpread`].
    pub fn distil(
        &self,
        (embeddings, vocabulary): (&[f32], &dyn Vocabulary),
        candidates: &Candidates,
        (place, head): (usize, &ValueHead),
        moments: &PanelMoments,
        options: &FitOptions,
        name: &str,
    ) -> Result<Distilled, FitError> {
        let hidden = self.learn.hidden();
        let size = embeddings.len() / hidden;
        let row = |token: u32| &embeddings[token as usize * hidden..][..hidden];
        let added = |valued: &[ValuedState]| -> Vec<Vec<f32>> {
            valued.iter().map(|state| self.added(place, head, vocabulary, state)).collect()
        };
        let (learn_added, tune_added) = (added(&candidates.learn), added(&candidates.tune));
        let fit = |rank: usize, covariance: &Covariance, with_text: bool| {
            let learn = samples(&candidates.learn, with_text.then_some(&learn_added[..]), place);
            let tune = samples(&candidates.tune, with_text.then_some(&tune_added[..]), place);
            one_pass::fit(
                one_pass::Pairs { states: &self.learn, samples: &learn },
                one_pass::Pairs { states: &self.tune, samples: &tune },
                covariance,
                &mut |token, out: &mut [f32]| out.copy_from_slice(row(token)),
                one_pass::Options { rank, vocabulary: size, threads: options.threads, seed: options.seed },
            )
        };
        // Coordinates in which what differs within prompts is alike find far better directions than those of all that differs:
        // docs/learning.md has figures.
        let mut found = fit(options.rank, &moments.within, false)?;
        let mut bias_explains = found.explained_by_bias;
        if options.comparison {
            // What depends on the state alone is found best in the coordinates of all that differs, and a context-free head has nothing
            // else to look for. It knows no text: its tokens stand for what texts gain by them too.
            let bias = fit(0, &moments.total, true)?;
            (found.bias_head, bias_explains) = (bias.bias_head, bias.explained_by_bias);
        }
        let (mut spread, mut own) = (Spread::default(), Spread::default());
        for (ValuedState { found: valued, .. }, added) in candidates.tune.iter().zip(&tune_added) {
            let probabilities = probabilities(valued);
            let with_text = |(value, added): (f32, &f32)| value + added;
            let look_ahead: Vec<f32> = valued.values[place].iter().copied().zip(added).map(with_text).collect();
            spread.add(&look_ahead, &probabilities);
            let state = one_pass::projections(&found.head, &valued.features);
            let one_pass = |&token: &Token| one_pass::value(&found.head, &state, token, row(token)) as f32;
            let one_pass: Vec<f32> = valued.top.tokens.iter().map(one_pass).zip(added).map(with_text).collect();
            own.add(&one_pass, &probabilities);
        }
        let positive = |spread: Spread| spread.get().filter(|spread| *spread > 0.0);
        let (Some(look_ahead_spread), Some(spread)) = (positive(spread), positive(own)) else {
            return Err(FitError::NoSpread(name.to_owned()));
        };
        Ok(Distilled { fit: found, bias_explains, look_ahead_spread, spread })
    }

    /// What the head of reward `place` adds for the text with each candidate of a state, less what it adds for the text before.
    fn added(&self, place: usize, head: &ValueHead, vocabulary: &dyn Vocabulary, state: &ValuedState) -> Vec<f32> {
        let tokens = &state.found.top.tokens;
        let part = self.texts.get(place).and_then(Option::as_deref).and_then(|text| Some((text, text.term(head)?)));
        let Some((text, term)) = part else { return vec![0.0; tokens.len()] };
        let value =
            |response: &[Token]| term.of_response(text.reading.as_ref(), vocabulary, response, self.token_limit);
        let before = value(&state.response);
        let after = |&token: &Token| value(&[state.response.as_slice(), &[token]].concat()) - before;
        tokens.iter().map(after).collect()
    }
}

/// A state of a rollout with valued candidates.
struct ValuedState {
    /// Its number among the split's states.
    state: u32,
    /// The response before it.
    response: Vec<Token>,
    found: CandidateState,
}

/// What head `place` says that each candidate changes, and what the text adds to it where that is asked for.
fn samples(valued: &[ValuedState], added: Option<&[Vec<f32>]>, place: usize) -> Vec<one_pass::Sample> {
    let mut samples = Vec::new();
    for (at, ValuedState { state, found, .. }) in valued.iter().enumerate() {
        for (candidate, (&token, &value)) in found.top.tokens.iter().zip(&found.values[place]).enumerate() {
            let added = added.map_or(0.0, |added| added[at][candidate]);
            let target = value - found.state_values[place] + added;
            samples.push(one_pass::Sample { state: *state, token, target });
        }
    }
    samples.sort_by_key(|sample| sample.state);
    samples
}

/// Base probabilities of a state's candidates.
fn probabilities(state: &CandidateState) -> Vec<f32> {
    let top = &state.top;
    top.logits.iter().map(|logit| (logit - top.log_normalizer).exp()).collect()
}

/// States with valued candidates, each with its number among the split's states.
pub struct Candidates {
    learn: Vec<ValuedState>,
    tune: Vec<ValuedState>,
}

/// A one-pass head, and both spreads.
pub struct Distilled {
    /// The one-pass head, and the context-free one, which stands for the text's part too where heads of other methods are wanted.
    pub fit: one_pass::Fit,
    /// What the context-free one explains of the whole change of value within a state, the text's part included.
    pub bias_explains: f64,
    /// σ_A of the look-ahead head it is distilled from.
    pub look_ahead_spread: f64,
    /// Its own.
    pub spread: f64,
}
