//! Records, the frames of FastCGI 1.0 (§3.3): a header of eight bytes, content, padding.
//!
//! Pure. The decoder is shown bytes as they come and gives content on without waiting for the rest of its record, so
//! nothing is held here but a header that is half there.

use std::ops::Range;

/// Of a header (§3.3, §8).
pub const HEADER_BYTES: usize = 8;
/// What one record can carry (§3.3: two bytes of length).
pub const CONTENT_BYTES_MAX: usize = 65_535;
/// What we put into one: the largest content that needs no padding to end at a multiple of eight bytes (§3.3 recommends
/// it).
pub const CONTENT_BYTES: usize = CONTENT_BYTES_MAX & !7;
/// Version of all records (§8, FCGI_VERSION_1).
const VERSION: u8 = 1;
/// In BEGIN_REQUEST: the connection stays open behind END_REQUEST (§5.1, FCGI_KEEP_CONN).
const KEEP_CONNECTION: u8 = 1;
/// The request that records belong to which belong to none (§3.3, FCGI_NULL_REQUEST_ID).
pub const NO_REQUEST: u16 = 0;

/// What a record is (§8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Opens a request.
    BeginRequest = 1,
    /// Asks for its end.
    AbortRequest,
    /// Closes it.
    EndRequest,
    /// Its variables.
    Params,
    /// Its body.
    Stdin,
    /// The answer.
    Stdout,
    /// What the program has to complain of.
    Stderr,
    /// What a filter filters.
    Data,
    /// Asks what a program can do.
    GetValues,
    /// Says so.
    GetValuesResult,
    /// Says that a kind is not known.
    UnknownType,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::BeginRequest,
        Self::AbortRequest,
        Self::EndRequest,
        Self::Params,
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::Data,
        Self::GetValues,
        Self::GetValuesResult,
        Self::UnknownType,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == number)
    }
}

/// What a program is asked to be (§6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// It answers, as a CGI program does (§6.2).
    Responder = 1,
    /// It says whether somebody else may (§6.3).
    Authorizer,
    /// It changes a file on its way out (§6.4).
    Filter,
}

/// What becomes of the connection behind END_REQUEST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// The program closes it.
    Close,
    /// It waits there for the next request.
    Keep,
}

/// What stands in front of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Whose it is; 0: nobody's.
    pub request: u16,
    /// Bytes that follow.
    pub content_bytes: u16,
    /// Bytes of nothing behind them.
    pub padding_bytes: u8,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// END_REQUEST does not hold eight bytes (§5.5).
    #[error("an END_REQUEST of a wrong length")]
    EndRequest,
    /// Nothing that FastCGI 1.0 knows.
    #[error("a record of the unknown type {0}")]
    Kind(u8),
    /// Another protocol, or another version.
    #[error("no FastCGI: a record of version {0}")]
    Version(u8),
}

impl Header {
    /// As it goes onto the wire.
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let [request_high, request_low] = self.request.to_be_bytes();
        let [length_high, length_low] = self.content_bytes.to_be_bytes();
        [VERSION, self.kind as u8, request_high, request_low, length_high, length_low, self.padding_bytes, 0]
    }

    fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, RecordError> {
        let [version, kind, request_high, request_low, length_high, length_low, padding_bytes, _reserved] = bytes;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        Ok(Self {
            kind: Kind::from_number(kind).ok_or(RecordError::Kind(kind))?,
            request: u16::from_be_bytes([request_high, request_low]),
            content_bytes: u16::from_be_bytes([length_high, length_low]),
            padding_bytes,
        })
    }
}

/// The header of a record that we write; without padding, which nobody needs.
///
/// # Panics
/// If the content does not fit into one record.
pub fn header(kind: Kind, request: u16, content_bytes: usize) -> [u8; HEADER_BYTES] {
    let content_bytes = u16::try_from(content_bytes).expect("cut to CONTENT_BYTES_MAX by whoever writes");
    Header { kind, request, content_bytes, padding_bytes: 0 }.encode()
}

