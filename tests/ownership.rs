//! At every moment one party may write to a client. A model of gateway, daemon and kernel is explored to its end, with a
//! crash of either side at every step; then every script that the model knows is played to the real code, on real sockets,
//! and what the code says and what the client hears must be what the model says.
#![cfg(feature = "gateway")]

#[path = "ownership/model.rs"]
mod model;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io::{ErrorKind, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::pin::pin;
use std::sync::Mutex;
use std::task::Poll;
use std::time::Duration;

use baton::handoff::{
    Acceptor, Address, Beat, Daemon, Deadlines, Dialect, Handoff, Message, Options, Sealed, SendError, Stop, Taken,
};
use model::{ACTS, Act, End, Phase, Sent, Without, World, explore};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, setsockopt, socket, sockopt,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
const WORD: &[u8] = b"from the daemon";
/// Until a message that nobody reads is sealed.
const DEADLINE: Duration = Duration::from_millis(25);
/// Acts before the gateway looks, and after its deadline until it seals.
const SCRIPT_ACTS_MAX: [usize; 2] = [5, 3];

// === The model ===

fn worlds() -> impl Iterator<Item = World> {
    let all = [(Sent::Whole, true), (Sent::Whole, false), (Sent::Parts, true), (Sent::Parts, false)];
    all.into_iter().map(|(sent, counts)| World::new(sent, counts))
}

#[test]
fn no_interleaving_and_no_crash_makes_two_writers_or_loses_a_client_unsaid() {
    for world in worlds() {
        let states = explore(world, Without::Nothing).unwrap_or_else(|(fault, way)| panic!("{fault}: {way:#?}"));
        println!("{:?}, counts {}: {states} states", world.sent, world.counts);
        assert!(states > 200, "{states}");
    }
}

/// A model that cannot fail shows nothing: without any one part of the order of looks it finds the harm.
#[test]
fn every_look_of_the_seal_is_needed() {
    use Without::{Doubt, FirstCount, FirstLook, LastCount, LastLook, Seal, Shutdown};
    for without in [FirstLook, FirstCount, Shutdown, LastLook, LastCount, Doubt, Seal] {
        let found = worlds().find_map(|world| explore(world, without).err());
        let (fault, way) = found.unwrap_or_else(|| panic!("without {without:?} nothing happens"));
        println!("without {without:?}: {fault}, after {} steps", way.len() - 1);
    }
}

// === The code ===

/// What a case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    dialect: Dialect,
    message: &'static [u8],
    /// Whether the client came over TCP.
    tcp: bool,
}

const CASES: [Case; 5] = [
    Case { dialect: Dialect::Seqpacket, message: b"some data", tcp: true },
    Case { dialect: Dialect::Seqpacket, message: b"", tcp: false },
    Case { dialect: Dialect::Stream, message: b"", tcp: true },
    Case { dialect: Dialect::Stream, message: b"some data", tcp: true },
    Case { dialect: Dialect::Stream, message: b"some data", tcp: false },
];

impl Case {
    fn world(self) -> World {
        let sent = if self.dialect == Dialect::Stream && self.message.len() > 1 { Sent::Parts } else { Sent::Whole };
        World::new(sent, self.tcp)
    }

    fn kind(self) -> SockType {
        if self.dialect == Dialect::Stream { SockType::Stream } else { SockType::SeqPacket }
    }
}

/// Every script of at most so many acts that the model allows from a world on, with the world after it.
fn scripts(world: World, acts_max: usize) -> Vec<(Vec<Act>, World)> {
    let mut all = vec![(Vec::new(), world)];
    let mut begin = 0;
    for _ in 0..acts_max {
        let end = all.len();
        for at in begin..end {
            for act in ACTS {
                let (script, world) = &all[at];
                // Saying it twice shows nothing new.
                let again = act == Act::ShutConnection && script.contains(&act);
                if let Some(next) = world.act(act).filter(|_| !again) {
                    all.push((script.iter().copied().chain([act]).collect(), next));
                }
            }
        }
        begin = end;
    }
    all
}

