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

/// What happens next, to the client of that number where it is about one.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The gateway lends another client.
    Lend,
    /// The daemon reads a packet.
    DaemonReads,
    Take(usize),
    Refuse(usize),
    Finish(usize),
    GiveBack(usize),
    /// The gateway reads a frame.
    GatewayReads,
    /// The gateway has waited long enough: it answers the client and shuts it down.
    GiveUp(usize),
    /// The gateway's connection task comes to leave an account behind.
    Account(usize),
    /// The daemon's process ends: what it has sent can still be read.
    Crash,
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let of = |step: fn(usize) -> Step| (0_usize..6).prop_map(step);
    let step = prop_oneof![
        4 => Just(Step::Lend),
        6 => Just(Step::DaemonReads),
        4 => of(Step::Take),
        1 => of(Step::Refuse),
        3 => of(Step::Finish),
        2 => of(Step::GiveBack),
        8 => Just(Step::GatewayReads),
        1 => of(Step::GiveUp),
        4 => of(Step::Account),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..120)
}

/// Who may write to a client at this moment, and what the client has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// The gateway's answers.
    by_gateway: u32,
    /// Answers that the daemon began after it had sent TAKEN.
    by_daemon: u32,
    /// Nobody's words arrive any more.
    is_shut: bool,
    comes_back: bool,
}

/// What a daemon that keeps the page knows of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Lent,
    Taken,
}

/// A gateway, a daemon that keeps the page, the channel between them, and what the clients see.
struct World {
    ledger: Ledger<usize, usize, usize>,
    to_daemon: std::collections::VecDeque<(u64, usize)>,
    to_gateway: std::collections::VecDeque<(Frame, Option<usize>)>,
    held: Vec<(u64, usize, Held)>,
    seen: Vec<Seen>,
    /// Taken, and no account of them yet.
    unaccounted: Vec<(u64, usize)>,
    ids: HashMap<usize, u64>,
    accounts: Vec<usize>,
    is_open: bool,
}

const IN_FLIGHT_MAX: u64 = 4;

impl World {
    fn new() -> Self {
        let mut ledger = Ledger::default();
        assert!(matches!(ledger.receive(hello(IN_FLIGHT_MAX), None), Ok(Event::Hello)));
        Self {
            ledger,
            to_daemon: Default::default(),
            to_gateway: Default::default(),
            held: Vec::new(),
            seen: Vec::new(),
            unaccounted: Vec::new(),
            ids: HashMap::new(),
            accounts: Vec::new(),
            is_open: true,
        }
    }

