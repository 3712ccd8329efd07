//! Writing GGUF files: what tests, benchmarks and the synthetic model need, no more.
//!
//! Keys and tensors come out in the order in which they were added, so a file is a pure function of
//! the calls. The writer checks nothing but arithmetic: tests use it to write wrong files too.
//!
//! Start at [`Writer`].

use half::f16;
use vassal_kernels::Format;

use super::parse::format_id;
use super::value::NumberKind;

const ALIGNMENT: usize = 32;

/// Collects metadata and tensors, then gives the file's bytes.
#[derive(Debug, Default)]
pub struct Writer {
    metadata: Vec<u8>,
    metadata_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
    data: Vec<u8>,
}

impl Writer {
    /// An empty file.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds a 32-bit unsigned integer.
    pub fn integer(&mut self, key: &str, value: u32) {
        self.raw(key, NumberKind::U32.id(), &value.to_le_bytes());
    }

    /// Adds a 32-bit float.
    pub fn float(&mut self, key: &str, value: f32) {
        self.raw(key, NumberKind::F32.id(), &value.to_le_bytes());
    }

    /// Adds a truth value.
    pub fn boolean(&mut self, key: &str, value: bool) {
        self.raw(key, NumberKind::Bool.id(), &[u8::from(value)]);
    }

    /// Adds a string.
    pub fn text(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        put_text(&mut bytes, value);
        self.raw(key, 8, &bytes);
    }

    /// Adds a list of strings.
    pub fn texts<'a>(&mut self, key: &str, values: impl IntoIterator<Item = &'a str>) {
        let mut items = Vec::new();
        let mut count = 0u64;
        for value in values {
            put_text(&mut items, value);
            count += 1;
        }
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(items);
        self.raw(key, 9, &bytes);
    }

    /// Adds a list of 32-bit signed integers.
    pub fn integers(&mut self, key: &str, values: &[i32]) {
        let mut bytes = NumberKind::I32.id().to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        for value in values {
            bytes.extend(value.to_le_bytes());
        }
        self.raw(key, 9, &bytes);
    }

    /// Adds a value of any type by its id and its bytes.
    pub fn raw(&mut self, key: &str, kind: u32, value: &[u8]) {
        put_text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.metadata_count += 1;
    }

    /// Adds a tensor: `shape` with the fastest dimension first, `bytes` its data.
    pub fn tensor(&mut self, name: &str, shape: &[u64], format: Format, bytes: &[u8]) {
        let offset = self.data.len() as u64;
        self.tensor_entry(name, shape, format_id(format), offset);
        self.data.extend(bytes);
        pad(&mut self.data);
    }

    /// Adds an entry of the tensor table without data, with any format id and offset.
    pub fn tensor_entry(&mut self, name: &str, shape: &[u64], format: u32, offset: u64) {
        put_text(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        for dimension in shape {
            self.tensors.extend(dimension.to_le_bytes());
        }
        self.tensors.extend(format.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
    }

    /// The file, version 3.
    pub fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.tensor_count.to_le_bytes());
        file.extend(self.metadata_count.to_le_bytes());
        file.extend(self.metadata);
        file.extend(self.tensors);
        pad(&mut file);
        file.extend(self.data);
        file
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

/// Stores numbers in a format, by ggml's reference rounding (`quantize_row_*_ref`). A last incomplete
/// block is filled up with zeros.
pub fn quantize(format: Format, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match format {
        Format::F32 => values.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
        Format::F16 => values.iter().for_each(|v| bytes.extend(f16::from_f32(*v).to_le_bytes())),
        Format::Bf16 => values.iter().for_each(|v| bytes.extend(half::bf16::from_f32(*v).to_le_bytes())),
        Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => {
            for chunk in values.chunks(BLOCK) {
                let mut block = [0.0; BLOCK];
                block[..chunk.len()].copy_from_slice(chunk);
                quantize_block(format, &block, &mut bytes);
            }
        }
    }
    bytes
}

const BLOCK: usize = 32;

fn quantize_block(format: Format, block: &[f32; BLOCK], bytes: &mut Vec<u8>) {
    let inverse = |scale: f32| if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let largest = |a: f32, b: f32| if b.abs() > a.abs() { b } else { a };
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => {}
        Format::Q8_0 => {
            let scale = block.iter().copied().fold(0.0, largest).abs() / 127.0;
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            let inverse = inverse(scale);
            bytes.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
        }
        Format::Q4_0 => {
            // The number of largest magnitude becomes -8, the one code without a counterpart.
            let scale = block.iter().copied().fold(0.0, largest) / -8.0;
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            let inverse = inverse(scale);
            put_nibbles(bytes, block, |v| v * inverse + 8.5);
        }
        Format::Q4_1 => {
            let least = block.iter().copied().fold(f32::INFINITY, f32::min);
            let most = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = (most - least) / 15.0;
            bytes.extend(f16::from_f32(scale).to_le_bytes());
            bytes.extend(f16::from_f32(least).to_le_bytes());
            let inverse = inverse(scale);
            put_nibbles(bytes, block, |v| (v - least) * inverse + 0.5);
        }
    }
}

/// Element i in the low half of byte i, element i + 16 in the high half.
fn put_nibbles(bytes: &mut Vec<u8>, block: &[f32; BLOCK], code: impl Fn(f32) -> f32) {
    // The cast saturates below at 0, as the format's codes do.
    let code = |v: f32| (code(v) as u8).min(15);
    for i in 0..BLOCK / 2 {
        bytes.push(code(block[i]) | code(block[i + BLOCK / 2]) << 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantized_numbers_come_back_within_half_a_step() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 20.0) / 7.0).collect();
        let range = 63.0 / 7.0;
        for (format, step) in [
            (Format::F32, 0.0),
            (Format::F16, 0.01),
            (Format::Bf16, 0.05),
            (Format::Q8_0, range / 127.0),
            (Format::Q4_0, range / 8.0),
            (Format::Q4_1, range / 15.0),
        ] {
            let bytes = quantize(format, &values);
            let mut back = vec![0.0; values.len()];
            assert!(format.dequantize(&bytes, &mut back), "{format:?}");
            for (value, back) in values.iter().zip(&back) {
                let difference = (value - back).abs();
                // Q4_0 cuts off what lies past the code 7: one whole step at that end.
                let bound = if format == Format::Q4_0 { step } else { step / 2.0 };
                assert!(difference <= bound + 0.01, "{format:?}: {value} became {back}");
            }
        }
    }
}
