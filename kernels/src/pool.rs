//! A pool of threads that share the items of one operation after another.
//!
//! A pass has some 150 operations of 10 to 500 µs, so handing one over must cost about a microsecond:
//! workers spin for a short, bounded time after an operation and park only when nothing came. The caller
//! takes part, and never waits for a worker that has not joined: an operation is *open* while it has
//! items, a worker joins it by a compare-and-swap, and the caller closes it and waits for those inside.
//!
//! Each thread has a share of neighbouring items, the same part of them in every operation, and takes from the
//! others' shares only when its own is done: it goes through memory in long runs, and meets again what it had
//! before. Taken in turns with one counter for all (`vassal bench decode`, two cores), steps are 1.07 to 1.18 times
//! as fast.
//!
//! Who runs what still differs from run to run; bodies write disjoint data and results never depend on it.
//! This is no general executor: one operation at a time, nothing nested (a nested call runs on its own thread
//! alone).

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

/// The most threads a pool uses: more never helped decoding, whose limit is memory bandwidth.
pub(crate) const THREADS_MAX: usize = 64;

/// Rounds that a worker looks for the next operation before it parks: 50 to 150 µs, longer than the gaps
/// inside a pass and short enough not to starve others on a shared machine.
const SPINS_BEFORE_PARK: u32 = 3000;

/// Rounds that the caller waits for workers to finish their last item before it yields its time slice.
const SPINS_BEFORE_YIELD: u32 = 2000;

/// The state word: bit 0 is *open*, bits 1 to 15 count the workers inside, the rest is the operation's number.
const OPEN: u64 = 1;
const INSIDE: u64 = 2;
const INSIDE_MASK: u64 = 0xFFFE;
const NUMBER: u64 = 0x1_0000;

type Body = dyn Fn(usize) + Sync;

/// Threads that run the items of one operation together. Dropping it ends them.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held while an operation runs.
    caller: Mutex<()>,
    workers: Vec<(Thread, JoinHandle<()>)>,
}

struct Shared {
    state: AtomicU64,
    /// The next item of each thread's share, the caller's first; each on a cache line of its own.
    next: Vec<Line<AtomicUsize>>,
    /// What to run. Written by the caller while no operation is open and nobody inside, read by those inside.
    work: UnsafeCell<Option<Work>>,
    /// The first panic of the operation.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Which workers are about to park or parked.
    parked: Vec<Line<AtomicBool>>,
    shutdown: AtomicBool,
}

#[repr(align(64))]
struct Line<T>(T);

#[derive(Clone, Copy)]
struct Work {
    /// The caller's closure; valid until the operation is closed and nobody is inside.
    body: *const Body,
    count: usize,
    threads: usize,
}

