//! What device the stand-in plays, and which faults it provokes.
//!
//! Settings come as text, `name=value` with commas between, from the environment variable
//! `VASSAL_STAND_IN` or the exported `vassal_stand_in_configure`. An unknown name is refused. Start at
//! [`Settings::parse`].

/// See the module; each field is one setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Settings {
    /// `devices=N`; `no-device` is 0.
    pub(crate) devices: u32,
    /// `driver=12080`: what `cuDriverGetVersion` says.
    pub(crate) driver: u32,
    /// `memory=BYTES`: device memory.
    pub(crate) memory_bytes: u64,
    /// `sm=90`: compute capability.
    pub(crate) sm: u32,
    /// `multiprocessors=132`: how many the device says it has.
    pub(crate) multiprocessors: u32,
    /// `fail-launch=N` or `fail-launch=N:CODE`: the Nth launch from now on fails, and the error stays.
    pub(crate) fail_launch: Option<(u64, u32)>,
    /// `lose-device=N` or `lose-device=N:CODE`: at the Nth launch the device is gone for good.
    pub(crate) lose_device: Option<(u64, u32)>,
    /// `no-graphs`: the driver has no room for graphs.
    pub(crate) no_graphs: bool,
    /// `uninitialised-copies`: copies to the host may include bytes that were never written.
    pub(crate) uninitialised_copies: bool,
    /// `seconds=N`: a launch that runs longer is given up.
    pub(crate) seconds_max: u64,
}

/// `CUDA_ERROR_LAUNCH_FAILED`.
const LAUNCH_FAILED: u32 = 719;
/// `CUDA_ERROR_DEVICE_UNAVAILABLE`.
const DEVICE_UNAVAILABLE: u32 = 46;

impl Default for Settings {
    fn default() -> Self {
        Self {
            devices: 1,
            driver: 12090,
            memory_bytes: 8 << 30,
            sm: 90,
            multiprocessors: 132,
            fail_launch: None,
            lose_device: None,
            no_graphs: false,
            uninitialised_copies: false,
            seconds_max: 120,
        }
    }
}

impl Settings {
    /// Reads settings over the present ones.
    pub(crate) fn parse(mut self, text: &str) -> Result<Self, String> {
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (name, value) = item.split_once('=').unwrap_or((item, ""));
            let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{item}: {text:?} is not a number"));
            let nth = |code: u32| {
                let (count, given) = value.split_once(':').unwrap_or((value, ""));
                let code = if given.is_empty() { code } else { number(given)? as u32 };
                Ok::<_, String>(Some((number(count)?.max(1), code)))
            };
            match name {
                "no-device" => self.devices = 0,
                "devices" => self.devices = number(value)? as u32,
                "driver" => self.driver = number(value)? as u32,
                "memory" => self.memory_bytes = number(value)?,
                "sm" => self.sm = number(value)? as u32,
                "multiprocessors" => self.multiprocessors = number(value)? as u32,
                "fail-launch" => self.fail_launch = nth(LAUNCH_FAILED)?,
                "lose-device" => self.lose_device = nth(DEVICE_UNAVAILABLE)?,
                "no-graphs" => self.no_graphs = true,
                "uninitialised-copies" => self.uninitialised_copies = true,
                "seconds" => self.seconds_max = number(value)?,
                _ => return Err(format!("{name} is not a setting of the stand-in")),
            }
        }
        Ok(self)
    }

    /// The newest PTX that a driver of this version reads, as (major, minor).
    pub(crate) fn ptx_version(&self) -> (u32, u32) {
        let (major, minor) = (self.driver / 1000, self.driver % 1000 / 10);
        match (major, minor) {
            (..=11, _) => (7, minor.min(8)),
            (12, 0..=4) => (8, minor),
            (12, 5 | 6) => (8, 5),
            (12, 7) => (8, 6),
            (12, 8) => (8, 7),
            (12, _) => (8, 8),
            _ => (9, minor),
        }
    }
}
