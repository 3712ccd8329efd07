//! The device that was chosen when the program started: [`AnyDevice`], one of those there are.
//!
//! A program that is built once runs on either kind of machine. Every operation is handed to the device within, with its own
//! kind of each buffer; a buffer that another device made is refused. One branch an operation is all it costs.
//! [`DeviceChoice`] says which to open; whether there is a card at all, [`crate::cuda::Cuda::count`].

use std::ops::Range;

use crate::checks::refuse;
use crate::cpu::{Cpu, Isa};
use crate::cuda::Cuda;
use crate::device::{
    CacheShape, Device, DeviceError, DeviceInfo, Draw, Drawn, LinearHead, ModelShape, OnePassHead, Plan, Projections,
    TopK, TopKQuery,
};
use crate::format::Format;
use crate::pool::Pool;

/// Which device to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor.
    Cpu {
        /// Threads; as many as there are cores where none is given.
        threads: Option<usize>,
        /// The instruction set; the best that the machine has where none is given.
        isa: Option<Isa>,
    },
    /// An NVIDIA card.
    Cuda {
        /// Which, from 0.
        ordinal: usize,
    },
}

impl Default for DeviceChoice {
    /// The processor, with all it has.
    fn default() -> Self {
        DeviceChoice::Cpu { threads: None, isa: None }
    }
}

impl DeviceChoice {
    /// The instruction set of the device, which is not opened for it.
    ///
    /// # Errors
    /// [`Cuda::find`]'s.
    pub fn isa(self) -> Result<String, DeviceError> {
        match self {
            DeviceChoice::Cpu { isa, .. } => Ok(isa.unwrap_or_else(Isa::best).name().to_owned()),
            DeviceChoice::Cuda { ordinal } => Ok(Cuda::find(ordinal)?.isa),
        }
    }

    /// Threads that were asked for.
    pub fn threads(self) -> Option<usize> {
        match self {
            DeviceChoice::Cpu { threads, .. } => threads,
            DeviceChoice::Cuda { .. } => None,
        }
    }
}

/// One of two kinds of a device's own types.
pub enum Either<C, G> {
    /// The processor's.
    Cpu(C),
    /// The card's.
    Cuda(G),
}

/// The device that was chosen.
pub type AnyDevice = Either<Cpu, Cuda>;

impl AnyDevice {
    /// Opens a device.
    ///
    /// # Errors
    /// [`Cpu::with`]'s and [`Cuda::open`]'s.
    pub fn open(choice: DeviceChoice) -> Result<AnyDevice, DeviceError> {
        Ok(match choice {
            DeviceChoice::Cpu { threads, isa } => Either::Cpu(match isa {
                None => Cpu::new(threads),
                Some(isa) => Cpu::with(isa, threads.unwrap_or_else(crate::cpu::threads_by_default))?,
            }),
            DeviceChoice::Cuda { ordinal } => Either::Cuda(Cuda::open(ordinal)?),
        })
    }
}

/// Hands an operation to the device within, where all buffers are of its kind.
macro_rules! hand_on {
    ($operation:ident: $self:ident as $device:ident $(, $buffer:ident)* => $call:expr) => {
        match ($self, $($buffer,)*) {
            (Either::Cpu($device), $(Either::Cpu($buffer),)*) => $call,
            (Either::Cuda($device), $(Either::Cuda($buffer),)*) => $call,
            #[allow(unreachable_patterns, reason = "an operation without buffers has none of another device")]
            _ => refuse(stringify!($operation), "a buffer", "this device's", "another device's"),
        }
    };
}

/// Makes what the device within makes, as its kind.
macro_rules! make {
    ($self:ident as $device:ident => $call:expr) => {
        match $self {
            Either::Cpu($device) => $call.map(Either::Cpu),
            Either::Cuda($device) => $call.map(Either::Cuda),
        }
    };
}

