//! The message on the wire: its bytes, and how large it may be.

use std::io::Write as _;

use baton::handoff::{Acceptor, Dialect, Message, Options, Refusal, Stage, Taken};
use nix::sys::socket::SockType;

use crate::{
    Bench, KINDS, Rough, daemon, hand_over, long, read, refused, rest, run, send, short, tcp_client, wait_readable,
};

#[test]
fn the_bytes_on_the_wire_are_the_data_or_one_zero_byte() {
    for (dialect, kind) in KINDS {
        for (data, wire) in [(&b""[..], &b"\0"[..]), (b"{\"user\":1}", b"{\"user\":1}"), (b"\0\0", b"\0\0")] {
            let bench = Bench::new();
            let listener = Rough::listen(&bench.path(), kind, 8);
            let (client, mut far) = tcp_client();
            let (result, ()) = hand_over(client, data, &daemon(&bench.path(), dialect), long(), || {
                let connection = listener.accept();
                let (bytes, client) = read(&connection, 1 << 16);
                assert_eq!(bytes, wire);
                client.unwrap().write_all(b"from the daemon").unwrap();
            });
            assert_eq!(result.unwrap(), Taken);
            assert_eq!(rest(&mut far), b"from the daemon");
            drop((listener, far));
            bench.check_ledger();
        }
    }
}

#[test]
fn a_message_that_is_too_large_names_its_size_and_the_limit() {
    let bench = Bench::new();
    let _listener = Rough::listen(&bench.path(), SockType::SeqPacket, 8);
    let (client, _far) = tcp_client();
    // Larger than a packet can be, whatever we are allowed.
    let message = Message::new(vec![b'x'; 64 << 20]);
    let (_, stage, source) = refused(run(send(client, &message, &daemon(&bench.path(), Dialect::Seqpacket), &short())));
    assert_eq!(stage, Stage::Send);
    assert!(matches!(source, Refusal::TooLarge { bytes, bytes_max } if bytes > bytes_max), "{source:?}");
}

#[test]
fn large_messages_arrive_whole_in_both_dialects() {
    for (dialect, _) in KINDS {
        let bench = Bench::new();
        let mut acceptor = Acceptor::bind(bench.path(), dialect, Options::default()).unwrap();
        // More than a send buffer holds by default, less than anybody may raise it to.
        let data: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let (client, _far) = tcp_client();
        let (result, handoff) =
            hand_over(client, &data, &daemon(&bench.path(), dialect), long(), || acceptor.accept().unwrap().unwrap());
        assert_eq!(result.unwrap(), Taken);
        assert!(handoff.data() == data);
    }
}

#[test]
fn a_packet_at_the_limit_is_sent_and_one_byte_past_it_names_the_limit() {
    for (dialect, kind) in [(Dialect::Seqpacket, SockType::SeqPacket), (Dialect::Datagram, SockType::Datagram)] {
        let bench = Bench::new();
        let listener = Rough::listen(&bench.path(), kind, 8);
        let to = daemon(&bench.path(), dialect);
        let (client, _far) = tcp_client();
        let (client, _, source) = refused(run(send(client, &Message::new(vec![b'x'; 64 << 20]), &to, &long())));
        let Refusal::TooLarge { bytes_max, .. } = source else { panic!("{source:?}") };
        let (client, _, source) = refused(run(send(client, &Message::new(vec![b'x'; bytes_max + 1]), &to, &long())));
        assert!(matches!(source, Refusal::TooLarge { bytes, .. } if bytes == bytes_max + 1), "{source:?}");
        let (result, (bytes, _kept)) = hand_over(client, &vec![b'x'; bytes_max], &to, long(), || {
            if kind == SockType::Datagram {
                let receiver = listener.datagrams();
                wait_readable(&receiver);
                return (read(&receiver, bytes_max + 1).0.len(), receiver);
            }
            // The connections of those that were refused come first, with nothing on them.
            drop((listener.accept(), listener.accept()));
            let connection = listener.accept();
            wait_readable(&connection);
            (read(&connection, bytes_max + 1).0.len(), connection)
        });
        assert_eq!((result.unwrap(), bytes), (Taken, bytes_max));
    }
}
