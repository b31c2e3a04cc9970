//! What a program says of itself (FastCGI 1.0 §4.1), asked on a connection of its own.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::record::{CONTENT_BYTES_MAX, Decoder, HEADER_BYTES, Kind, NO_REQUEST, Part};
use super::{Stream, pairs, record};

const CONNECTIONS: &str = "FCGI_MAX_CONNS";
const REQUESTS: &str = "FCGI_MAX_REQS";
const MULTIPLEXES: &str = "FCGI_MPXS_CONNS";
/// An answer that is one record, and what may come in front of it.
const ANSWER_BYTES_MAX: usize = 2 * (HEADER_BYTES + CONTENT_BYTES_MAX + 255);

/// `None`: it does not say, or nothing that is a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// Connections that it takes at the same time.
    pub connections_max: Option<u64>,
    /// Requests that it works on at the same time.
    pub requests_max: Option<u64>,
    /// Whether several of them may be on one connection; ours never are.
    pub multiplexes: Option<bool>,
}

/// Asks for them, and closes. A program that closes, does not know the question or answers something else says nothing:
/// many cannot be asked. The wait is the caller's to bound.
///
/// # Cancel safety
/// Dropping it closes the connection.
pub async fn ask_values<S: Stream>(mut stream: S) -> Values {
    let mut names = Vec::new();
    for name in [CONNECTIONS, REQUESTS, MULTIPLEXES] {
        if pairs::put(&mut names, name.as_bytes(), b"").is_err() {
            return Values::default();
        }
    }
    let mut question = Vec::new();
    record::put_stream(&mut question, Kind::GetValues, NO_REQUEST, &names);
    // The question is one record, but libfcgi reads names to the end of a stream, and waits for it.
    question.extend_from_slice(&record::header(Kind::GetValues, NO_REQUEST, 0));
    if stream.write_all(&question).await.is_err() || stream.flush().await.is_err() {
        return Values::default();
    }
    read_answer(&mut stream).await.as_deref().and_then(read).unwrap_or_default()
}

/// The content of the first GET_VALUES_RESULT.
async fn read_answer<S: Stream>(stream: &mut S) -> Option<Vec<u8>> {
    let (mut decoder, mut kind, mut content) = (Decoder::new(), Kind::UnknownType, Vec::new());
    let mut left = ANSWER_BYTES_MAX;
    let mut buffer = Vec::with_capacity(1024);
    loop {
        buffer.clear();
        let count = stream.read_buf(&mut buffer).await.ok().filter(|&count| count > 0)?;
        left = left.checked_sub(count)?;
        let mut input = &buffer[..];
        loop {
            let step = decoder.step(input).ok()?;
            match step.part {
                Some(Part::Header(header)) => kind = header.kind,
                Some(Part::Content(range)) if kind == Kind::GetValuesResult => content.extend_from_slice(&input[range]),
                Some(Part::End) if kind == Kind::GetValuesResult => return Some(content),
                Some(Part::End) if kind == Kind::UnknownType => return None,
                Some(_) => {}
                None => break,
            }
            input = &input[step.consumed..];
        }
    }
}

fn read(content: &[u8]) -> Option<Values> {
    let pairs = pairs::read(content).ok()?;
    let number = |name: &str| {
        let (_, value) = pairs.iter().find(|(own, _)| *own == name.as_bytes())?;
        std::str::from_utf8(value).ok()?.trim().parse().ok()
    };
    Some(Values {
        connections_max: number(CONNECTIONS),
        requests_max: number(REQUESTS),
        multiplexes: number(MULTIPLEXES).map(|number| number != 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbers_or_not_there() {
        let mut content = Vec::new();
        for (name, value) in [(CONNECTIONS, "5"), (REQUESTS, "many"), (MULTIPLEXES, "0")] {
            pairs::put(&mut content, name.as_bytes(), value.as_bytes()).expect("short");
        }
        let expected = Values { connections_max: Some(5), requests_max: None, multiplexes: Some(false) };
        assert_eq!(read(&content), Some(expected));
        assert_eq!(read(&[]), Some(Values::default()));
        assert_eq!(read(&[1]), None);
    }
}
