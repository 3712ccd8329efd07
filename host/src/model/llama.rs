//! The Llama family's forward pass, written once over the device trait.
//!
//! A pass runs a range of layers over the rows of the device's current plan: the engine runs
//! `[0, exit)` for pending and candidate rows, `[exit, layers)` for those that go on. On its way it
//! taps the residual stream where value heads read it. Nothing here knows sequences or policies.
//! The stages are those of the device trait, in its words: start at [`Llama::forward`].

use std::ops::Range;

use vassal_kernels::{Device, DeviceError, LinearHead, ModelShape, OnePassHead, Projections};

use super::config::{LlamaConfig, read_vector};
use super::gguf::{Gguf, GgufError, TensorInfo};

/// Why a model could not be put on a device.
#[derive(Debug, thiserror::Error)]
pub enum LlamaError {
    /// The file lacks something or contradicts itself.
    #[error(transparent)]
    File(#[from] GgufError),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The weights of one decoder layer, on the device.
struct Layer<D: Device> {
    attention_norm: D::Vector,
    query: D::Matrix,
    key: D::Matrix,
    value: D::Matrix,
    biases: Option<[D::Vector; 3]>,
    output: D::Matrix,
    feed_forward_norm: D::Vector,
    gate: D::Matrix,
    up: D::Matrix,
    down: D::Matrix,
}

/// A frozen model on a device, with the activations of one pass.
pub struct Llama<D: Device> {
    shape: ModelShape,
    embedding: D::Matrix,
    /// The LM head where it is not the embedding.
    untied: Option<D::Matrix>,
    output_norm: D::Vector,
    layers: Vec<Layer<D>>,
    weights_bytes: u64,
    rows_max: usize,
    /// The residual stream, `[rows_max, H]`.
    x: D::Rows,
    /// Queries, then what attention gives, `[rows_max, A * D]` each.
    q: D::Rows,
    attended: D::Rows,
    /// The feed-forward part, `[rows_max, F]`.
    gated: D::Rows,
}

/// Value heads to evaluate on the way; `tap` in them is the index into the cache's taps.
#[derive(Default)]
pub struct Taps<'a> {
    /// The layer of each tap, ascending: the cache's.
    pub layers: &'a [usize],
    /// Look-ahead heads, in the order of their results.
    pub linear: Vec<&'a LinearHead>,
    /// One-pass heads, in the order of their results.
    pub one_pass: Vec<&'a OnePassHead>,
}

/// What heads said of the rows of a pass.
#[derive(Debug, Clone, Default)]
pub struct Tapped {
    /// For each look-ahead head, its value of every row, `[R]`; empty where its tap was not passed.
    pub values: Vec<Vec<f32>>,
    /// For each one-pass head, its projection of every row, `[R, rank]`; empty likewise.
    pub projections: Vec<Vec<f32>>,
    /// Time spent in heads, in seconds.
    pub seconds: f64,
}

impl<D: Device> Llama<D> {
    /// Reads the weights tensor by tensor onto the device, the largest first, so that no more than
    /// one tensor is ever held twice. `rows_max` bounds the rows of a pass.
    pub fn load(device: &mut D, gguf: &Gguf, config: &LlamaConfig, rows_max: usize) -> Result<Self, LlamaError> {
        let (shape, tensors) = (config.shape.clone(), &config.tensors);
        let mut buffer = Vec::new();
        let mut matrix = |device: &mut D, info: &TensorInfo| -> Result<D::Matrix, LlamaError> {
            gguf.read(info, &mut buffer)?;
            let (n, k) = (info.shape[1] as usize, info.shape[0] as usize);
            Ok(device.matrix(info.format, n, k, &buffer)?)
        };
        let vector = |device: &mut D, info: &TensorInfo| -> Result<D::Vector, LlamaError> {
            Ok(device.vector(&read_vector(gguf, info)?)?)
        };
        let embedding = matrix(device, &tensors.embedding)?;
        let untied = tensors.output.as_ref().map(|info| matrix(device, info)).transpose()?;
        let mut layers = Vec::with_capacity(shape.layers);
        for layer in &tensors.layers {
            let biases = match &layer.biases {
                Some([query, key, value]) => {
                    Some([vector(device, query)?, vector(device, key)?, vector(device, value)?])
                }
                None => None,
            };
            layers.push(Layer {
                attention_norm: vector(device, &layer.attention_norm)?,
                query: matrix(device, &layer.query)?,
                key: matrix(device, &layer.key)?,
                value: matrix(device, &layer.value)?,
                biases,
                output: matrix(device, &layer.attention_output)?,
                feed_forward_norm: vector(device, &layer.feed_forward_norm)?,
                gate: matrix(device, &layer.gate)?,
                up: matrix(device, &layer.up)?,
                down: matrix(device, &layer.down)?,
            });
        }
        let output_norm = vector(device, &tensors.output_norm)?;
        let attention_width = shape.heads * shape.head_width;
        Ok(Self {
            x: device.rows(rows_max, shape.hidden)?,
            q: device.rows(rows_max, attention_width)?,
            attended: device.rows(rows_max, attention_width)?,
            gated: device.rows(rows_max, shape.feed_forward)?,
            shape,
            embedding,
            untied,
            output_norm,
            layers,
            weights_bytes: gguf.length_bytes(),
            rows_max,
        })
    }

