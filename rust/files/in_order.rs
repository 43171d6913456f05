//! Jobs in parallel, results in order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use crate::error::{Error, Result};

/// How many workers to use: the number given, or the machine's processors.
pub fn thread_count(n_threads: Option<usize>) -> usize {
    n_threads
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
        .max(1)
}

/// Bytes of jobs per worker with which no further job is taken: more than the four usual
/// blocks that a worker is given anyway, and less than one of the longest documents, which
/// costs twenty times its size if it is one word.
const AHEAD_BYTES: usize = 7 << 20;

/// What there is to do, and how much of the memory it stands for.
pub(super) trait Job: Send {
    /// Bytes it holds; 0 if they are not its own.
    fn n_bytes(&self) -> usize;
}

/// Runs `work` on every job in parallel and `consume` on the results in order, here.
///
/// Jobs are taken from their source on this thread, at most four per worker ahead of the
/// result that is consumed next, and none ahead of large ones. Returns the workers' states.
/// The first error, in order, stops everything.
pub(super) fn in_order<J: Job, S: Send, R: Send>(
    n_threads: usize,
    mut jobs: impl Iterator<Item = Result<J>>,
    new_state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, J) -> Result<R> + Sync,
    mut consume: impl FnMut(R) -> Result<()>,
) -> Result<Vec<S>> {
    let stop = AtomicBool::new(false);
    let (job_sender, job_receiver) = mpsc::channel::<(usize, J)>();
    let (result_sender, result_receiver) = mpsc::channel();
    let job_receiver = Mutex::new(job_receiver);
    let next_job = || {
        job_receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv()
            .ok()
    };
    let worker = |results: mpsc::Sender<_>| {
        let mut state = new_state();
        while let Some((index, job)) = next_job() {
            // Nobody receives the results once an error has stopped the work.
            if stop.load(Ordering::Relaxed) || results.send((index, work(&mut state, job))).is_err()
            {
                break;
            }
        }
        state
    };
    thread::scope(|scope| {
        let worker = &worker;
        let mut workers = Vec::new();
        while workers.len() < n_threads {
            let results = result_sender.clone();
            match thread::Builder::new().spawn_scoped(scope, move || worker(results)) {
                Ok(handle) => workers.push(handle),
                // Fewer threads than asked for do the same work.
                Err(_) if !workers.is_empty() => break,
                Err(error) => {
                    return Err(Error::Argument(format!(
                        "the system must grant at least one thread, got none of {n_threads}: {error}"
                    )));
                }
            }
        }
        drop(result_sender);
        let mut feed = || {
            let (mut n_sent, mut n_consumed, mut exhausted) = (0, 0, false);
            let mut early = BTreeMap::new();
            let (mut sizes, mut n_bytes) = (VecDeque::new(), 0);
            loop {
                while !exhausted
                    && n_sent - n_consumed < 4 * n_threads
                    && n_bytes < AHEAD_BYTES.saturating_mul(n_threads)
                {
                    match jobs.next().transpose()? {
                        Some(job) => {
                            n_bytes += job.n_bytes();
                            sizes.push_back(job.n_bytes());
                            job_sender
                                .send((n_sent, job))
                                .expect("workers wait for jobs");
                            n_sent += 1;
                        }
                        None => exhausted = true,
                    }
                }
                if n_consumed == n_sent {
                    return Ok(());
                }
                let (index, result) = result_receiver.recv().expect("workers hold a sender");
                early.insert(index, result);
                while let Some(result) = early.remove(&n_consumed) {
                    consume(result?)?;
                    n_consumed += 1;
                    n_bytes -= sizes.pop_front().unwrap_or_default();
                }
            }
        };
        let outcome = feed();
        stop.store(outcome.is_err(), Ordering::Relaxed);
        drop(job_sender);
        let states = workers.into_iter().map(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let states = states.collect();
        outcome.map(|()| states)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Job for u64 {
        fn n_bytes(&self) -> usize {
            0
        }
    }

    struct Large(u64);

    impl Job for Large {
        fn n_bytes(&self) -> usize {
            AHEAD_BYTES
        }
    }

    #[test]
    fn large_jobs_are_taken_one_per_worker() {
        let taken = std::cell::Cell::new(0);
        let jobs = (0..20).map(|i| {
            taken.set(i + 1);
            Ok(Large(i))
        });
        let consume = |i: u64| {
            assert!(taken.get() <= i + 3, "{} are taken at {i}", taken.get());
            Ok(())
        };
        in_order(3, jobs, || (), |(): &mut (), job| Ok(job.0), consume).expect("nothing fails");
        assert_eq!(taken.get(), 20);
    }

    #[test]
    fn results_come_in_order_whatever_the_threads_do() {
        for n_threads in [1, 2, 7] {
            let mut seen = Vec::new();
            let jobs = (0..50u64).map(Ok);
            let work = |calls: &mut u64, job: u64| {
                *calls += 1;
                thread::sleep(std::time::Duration::from_micros((job * 37) % 90));
                Ok(job * 2)
            };
            let consume = |result| {
                seen.push(result);
                Ok(())
            };
            let calls = in_order(n_threads, jobs, || 0, work, consume).expect("nothing fails");
            assert_eq!(seen, (0..50).map(|i| i * 2).collect::<Vec<_>>());
            assert_eq!(calls.iter().sum::<u64>(), 50);
        }
    }

    #[test]
    fn an_error_anywhere_stops_the_work() {
        let fail = |at: u64| {
            move |(): &mut (), job| {
                if job == at {
                    Err(Error::Interrupted)
                } else {
                    Ok(job)
                }
            }
        };
        let failing_work = in_order(2, (0..9).map(Ok), || (), fail(3), |_| Ok(()));
        assert!(matches!(failing_work, Err(Error::Interrupted)));
        let failing_consumer = in_order(
            2,
            (0..9).map(Ok),
            || (),
            fail(99),
            |_| Err(Error::Interrupted),
        );
        assert!(matches!(failing_consumer, Err(Error::Interrupted)));
        let jobs = (0..9).map(|i| {
            if i == 4 {
                Err(Error::Interrupted)
            } else {
                Ok(i)
            }
        });
        assert!(in_order(2, jobs, || (), fail(99), |_| Ok(())).is_err());
    }
}
