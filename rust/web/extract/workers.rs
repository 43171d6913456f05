//! Pages over threads: big stacks, panics caught, Ctrl-C heard.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use super::{Extracted, Limits, Problem, Reader, readable_text};
use crate::{Error, Progress, Result};

/// What recursion over a page within the limits of depth takes is far below it.
const STACK_BYTES: usize = 32 << 20;
const TICK: Duration = Duration::from_millis(50);

/// The main text of each page, in order, whatever the number of threads.
///
/// A page that makes the extractor panic has [`Problem::Error`] for it, the others their texts.
pub fn extract_batch(
    pages: &[&str],
    limits: &Limits,
    reader: Reader,
    n_threads: usize,
    progress: &mut Progress,
) -> Result<Vec<Extracted>> {
    quiet_caught_panics();
    let next = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    let results = Mutex::new(vec![Err(Problem::Error); pages.len()]);
    let (done, is_done) = mpsc::channel::<()>();
    let work = |done: mpsc::Sender<()>| {
        IS_CAUGHT.set(true);
        while !stopped.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(page) = pages.get(at) else {
                break;
            };
            let extracted =
                panic::catch_unwind(AssertUnwindSafe(|| readable_text(page, limits, reader)));
            let extracted = extracted.unwrap_or(Err(Problem::Error));
            results.lock().unwrap_or_else(PoisonError::into_inner)[at] = extracted;
        }
        drop(done);
    };
    thread::scope(|scope| {
        for _ in 0..n_threads.clamp(1, pages.len().max(1)) {
            let (work, done) = (&work, done.clone());
            let builder = thread::Builder::new().stack_size(STACK_BYTES);
            builder
                .spawn_scoped(scope, move || work(done))
                .map_err(|error| Error::Argument(format!("no thread can be started: {error}")))?;
        }
        drop(done);
        while is_done.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
            let n_done = next.load(Ordering::Relaxed).min(pages.len()) as u64;
            if let Err(error) = progress("extract", n_done, u64::MAX) {
                stopped.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    })?;
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

thread_local! {
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that are caught and counted from writing to the terminal.
fn quiet_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_CAUGHT.get() {
                default(info);
            }
        }));
    });
}
