//! What the system is told about large buffers.

/// Asks for huge pages behind a large buffer that nothing was written to yet: an empty one
/// that is about to be filled, or one of zeros.
///
/// A page of 4 KiB costs the system more to bring in than the ids on it cost to make.
pub(crate) fn with_huge_pages<T>(buffer: Vec<T>) -> Vec<T> {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = buffer.as_ptr().addr();
        let end = start + buffer.capacity() * size_of::<T>();
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
    buffer
}
