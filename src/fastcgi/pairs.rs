//! Names and values, as PARAMS and GET_VALUES carry them (FastCGI 1.0 §3.4). Pure.

/// The longest that has one byte of length; a longer one has four.
const SHORT_MAX: usize = 127;
/// In the first of four bytes.
const LONG: u8 = 0x80;

/// A name and its value.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

/// Why bytes are no pairs, or a text can be in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// They end inside of one.
    #[error("a name or a value that is cut")]
    Cut,
    /// More than 31 bits of length.
    #[error("a name or a value of more than 2 GiB")]
    TooLong,
}

/// Appends a pair.
///
/// # Errors
/// Name or value have no length that could be written; nothing was appended.
pub fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), PairError> {
    let is_long = |text: &[u8]| u32::try_from(text.len()).is_ok_and(|length| length >> 31 == 0);
    if !is_long(name) || !is_long(value) {
        return Err(PairError::TooLong);
    }
    for text in [name, value] {
        match u8::try_from(text.len()) {
            Ok(length) if text.len() <= SHORT_MAX => out.push(length),
            _ => {
                let [first, rest @ ..] = u32::try_from(text.len()).map_err(|_| PairError::TooLong)?.to_be_bytes();
                out.push(first | LONG);
                out.extend_from_slice(&rest);
            }
        }
    }
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    Ok(())
}

/// Reads all pairs of a stream that is all there.
///
/// # Errors
/// It ends inside of one.
pub fn read(mut bytes: &[u8]) -> Result<Vec<Pair<'_>>, PairError> {
    let mut pairs = Vec::new();
    while !bytes.is_empty() {
        let name_bytes = length(&mut bytes)?;
        let value_bytes = length(&mut bytes)?;
        pairs.push((take(&mut bytes, name_bytes)?, take(&mut bytes, value_bytes)?));
    }
    Ok(pairs)
}

fn length(bytes: &mut &[u8]) -> Result<usize, PairError> {
    let first = take(bytes, 1)?[0];
    if first & LONG == 0 {
        return Ok(first.into());
    }
    let rest = take(bytes, 3)?;
    let length = u32::from_be_bytes([first & !LONG, rest[0], rest[1], rest[2]]);
    usize::try_from(length).map_err(|_| PairError::TooLong)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], PairError> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or(PairError::Cut)?;
    *bytes = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::super::naive;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_have_one_byte_or_four() {
        for (length, bytes) in [(0, 2), (127, 2), (128, 5), (70_000, 5)] {
            let value = vec![b'v'; length];
            let mut out = Vec::new();
            assert_eq!(put(&mut out, b"", &value), Ok(()));
            assert_eq!(out.len(), bytes + length, "{length}");
            assert_eq!(read(&out), Ok(vec![(&b""[..], &value[..])]));
        }
        let mut out = Vec::new();
        assert_eq!(put(&mut out, b"A", &[b'v'; 128]), Ok(()));
        assert_eq!(out[..6], [1, 0x80, 0, 0, 128, b'A']);
    }

    #[test]
    fn pairs_that_are_cut_are_none() {
        for cut in [&[1][..], &[1, 0], &[0, 1], &[0x80, 0, 0], &[0, 0xFF, 0xFF, 0xFF, 0xFF]] {
            assert_eq!(read(cut), Err(PairError::Cut), "{cut:?}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(pairs in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..200), prop::collection::vec(any::<u8>(), 0..200)), 0..5
        )) {
            let mut out = Vec::new();
            for (name, value) in &pairs {
                prop_assert_eq!(put(&mut out, name, value), Ok(()));
            }
            let read = read(&out).expect("what was written");
            prop_assert_eq!(read, pairs.iter().map(|(name, value)| (&name[..], &value[..])).collect::<Vec<_>>());
            naive::check_pairs(&out);
        }

        #[test]
        fn anything_may_come(bytes in prop::collection::vec(prop_oneof![0..5_u8, 128..130_u8, any::<u8>()], 0..40)) {
            naive::check_pairs(&bytes);
        }
    }
}