/// Content of BEGIN_REQUEST (§5.1).
pub fn begin_request(role: Role, afterwards: Afterwards) -> [u8; 8] {
    let flags = if afterwards == Afterwards::Keep { KEEP_CONNECTION } else { 0 };
    [0, role as u8, flags, 0, 0, 0, 0, 0]
}

/// Appends `content` as a stream of records (§3.3), without the empty one that ends it.
pub fn put_stream(out: &mut Vec<u8>, kind: Kind, request: u16, content: &[u8]) {
    for piece in content.chunks(CONTENT_BYTES) {
        out.extend_from_slice(&header(kind, request, piece.len()));
        out.extend_from_slice(piece);
    }
}

/// How a request ended (§5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The program is done with it; what its `exit` would have said (§5.5: application-level status).
    Complete(u32),
    /// It takes one request at a time on a connection.
    CannotMultiplex,
    /// It is out of something.
    Overloaded,
    /// It does not know the role.
    UnknownRole,
    /// A status that FastCGI 1.0 does not know.
    Unknown(u8),
}

impl Ending {
    /// Reads the content of END_REQUEST.
    ///
    /// # Errors
    /// It is longer or shorter.
    pub fn decode(content: &[u8]) -> Result<Self, RecordError> {
        let &[a, b, c, d, status, _, _, _] = content else { return Err(RecordError::EndRequest) };
        Ok(match status {
            0 => Self::Complete(u32::from_be_bytes([a, b, c, d])),
            1 => Self::CannotMultiplex,
            2 => Self::Overloaded,
            3 => Self::UnknownRole,
            other => Self::Unknown(other),
        })
    }
}

/// What the bytes that a decoder was shown turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// How many of them it is done with.
    pub consumed: usize,
    /// What they are; `None`: more are needed.
    pub part: Option<Part>,
}

/// A part of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A record begins.
    Header(Header),
    /// Content lies there, in what was shown: at least a byte.
    Content(Range<usize>),
    /// The record is over, its padding too.
    End,
}

/// Follows records.
#[derive(Clone, Debug)]
pub struct Decoder(State);

#[derive(Clone, Debug)]
enum State {
    /// That many bytes of a header are there.
    Header([u8; HEADER_BYTES], usize),
    /// Still to come.
    Content(usize, usize),
}

impl Decoder {
    /// In front of a record.
    pub fn new() -> Self {
        Self(State::Header([0; HEADER_BYTES], 0))
    }

    /// Whether no record is half there.
    pub fn is_between_records(&self) -> bool {
        matches!(self.0, State::Header(_, 0))
    }

