//! The native protocol: any packets as a daemon's, against the ledger of who owns whom.

#[path = "../../../src/handoff/native/frame.rs"]
pub mod frame;
#[path = "../../../src/handoff/native/header.rs"]
pub mod header;
#[path = "../../../src/handoff/native/ledger.rs"]
pub mod ledger;
#[path = "../../../src/handoff/native/sections.rs"]
pub mod sections;
#[path = "../../../src/handoff/native/words.rs"]
mod words;

use std::collections::HashMap;

use frame::Frame;
use ledger::{Cookie, Event, Ledger};

/// Frames that are understood mean the same when they are written again, and the rest is an error.
pub fn check_packet(packet: &[u8]) -> Vec<Frame> {
    let (mut rest, mut frames) = (packet, Vec::new());
    while !rest.is_empty() {
        let Ok((frame, behind)) = Frame::split(rest) else { break };
        assert!(behind.len() < rest.len());
        if !matches!(frame, Frame::Ignored(_)) {
            let again = frame.encode();
            assert_eq!(Frame::decode(&again).as_ref(), Ok(&frame));
        }
        frames.push(frame);
        rest = behind;
    }
    frames
}

/// Whatever a daemon says: each client comes out of the ledger once, and none that was taken comes out as the gateway's.
pub fn check_ledger(packets: &[&[u8]], lent: u8) {
    let mut ledger: Ledger<u64, u64, u64> = Ledger::default();
    let mut fates: HashMap<u64, &str> = HashMap::new();
    let mut settle = |client: u64, fate: &'static str| {
        let before = fates.insert(client, fate);
        assert_eq!(before, None, "{client} was {before:?} and is {fate}");
    };
    let mut count = 0;
    let mut is_broken = false;
    for packet in packets {
        for frame in check_packet(packet) {
            while count < u64::from(lent % 8) && ledger.credits() > 0 {
                count += 1;
                let in_flight = ledger.in_flight();
                ledger.lend(count, Cookie::new(count));
                assert_eq!(ledger.in_flight(), in_flight + 1);
            }
            if is_broken {
                break;
            }
            let back = match &frame {
                Frame::Return { id, .. } => Cookie::new(*id).map(|cookie| (*id, cookie)),
                _ => None,
            };
            match ledger.receive(frame, back) {
                Ok(Event::Taken(client)) => {
                    settle(client, "taken");
                    let _ = ledger.keep(client, client);
                }
                Ok(Event::Refused(client, _)) => settle(client, "the gateway's"),
                Ok(Event::Ended(client, end)) => {
                    if let Some((back, _)) = end.back {
                        assert_eq!(back, client);
                    }
                }
                Ok(Event::Hello | Event::Answer(_) | Event::Nothing) => {}
                Err(broken) => {
                    is_broken = true;
                    if let Some(client) = broken.touched {
                        settle(client, "touched");
                    }
                }
            }
        }
    }
    ledger.end().lent.into_iter().for_each(|client| settle(client, "the gateway's"));
    assert_eq!(fates.len() as u64, count);
}