/// A client's far end.
enum Far {
    Tcp(TcpStream),
    Unix(UnixStream),
    Left,
}

impl Far {
    fn pair(tcp: bool) -> (OwnedFd, Self) {
        if !tcp {
            let (near, far) = UnixStream::pair().expect("a pair");
            near.set_nonblocking(true).expect("a socket");
            return (near.into(), Self::Unix(far));
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (near, _) = listener.accept().expect("it has connected");
        near.set_nonblocking(true).expect("a socket");
        (near.into(), Self::Tcp(far))
    }

    fn leave(&mut self) {
        if let Self::Tcp(far) = self {
            setsockopt(far, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).expect("a socket");
        }
        *self = Self::Left;
    }

    /// Everything that came, when nobody holds the other end any more.
    fn heard(self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = match self {
            Self::Tcp(mut far) => {
                far.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
                far.read_to_end(&mut bytes)
            }
            Self::Unix(mut far) => {
                far.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
                far.read_to_end(&mut bytes)
            }
            Self::Left => return None,
        };
        if let Err(error) = read {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "somebody still holds it");
        }
        Some(bytes)
    }
}

/// A daemon that does what a script says, and the client's far end.
struct Stage {
    case: Case,
    listener: Option<UnixListener>,
    connection: Option<UnixStream>,
    client: Option<TcpStream>,
    far: Far,
}

impl Stage {
    fn act(&mut self, act: Act) {
        match act {
            Act::Accept => {
                let (connection, _) = self.listener.as_ref().expect("the model says so").accept().expect("queued");
                self.connection = Some(connection);
            }
            Act::Read => self.read(100),
            Act::ReadPart => self.read(1),
            Act::Write => {
                // It fails where the client is shut down or gone.
                drop(self.client.as_mut().expect("the model says so").write_all(WORD));
            }
            Act::CloseClient => self.client = None,
            Act::CloseConnection => self.connection = None,
            Act::ShutConnection => {
                self.connection.as_ref().expect("the model says so").shutdown(Shutdown::Write).expect("connected");
            }
            Act::Die => (self.listener, self.connection, self.client) = (None, None, None),
            Act::Leave => self.far.leave(),
        }
    }

    fn read(&mut self, bytes_max: usize) {
        let mut bytes = vec![0; bytes_max];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let connection = self.connection.as_ref().expect("the model says so");
        recvmsg(connection, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .unwrap_or_else(|error| panic!("{:?}: {error}", self.case));
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.client = descriptors.map(TcpStream::from).next();
            }
        }
    }

    /// Whoever still can does what would harm most, and ends; what the client has heard by then, if it is there.
    fn do_most_harm(mut self, world: &mut World) -> Option<Vec<u8>> {
        for act in [Act::Accept, Act::Read, Act::Write] {
            if let Some(next) = world.act(act) {
                self.act(act);
                *world = next;
            }
        }
        let Self { far, listener, connection, client, .. } = self;
        drop((listener, connection, client));
        far.heard()
    }
}

fn listening(path: &Path, kind: SockType) -> UnixListener {
    let listener = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    bind(listener.as_raw_fd(), &UnixAddr::new(path).expect("short")).expect("bound");
    listen(&listener, Backlog::new(8).expect("a backlog")).expect("listening");
    listener.into()
}

/// Sends, plays `script` before the gateway can look again, and lets it go on to its verdict.
async fn hand_over(client: OwnedFd, message: &Message, to: &Daemon, script: impl FnOnce()) -> Result<Taken, SendError> {
    let beat = Beat::default();
    let long = Duration::from_secs(20);
    let deadlines = Deadlines { head: long, connect: long, send: long, acknowledge: DEADLINE };
    let mut sending = pin!(baton::handoff::send(client, message, None, to, &deadlines, &beat));
    let first = poll_fn(|context| Poll::Ready(sending.as_mut().poll(context))).await;
    assert!(first.is_pending(), "the message was sent, and nobody has read it: {first:?}");
    script();
    tokio::select! {
        result = sending => result,
        () = beat.run() => unreachable!("it never ends"),
    }
}