    /// Reads on to the next part. Call it again with what was not consumed, also when that is nothing, until it has no
    /// part any more.
    ///
    /// # Errors
    /// What begins there is no record; where the next one begins, nobody can know.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, RecordError> {
        let step = |consumed, part| Ok(Step { consumed, part });
        match &mut self.0 {
            State::Header(bytes, have) => {
                let count = input.len().min(HEADER_BYTES - *have);
                bytes[*have..*have + count].copy_from_slice(&input[..count]);
                *have += count;
                if *have < HEADER_BYTES {
                    return step(count, None);
                }
                let header = Header::decode(*bytes)?;
                self.0 = State::Content(header.content_bytes.into(), header.padding_bytes.into());
                step(count, Some(Part::Header(header)))
            }
            State::Content(0, padding) => {
                let count = input.len().min(*padding);
                *padding -= count;
                if *padding > 0 {
                    return step(count, None);
                }
                *self = Self::new();
                step(count, Some(Part::End))
            }
            State::Content(left, _) => {
                let count = input.len().min(*left);
                *left -= count;
                step(count, (count > 0).then_some(Part::Content(0..count)))
            }
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::naive;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn headers_are_the_bytes_of_the_specification() {
        let header = Header { kind: Kind::Stdin, request: 0x0102, content_bytes: 0xFFFE, padding_bytes: 7 };
        assert_eq!(header.encode(), [1, 5, 1, 2, 0xFF, 0xFE, 7, 0]);
        assert_eq!(Header::decode(header.encode()), Ok(header));
        assert_eq!(begin_request(Role::Responder, Afterwards::Close), [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(begin_request(Role::Filter, Afterwards::Keep), [0, 3, 1, 0, 0, 0, 0, 0]);
        assert_eq!(begin_request(Role::Authorizer, Afterwards::Close)[1], 2);
    }

    #[test]
    fn what_is_no_record_is_said() {
        let step = |bytes: &[u8]| Decoder::new().step(bytes);
        assert_eq!(step(b"HTTP/1.1"), Err(RecordError::Version(b'H')));
        assert_eq!(step(&[1, 0, 0, 1, 0, 0, 0, 0]), Err(RecordError::Kind(0)));
        assert_eq!(step(&[1, 12, 0, 1, 0, 0, 0, 0]), Err(RecordError::Kind(12)));
        for number in 1..=11 {
            assert_eq!(Kind::from_number(number).map(|kind| kind as u8), Some(number));
        }
    }

    #[test]
    fn endings_are_told_apart() {
        assert_eq!(Ending::decode(&[1, 2, 3, 4, 0, 9, 9, 9]), Ok(Ending::Complete(0x0102_0304)));
        assert_eq!(Ending::decode(&[0, 0, 0, 0, 1, 0, 0, 0]), Ok(Ending::CannotMultiplex));
        assert_eq!(Ending::decode(&[0, 0, 0, 0, 2, 0, 0, 0]), Ok(Ending::Overloaded));
        assert_eq!(Ending::decode(&[0, 0, 0, 0, 3, 0, 0, 0]), Ok(Ending::UnknownRole));
        assert_eq!(Ending::decode(&[0, 0, 0, 0, 4, 0, 0, 0]), Ok(Ending::Unknown(4)));
        assert_eq!(Ending::decode(&[0; 7]), Err(RecordError::EndRequest));
        assert_eq!(Ending::decode(&[0; 9]), Err(RecordError::EndRequest));
    }

    #[test]
    fn a_stream_is_cut_where_records_end() {
        for (length, records) in [(0, 0), (1, 1), (CONTENT_BYTES, 1), (CONTENT_BYTES + 1, 2), (200_000, 4)] {
            let content: Vec<u8> = (0..length).map(|at: usize| u8::try_from(at % 251).expect("small")).collect();
            let mut out = Vec::new();
            put_stream(&mut out, Kind::Params, 1, &content);
            let read = naive::records(&out);
            assert_eq!((read.records.len(), read.is_whole), (records, true), "{length}");
            assert_eq!(read.records.iter().flat_map(|record| record.content.clone()).collect::<Vec<_>>(), content);
        }
    }

    fn record() -> impl Strategy<Value = Vec<u8>> {
        let parts = (1..=11_u8, 0..3_u16, prop::collection::vec(any::<u8>(), 0..40), any::<u8>());
        parts.prop_map(|(kind, request, content, padding_bytes)| {
            let content_bytes = u16::try_from(content.len()).expect("short");
            let kind = Kind::from_number(kind).expect("one of them");
            let header = Header { kind, request, content_bytes, padding_bytes }.encode();
            [&header[..], &content, &vec![0xAA; padding_bytes.into()]].concat()
        })
    }

    proptest! {
        #[test]
        fn records_are_the_same_however_they_are_split(
            records in prop::collection::vec(record(), 0..4), cut in 0..60_usize, piece in 1..60_usize
        ) {
            let bytes = records.concat();
            naive::check_records(&bytes[..bytes.len().saturating_sub(cut)], piece);
        }

        #[test]
        fn anything_may_come(bytes in prop::collection::vec(prop_oneof![0..12_u8, any::<u8>()], 0..80), piece in 1..9_usize) {
            naive::check_records(&bytes, piece);
        }
    }
}
