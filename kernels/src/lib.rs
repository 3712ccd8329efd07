//! Kernels (temporary local copy).
pub mod device;
pub mod format;
pub use device::VocabularyBias;
pub use format::Format;
