//! What a driver's error means: which of ours it is, and whether the context will answer everything with it from then on.
//!
//! A failed launch shows at some later call, and stays; [`Sticky`] is how the device remembers the first, so that
//! nothing asks the driver again. Nothing here calls the driver but for its words.

use std::ffi::CStr;

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::device::DeviceError;

/// An error that stays.
#[derive(Clone)]
pub(super) struct Sticky {
    operation: &'static str,
    message: String,
    lost: bool,
}

impl Sticky {
    pub(super) fn error(&self) -> DeviceError {
        let Sticky { operation, message, lost } = self.clone();
        if lost { DeviceError::Lost { operation, message } } else { DeviceError::Failed { operation, message } }
    }
}

/// What an error of the driver means; errors that the context keeps are remembered.
pub(super) fn fault(operation: &'static str, error: DriverError, sticky: &mut Option<Sticky>) -> DeviceError {
    use CUresult::*;
    if let Some(sticky) = sticky {
        return sticky.error();
    }
    let message = words(error);
    let lost = matches!(
        error.0,
        CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_SYSTEM_NOT_READY
            | CUDA_ERROR_UNKNOWN
    );
    let kept = matches!(
        error.0,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
    );
    let found = Sticky { operation, message, lost };
    let error = found.error();
    if lost || kept {
        *sticky = Some(found);
    }
    error
}

/// The driver's name for an error and what it says about it.
fn words(error: DriverError) -> String {
    let text = |text: Result<&CStr, DriverError>| text.map(|text| text.to_string_lossy().into_owned());
    let name = text(error.error_name()).unwrap_or_else(|_| format!("error {}", error.0 as u32));
    match text(error.error_string()) {
        Ok(words) => format!("{name}: {words}"),
        Err(_) => name,
    }
}