/// The gateway ends in the middle: what is left of it is dropped.
async fn crash(client: OwnedFd, message: &Message, to: &Daemon, script: impl FnOnce()) {
    let beat = Beat::default();
    let long = Duration::from_secs(20);
    let deadlines = Deadlines { head: long, connect: long, send: long, acknowledge: long };
    let mut sending = Box::pin(baton::handoff::send(client, message, None, to, &deadlines, &beat));
    let first = poll_fn(|context| Poll::Ready(sending.as_mut().poll(context))).await;
    assert!(first.is_pending(), "{first:?}");
    script();
    drop(sending);
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// What the gateway says in a world where nobody moves any more until it does.
fn verdict(mut world: World, until: impl Fn(Phase) -> bool) -> World {
    while !until(world.phase) {
        world = world.gateway(Without::Nothing)[0];
    }
    world
}

fn is_verdict(phase: Phase) -> bool {
    matches!(phase, Phase::Ended(_) | Phase::Refused | Phase::Unread { .. })
}

/// Plays one case. `late` is what the daemon does between the deadline and the seal; at the end it writes, if it can.
fn play(folder: &Path, case: Case, script: &[Act], world: World, late: &[(Vec<Act>, World)]) -> Vec<End> {
    let wanted = verdict(world, is_verdict);
    let mut ends = Vec::new();
    let tails: &[(Vec<Act>, World)] = if matches!(wanted.phase, Phase::Unread { .. }) { late } else { &late[..1] };
    for (tail, after) in tails {
        let path = folder.join(format!("{:?}", std::thread::current().id()));
        drop(std::fs::remove_file(&path));
        let (client, far) = Far::pair(case.tcp);
        let listener = Some(listening(&path, case.kind()));
        let mut stage = Stage { case, listener, connection: None, client: None, far };
        let to = Daemon::new(Address::new(&path).expect("a path"), case.dialect, Vec::new());
        let message = Message::new(case.message);
        let result = run(hand_over(client, &message, &to, || script.iter().for_each(|act| stage.act(*act))));
        let said = format!("{case:?} {script:?} then {tail:?}: {result:?}");
        let (end, mut world) = match (result, wanted.phase) {
            (Ok(Taken), Phase::Ended(End::Taken)) => (End::Taken, wanted),
            (Err(SendError::Unanswered { .. }), Phase::Ended(End::Unanswered)) => (End::Unanswered, wanted),
            (Err(SendError::Refused { client, .. }), Phase::Refused) => {
                // Untouched: whatever is done with it now is ours to do.
                drop(TcpStream::from(client).write_all(ANSWER));
                (End::AnsweredRefused, verdict(wanted, |phase| matches!(phase, Phase::Ended(_))))
            }
            (Err(SendError::Unread(unread)), Phase::Unread { .. }) => {
                tail.iter().for_each(|act| stage.act(*act));
                let sealed = match unread.seal(ANSWER) {
                    Sealed::Answered => End::Sealed,
                    Sealed::Conflict => End::Conflict,
                    Sealed::ClientGone if wanted.has_left || after.has_left => End::LeftUnwritten,
                    Sealed::LeftUnwritten => End::LeftUnwritten,
                    Sealed::ClientGone | Sealed::Reset => panic!("{said}: the client is there, and was sent no head"),
                };
                let sealing = World { phase: wanted.phase, ..*after };
                (sealed, verdict(sealing, |phase| matches!(phase, Phase::Ended(_))))
            }
            (result, phase) => panic!("{said}, but the model says {phase:?}: {result:?}"),
        };
        // A reset may still be on its way to us: who has left is harmed by neither.
        let is_same =
            world.phase == Phase::Ended(end) || world.has_left && matches!(end, End::Sealed | End::LeftUnwritten);
        assert!(is_same, "{said}: {end:?}, but the model says {:?}", world.phase);
        if let Some(heard) = stage.do_most_harm(&mut world) {
            let mut wanted = Vec::new();
            if world.gateway_wrote {
                wanted.extend_from_slice(ANSWER);
            }
            if world.daemon_wrote {
                wanted.extend_from_slice(WORD);
            }
            assert!(!(world.gateway_wrote && world.daemon_wrote), "{said}: two voices");
            let heard_text = String::from_utf8_lossy(&heard);
            assert!(heard == wanted, "{said}: heard {heard_text:?}, {world:?}");
            // Nobody is lost without a word in the log.
            let explained = [End::Taken, End::Unanswered, End::LeftUnwritten].contains(&end);
            assert!(!heard.is_empty() || explained, "{said}: lost");
        }
        ends.push(end);
    }
    ends
}

/// Every item on one of as many threads as keep the machine busy while deadlines pass.
fn everywhere<T: Sync>(items: &[T], act: impl Fn(&T) + Sync) {
    let next = Mutex::new(items.iter());
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                loop {
                    let Some(item) = next.lock().expect("no panic").next() else { return };
                    act(item);
                }
            });
        }
    });
}

