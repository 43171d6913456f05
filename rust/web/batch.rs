//! One function over many items, on several threads, in order.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::Progress;
use crate::error::Result;

/// What a thread takes at a time.
const SHARE: usize = 8;

/// The results of `work`, in the order of the items. The calling thread works too, and tells
/// `progress` after each of its shares; an error it returns stops all of them.
pub(crate) fn map_in_parallel<T: Sync, R: Send>(
    items: &[T],
    n_threads: usize,
    work: impl Fn(&T) -> Result<R> + Sync,
    progress: &mut Progress,
) -> Result<Vec<R>> {
    let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let take_shares = |tell: &mut dyn FnMut(usize) -> Result<()>| -> Result<Vec<(usize, Vec<R>)>> {
        let mut shares = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            let start = next.fetch_add(SHARE, Ordering::Relaxed);
            let Some(share) = items.get(start..items.len().min(start + SHARE)) else {
                break;
            };
            if share.is_empty() {
                break;
            }
            let results: Result<Vec<R>> = share.iter().map(&work).collect();
            let told = results.and_then(|results| {
                shares.push((start, results));
                tell(start)
            });
            if told.is_err() {
                stopped.store(true, Ordering::Relaxed);
            }
            told?;
        }
        Ok(shares)
    };
    let n_helpers = n_threads.clamp(1, items.len().div_ceil(SHARE).max(1)) - 1;
    let mut shares = std::thread::scope(|scope| {
        let helpers: Vec<_> = (0..n_helpers)
            .map(|_| scope.spawn(|| take_shares(&mut |_| Ok(()))))
            .collect();
        let total = items.len() as u64;
        let mut shares = take_shares(&mut |done| progress("", done as u64, total));
        for helper in helpers {
            let theirs = helper
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            shares = shares.and_then(|mut shares| {
                shares.extend(theirs?);
                Ok(shares)
            });
        }
        shares
    })?;
    shares.sort_by_key(|&(start, _)| start);
    Ok(shares
        .into_iter()
        .flat_map(|(_, results)| results)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn results_keep_their_order() {
        let items: Vec<usize> = (0..1000).collect();
        for n_threads in [0, 1, 2, 7] {
            let doubled = map_in_parallel(&items, n_threads, |&i| Ok(2 * i), &mut |_, _, _| Ok(()));
            let doubled = doubled.expect("nothing fails");
            assert!(doubled.iter().enumerate().all(|(i, &twice)| twice == 2 * i));
            assert_eq!(doubled.len(), items.len());
        }
    }

    #[test]
    fn an_error_stops_the_work() {
        let items: Vec<usize> = (0..100).collect();
        let fail = |&i: &usize| {
            if i == 50 {
                Err(Error::Interrupted)
            } else {
                Ok(i)
            }
        };
        for n_threads in [1, 3] {
            assert!(map_in_parallel(&items, n_threads, fail, &mut |_, _, _| Ok(())).is_err());
        }
        let stop = &mut |_: &str, _: u64, _: u64| Err(Error::Interrupted);
        assert!(map_in_parallel(&items, 2, |&i| Ok(i), stop).is_err());
    }
}
