//! The bytes beside the descriptor. Pure: no sockets, no clock.
//!
//! In the dialects `seqpacket` and `stream` they are the data and nothing else. Because a message without bytes would not
//! arrive (a stream drops the descriptor with it, a packet looks like the end), no data is written as one 0x00 byte; data
//! that *is* one 0x00 byte is therefore read as none.

use std::fmt;

/// What empty data is written as.
const EMPTY: &[u8] = &[0x00];

/// What a daemon is told beside the client's descriptor.
///
/// Its `Debug` form shows the length only: the data may hold secrets, and logs are no place for them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Message {
    data: Vec<u8>,
}

impl Message {
    /// A message with this data, any bytes. How many a dialect can carry is known when it is sent.
    pub fn new(data: impl Into<Vec<u8>>) -> Self {
        Self { data: data.into() }
    }

    /// Reads what [`encode`](Self::encode) wrote. Every sequence of bytes is a message.
    pub fn decode(bytes: Vec<u8>) -> Self {
        Self { data: if bytes == EMPTY { Vec::new() } else { bytes } }
    }

    /// The bytes to be sent; never empty.
    pub fn encode(&self) -> &[u8] {
        if self.data.is_empty() { EMPTY } else { &self.data }
    }

    /// The data, as a policy or an application gave it.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The data, owned.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("bytes", &self.data.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn empty_data_is_one_zero_byte() {
        assert_eq!(Message::default().encode(), [0]);
        assert_eq!(Message::decode(vec![0]), Message::default());
        assert_eq!(Message::decode(Vec::new()), Message::default());
    }

    #[test]
    fn debug_output_keeps_the_data_secret() {
        assert_eq!(format!("{:?}", Message::new("secret")), "Message { bytes: 6, .. }");
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(data: Vec<u8>) {
            prop_assume!(data != [0]);
            let message = Message::new(data);
            prop_assert!(!message.encode().is_empty());
            prop_assert_eq!(Message::decode(message.encode().to_vec()), message);
        }
    }
}