    fn cookie(client: usize) -> Cookie {
        Cookie::new(client as u64 + 1).expect("not 0")
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Lend if self.ledger.credits() > 0 => {
                let client = self.seen.len();
                self.seen.push(Seen::default());
                let id = self.ledger.next_id();
                self.to_daemon.push_back((id, client));
                assert_eq!(self.ledger.lend(client, Some(Self::cookie(client))), id);
                self.ids.insert(client, id);
            }
            Step::DaemonReads if self.is_open => {
                let read = self.to_daemon.pop_front().map(|(id, client)| (id, client, Held::Lent));
                self.held.extend(read);
                let in_flight = self.held.len() + self.to_daemon.len();
                assert!(in_flight as u64 <= IN_FLIGHT_MAX, "{in_flight} at the daemon's");
            }
            Step::Take(at) => self.say(at, Held::Lent, |world, id, client| {
                world.held.push((id, client, Held::Taken));
                world.seen[client].by_daemon += 1;
                (Frame::Taken { id }, None)
            }),
            Step::Refuse(at) => self.say(at, Held::Lent, |_, id, _| {
                let refusal = Refusal { reason: Reason::Overloaded, retry_after_s: None, message: None };
                (Frame::Refused { id, refusal }, None)
            }),
            Step::Finish(at) => self.say(at, Held::Taken, |_, id, _| (Frame::Done { id, report: report() }, None)),
            Step::GiveBack(at) => self.say(at, Held::Taken, |_, id, client| {
                (Frame::Return { id, report: report(), unread: Vec::new() }, Some(client))
            }),
            Step::GatewayReads => self.gateway_reads(),
            Step::GiveUp(at) => {
                let known = self.ids.iter().nth(at).map(|(client, id)| (*client, *id));
                if let Some((client, id)) = known
                    && let Some((lent, _)) = self.ledger.withdraw(id)
                {
                    assert_eq!(lent, client);
                    self.gateway_answers(client);
                    self.seen[client].is_shut = true;
                }
            }
            Step::Account(at) if at < self.unaccounted.len() => {
                let (id, client) = self.unaccounted.remove(at);
                self.account(id, client);
            }
            Step::Crash => self.is_open = false,
            _ => {}
        }
    }

    /// The daemon says something of a client that it holds so.
    fn say(&mut self, at: usize, held: Held, word: impl FnOnce(&mut Self, u64, usize) -> (Frame, Option<usize>)) {
        let found = self.held.iter().enumerate().filter(|(_, (.., state))| *state == held).nth(at).map(|(at, _)| at);
        if let (true, Some(at)) = (self.is_open, found) {
            let (id, client, _) = self.held.remove(at);
            let word = word(self, id, client);
            self.to_gateway.push_back(word);
        }
    }

    fn gateway_answers(&mut self, client: usize) {
        self.seen[client].by_gateway += 1;
    }

    fn account(&mut self, id: u64, client: usize) {
        match self.ledger.end_of(id) {
            Some(end) => self.ended(client, &end),
            None => {
                if self.ledger.keep(id, client).is_err() {
                    self.accounts.push(client);
                }
            }
        }
    }

    fn ended(&mut self, client: usize, end: &End<usize>) {
        self.accounts.push(client);
        if let Some((back, _)) = &end.back {
            assert_eq!(*back, client);
            self.seen[client].comes_back = true;
        }
    }

    fn gateway_reads(&mut self) {
        let Some((frame, back)) = self.to_gateway.pop_front() else { return };
        let back = back.map(|client| (client, Self::cookie(client)));
        match self.ledger.receive(frame, back).expect("the daemon keeps the page") {
            Event::Taken(client) => self.unaccounted.push((self.ids[&client], client)),
            Event::Refused(client, _) => self.gateway_answers(client),
            Event::Ended(client, end) => self.ended(client, &end),
            Event::Hello | Event::Answer(_) | Event::Nothing => {}
        }
    }

    /// Reads to the channel's end, and settles everything that is open then.
    fn end(&mut self) {
        self.is_open = false;
        while !self.to_gateway.is_empty() {
            self.gateway_reads();
        }
        let left = self.ledger.end();
        left.lent.into_iter().for_each(|client| self.gateway_answers(client));
        self.accounts.extend(left.taken);
        for (id, client) in std::mem::take(&mut self.unaccounted) {
            self.account(id, client);
        }
        assert_eq!((self.ledger.is_empty(), self.ledger.credits()), (true, 0));
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

    /// Whatever is interleaved with whatever, and wherever the daemon dies.
    #[test]
    fn every_client_has_one_voice_and_one_end(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            let in_flight = world.ledger.in_flight();
            proptest::prop_assert!(in_flight <= IN_FLIGHT_MAX, "{in_flight} in flight");
        }
        world.end();
        for (client, seen) in world.seen.iter().enumerate() {
            // A daemon that was late finds a dead socket: its words arrive nowhere.
            let voices = seen.by_gateway + if seen.is_shut { 0 } else { seen.by_daemon };
            proptest::prop_assert_eq!(voices, 1, "client {}: {:?}", client, seen);
            let accounts = world.accounts.iter().filter(|other| **other == client).count();
            let is_daemons = seen.by_daemon == 1 && !seen.is_shut;
            proptest::prop_assert_eq!(accounts, usize::from(is_daemons), "client {}: {:?}", client, seen);
        }
    }
}
