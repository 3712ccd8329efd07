//! Bytes as text, the way checksums are written. Reading it back is whoever's who knows how long it must be.

/// Lower-case hexadecimal, two digits a byte.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
