//! Workers that wait for the next part of a step.
//!
//! A step of a small model has a hundred products of a few dozen microseconds: starting
//! threads for each costs as much as it saves. The workers look for work for a moment and
//! sleep after that. One caller at a time has them; another one works alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, Thread};

/// Turns of the loop in which a worker looks for work before it sleeps, some 50 microseconds.
const SPINS: usize = 2_000;

/// A reference whose lifetime `Pool::run` answers for.
type Job = &'static (dyn Fn(usize) + Sync);

struct Shared {
    /// Counts the jobs; a worker that sees it change takes the job.
    generation: AtomicUsize,
    job: Mutex<Option<Job>>,
    n_parts: AtomicUsize,
    n_running: AtomicUsize,
    has_panicked: AtomicBool,
}

struct Pool {
    /// A forked child has the memory of the pool, but not its threads.
    process: u32,
    shared: Arc<Shared>,
    workers: Vec<Thread>,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// Calls `work` with 0, 1, ... below `n_parts`, at the same time where workers are free.
pub fn run(n_parts: usize, work: &(dyn Fn(usize) + Sync)) {
    let pool = match POOL.try_lock() {
        _ if n_parts < 2 => None,
        Ok(pool) => Some(pool),
        // A part that failed leaves nothing half done: every worker is waited for.
        Err(TryLockError::Poisoned(pool)) => Some(pool.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    let Some(mut pool) = pool else {
        (0..n_parts).for_each(work);
        return;
    };
    let process = std::process::id();
    if pool.as_ref().is_none_or(|pool| pool.process != process) {
        *pool = Some(Pool::new(process));
    }
    if let Some(pool) = pool.as_mut() {
        pool.run(n_parts, work);
    }
}

impl Pool {
    fn new(process: u32) -> Self {
        let shared = Shared {
            generation: AtomicUsize::new(0),
            job: Mutex::new(None),
            n_parts: AtomicUsize::new(0),
            n_running: AtomicUsize::new(0),
            has_panicked: AtomicBool::new(false),
        };
        Self {
            process,
            shared: Arc::new(shared),
            workers: Vec::new(),
        }
    }

    fn run(&mut self, n_parts: usize, work: &(dyn Fn(usize) + Sync)) {
        while self.workers.len() + 1 < n_parts {
            let (shared, number) = (Arc::clone(&self.shared), self.workers.len() + 1);
            let seen = shared.generation.load(Ordering::Acquire);
            let builder = thread::Builder::new().name("rslm-infer".to_owned());
            match builder.spawn(move || serve(&shared, number, seen)) {
                Ok(handle) => self.workers.push(handle.thread().clone()),
                Err(_) => break,
            }
        }
        let n_helpers = self.workers.len().min(n_parts - 1);
        let shared = &self.shared;
        // SAFETY: only the lifetime changes. A worker takes the job between the count of jobs going
        // up and its own leaving `n_running`; nothing in between unwinds out of this function, which
        // waits for all of them below, then takes the job out.
        let job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(work) };
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
        shared.n_parts.store(n_helpers + 1, Ordering::Relaxed);
        shared
            .n_running
            .store(self.workers.len(), Ordering::Relaxed);
        shared.generation.fetch_add(1, Ordering::Release);
        self.workers.iter().for_each(Thread::unpark);
        // What no worker could be had for is done here.
        let own = catch_unwind(AssertUnwindSafe(|| {
            work(0);
            (n_helpers + 1..n_parts).for_each(work);
        }));
        let mut n_spins = 0;
        while shared.n_running.load(Ordering::Acquire) > 0 {
            n_spins += 1;
            if n_spins < SPINS {
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        *shared.job.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let has_panicked = shared.has_panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!has_panicked, "a part of a step failed in a worker");
    }
}

fn serve(shared: &Shared, number: usize, mut seen: usize) {
    loop {
        let mut n_spins = 0;
        while shared.generation.load(Ordering::Acquire) == seen {
            n_spins += 1;
            if n_spins < SPINS {
                std::hint::spin_loop();
            } else {
                thread::park();
            }
        }
        seen = seen.wrapping_add(1);
        let job = *shared.job.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(work) = job
            && number < shared.n_parts.load(Ordering::Relaxed)
        {
            let outcome = catch_unwind(AssertUnwindSafe(|| work(number)));
            shared
                .has_panicked
                .fetch_or(outcome.is_err(), Ordering::Relaxed);
        }
        shared.n_running.fetch_sub(1, Ordering::Release);
    }
}

/// How many parts a work of so many multiply-adds is worth, at most `n_threads`.
pub fn n_parts(n_threads: usize, n_operations: usize) -> usize {
    /// Some ten microseconds: what waking a worker must save.
    const WORTHWHILE: usize = 1 << 17;
    n_threads.min(n_operations / WORTHWHILE).max(1)
}

/// The bounds of part `part` of `n_parts` of a range of `n` in steps of `step`.
pub fn bounds(n: usize, step: usize, part: usize, n_parts: usize) -> std::ops::Range<usize> {
    let n_steps = n.div_ceil(step);
    let at = |part: usize| (n_steps * part / n_parts * step).min(n);
    at(part)..at(part + 1)
}