#[test]
fn the_code_says_what_the_model_says_of_every_script() {
    let folder = tempfile::tempdir().expect("a folder");
    for case in CASES {
        let all = scripts(case.world(), SCRIPT_ACTS_MAX[0]);
        let counts = Mutex::new(BTreeMap::<String, usize>::new());
        everywhere(&all, |(script, world)| {
            // What follows a long script was seen after a shorter one.
            let acts_max = if script.len() <= 3 { SCRIPT_ACTS_MAX[1] } else { 0 };
            for end in play(folder.path(), case, script, *world, &scripts(*world, acts_max)) {
                *counts.lock().expect("no panic").entry(format!("{end:?}")).or_default() += 1;
            }
        });
        println!("{case:?}: {} scripts, {:?}", all.len(), counts.into_inner().expect("no panic"));
    }
}

/// The gateway ends at every step: the client is with its daemon, or closed, and never written to by us.
#[test]
fn a_gateway_that_ends_at_any_step_leaves_the_client_to_its_daemon_or_closes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    for case in CASES {
        let all = scripts(case.world(), 4);
        everywhere(&all, |(script, world)| {
            let path = folder.path().join(format!("{:?}", std::thread::current().id()));
            drop(std::fs::remove_file(&path));
            let (client, far) = Far::pair(case.tcp);
            let listener = Some(listening(&path, case.kind()));
            let mut stage = Stage { case, listener, connection: None, client: None, far };
            let to = Daemon::new(Address::new(&path).expect("a path"), case.dialect, Vec::new());
            run(crash(client, &Message::new(case.message), &to, || script.iter().for_each(|act| stage.act(*act))));
            // The message outlives the gateway: who reads it now has the client.
            let mut world = World { phase: Phase::Crashed, ..*world };
            if let Some(heard) = stage.do_most_harm(&mut world) {
                let wanted = if world.daemon_wrote { WORD } else { b"" };
                assert_eq!(heard, wanted, "{case:?} {script:?}");
            }
        });
        println!("{case:?}: {} scripts", all.len());
    }
}

