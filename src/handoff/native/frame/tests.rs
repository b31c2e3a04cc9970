//! What every frame is, and what is none.

use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = String> {
    proptest::string::string_regex("[ -~é]{0,40}").expect("a pattern")
}

fn report() -> impl Strategy<Value = Report> {
    let results = [Outcome::ClientGone, Outcome::Error, Outcome::Ok, Outcome::Revoked, Outcome::Timeout];
    let result = proptest::sample::select(results.to_vec());
    let status = proptest::option::of(100_u16..600);
    (status, any::<u64>(), any::<u64>(), result, proptest::option::of(text())).prop_map(
        |(status, bytes_out, duration_us, result, message)| Report { status, bytes_out, duration_us, result, message },
    )
}

fn handoff() -> impl Strategy<Value = Handoff> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (proptest::collection::btree_map(text(), text(), 0..4), any::<Vec<u8>>(), any::<Vec<u8>>(), flags).prop_map(
        |(metadata, mut data, mut preread, (body, in_data, in_preread))| {
            if in_data {
                data.clear();
            }
            if in_preread {
                preread.clear();
            }
            let metadata = metadata.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
            Handoff { metadata, data, preread, memfds: Memfds { body, data: in_data, preread: in_preread } }
        },
    )
}

fn frame() -> impl Strategy<Value = Frame> {
    let id = 1..u64::MAX;
    let reasons = [Reason::Denied, Reason::Draining, Reason::Overloaded, Reason::Unsupported];
    let refusal = (proptest::sample::select(reasons.to_vec()), any::<Option<u64>>(), proptest::option::of(text()))
        .prop_map(|(reason, retry_after_s, message)| Refusal { reason, retry_after_s, message });
    let hello = (
        any::<Vec<u64>>(),
        text(),
        any::<u64>(),
        any::<u64>(),
        any::<Option<u64>>(),
        proptest::collection::vec(text(), 0..3),
    )
        .prop_map(|(versions, name, pid, in_flight_max, data_bytes_max, roles)| Hello {
            versions,
            name,
            pid,
            in_flight_max,
            data_bytes_max,
            roles,
        });
    prop_oneof![
        hello.prop_map(Frame::Hello),
        (id.clone(), handoff()).prop_map(|(id, handoff)| Frame::Handoff { id, handoff }),
        id.clone().prop_map(|id| Frame::Taken { id }),
        (id.clone(), refusal).prop_map(|(id, refusal)| Frame::Refused { id, refusal }),
        (id.clone(), report()).prop_map(|(id, report)| Frame::Done { id, report }),
        (id.clone(), report(), any::<Vec<u8>>()).prop_map(|(id, report, unread)| Frame::Return { id, report, unread }),
        (any::<u64>(), 0_u8..=64).prop_map(|(in_flight, part)| {
            let load = f64::from(part) / 64.0;
            Frame::Load(Load { in_flight, load })
        }),
        Just(Frame::Draining),
        (id, text()).prop_map(|(id, reason)| Frame::Revoke { id, reason }),
        any::<Vec<u8>>().prop_map(Frame::Ping),
        any::<Vec<u8>>().prop_map(Frame::Pong),
        (12_u8..).prop_map(Frame::Ignored),
    ]
}

#[test]
fn what_does_not_belong_ends_the_channel() {
    let header = |kind, flags, id| {
        move |payload: &[u8]| [&Header { kind, flags, id }.encode(payload.len())[..], payload].concat()
    };
    for (packet, error) in [
        (header(3, 0, 0)(b""), "TAKEN with id 0"),
        (header(3, 0, 1)(b"x"), "TAKEN with a payload"),
        (header(8, 0, 1)(b""), "DRAINING with id 1"),
        (header(1, 0, 0)(b"[]"), "HELLO: no JSON object"),
        (header(1, 0, 0)(b"{\"versions\":[1]}"), "HELLO: no in_flight_max"),
        (header(1, 0, 0)(b"{\"versions\":[-1],\"in_flight_max\":1}"), "HELLO: no versions"),
        (header(4, 0, 1)(b"{\"reason\":\"bored\"}"), "REFUSED: no reason that is known"),
        (header(5, 0, 1)(b"{}"), "DONE: no result that is known"),
        (header(2, 0, 1)(b"\x02\0\0\0{}"), "HANDOFF: a payload of 6 bytes that is not 3 sections"),
        (header(2, 2, 1)(b"\x02\0\0\0{}\x01\0\0\0x\0\0\0\0"), "HANDOFF: what is in a memfd is in the packet too"),
        (header(12, 0, 0)(b""), "type 12"),
        (header(0, 0x7f, 0)(b""), "type 0"),
    ] {
        assert_eq!(Frame::decode(&packet).map_err(|error| error.to_string()), Err(error.to_owned()));
    }
    assert_eq!(Frame::decode(&header(200, 0x80, 7)(b"whatever")), Ok(Frame::Ignored(200)));
}

