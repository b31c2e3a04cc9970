//! Sections of a payload: each a length of four bytes, then so many bytes; nothing behind the last one.

/// A section that ends behind the payload, or one too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a payload of {bytes} bytes that is not {count} sections")]
pub struct SectionError {
    bytes: usize,
    count: usize,
}

/// Appends a section.
///
/// # Panics
/// It is longer than any packet.
pub fn put(out: &mut Vec<u8>, section: &[u8]) {
    let length = u32::try_from(section.len()).expect("a section fits a packet");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(section);
}

/// Reads exactly `COUNT` of them.
///
/// # Errors
/// The payload is something else.
pub fn read<const COUNT: usize>(payload: &[u8]) -> Result<[&[u8]; COUNT], SectionError> {
    let error = SectionError { bytes: payload.len(), count: COUNT };
    let mut sections = [&[][..]; COUNT];
    let mut rest = payload;
    for section in &mut sections {
        let (length, behind) = rest.split_first_chunk::<4>().ok_or(error)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| error)?;
        (*section, rest) = behind.split_at_checked(length).ok_or(error)?;
    }
    if rest.is_empty() { Ok(sections) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sections_are_exactly_as_many_as_were_asked_for() {
        let mut payload = Vec::new();
        put(&mut payload, b"a");
        put(&mut payload, b"");
        assert_eq!(payload, [1, 0, 0, 0, b'a', 0, 0, 0, 0]);
        assert_eq!(read::<2>(&payload), Ok([&b"a"[..], b""]));
        assert!(read::<1>(&payload).is_err() && read::<3>(&payload).is_err());
        assert!(read::<2>(&payload[..8]).is_err());
        assert!(read::<1>(&[255, 255, 255, 255, 0]).is_err());
    }

    proptest! {
        #[test]
        fn what_was_put_is_read(a: Vec<u8>, b: Vec<u8>, c: Vec<u8>) {
            let mut payload = Vec::new();
            for section in [&a, &b, &c] {
                put(&mut payload, section);
            }
            prop_assert_eq!(read::<3>(&payload), Ok([&a[..], &b, &c]));
        }

        #[test]
        fn any_payload_is_read_or_refused(payload: Vec<u8>) {
            if let Ok(sections) = read::<2>(&payload) {
                let mut again = Vec::new();
                sections.iter().for_each(|section| put(&mut again, section));
                prop_assert_eq!(again, payload);
            }
        }
    }
}