impl Device for AnyDevice {
    type Matrix = Either<<Cpu as Device>::Matrix, <Cuda as Device>::Matrix>;
    type Vector = Either<<Cpu as Device>::Vector, <Cuda as Device>::Vector>;
    type Rows = Either<<Cpu as Device>::Rows, <Cuda as Device>::Rows>;
    type Cache = Either<<Cpu as Device>::Cache, <Cuda as Device>::Cache>;
    type Logits = Either<<Cpu as Device>::Logits, <Cuda as Device>::Logits>;

    fn pool(&self) -> &Pool {
        match self {
            Either::Cpu(device) => device.pool(),
            Either::Cuda(device) => device.pool(),
        }
    }

    fn info(&self) -> DeviceInfo {
        match self {
            Either::Cpu(device) => device.info(),
            Either::Cuda(device) => device.info(),
        }
    }

    fn matrix(&mut self, format: Format, n: usize, k: usize, bytes: &[u8]) -> Result<Self::Matrix, DeviceError> {
        make!(self as device => device.matrix(format, n, k, bytes))
    }

    fn vector(&mut self, values: &[f32]) -> Result<Self::Vector, DeviceError> {
        make!(self as device => device.vector(values))
    }

    fn rows(&mut self, rows_max: usize, width: usize) -> Result<Self::Rows, DeviceError> {
        make!(self as device => device.rows(rows_max, width))
    }

    fn cache(&mut self, model: &ModelShape, shape: &CacheShape) -> Result<Self::Cache, DeviceError> {
        make!(self as device => device.cache(model, shape))
    }

    fn logits(&mut self, slots: usize, vocabulary: usize) -> Result<Self::Logits, DeviceError> {
        make!(self as device => device.logits(slots, vocabulary))
    }

    fn begin(&mut self, plan: &Plan) -> Result<(), DeviceError> {
        hand_on!(begin: self as device => device.begin(plan))
    }

    fn end(&mut self) -> Result<(), DeviceError> {
        hand_on!(end: self as device => device.end())
    }

    fn embed(&mut self, table: &Self::Matrix, x: &mut Self::Rows) -> Result<(), DeviceError> {
        hand_on!(embed: self as device, table, x => device.embed(table, x))
    }

    fn norm_qkv_store(
        &mut self,
        x: &Self::Rows,
        gain: &Self::Vector,
        weights: Projections<'_, Self>,
        cache: &mut Self::Cache,
        layer: usize,
        q: &mut Self::Rows,
    ) -> Result<(), DeviceError> {
        let Projections { query, key, value, biases } = weights;
        match biases {
            None => hand_on!(norm_qkv_store: self as device, x, gain, query, key, value, cache, q => {
                device.norm_qkv_store(x, gain, Projections { query, key, value, biases: None }, cache, layer, q)
            }),
            Some([a, b, c]) => {
                hand_on!(norm_qkv_store: self as device, x, gain, query, key, value, a, b, c, cache, q => {
                    let biases = Some([a, b, c]);
                    device.norm_qkv_store(x, gain, Projections { query, key, value, biases }, cache, layer, q)
                })
            }
        }
    }

    fn attend(
        &mut self,
        q: &Self::Rows,
        cache: &Self::Cache,
        layer: usize,
        out: &mut Self::Rows,
    ) -> Result<(), DeviceError> {
        hand_on!(attend: self as device, q, cache, out => device.attend(q, cache, layer, out))
    }

    fn linear_add(&mut self, input: &Self::Rows, weight: &Self::Matrix, x: &mut Self::Rows) -> Result<(), DeviceError> {
        hand_on!(linear_add: self as device, input, weight, x => device.linear_add(input, weight, x))
    }

    fn norm_gate_up(
        &mut self,
        x: &Self::Rows,
        gain: &Self::Vector,
        gate: &Self::Matrix,
        up: &Self::Matrix,
        out: &mut Self::Rows,
    ) -> Result<(), DeviceError> {
        hand_on!(norm_gate_up: self as device, x, gain, gate, up, out => device.norm_gate_up(x, gain, gate, up, out))
    }

    fn accumulate(&mut self, x: &Self::Rows, tap: usize, cache: &mut Self::Cache) -> Result<(), DeviceError> {
        hand_on!(accumulate: self as device, x, cache => device.accumulate(x, tap, cache))
    }

