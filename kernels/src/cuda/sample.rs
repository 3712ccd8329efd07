//! Launches of draws, and what the host makes of what they found.
//!
//! The kernels choose in integers; logarithms, log-probabilities and KL are computed here in f64 from the sums that come
//! back, with the formulas of `cpu/sample.rs`.

use super::Cuda;
use super::binaries::Kernel;
use super::buffers::{Logits, size};
use super::parameters::{Draw as DrawParameters, Drawn as Found, Partial, Sample};
use super::stage::{Stage, offsets};
use super::top_k::{BATCH_MAX, Biases, CHUNK};
use crate::checks::check_below;
use crate::device::{DeviceError, Draw, Drawn};
use crate::sampling::WEIGHT_BITS;

const OPERATION: &str = "sample";

/// Tokens of all draws of one launch: 12 bytes of scratch each.
const TOKENS_MAX: usize = 1 << 24;

/// A batch of draws as the kernels take them.
#[derive(Default)]
struct Batch {
    draws: Vec<DrawParameters>,
    biases: Biases,
    delta_tokens: Vec<u32>,
    deltas: Vec<f32>,
    only: Vec<u32>,
}

impl Batch {
    fn push(&mut self, draw: &Draw, vocabulary: usize) {
        let (first_bias, biases) = self.biases.push(&draw.vocabulary, vocabulary);
        let (first_delta, first_only) = (self.deltas.len() as u32, self.only.len() as u32);
        // Stable: deltas of one token stay in their order.
        let mut deltas = draw.deltas.clone();
        deltas.sort_by_key(|(token, _)| *token);
        self.delta_tokens.extend(deltas.iter().map(|(token, _)| token));
        self.deltas.extend(deltas.iter().map(|(_, delta)| delta));
        let mut only = draw.only.clone().unwrap_or_default();
        only.sort_unstable();
        only.dedup();
        self.only.extend_from_slice(&only);
        let keeps_all = 1 << 32;
        let share = (f64::from(draw.top_p.max(0.0)) * keeps_all as f64) as u64;
        self.draws.push(DrawParameters {
            random: draw.random,
            // As `sampling::nucleus_target` has it: NaN keeps all.
            share: if draw.top_p < 1.0 { share } else { keeps_all },
            slot: draw.slot,
            temperature: if draw.temperature > 0.0 { draw.temperature } else { 0.0 },
            first_delta,
            deltas: deltas.len() as u32,
            first_bias,
            biases,
            first_only,
            only: only.len() as u32,
            masked: draw.only.is_some().into(),
            unused: 0,
        });
    }
}

impl Cuda {
    pub(super) fn sample_batch(&mut self, logits: &Logits, draws: &[Draw]) -> Result<Vec<Option<Drawn>>, DeviceError> {
        for draw in draws {
            check_below(OPERATION, "slot", logits.slots, draw.slot as usize)?;
            let tokens = draw.deltas.iter().map(|(token, _)| token).chain(draw.only.iter().flatten());
            if let Some(most) = tokens.max() {
                check_below(OPERATION, "token", logits.vocabulary, *most as usize)?;
            }
        }
        let together = (TOKENS_MAX / logits.vocabulary.max(1)).clamp(1, BATCH_MAX);
        let batches = draws.chunks(together);
        let drawn: Result<Vec<_>, _> = batches.map(|draws| self.sample_launch(logits, draws)).collect();
        Ok(drawn?.concat())
    }

    fn sample_launch(&mut self, logits: &Logits, draws: &[Draw]) -> Result<Vec<Option<Drawn>>, DeviceError> {
        let (count, vocabulary, chunks) = (draws.len(), logits.vocabulary, logits.vocabulary.div_ceil(CHUNK));
        let mut batch = Batch::default();
        draws.iter().for_each(|draw| batch.push(draw, vocabulary));
        let mut stage = Stage::default();
        let sent = [
            stage.push(&batch.draws),
            stage.push(&batch.biases.list),
            stage.push(&batch.biases.words),
            stage.push(&batch.delta_tokens),
            stage.push(&batch.deltas),
            stage.push(&batch.only),
        ];
        let base = self.gpu.write(OPERATION, &stage.bytes, &mut self.scratch.input)?;
        let [draw_list, biases, words, delta_tokens, deltas, only] = sent.map(|offset| base + offset);
        let (tokens, parts) = (size(&[count, vocabulary])?, size(&[count, chunks])?);
        let (work, bytes) =
            offsets([4 * tokens, 8 * tokens, size_of::<Partial>() * parts, 8 * parts, 8 * parts, 8 * parts]);
        let base = self.scratch.work.reserve(&self.gpu, OPERATION, bytes)?;
        let [z, weights, partials, sums, shifts, kept_sums] = work.map(|offset| base + offset);
        let drawn = self.scratch.output.reserve(&self.gpu, OPERATION, size_of::<Found>() * count)?;
        let parameters = Sample {
            logits: logits.data.address(),
            draws: draw_list,
            biases,
            words,
            delta_tokens,
            deltas,
            only,
            z,
            weights,
            partials,
            sums,
            shifts,
            kept_sums,
            drawn,
            vocabulary: vocabulary as u32,
            chunks: chunks as u32,
        };
        for (kernel, grid, threads) in [
            (Kernel::Adjust, [chunks, count, 1], 512),
            (Kernel::Weigh, [chunks, count, 1], 512),
            (Kernel::Choose, [count, 1, 1], 1024),
        ] {
            // SAFETY: slots and tokens were checked, lists are where the draws say, scratch was sized for these grids.
            unsafe { self.gpu.launch(OPERATION, kernel, grid, threads, &parameters)? };
        }
        let found: Vec<Found> = self.gpu.read_scratch(OPERATION, &self.scratch.output, 0, count)?;
        Ok(found.iter().zip(draws).map(|(found, draw)| answer(found, draw)).collect())
    }
}

/// ln of a softmax's sum; -inf for a row without a finite logit.
fn log_sum(largest: f32, sum: f64) -> f64 {
    if sum > 0.0 { f64::from(largest) + sum.ln() } else { f64::NEG_INFINITY }
}

fn answer(found: &Found, draw: &Draw) -> Option<Drawn> {
    if found.found == 0 {
        return None;
    }
    let base = log_sum(found.base_largest, found.base_sum);
    let base_log_probability = (f64::from(found.logit) - base) as f32;
    if draw.temperature.is_nan() || draw.temperature <= 0.0 {
        return Some(Drawn {
            token: found.token,
            log_probability: 0.0,
            base_log_probability,
            kl: -base_log_probability,
        });
    }
    let total = found.kept as f64;
    let adjusted = found.changed != 0 || draw.only.is_some();
    let after = f64::from(found.largest) + total.ln() - f64::from(WEIGHT_BITS) * std::f64::consts::LN_2;
    let before = log_sum(found.before_largest, found.before_sum);
    let kl = if adjusted { (found.shift / total - after + before).max(0.0) } else { 0.0 };
    Some(Drawn {
        token: found.token,
        log_probability: ((found.weight as f64).ln() - total.ln()) as f32,
        base_log_probability,
        kl: kl as f32,
    })
}
