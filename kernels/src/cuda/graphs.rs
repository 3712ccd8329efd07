//! CUDA graphs of lists of launches: a list that comes again is captured once, and from then on is one call.
//!
//! A graph is found by the very launches that it holds, kernels, grids and parameters compared word for word: the host
//! still makes the list of each pass, checks and all, and a graph only replaces the calls that give it to the driver. So a
//! graph is right by construction, whatever was freed, moved or loaded since. That lists come again is `plan.rs`'s doing.

use cudarc::driver::sys;
use cudarc::driver::{DriverError, result};

use super::pending::{Launch, Launches};

/// Lists that are remembered. Each takes some 100 KB of the host's memory, and its graph about as much of the card's.
const KEPT_MAX: usize = 64;

/// Shorter lists are launched one by one.
const LAUNCHES_MIN: usize = 4;

/// Lists of launches, the last used last.
pub(super) struct Graphs {
    kept: Vec<Kept>,
    /// How many are kept; none where graphs are not wanted.
    pub(super) most: usize,
}

struct Kept {
    words: Vec<u64>,
    /// None where the list was seen once.
    executable: Option<Executable>,
}

/// A graph that can be launched.
struct Executable(sys::CUgraphExec);

// SAFETY: a handle that any thread may use while the context lives; its one owner uses it from one thread at a time.
unsafe impl Send for Executable {}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, and destroyed once. Work that it has under way goes on.
        let _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

impl Default for Graphs {
    fn default() -> Self {
        Graphs { kept: Vec::new(), most: KEPT_MAX }
    }
}

impl Graphs {
    /// Runs a list as a graph on the stream: false where it is to be launched one by one, for it is short, new, or the driver
    /// makes no graph of it.
    ///
    /// # Safety
    /// The context is current, `launch` launches on this stream, and each launch of the list may be made now.
    pub(super) unsafe fn run(
        &mut self,
        stream: sys::CUstream,
        launches: &Launches,
        launch: &dyn Fn(&Launch<'_>) -> Result<(), DriverError>,
    ) -> Result<bool, DriverError> {
        if launches.count() < LAUNCHES_MIN || self.most == 0 {
            return Ok(false);
        }
        let Some(place) = self.kept.iter().position(|kept| kept.words == launches.words) else {
            if self.kept.len() >= self.most {
                self.kept.remove(0);
            }
            self.kept.push(Kept { words: launches.words.clone(), executable: None });
            return Ok(false);
        };
        let mut kept = self.kept.remove(place);
        if kept.executable.is_none() {
            // Where the driver has no room for a graph the pass goes on without: what fails for good fails there too.
            // SAFETY: the caller's promise.
            kept.executable = unsafe { capture(stream, launches, launch) }.ok();
        }
        let Some(Executable(executable)) = kept.executable else { return Ok(false) };
        self.kept.push(kept);
        // SAFETY: the graph holds these launches and nothing else, and each may be made now.
        unsafe { result::graph::launch(executable, stream) }?;
        Ok(true)
    }

    /// Destroys all graphs. The context must be current.
    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }

    /// How many graphs there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.kept.iter().filter(|kept| kept.executable.is_some()).count()
    }
}

/// Makes a graph of a list.
///
/// # Safety
/// As for [`Graphs::run`].
unsafe fn capture(
    stream: sys::CUstream,
    launches: &Launches,
    launch: &dyn Fn(&Launch<'_>) -> Result<(), DriverError>,
) -> Result<Executable, DriverError> {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream is no default one and captures nothing yet.
    unsafe { result::stream::begin_capture(stream, mode) }?;
    let launched = launches.iter().try_for_each(|one| launch(&one));
    // Whatever happened, the stream must run again.
    // SAFETY: its capture has just begun.
    let graph = unsafe { result::stream::end_capture(stream) }?;
    let made = launched.and_then(|()| {
        // SAFETY: the driver has just given this graph.
        unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) }
    });
    // SAFETY: what was instantiated does not need it, and nothing else knows it.
    unsafe { result::graph::destroy(graph) }?;
    made.map(Executable)
}