    fn values(&mut self, x: &Self::Rows, cache: &Self::Cache, head: &LinearHead) -> Result<Vec<f32>, DeviceError> {
        hand_on!(values: self as device, x, cache => device.values(x, cache, head))
    }

    fn project(&mut self, x: &Self::Rows, cache: &Self::Cache, head: &OnePassHead) -> Result<Vec<f32>, DeviceError> {
        hand_on!(project: self as device, x, cache => device.project(x, cache, head))
    }

    fn score_tokens(
        &mut self,
        head: &OnePassHead,
        table: &Self::Matrix,
        projection: &[f32],
        tokens: &[u32],
    ) -> Result<Vec<f32>, DeviceError> {
        hand_on!(score_tokens: self as device, table => device.score_tokens(head, table, projection, tokens))
    }

    fn read_features(
        &mut self,
        x: &Self::Rows,
        tap: usize,
        cache: &Self::Cache,
        out: &mut Vec<f32>,
    ) -> Result<(), DeviceError> {
        hand_on!(read_features: self as device, x, cache => device.read_features(x, tap, cache, out))
    }

    fn copy_rows(
        &mut self,
        from: &Self::Rows,
        rows: &[u32],
        to: &mut Self::Rows,
        start: usize,
    ) -> Result<(), DeviceError> {
        hand_on!(copy_rows: self as device, from, to => device.copy_rows(from, rows, to, start))
    }

    fn commit(
        &mut self,
        cache: &mut Self::Cache,
        copies: &[(u32, u32)],
        layers: Range<usize>,
    ) -> Result<(), DeviceError> {
        hand_on!(commit: self as device, cache => device.commit(cache, copies, layers))
    }

    fn head(
        &mut self,
        x: &Self::Rows,
        rows: &[(u32, u32)],
        gain: &Self::Vector,
        table: &Self::Matrix,
        logits: &mut Self::Logits,
    ) -> Result<(), DeviceError> {
        hand_on!(head: self as device, x, gain, table, logits => device.head(x, rows, gain, table, logits))
    }

    fn top_k(&mut self, logits: &Self::Logits, queries: &[TopKQuery<'_>]) -> Result<Vec<TopK>, DeviceError> {
        hand_on!(top_k: self as device, logits => device.top_k(logits, queries))
    }

    fn sample(&mut self, logits: &Self::Logits, draws: &[Draw]) -> Result<Vec<Option<Drawn>>, DeviceError> {
        hand_on!(sample: self as device, logits => device.sample(logits, draws))
    }

    fn read_logits(&mut self, logits: &Self::Logits, slot: u32, out: &mut Vec<f32>) -> Result<(), DeviceError> {
        hand_on!(read_logits: self as device, logits => device.read_logits(logits, slot, out))
    }

    fn read_rows(&mut self, x: &Self::Rows, rows: usize, out: &mut Vec<f32>) -> Result<(), DeviceError> {
        hand_on!(read_rows: self as device, x => device.read_rows(x, rows, out))
    }
}

#[cfg(test)]
mod tests {
    use vassal_cuda_stand_in::in_child;

    use super::*;

    #[test]
    fn a_buffer_of_another_device_is_refused() {
        in_child!({
            let mut cpu = AnyDevice::open(DeviceChoice::default()).unwrap();
            let mut cuda = AnyDevice::open(DeviceChoice::Cuda { ordinal: 0 }).unwrap();
            let [on_cpu, on_cuda] = [&mut cpu, &mut cuda].map(|device| device.rows(2, 4).unwrap());
            let mut out = Vec::new();
            assert!(cpu.read_rows(&on_cpu, 2, &mut out).is_ok() && cuda.read_rows(&on_cuda, 2, &mut out).is_ok());
            for refused in [cpu.read_rows(&on_cuda, 2, &mut out), cuda.read_rows(&on_cpu, 2, &mut out)] {
                let error = refused.expect_err("refused").to_string();
                assert_eq!(error, "read_rows: a buffer must be this device's, got another device's");
            }
        });
    }
}