    /// The model's shapes.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Bytes of the file that the weights came from.
    pub fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    /// The most rows a pass may have.
    pub fn rows_max(&self) -> usize {
        self.rows_max
    }

    /// The input embedding `[V, H]`.
    pub fn embedding(&self) -> &D::Matrix {
        &self.embedding
    }

    /// The residual stream of the last pass, `[rows_max, H]`.
    pub fn residual(&self) -> &D::Rows {
        &self.x
    }

    /// The residual stream, to be filled before a pass that does not start at layer 0.
    pub fn residual_mut(&mut self) -> &mut D::Rows {
        &mut self.x
    }

    /// Runs `layers` over the rows of the device's current plan (`begin` to `end` is the caller's);
    /// from layer 0 the rows are embedded first. Prefix sums are stored at every tap in
    /// `(layers.start, layers.end]`, and the heads asked for are evaluated there.
    pub fn forward(
        &mut self,
        device: &mut D,
        cache: &mut D::Cache,
        layers: Range<usize>,
        taps: &Taps<'_>,
    ) -> Result<Tapped, DeviceError> {
        let mut tapped = Tapped {
            values: vec![Vec::new(); taps.linear.len()],
            projections: vec![Vec::new(); taps.one_pass.len()],
            seconds: 0.0,
        };
        if layers.start == 0 {
            device.embed(&self.embedding, &mut self.x)?;
        }
        for index in layers {
            let layer = &self.layers[index];
            let biases = layer.biases.as_ref().map(|[query, key, value]| [query, key, value]);
            let weights = Projections { query: &layer.query, key: &layer.key, value: &layer.value, biases };
            device.norm_qkv_store(&self.x, &layer.attention_norm, weights, cache, index, &mut self.q)?;
            device.attend(&self.q, cache, index, &mut self.attended)?;
            device.linear_add(&self.attended, &layer.output, &mut self.x)?;
            device.norm_gate_up(&self.x, &layer.feed_forward_norm, &layer.gate, &layer.up, &mut self.gated)?;
            device.linear_add(&self.gated, &layer.down, &mut self.x)?;
            if let Some(tap) = taps.layers.iter().position(|&at| at == index + 1) {
                let start = std::time::Instant::now();
                device.accumulate(&self.x, tap, cache)?;
                for (head, values) in taps.linear.iter().zip(&mut tapped.values) {
                    if head.tap == tap {
                        *values = device.values(&self.x, cache, head)?;
                    }
                }
                for (head, projections) in taps.one_pass.iter().zip(&mut tapped.projections) {
                    if head.tap == tap {
                        *projections = device.project(&self.x, cache, head)?;
                    }
                }
                tapped.seconds += start.elapsed().as_secs_f64();
            }
        }
        Ok(tapped)
    }

    /// Logits of some rows of the residual stream: `(row, logits slot)`.
    pub fn head(&self, device: &mut D, rows: &[(u32, u32)], logits: &mut D::Logits) -> Result<(), DeviceError> {
        let table = self.untied.as_ref().unwrap_or(&self.embedding);
        device.head(&self.x, rows, &self.output_norm, table, logits)
    }
}
