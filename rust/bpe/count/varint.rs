//! Whole numbers of varying length: seven bits a byte, the least significant first.

/// Appends a number: 1 byte below 128, 10 bytes at most.
#[inline]
pub(super) fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads a number byte by byte; `None` where it does not fit 64 bits or is longer than it
/// must be, so that each number has one spelling.
#[inline]
pub(super) fn read_varint<E>(mut next: impl FnMut() -> Result<u8, E>) -> Result<Option<u64>, E> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = next()?;
        let bits = u64::from(byte & 0x7F);
        number |= bits << shift;
        if byte < 0x80 {
            let fits = shift < 63 || bits <= 1;
            return Ok((fits && (bits > 0 || shift == 0)).then_some(number));
        }
    }
    Ok(None)
}

/// Takes a number off the front of bytes that [`push_varint`] wrote.
#[inline]
pub(super) fn take_varint(bytes: &mut &[u8]) -> u64 {
    let next = || {
        let (&byte, rest) = bytes.split_first().ok_or(())?;
        *bytes = rest;
        Ok::<_, ()>(byte)
    };
    read_varint(next)
        .ok()
        .flatten()
        .expect("packed numbers are whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_in_their_one_spelling() {
        let powers = (0..64).map(|bit| 1u64 << bit);
        for number in powers.flat_map(|p| [p - 1, p, p + 1, u64::MAX - p]) {
            let mut bytes = Vec::new();
            push_varint(&mut bytes, number);
            let mut rest = &bytes[..];
            assert_eq!((take_varint(&mut rest), rest.len()), (number, 0));
        }
        let read = |bytes: &[u8]| {
            let mut bytes = bytes.iter();
            read_varint(|| bytes.next().copied().ok_or(()))
        };
        assert_eq!(read(&[0x80, 0]), Ok(None), "longer than it must be");
        assert_eq!(read(&[0xFF; 11]), Ok(None), "more than 64 bits");
        assert_eq!(
            read(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2]),
            Ok(None)
        );
        assert_eq!(read(&[0x80]), Err(()), "cut short");
    }
}
