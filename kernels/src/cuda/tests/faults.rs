//! What goes wrong with a driver or a card, each provoked through the stand-in, and told apart by its kind.
//!
//! Settings of the stand-in stand beside each test. After a failed launch the device answers everything with that error
//! and the process goes on.

use vassal_cuda_stand_in::in_child;

use super::{Random, counting, cuda, rows_of};
use crate::cuda::Cuda;
use crate::device::{CacheShape, Device, DeviceError, RopePairing};
use crate::format::Format;

#[test]
fn a_machine_without_a_driver_says_so() {
    // In this process, where nothing stands in.
    let Err(error) = Cuda::open(0) else {
        // A machine with a card: nothing to see here.
        return;
    };
    let expected =
        matches!(error, DeviceError::NoDriver | DeviceError::NoDevice { .. } | DeviceError::DriverTooOld { .. });
    assert!(expected, "{error}");
}

#[test]
fn an_old_driver_is_named() {
    in_child!("driver=11020", {
        let Err(DeviceError::DriverTooOld { found: 11_020, needed }) = Cuda::open(0) else { panic!("opened") };
        let error = DeviceError::DriverTooOld { found: 11_020, needed };
        assert_eq!(error.to_string(), "the CUDA driver supports CUDA 11.2, at least 11.4 is needed");
    });
}

#[test]
fn a_missing_card_is_named() {
    in_child!("devices=2", {
        assert!(Cuda::open(1).is_ok());
        assert!(matches!(Cuda::open(2), Err(DeviceError::NoDevice { ordinal: 2, devices: 2 })));
    });
}

#[test]
fn no_card_at_all_is_named() {
    in_child!("no-device", {
        assert!(matches!(Cuda::open(0), Err(DeviceError::NoDevice { ordinal: 0, devices: 0 })));
    });
}

#[test]
fn an_old_card_is_refused_by_what_it_lacks() {
    in_child!("sm=75", {
        let Err(error @ DeviceError::CardTooOld { found: (7, 5), .. }) = Cuda::open(0) else { panic!("opened") };
        let DeviceError::CardTooOld { name, .. } = &error else { unreachable!() };
        let words = format!("the card {name:?} (cuda:0) has compute capability 7.5, at least 8.0 is needed");
        assert_eq!(error.to_string(), words);
        // Before anything is made on it.
        assert_eq!(Cuda::find(0).expect_err("too old").to_string(), words);
    });
}

#[test]
fn other_cards_run_the_ptx() {
    in_child!("sm=80,driver=11040", {
        let mut cuda = cuda();
        assert_eq!(cuda.info().isa, "sm_80");
        rows_of(&mut cuda, &[1.0; 32], 32);
    });
}

#[test]
fn too_little_memory_says_how_much() {
    in_child!("memory=4000000", {
        let mut cuda = cuda();
        let shape = super::model(64, [4, 2, 16], RopePairing::Halves);
        let error = cuda.cache(&shape, &CacheShape { pages: 4096, taps: vec![1] }).err().expect("no room");
        let DeviceError::Memory { what, needed_bytes, available_bytes } = error else { panic!("{error}") };
        assert_eq!((what, needed_bytes), ("the cache's keys", 4096 * 2 * 2 * 32 * 32 * 2));
        assert!(available_bytes > 0 && available_bytes <= 4_000_000, "{available_bytes}");
        // Smaller things still fit: the error is not sticky.
        assert!(cuda.cache(&shape, &CacheShape { pages: 2, taps: vec![1] }).is_ok());
    });
}

/// Runs one linear layer, twice.
fn work(cuda: &mut Cuda) -> Result<Vec<f32>, DeviceError> {
    let bytes = Random(1).weights(Format::F16, 16, 64, 1.0);
    let matrix = cuda.matrix(Format::F16, 16, 64, &bytes)?;
    let (input, mut out) = (cuda.rows(2, 64)?, cuda.rows(2, 16)?);
    cuda.begin(&counting(2))?;
    let done = cuda.linear_add(&input, &matrix, &mut out).and_then(|()| cuda.linear_add(&input, &matrix, &mut out));
    cuda.end()?;
    done?;
    let mut read = Vec::new();
    cuda.read_rows(&out, 2, &mut read)?;
    Ok(read)
}

#[test]
fn a_failed_launch_is_sticky() {
    in_child!("fail-launch=3", {
        let mut cuda = cuda();
        let Err(DeviceError::Failed { message, .. }) = work(&mut cuda) else { panic!("nothing failed") };
        assert!(message.contains("LAUNCH_FAILED"), "{message}");
        for _ in 0..2 {
            assert!(matches!(cuda.vector(&[1.0]), Err(DeviceError::Failed { .. })), "everything fails from then on");
        }
    });
}

#[test]
fn a_lost_device_is_lost() {
    in_child!("lose-device=2", {
        let mut cuda = cuda();
        assert!(matches!(work(&mut cuda), Err(DeviceError::Lost { .. })));
        assert!(matches!(cuda.rows(1, 1), Err(DeviceError::Lost { .. })));
    });
}
