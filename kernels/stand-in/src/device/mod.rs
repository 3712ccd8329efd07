//! The device as the driver functions see it: memory, work in order, the sticky error, findings.
//!
//! All work of all streams runs on one thread, in the order in which it was submitted: that is one of
//! the orders that streams allow. Calls return before their work is done, as on hardware, so a missing
//! synchronisation can show. What an `extern "C"` function looks like is `crate::driver`'s matter.
//! Start at [`device`]; `work.rs` runs things.

pub(crate) mod allocation;
pub(crate) mod finding;
pub(crate) mod memory;
pub(crate) mod settings;
pub(crate) mod work;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use finding::{Finding, Kind};
use memory::Memory;
use settings::Settings;
use work::Work;

/// What the lock guards.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) memory: Memory,
    /// The error that every call gives from now on.
    pub(crate) sticky: Option<u32>,
    pub(crate) findings: Vec<Finding>,
    /// Launches since the settings changed.
    launches: u64,
    queue: VecDeque<Work>,
    submitted: u64,
    completed: u64,
    worker: bool,
}

/// The one device of the process; several devices are the same one under several numbers.
#[derive(Debug, Default)]
pub(crate) struct Device {
    state: Mutex<State>,
    /// Signalled when work was added.
    added: Condvar,
    /// Signalled when work was done.
    done: Condvar,
}

/// The device.
pub(crate) fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let device = Device::default();
        if let Ok(text) = std::env::var("VASSAL_STAND_IN") {
            let mut state = device.lock();
            match state.settings.parse(&text) {
                Ok(settings) => state.settings = settings,
                Err(message) => state.report(Finding::new(Kind::Call, format!("VASSAL_STAND_IN: {message}"))),
            }
        }
        device
    })
}

impl Kind {
    /// The code with which the driver tells of a finding in a kernel.
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::OutOfBounds | Self::UseAfterFree | Self::ReadOnly => 700,
            Self::Misaligned => 716,
            Self::Timeout => 702,
            Self::Module => 218,
            Self::Launch | Self::Call => 1,
            _ => 719,
        }
    }
}

impl State {
    /// Keeps a finding, and shows it at once, because the process may not live to be asked.
    pub(crate) fn report(&mut self, finding: Finding) {
        eprintln!("CUDA stand-in: {finding}");
        if let Ok(path) = std::env::var("VASSAL_STAND_IN_REPORT") {
            let line = format!("{finding}\n");
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            // Without the file the finding is still in the list and was shown.
            _ = file.and_then(|mut file| std::io::Write::write_all(&mut file, line.as_bytes()));
        }
        self.findings.push(finding);
    }

    /// Keeps a finding of the device's own work; its error stays.
    pub(crate) fn fail(&mut self, finding: Finding) {
        self.sticky.get_or_insert(finding.kind.code());
        self.report(finding);
    }

    /// Counts a launch; gives the error that the settings provoke for it.
    fn provoke(&mut self) -> Option<u32> {
        self.launches += 1;
        let due = |fault: Option<(u64, u32)>, launches| fault.filter(|(nth, _)| *nth == launches).map(|(_, code)| code);
        due(self.settings.lose_device, self.launches).or(due(self.settings.fail_launch, self.launches))
    }
}

impl Device {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds work behind all other; gives its ticket.
    pub(crate) fn submit(&'static self, work: Work) -> u64 {
        let mut state = self.lock();
        if !state.worker {
            state.worker = true;
            // The thread lives as long as the process.
            std::thread::spawn(move || self.serve());
        }
        state.queue.push_back(work);
        state.submitted += 1;
        self.added.notify_one();
        state.submitted
    }

    /// The ticket of the newest work.
    pub(crate) fn newest(&self) -> u64 {
        self.lock().submitted
    }

    pub(crate) fn is_done(&self, ticket: u64) -> bool {
        self.lock().completed >= ticket
    }

    /// Waits for work; gives the sticky error if there is one then.
    pub(crate) fn wait(&self, ticket: u64) -> Result<(), u32> {
        let mut state = self.lock();
        while state.completed < ticket {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.sticky.map_or(Ok(()), Err)
    }

    fn serve(&self) {
        loop {
            let mut state = self.lock();
            let work = loop {
                match state.queue.pop_front() {
                    Some(work) => break work,
                    None => state = self.added.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.perform(work)));
            let mut state = self.lock();
            if outcome.is_err() {
                state.fail(Finding::new(Kind::Module, "the stand-in itself failed; see its panic message"));
            }
            state.completed += 1;
            self.done.notify_all();
        }
    }

    /// Other settings from here on; launches are counted anew.
    pub(crate) fn configure(&self, settings: Settings) {
        let mut state = self.lock();
        state.settings = settings;
        state.launches = 0;
    }

    /// The state as at the start of the process, with other settings; findings are forgotten.
    pub(crate) fn reset(&self, settings: Settings) {
        let newest = self.newest();
        _ = self.wait(newest);
        let mut state = self.lock();
        state.settings = settings;
        state.sticky = None;
        state.findings.clear();
        state.launches = 0;
    }

    /// Reports everything that the host did not free.
    pub(crate) fn report_leaks(&self) {
        let mut state = self.lock();
        for (base, bytes) in state.memory.leaks() {
            state.report(Finding::new(Kind::Leak, format!("{bytes} bytes at {base:#x} were never freed")));
            state.memory.free(base);
        }
    }
}

/// Keeps an allocation alive while it is used outside the lock.
pub(crate) type Held = Arc<allocation::Allocation>;
