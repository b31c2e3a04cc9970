//! What becomes of a client, whatever a daemon says.

use super::*;
use crate::handoff::native::frame::{Outcome, Reason};

type Book = Ledger<&'static str, &'static str, &'static str>;

fn hello(in_flight_max: u64) -> Frame {
    let (name, roles) = (String::new(), Vec::new());
    Frame::Hello(Hello { versions: vec![1], name, pid: 1, in_flight_max, data_bytes_max: None, roles })
}

fn report() -> Report {
    Report { status: Some(200), bytes_out: 7, duration_us: 1, result: Outcome::Ok, message: None }
}

fn open(in_flight_max: u64) -> Book {
    let mut ledger = Book::default();
    assert!(matches!(ledger.receive(hello(in_flight_max), None), Ok(Event::Hello)));
    ledger
}

#[test]
fn nobody_is_lent_before_hello_nor_beyond_what_it_says() {
    let mut ledger = Book::default();
    assert_eq!(ledger.credits(), 0);
    assert!(ledger.receive(Frame::Draining, None).is_err());
    ledger = open(2);
    assert_eq!(ledger.credits(), 2);
    let one = ledger.lend("one", None);
    ledger.lend("two", None);
    assert_eq!((ledger.credits(), ledger.in_flight()), (0, 2));
    assert!(matches!(ledger.receive(Frame::Taken { id: one }, None), Ok(Event::Taken("one"))));
    assert_eq!(ledger.credits(), 0, "a stream counts until its end");
    ledger.keep(one, "line").expect("it goes on");
    let done = Frame::Done { id: one, report: report() };
    assert!(matches!(ledger.receive(done, None), Ok(Event::Ended("line", _))));
    assert_eq!(ledger.credits(), 1);
    assert!(matches!(ledger.receive(Frame::Draining, None), Ok(Event::Nothing)));
    assert_eq!((ledger.credits(), ledger.in_flight()), (0, 1));
}

#[test]
fn an_end_may_be_earlier_than_the_account() {
    let mut ledger = open(9);
    let id = ledger.lend("client", Cookie::new(5));
    assert!(ledger.end_of(id).is_none());
    assert!(matches!(ledger.receive(Frame::Taken { id }, None), Ok(Event::Taken("client"))));
    let back = Frame::Return { id, report: report(), unread: b"GET".to_vec() };
    assert!(matches!(ledger.receive(back, Cookie::new(5).map(|c| ("back", c))), Ok(Event::Nothing)));
    let end = ledger.end_of(id).expect("it is here");
    assert_eq!(end.back, Some(("back", b"GET".to_vec())));
    assert!(ledger.is_empty() && ledger.in_flight() == 0);
}

#[test]
fn who_comes_back_is_who_went_and_was_not_begun() {
    for (given, found, fault) in
        [(Cookie::new(5), Cookie::new(6), Fault::OtherSocket(1)), (None, Cookie::new(5), Fault::Begun(1))]
    {
        let mut ledger = open(9);
        let id = ledger.lend("client", given);
        assert!(matches!(ledger.receive(Frame::Taken { id }, None), Ok(Event::Taken("client"))));
        ledger.keep(id, "line").expect("it goes on");
        let back = Frame::Return { id, report: report(), unread: Vec::new() };
        let broken = ledger.receive(back, found.map(|c| ("back", c))).expect_err("another socket");
        assert_eq!((broken.fault, broken.touched), (fault, None));
        let left = ledger.end();
        assert_eq!((left.lent, left.taken), (vec![], vec!["line"]));
    }
}

#[test]
fn whoever_was_withdrawn_is_nobodys_whatever_is_said_later() {
    let refusal = Refusal { reason: Reason::Overloaded, retry_after_s: None, message: None };
    let words = [
        (Frame::Taken { id: 1 }, true),
        (Frame::Refused { id: 1, refusal }, false),
        (Frame::Done { id: 1, report: report() }, true),
        (Frame::Return { id: 1, report: report(), unread: Vec::new() }, true),
    ];
    for (word, is_taken) in words {
        let mut ledger = open(1);
        let id = ledger.lend("client", None);
        let (client, late) = ledger.withdraw(id).expect("nobody spoke");
        assert_eq!((client, ledger.credits(), late.is_taken()), ("client", 0, false));
        assert!(ledger.withdraw(id).is_none());
        let ends = !matches!(word, Frame::Taken { .. });
        assert!(matches!(ledger.receive(word, None), Ok(Event::Nothing)));
        assert_eq!((late.is_taken(), ledger.credits()), (is_taken, u64::from(ends)));
    }
}

#[test]
fn a_word_that_cannot_be_ends_the_channel_and_whoever_was_touched_is_not_answered() {
    for (word, name) in [
        (Frame::Taken { id: 7 }, "TAKEN for the handoff 7, which is not under way"),
        (Frame::Done { id: 1, report: report() }, "DONE for the handoff 1, which was not taken"),
        (hello(1), "a second HELLO"),
        (Frame::Revoke { id: 1, reason: String::new() }, "REVOKE from a daemon"),
    ] {
        let mut ledger = open(2);
        ledger.lend("client", None);
        let touched = matches!(word, Frame::Done { .. });
        let broken = ledger.receive(word, None).expect_err(name);
        assert_eq!((broken.fault.to_string().as_str(), broken.touched.is_some()), (name, touched));
        assert_eq!(ledger.end().lent.len(), usize::from(!touched));
        assert_eq!(ledger.credits(), 0);
    }
}
