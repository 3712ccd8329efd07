//! Kernels run in process, without a driver: for tests of single kernels and of their mutants.
//!
//! The machine and its checks are the same as behind the driver functions; there are no streams,
//! contexts or sticky errors. Start at [`Direct::run`].

use std::collections::HashMap;

use crate::decode;
use crate::device::finding::{Finding, Kind};
use crate::device::memory::Memory;
use crate::machine::{self, Launch};
use crate::ptx::{self, PtxError, Space};

/// Seconds after which a kernel is given up.
const SECONDS_MAX: u64 = 120;

/// Device memory, and kernels to run on it.
#[derive(Debug, Default)]
pub struct Direct {
    memory: Memory,
}

/// Shape of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared_bytes: u32,
}

fn module_finding(error: PtxError) -> Finding {
    Finding::new(Kind::Module, error.to_string())
}

/// The names of all kernels of a module, if every instruction of it is implemented.
///
/// # Errors
///
/// The first thing that is not, with its line.
pub fn kernels_of(ptx: &str) -> Result<Vec<String>, Finding> {
    let module = ptx::parse(ptx).map_err(module_finding)?;
    let globals = module.variables.iter().map(|variable| (variable.name.clone(), 0)).collect();
    let mut names = Vec::new();
    for function in module.functions.iter().filter(|function| function.entry) {
        decode::kernel(&module, function, &globals).map_err(module_finding)?;
        names.push(function.name.clone());
    }
    Ok(names)
}

impl Direct {
    /// An empty memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The address of new memory that holds `bytes`.
    ///
    /// # Panics
    ///
    /// If the host has no room.
    pub fn upload(&mut self, bytes: &[u8]) -> u64 {
        let address = self.reserve(bytes.len() as u64);
        if let Some(held) = self.memory.holding(address, bytes.len() as u64) {
            held.write_unchecked(address, bytes);
        }
        address
    }

    /// The address of new memory in which nothing is written.
    ///
    /// # Panics
    ///
    /// If the host has no room.
    pub fn reserve(&mut self, bytes: u64) -> u64 {
        self.memory.allocate(bytes).expect("the host has room")
    }

    /// Ends an allocation; a later access to it is a finding.
    pub fn free(&mut self, address: u64) -> bool {
        self.memory.free(address)
    }

    /// What is in memory, written or not.
    ///
    /// # Panics
    ///
    /// If the range is not inside one allocation.
    #[must_use]
    pub fn download(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        let held = self.memory.holding(address, bytes as u64).expect("the range is inside an allocation");
        held.read_unchecked(address, &mut out);
        out
    }

    /// Runs the kernel `name` of a module with these bytes as its parameters, one slice each. Gives the
    /// instructions executed, counted for each lane. Variables of the module start afresh.
    ///
    /// # Errors
    ///
    /// The first finding: of the module, of the launch, or of the kernel as it runs.
    pub fn run(&mut self, ptx: &str, name: &str, shape: Shape, params: &[&[u8]]) -> Result<u64, Finding> {
        let module = ptx::parse(ptx).map_err(module_finding)?;
        let mut globals = HashMap::new();
        for variable in module.variables.iter().filter(|one| matches!(one.space, Space::Global | Space::Const)) {
            let constant = variable.space == Space::Const;
            let address = self.memory.allocate_variable(variable.bytes.unwrap_or(0), &variable.init, constant);
            globals.insert(variable.name.clone(), address.unwrap_or(0));
        }
        let Some(function) = module.functions.iter().find(|function| function.entry && function.name == name) else {
            return Err(Finding::new(Kind::Module, format!("no kernel {name} in the module")));
        };
        let kernel = decode::kernel(&module, function, &globals).map_err(module_finding)?;
        let sizes: Vec<u64> = params.iter().map(|param| param.len() as u64).collect();
        let wanted: Vec<u64> = kernel.params.iter().map(|(_, bytes)| *bytes).collect();
        if sizes != wanted {
            let text = format!("kernel {name} takes parameters of {wanted:?} bytes, got {sizes:?}");
            return Err(Finding::new(Kind::Launch, text));
        }
        let mut all = vec![0; kernel.param_bytes as usize];
        for ((offset, bytes), param) in kernel.params.iter().zip(params) {
            all[*offset as usize..(offset + bytes) as usize].copy_from_slice(param);
        }
        let launch = Launch {
            grid: shape.grid,
            block: shape.block,
            dynamic_shared_bytes: shape.dynamic_shared_bytes,
            params: all,
            seconds_max: SECONDS_MAX,
        };
        machine::run(&kernel, &launch, &self.memory).map(|work| work.thread_instructions)
    }
}