// SAFETY: `work` is the only field that is not Sync. It is written only by the holder of `Pool::caller`
// while the state word says closed and nobody inside, and read only between joining and leaving an open
// operation; the state word's acquire and release orders those accesses. The closure behind it is Sync.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `work` is only used as described above, whichever thread that happens on.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Pool::for_each`] being one; at least 1, at most 64.
    /// Where the system gives fewer threads, the pool has fewer.
    pub fn new(threads: usize) -> Pool {
        let wanted = threads.clamp(1, THREADS_MAX) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: (0..=wanted).map(|_| Line(AtomicUsize::new(0))).collect(),
            work: UnsafeCell::new(None),
            panic: Mutex::new(None),
            parked: (0..wanted).map(|_| Line(AtomicBool::new(false))).collect(),
            shutdown: AtomicBool::new(false),
        });
        let mut workers = Vec::with_capacity(wanted);
        for index in 0..wanted {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("vassal-cpu-{}", index + 1));
            let Ok(handle) = builder.spawn(move || shared.work_until_shutdown(index)) else {
                break;
            };
            workers.push((handle.thread().clone(), handle));
        }
        Pool { shared, caller: Mutex::new(()), workers }
    }

    /// Threads that take part, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `body` once for every item of `0..count` and returns when all are done.
    ///
    /// # Panics
    /// With the payload of the first body that panicked, after all threads have left the operation; items
    /// not begun by then are not run.
    pub fn for_each(&self, count: usize, body: &(dyn Fn(usize) + Sync)) {
        // A nested call, or one from a second thread, finds the lock taken and runs alone.
        let guard = if count > 1 && !self.workers.is_empty() {
            match self.caller.try_lock() {
                Ok(guard) => Some(guard),
                Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(std::sync::TryLockError::WouldBlock) => None,
            }
        } else {
            None
        };
        let Some(_guard) = guard else {
            (0..count).for_each(body);
            return;
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by threads inside the operation, and this
        // function does not return before the operation is closed and all of them have left.
        let body_pointer = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Body>(body) };
        let threads = self.threads();
        // SAFETY: this thread holds `caller`, the last operation was closed and everybody had left, so nobody reads.
        unsafe { *shared.work.get() = Some(Work { body: body_pointer, count, threads }) };
        for (thread, next) in shared.next.iter().enumerate().take(threads) {
            next.0.store(share(count, threads, thread).start, Ordering::Relaxed);
        }
        shared.state.fetch_add(NUMBER | OPEN, Ordering::Release);

        // Either a worker about to park sees the new state, or this thread sees its flag (both sides fence).
        fence(Ordering::SeqCst);
        for ((thread, _), parked) in self.workers.iter().zip(&shared.parked) {
            if parked.0.load(Ordering::Relaxed) {
                parked.0.store(false, Ordering::Relaxed);
                thread.unpark();
            }
        }

        shared.run_items(body, (count, threads), 0);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while shared.state.load(Ordering::Acquire) & INSIDE_MASK != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

/// The items of one thread's share. What is left over goes to the first: the caller is surely awake.
fn share(count: usize, threads: usize, thread: usize) -> Range<usize> {
    (count * thread).div_ceil(threads)..(count * (thread + 1)).div_ceil(threads)
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::SeqCst);
        for (thread, handle) in self.workers.drain(..) {
            thread.unpark();
            // A worker catches every panic of a body, so it has none of its own to report.
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// Runs items until none is left, those of the share of thread `own` first. A panic is kept for the caller, and no
    /// further item begins.
    fn run_items(&self, body: &(dyn Fn(usize) + Sync), (count, threads): (usize, usize), own: usize) {
        let result = catch_unwind(AssertUnwindSafe(|| {
            for thread in (own..threads).chain(0..own) {
                let end = share(count, threads, thread).end;
                // Looked at before it is written: a share that is done stays in everybody's cache.
                while self.next[thread].0.load(Ordering::Relaxed) < end {
                    let item = self.next[thread].0.fetch_add(1, Ordering::Relaxed);
                    if item >= end {
                        break;
                    }
                    body(item);
                }
            }
        }));
        if let Err(payload) = result {
            self.next.iter().for_each(|next| next.0.store(count, Ordering::Relaxed));
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    fn work_until_shutdown(&self, index: usize) {
        let mut last = 0;
        while !self.shutdown.load(Ordering::SeqCst) {
            if let Some(number) = self.join(last) {
                last = number;
                // SAFETY: this thread is inside an open operation, so `work` is not written and its closure lives.
                let work = unsafe { *self.work.get() };
                if let Some(Work { body, count, threads }) = work {
                    // SAFETY: as above; the caller keeps the closure alive until this thread has left.
                    self.run_items(unsafe { &*body }, (count, threads), index + 1);
                }
                self.state.fetch_sub(INSIDE, Ordering::Release);
            } else {
                self.wait(index, last);
            }
        }
    }

    /// Joins the open operation, unless it is the `last` one that this worker was in. Returns its number.
    fn join(&self, last: u64) -> Option<u64> {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let number = state / NUMBER;
            if state & OPEN == 0 || number == last {
                return None;
            }
            match self.state.compare_exchange_weak(state, state + INSIDE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(number),
                Err(now) => state = now,
            }
        }
    }

    fn has_news(&self, last: u64) -> bool {
        let state = self.state.load(Ordering::Acquire);
        (state & OPEN != 0 && state / NUMBER != last) || self.shutdown.load(Ordering::SeqCst)
    }

    /// Spins, then parks, until there may be something to do.
    fn wait(&self, index: usize, last: u64) {
        for _ in 0..SPINS_BEFORE_PARK {
            if self.has_news(last) {
                return;
            }
            std::hint::spin_loop();
        }
        let parked = &self.parked[index].0;
        parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !self.has_news(last) {
            // May return early; the loop around looks again.
            std::thread::park();
        }
        parked.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once_in_many_rounds() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for round in 0..2000 {
                let count = round % 37;
                let ran: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(count, &|item| {
                    ran[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(ran.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{threads} threads, {count} items");
            }
        }
    }

    #[test]
    fn workers_wake_after_they_parked() {
        let pool = Pool::new(2);
        for _ in 0..20 {
            // Longer than the workers spin.
            let begin = std::time::Instant::now();
            while begin.elapsed().as_millis() < 2 {
                std::thread::yield_now();
            }
            // Both items wait for each other, so this ends only if two threads take part.
            let met = AtomicUsize::new(0);
            pool.for_each(2, &|_| {
                met.fetch_add(1, Ordering::SeqCst);
                while met.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn who_has_no_items_left_takes_the_others() {
        let pool = Pool::new(2);
        for stuck in [0, 7] {
            // One item waits for all others, those of its own share included.
            let done = AtomicUsize::new(0);
            pool.for_each(8, &|item| {
                while item == stuck && done.load(Ordering::SeqCst) < 7 {
                    std::thread::yield_now();
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!(done.into_inner(), 8);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for bad in 0..8 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(8, &|item| assert!(item != bad, "item {item} is bad"));
            }));
            let payload = caught.expect_err("the panic was lost");
            assert_eq!(payload.downcast_ref::<String>(), Some(&format!("item {bad} is bad")));
            let sum = AtomicUsize::new(0);
            pool.for_each(10, &|item| {
                sum.fetch_add(item, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn a_nested_call_runs_alone() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        pool.for_each(4, &|_| {
            pool.for_each(4, &|item| {
                sum.fetch_add(item, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 24);
    }
}
