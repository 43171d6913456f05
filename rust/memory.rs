//! What the system is told about large buffers, and about large files.

use std::fs::File;

/// Asks for huge pages behind a large buffer that nothing was written to yet: an empty one
/// that is about to be filled, or one of zeros.
///
/// A page of 4 KiB costs the system more to bring in than the ids on it cost to make.
pub(crate) fn with_huge_pages<T>(buffer: Vec<T>) -> Vec<T> {
    let n_wanted = buffer.capacity();
    with_huge_pages_for(buffer, n_wanted)
}

/// As [`with_huge_pages`], behind the first so many elements of the buffer.
fn with_huge_pages_for<T>(buffer: Vec<T>, n_wanted: usize) -> Vec<T> {
    debug_assert!(n_wanted <= buffer.capacity());
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = buffer.as_ptr().addr();
        let end = start + n_wanted.min(buffer.capacity()) * size_of::<T>();
        let (first, last) = (start.next_multiple_of(HUGE), end / HUGE * HUGE);
        if first < last {
            // SAFETY: the range lies within one allocation of ours, of which this changes
            // nothing but the size of the pages that will hold it. A refusal changes nothing.
            unsafe {
                let start = buffer.as_ptr().cast::<u8>().wrapping_add(first - start);
                libc::madvise(start.cast_mut().cast(), last - first, libc::MADV_HUGEPAGE);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = n_wanted;
    buffer
}

/// An empty buffer for so many elements, in address space of its own: it can grow for long
/// without a copy, nobody else's memory gets in its way, and all of it goes back when it is
/// freed. What is never written to takes no memory.
///
/// The allocator by itself does so from 128 KiB on, but only from 32 MiB on once it has seen
/// such buffers freed; what is smaller then leaves holes, in places that no thread gives back.
pub(crate) fn apart<T>(n_wanted: usize) -> Vec<T> {
    const APART: usize = (32 << 20) + 1;
    let least = APART.div_ceil(size_of::<T>());
    with_huge_pages_for(Vec::with_capacity(n_wanted.max(least)), n_wanted)
}

/// Asks the system to begin bringing some bytes of a file to the disk, which goes on beside
/// the work: whoever syncs the file later waits for the rest only. A wish, no promise.
pub(crate) fn begin_writing_back(file: &File, start: u64, n_bytes: u64) {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let (Ok(start), Ok(n_bytes)) = (start.try_into(), n_bytes.try_into()) else {
            return;
        };
        // SAFETY: the descriptor is open as long as the file is; no memory is handed over.
        unsafe {
            libc::sync_file_range(
                file.as_raw_fd(),
                start,
                n_bytes,
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, start, n_bytes);
}

/// Gives the system back what the allocator keeps of freed memory: after work on many threads
/// some MiB, which whoever set a limit does not expect to come on top.
pub(crate) fn give_back_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: touches nothing that is in use; whether anything was given back does not matter.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Asks the memory for the line of a value that is wanted soon.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    prefetch_at(value);
}

/// As [`prefetch`]; where the pointer is no good, nothing happens.
#[inline(always)]
pub(crate) fn prefetch_at<T>(value: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; the processor ignores it for addresses that cannot be read.
        unsafe { _mm_prefetch(value.cast(), _MM_HINT_T0) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
