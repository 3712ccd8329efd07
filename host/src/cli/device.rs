//! `--device`, `--threads` and `--isa`: which machine owns the model; `--cache-tokens` and `--rows-max`: how much of its memory.
//!
//! The choice is made here, before anything is loaded, and `auto` says what it took: nothing falls back later. The
//! kernels for cards have not run on one yet, so a card is taken only where it is asked for.

use clap::Args;
use vassal_kernels::cpu::Isa;
use vassal_kernels::cuda::Cuda;
use vassal_kernels::{DeviceChoice, DeviceError};

use super::{between, complain};
use crate::engine::{EngineError, EngineOptions};
use crate::error::Error;

/// What the model runs on.
#[derive(Debug, Clone, Args)]
pub(super) struct DeviceArguments {
    /// cpu, cuda (the first card), cuda:N, or auto: the first card where there is one, else the processor.
    #[arg(long, value_name = "NAME", default_value = "cpu", value_parser = parse)]
    device: Device,
    /// Threads of the processor; all cores by default.
    #[arg(long, value_name = "N", value_parser = between(1, 1024))]
    threads: Option<usize>,
    /// Instruction set of the processor: scalar, avx2, avx-vnni or avx512-vnni; the best there is by default.
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
    /// Positions of keys and values in the device's memory, all sequences together; by default what the command needs.
    #[arg(long, value_name = "N", value_parser = between(32, 1 << 24))]
    cache_tokens: Option<usize>,
    /// The most rows of the model that run at once: prompts are read in such chunks.
    #[arg(long, value_name = "N", value_parser = between(1, 1 << 16))]
    rows_max: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Device {
    Auto,
    Cpu,
    Cuda(usize),
}

fn parse(text: &str) -> Result<Device, String> {
    let card = |number: &str| number.parse().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()));
    let device = match text {
        "auto" => Some(Device::Auto),
        "cpu" => Some(Device::Cpu),
        "cuda" => Some(Device::Cuda(0)),
        _ => text.strip_prefix("cuda:").and_then(card).map(Device::Cuda),
    };
    device.ok_or_else(|| format!("expected auto, cpu, cuda or cuda:N, got {text:?}"))
}

impl DeviceArguments {
    /// The device asked for; what `auto` took is said on standard error.
    pub(super) fn choose(&self) -> Result<DeviceChoice, Error> {
        let cpu = DeviceChoice::Cpu { threads: self.threads, isa: self.isa()? };
        let processors_own = [("--threads", self.threads.is_some()), ("--isa", self.isa.is_some())];
        let asked = processors_own.into_iter().find(|(_, given)| *given).map(|(name, _)| name);
        match (self.device, asked) {
            (Device::Cpu, _) => Ok(cpu),
            (Device::Cuda(_), Some(name)) => {
                Err(Error::Usage(format!("{name} is the processor's: it cannot be given with --device cuda")))
            }
            (Device::Cuda(ordinal), None) => {
                // Before a model is fetched for it.
                Cuda::find(ordinal).map_err(EngineError::from)?;
                Ok(DeviceChoice::Cuda { ordinal })
            }
            (Device::Auto, Some(name)) => {
                complain(&format!("--device auto: the processor, because {name} was given"));
                Ok(cpu)
            }
            (Device::Auto, None) => {
                let (choice, taken) = match Cuda::find(0) {
                    Ok(_) => (DeviceChoice::Cuda { ordinal: 0 }, "card 0".to_owned()),
                    Err(DeviceError::NoDevice { .. }) => {
                        (cpu, "the processor, because the driver has no card".to_owned())
                    }
                    Err(error) => (cpu, format!("the processor, because {error}")),
                };
                complain(&format!("--device auto: {taken}"));
                Ok(choice)
            }
        }
    }

    /// An engine of the size that a command asks for, but for what was given here.
    pub(super) fn engine(&self, own: EngineOptions) -> EngineOptions {
        EngineOptions {
            cache_tokens: self.cache_tokens.unwrap_or(own.cache_tokens),
            rows_max: self.rows_max.unwrap_or(own.rows_max),
            ..own
        }
    }

    fn isa(&self) -> Result<Option<Isa>, Error> {
        let Some(name) = &self.isa else { return Ok(None) };
        let unknown = || Error::unknown("instruction set", name, Isa::ALL.iter().map(|isa| isa.name()));
        let isa = Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(unknown)?;
        if isa.is_available() {
            return Ok(Some(isa));
        }
        let there = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name).collect::<Vec<_>>();
        Err(Error::Usage(format!("--isa: this processor has no {name}; it has {}", there.join(", "))))
    }
}
