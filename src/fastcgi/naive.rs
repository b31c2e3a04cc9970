//! What must hold for any input of the pure part, told by a second reading of bytes that are all there. The property tests
//! call it with made-up input, the fuzzer (`tests/fuzz`) with what it comes up with.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "tests and fuzzers each take what they need")]

use super::head::{HeadError, Limits, Reader};
use super::pairs;
use super::record::{Decoder, Kind, Part, RecordError};
use super::script::{Script, Scripts, decode_path};

/// A record as §3.3 draws it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub kind: u8,
    pub request: u16,
    pub content: Vec<u8>,
}

/// What bytes are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Records {
    pub records: Vec<Record>,
    /// Nothing is left over.
    pub is_whole: bool,
    /// What stands behind them is no record.
    pub error: Option<RecordError>,
}

/// All records that are there as a whole.
pub fn records(mut bytes: &[u8]) -> Records {
    let mut read = Records::default();
    while bytes.len() >= 8 {
        if bytes[0] != 1 {
            read.error = Some(RecordError::Version(bytes[0]));
            return read;
        }
        if bytes[1] == 0 || bytes[1] > 11 {
            read.error = Some(RecordError::Kind(bytes[1]));
            return read;
        }
        let content = usize::from(bytes[4]) * 256 + usize::from(bytes[5]);
        let end = 8 + content + usize::from(bytes[6]);
        if bytes.len() < end {
            return read;
        }
        let request = u16::from(bytes[2]) * 256 + u16::from(bytes[3]);
        read.records.push(Record { kind: bytes[1], request, content: bytes[8..8 + content].to_vec() });
        bytes = &bytes[end..];
    }
    read.is_whole = bytes.is_empty();
    read
}

/// The decoder, shown `piece` bytes at a time, finds the same.
pub fn check_records(bytes: &[u8], piece: usize) {
    let mut decoder = Decoder::new();
    let mut found = Records::default();
    let mut record = Record::default();
    'pieces: for mut input in bytes.chunks(piece.max(1)) {
        loop {
            let step = match decoder.step(input) {
                Ok(step) => step,
                Err(error) => {
                    found.error = Some(error);
                    break 'pieces;
                }
            };
            match &step.part {
                Some(Part::Header(header)) => {
                    record = Record { kind: header.kind as u8, request: header.request, content: Vec::new() };
                }
                Some(Part::Content(range)) => {
                    assert!(!range.is_empty() && range.end <= step.consumed);
                    record.content.extend_from_slice(&input[range.clone()]);
                }
                Some(Part::End) => found.records.push(std::mem::take(&mut record)),
                None => assert_eq!(step.consumed, input.len(), "it gets on"),
            }
            input = &input[step.consumed..];
            if step.part.is_none() {
                break;
            }
        }
    }
    found.is_whole = found.error.is_none() && decoder.is_between_records();
    assert_eq!(found, records(bytes), "{bytes:?} in pieces of {piece}");
    assert_eq!(Kind::Stdout as u8, 6);
}

/// Pairs are read to the last byte, or not at all; written again they are the same pairs.
pub fn check_pairs(bytes: &[u8]) {
    let Ok(read) = pairs::read(bytes) else { return };
    let mut again = Vec::new();
    for (name, value) in &read {
        pairs::put(&mut again, name, value).expect("as long as before");
    }
    assert!(again.len() <= bytes.len(), "we write the shortest");
    assert_eq!(pairs::read(&again).as_ref(), Ok(&read));
}

/// A head ends in the same place however it is split, and says what a reader of lines finds in it.
pub fn check_head(bytes: &[u8], piece: usize, limits: Limits) {
    let whole = Reader::new(limits).push(bytes);
    let mut reader = Reader::new(limits);
    let mut taken = 0;
    let mut pushed = Ok(None);
    for input in bytes.chunks(piece.max(1)) {
        pushed = reader.push(input);
        match pushed {
            Ok(Some(count)) => taken += count,
            Ok(None) => taken += input.len(),
            Err(_) => {}
        }
        if pushed != Ok(None) {
            break;
        }
    }
    match (whole, pushed) {
        (Ok(Some(end)), Ok(Some(_))) => assert_eq!(end, taken),
        (whole, pushed) => assert_eq!(whole, pushed),
    }
    let Ok(Some(end)) = whole else { return };
    assert!(end <= limits.head_bytes_max);
    let head = match reader.finish() {
        Ok(head) => head,
        Err(HeadError::TooLarge(_) | HeadError::TooMany(_)) => panic!("found while it came"),
        Err(_) => return,
    };
    let text: String = bytes[..end].iter().map(|&b| char::from(b)).collect();
    let lines: Vec<&str> = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    assert_eq!(lines[lines.len() - 2..], ["", ""], "it ends with an empty line");
    let lines = &lines[..lines.len() - 2];
    assert!(lines.len() <= limits.headers_max);
    let value = |name: &str| {
        let field = lines.iter().filter_map(|line| line.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.trim_matches([' ', '\t']).to_owned())
    };
    assert!(lines.iter().all(|line| line.contains(':') && !line.starts_with([' ', '\t', ':'])));
    let status = value("status").map(|status| status[..3].to_owned());
    let default = if value("location").is_some() { "302" } else { "200" };
    assert_eq!(head.status.to_string(), status.unwrap_or_else(|| default.to_owned()));
    assert_eq!(head.length, value("content-length").map(|length| length.parse().expect("a number")));
    assert!(head.fields.len() <= lines.len());
    for field in &head.fields {
        assert!(!field.value.iter().any(|&b| matches!(b, b'\r' | b'\n' | 0)), "{field:?}");
        let of = |(name, value): (&str, &str)| {
            let value = value.trim_matches([' ', '\t']);
            name == field.name && value.chars().map(u32::from).eq(field.value.iter().map(|&b| u32::from(b)))
        };
        assert!(lines.iter().filter_map(|line| line.split_once(':')).any(of), "{field:?}");
    }
}

/// A decoded path has no escape left to decode into something else than itself, no control character and no dot segment;
/// a script and what stands behind it are the path.
pub fn check_path(path: &str) {
    let Ok(decoded) = decode_path(path) else { return };
    assert_eq!(decoded.first(), Some(&b'/'));
    assert!(!decoded.iter().any(u8::is_ascii_control));
    assert!(!decoded.windows(2).any(|pair| pair == b"//"));
    assert!(!decoded[1..].split(|&b| b == b'/').any(|segment| matches!(segment, b"." | b"..")));
    let scripts = Scripts::default();
    let Script { name, info } = scripts.of(&decoded);
    let index = [&decoded[..], scripts.index.as_bytes()].concat();
    let joined = [&name[..], &info[..]].concat();
    assert!(joined == decoded || (decoded.ends_with(b"/") && joined == index));
    assert!(info.is_empty() || (info[0] == b'/' && name.ends_with(scripts.split.as_bytes())));
}