/// The library's own receiving half against its sending half, ended at each of its steps.
#[test]
fn an_acceptor_that_ends_at_any_step_takes_the_client_or_leaves_it() {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Until {
        Bound,
        Taken,
        Written,
    }
    let folder = tempfile::tempdir().expect("a folder");
    for case in CASES.into_iter().filter(|case| case.tcp) {
        for until in [Until::Bound, Until::Taken, Until::Written] {
            let path = folder.path().join("acceptor");
            let (client, far) = Far::pair(true);
            let mut acceptor = Some(Acceptor::bind(&path, case.dialect, Options::default()).expect("bound"));
            let _stop: Stop = acceptor.as_ref().expect("there").stop_handle();
            let to = Daemon::new(Address::new(&path).expect("a path"), case.dialect, Vec::new());
            let message = Message::new(case.message);
            let result = run(hand_over(client, &message, &to, || {
                let Some(mut acceptor) = acceptor.take() else { return };
                // A stream ends with its sender's end, so an acceptor takes it then, or never.
                if until == Until::Bound || case.dialect == Dialect::Stream {
                    return;
                }
                let handoff: Handoff = acceptor.accept().expect("usable").expect("not stopped");
                assert_eq!(handoff.data(), case.message);
                if until == Until::Written {
                    handoff.into_stream().write_all(WORD).expect("the client is there");
                } else {
                    // As a process that is killed leaves it: one that is dropped is answered.
                    drop(handoff.into_client());
                }
            }));
            let is_taken = until != Until::Bound && case.dialect != Dialect::Stream;
            let heard = match result {
                Ok(Taken) => {
                    assert!(is_taken, "{case:?} {until:?}");
                    far.heard()
                }
                Err(SendError::Refused { client, .. }) => {
                    assert!(!is_taken, "{case:?} {until:?}");
                    TcpStream::from(client).write_all(ANSWER).expect("alive");
                    far.heard()
                }
                Err(SendError::Unread(unread)) => {
                    assert!(!is_taken && case.message.len() > 1, "{case:?} {until:?}");
                    assert_eq!(unread.seal(ANSWER), Sealed::Answered);
                    far.heard()
                }
                other => panic!("{case:?} {until:?}: {other:?}"),
            };
            let wanted = match (is_taken, until) {
                (true, Until::Written) => WORD,
                (true, _) => b"",
                (false, _) => ANSWER,
            };
            assert_eq!(heard.expect("it did not leave"), wanted, "{case:?} {until:?}");
        }
    }
}

/// A daemon has the client by the first byte of a longer stream and writes while the client is being sealed: whatever comes
/// of it, the code says so.
#[test]
fn a_daemon_that_writes_during_the_seal_never_goes_unnoticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let case = Case { dialect: Dialect::Stream, message: b"some data", tcp: true };
    let path = folder.path().join("s");
    let mut counts = BTreeMap::<String, usize>::new();
    for round in 0..4000_u32 {
        drop(std::fs::remove_file(&path));
        let (client, far) = Far::pair(true);
        let listener = Some(listening(&path, case.kind()));
        let mut stage = Stage { case, listener, connection: None, client: None, far };
        let to = Daemon::new(Address::new(&path).expect("a path"), case.dialect, Vec::new());
        // Reset in the middle of its message, so that there is no deadline to wait for.
        let result = run(hand_over(client, &Message::new(case.message), &to, || {
            [Act::Accept, Act::ReadPart, Act::CloseConnection].into_iter().for_each(|act| stage.act(act));
        }));
        let Err(SendError::Unread(unread)) = result else { panic!("{result:?}") };
        let mut client = stage.client.take().expect("taken with the first byte");
        let begin = std::sync::Barrier::new(2);
        let sealed = std::thread::scope(|scope| {
            scope.spawn(|| {
                begin.wait();
                (0..round % 200).for_each(|_| std::hint::spin_loop());
                drop(client.write_all(WORD));
            });
            begin.wait();
            unread.seal(ANSWER)
        });
        drop((client, stage.listener));
        let heard = stage.far.heard().expect("it stays");
        let has = |what: &[u8]| heard.windows(what.len()).any(|window| window == what);
        match sealed {
            Sealed::Answered => assert!(heard == ANSWER, "round {round}: {}", String::from_utf8_lossy(&heard)),
            Sealed::LeftUnwritten => assert!(heard == WORD, "round {round}: {}", String::from_utf8_lossy(&heard)),
            Sealed::Conflict => assert!(has(ANSWER) && has(WORD), "{}", String::from_utf8_lossy(&heard)),
            Sealed::ClientGone | Sealed::Reset => panic!("round {round}: the client is there, and was sent no head"),
        }
        *counts.entry(format!("{sealed:?}")).or_default() += 1;
    }
    println!("{counts:?}");
}