#[test]
fn what_only_tells_is_read_leniently() {
    let payload = br#"{"result":"ok","status":9000,"bytes_out":-1,"later":{"x":1},"message":5}"#;
    let packet = [&Header { kind: 5, flags: 0, id: 3 }.encode(payload.len())[..], payload].concat();
    let report = Report { status: None, bytes_out: 0, duration_us: 0, result: Outcome::Ok, message: None };
    assert_eq!(Frame::decode(&packet), Ok(Frame::Done { id: 3, report }));
}

#[test]
fn a_handoff_that_fills_a_packet_fits_and_a_byte_more_does_not() {
    let room = PACKET_BYTES_MAX - HEADER_BYTES - 12 - 2;
    let handoff =
        |bytes| Handoff { metadata: Map::new(), data: vec![0; bytes], preread: Vec::new(), memfds: Memfds::default() };
    assert!(handoff(room).fits() && !handoff(room + 1).fits());
    assert_eq!(Frame::Handoff { id: 1, handoff: handoff(room) }.encode().len(), PACKET_BYTES_MAX);
}

/// Whoever says more than anybody reads must not be the end of whoever sends it.
#[test]
fn what_is_for_people_is_cut_before_it_is_sent() {
    let long = "\u{e9}".repeat(PACKET_BYTES_MAX);
    let cut = "\u{e9}".repeat(512);
    let refusal = |text: &str| Refusal { reason: Reason::Denied, retry_after_s: None, message: Some(text.to_owned()) };
    let report = |text: &str| Report {
        status: None,
        bytes_out: 0,
        duration_us: 0,
        result: Outcome::Ok,
        message: Some(text.to_owned()),
    };
    let frames = |text: &str| {
        [
            Frame::Revoke { id: 1, reason: text.to_owned() },
            Frame::Refused { id: 1, refusal: refusal(text) },
            Frame::Done { id: 1, report: report(text) },
        ]
    };
    for (said, read) in frames(&long).iter().zip(frames(&cut)) {
        assert_eq!(Frame::decode(&said.encode()), Ok(read));
    }
}

#[test]
fn data_is_not_in_the_debug_form() {
    let handoff = Handoff {
        metadata: [("x".to_owned(), Value::from("secret"))].into_iter().collect(),
        data: b"secret".to_vec(),
        preread: b"secret".to_vec(),
        memfds: Memfds::default(),
    };
    assert!(!format!("{handoff:?}").contains("secret"));
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(frame in frame()) {
        let decoded = Frame::decode(&frame.encode());
        prop_assert_eq!(decoded, Ok(frame));
    }

    #[test]
    fn frames_follow_each_other(frames in proptest::collection::vec(frame(), 1..5)) {
        let packet: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        let (mut rest, mut found) = (&packet[..], Vec::new());
        while !rest.is_empty() {
            let (frame, behind) = Frame::split(rest).expect("what was encoded");
            found.push(frame);
            rest = behind;
        }
        let is_whole = Frame::decode(&packet).is_ok();
        prop_assert_eq!(is_whole, frames.len() == 1);
        prop_assert_eq!(found, frames);
    }

    #[test]
    fn any_bytes_are_a_frame_or_an_error(bytes: Vec<u8>, kind in 0_u8..14, flags: u8, id in 0_u64..3) {
        drop(Frame::decode(&bytes));
        let packet = [&Header { kind, flags, id }.encode(bytes.len())[..], &bytes].concat();
        drop(Frame::decode(&packet));
    }
}
