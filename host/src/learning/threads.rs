//! Pieces of work on threads.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What comes of each of `count` pieces of work, in order, on so many threads.
pub fn on_threads<T: Send>(count: usize, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return done;
            }
            done.push((at, work(at)));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads.clamp(1, count.max(1))).map(|_| scope.spawn(run)).collect();
        let joined = running.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect::<Vec<_>>()
    });
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, done)| done).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_comes_back_in_order() {
        for threads in [0, 1, 3, 100] {
            assert_eq!(on_threads(50, threads, |at| at * at), (0..50).map(|at| at * at).collect::<Vec<_>>());
        }
        assert!(on_threads(0, 2, |at| at).is_empty());
    }
}
