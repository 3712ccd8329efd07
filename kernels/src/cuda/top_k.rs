//! Launches of top-k: a batch of queries goes up in one copy, and what they found comes back in one.
//!
//! The kernels choose and sum; the logarithms are taken here, in f64, as `cpu/vocabulary.rs` does with the same sums. What a
//! query asks for is the trait's [`crate::Device::top_k`].

use super::Cuda;
use super::binaries::Kernel;
use super::buffers::{Logits, size};
use super::parameters::{Bias, Query, Statistics, TopK as Parameters, from_bytes};
use super::stage::{Stage, offsets};
use crate::checks::{check_below, check_within};
use crate::device::{CANDIDATES_MAX, DeviceError, TopK, TopKQuery, VocabularyBias};

/// Tokens of a chunk, as vocabulary.cuh has it.
pub(super) const CHUNK: usize = 2048;

/// Queries or draws of one launch: a grid has no more.
pub(super) const BATCH_MAX: usize = 65_535;

/// Biases of a batch as the kernels take them.
#[derive(Default)]
pub(super) struct Biases {
    pub(super) list: Vec<Bias>,
    pub(super) words: Vec<u64>,
}

impl Biases {
    /// Adds biases; the first's index and their number.
    pub(super) fn push(&mut self, biases: &[VocabularyBias], vocabulary: usize) -> (u32, u32) {
        let first = self.list.len() as u32;
        for bias in biases {
            let words = &bias.bits[..bias.bits.len().min(vocabulary.div_ceil(64))];
            let (first_word, count) = (self.words.len() as u32, words.len() as u32);
            self.list.push(Bias { set: bias.set, unset: bias.unset, first_word, words: count });
            self.words.extend_from_slice(words);
        }
        (first, biases.len() as u32)
    }
}

impl Cuda {
    pub(super) fn top_k_batch(&mut self, logits: &Logits, queries: &[TopKQuery<'_>]) -> Result<Vec<TopK>, DeviceError> {
        const OPERATION: &str = "top_k";
        for query in queries {
            check_below(OPERATION, "the slot", logits.slots, query.slot as usize)?;
            check_within(OPERATION, "k", CANDIDATES_MAX + 1, query.k + 1)?;
        }
        let batches = queries.chunks(BATCH_MAX);
        let found: Result<Vec<_>, _> = batches.map(|queries| self.top_k_launch(logits, queries)).collect();
        Ok(found?.concat())
    }

    fn top_k_launch(&mut self, logits: &Logits, queries: &[TopKQuery<'_>]) -> Result<Vec<TopK>, DeviceError> {
        const OPERATION: &str = "top_k";
        let (count, chunks) = (queries.len(), logits.vocabulary.div_ceil(CHUNK));
        let stride = queries.iter().map(|query| query.k).max().unwrap_or(0).max(1);
        let mut biases = Biases::default();
        let list: Vec<Query> = queries
            .iter()
            .map(|query| {
                let (first_bias, count) = biases.push(query.vocabulary, logits.vocabulary);
                Query { slot: query.slot, k: query.k as u32, first_bias, biases: count }
            })
            .collect();
        let mut stage = Stage::default();
        let sent = [stage.push(&list), stage.push(&biases.list), stage.push(&biases.words)];
        let base = self.gpu.write(OPERATION, &stage.bytes, &mut self.scratch.input)?;
        let [query_list, bias_list, words] = sent.map(|offset| base + offset);
        let statistics_bytes = size_of::<Statistics>() * count;
        let (work, work_bytes) =
            offsets([size(&[8, count, chunks, stride])?, size(&[size_of::<Statistics>(), count, chunks])?]);
        let base = self.scratch.work.reserve(&self.gpu, OPERATION, work_bytes)?;
        let [lists, partials] = work.map(|offset| base + offset);
        // Without gaps, so that every byte of the one copy back was written.
        let found_bytes = size(&[4, count, stride])?;
        let out_bytes = statistics_bytes + 2 * found_bytes;
        let statistics = self.scratch.output.reserve(&self.gpu, OPERATION, out_bytes)?;
        let tokens = statistics + statistics_bytes as u64;
        let parameters = Parameters {
            logits: logits.data.address(),
            queries: query_list,
            biases: bias_list,
            words,
            lists,
            partials,
            tokens,
            found: tokens + found_bytes as u64,
            statistics,
            vocabulary: logits.vocabulary as u32,
            chunks: chunks as u32,
            stride: stride as u32,
            unused: 0,
        };
        // SAFETY: slots are below the logits' and k at most 256 (checked), scratch was sized above, for these grids.
        unsafe { self.gpu.launch(OPERATION, Kernel::TopKChunks, [chunks, count, 1], 512, &parameters)? };
        // SAFETY: as above.
        unsafe { self.gpu.launch(OPERATION, Kernel::TopKMerge, [count, 1, 1], 512, &parameters)? };
        let back: Vec<u8> = self.gpu.read_scratch(OPERATION, &self.scratch.output, 0, out_bytes)?;
        let (statistics, found) = back.split_at(statistics_bytes);
        let (tokens, found) = found.split_at(found_bytes);
        let (statistics, tokens): (Vec<Statistics>, Vec<u32>) = (from_bytes(statistics), from_bytes(tokens));
        let found: Vec<f32> = from_bytes(found);
        let rows = tokens.chunks_exact(stride).zip(found.chunks_exact(stride));
        Ok(statistics
            .iter()
            .zip(rows)
            .map(|(statistics, (tokens, logits))| answer(statistics, tokens, logits))
            .collect())
    }
}

/// Tokens up to the first that no vocabulary has.
fn answer(statistics: &Statistics, tokens: &[u32], logits: &[f32]) -> TopK {
    let count = tokens.iter().position(|token| *token == u32::MAX).unwrap_or(tokens.len());
    let Statistics { sum, moment, largest, .. } = *statistics;
    let some = sum > 0.0;
    TopK {
        tokens: tokens[..count].to_vec(),
        logits: logits[..count].to_vec(),
        log_normalizer: if some { (f64::from(largest) + sum.ln()) as f32 } else { f32::NEG_INFINITY },
        entropy: if some { (sum.ln() - moment / sum).max(0.0) as f32 } else { 0.0 },
    }
}
