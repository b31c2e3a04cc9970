#![no_main]
//! Any bytes as the packets of a daemon: each is as long as its first two bytes say.
use baton_fuzz::native::{check_ledger, check_packet};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&lent, mut rest)) = bytes.split_first() else { return };
    check_packet(rest);
    let mut packets = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(behind.len());
        let (packet, behind) = behind.split_at(length);
        packets.push(packet);
        rest = behind;
    }
    check_ledger(&packets, lent);
});
