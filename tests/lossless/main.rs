//! Nothing is lost: daemons in several languages behind one target are killed, stopped, ended and replaced, and refuse by
//! chance, while the gateway reloads its configuration; each client gets exactly one answer of exactly one party, byte by
//! byte, or an end that its line in the access log explains. At random moments all processes are made to stand still, and it
//! is looked at who has whose socket.
//!
//! 20 s; `BATON_LOAD_S` is how many it shall be instead.
#![cfg(feature = "gateway")]
#![allow(unreachable_pub, reason = "nothing of a program can be reached")]

mod chance;
mod client;
mod holders;
mod ledger;
mod members;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chance::Chance;
use client::{Asked, Got};
use holders::Seen;
use members::{C, Deed, Language, Member, PHP, PYTHON, RUST};
use support::{Gateway, eventually};

/// Clients at a time.
const CLIENTS: usize = 32;

/// What a run is like.
struct Weather {
    /// Between two deeds at a daemon.
    calm_ms: (u64, u64),
    deeds: &'static [Deed],
    /// How long a daemon stands still, or is missing.
    pause_ms: (u64, u64),
    ack_timeout: &'static str,
    /// After how long a daemon takes a client that is to be taken late.
    late_ms: (u64, u64),
    refused_percent: u32,
}

/// What a run has shown.
struct Run {
    asked: Vec<Asked>,
    faults: Vec<String>,
    deeds: BTreeMap<Deed, usize>,
    seen: Seen,
    reloads: usize,
    gateway: Gateway,
}

fn seconds() -> Duration {
    Duration::from_secs(std::env::var("BATON_LOAD_S").ok().and_then(|s| s.parse().ok()).unwrap_or(20))
}

fn configuration(weather: &Weather, count: usize, variant: usize) -> String {
    let mut order: Vec<_> = (0..count).map(|n| format!("\"DIR/{n}.sock\"")).collect();
    order.rotate_left(variant % count);
    let balance = ["least-in-flight", "round-robin", "random-two"][variant % 3];
    format!(
        "[gateway]\nworkers = 2\nLISTEN\n[handoff]\nack_timeout = \"{}\"\n\
         [target.chat]\nsockets = [{}]\ndialect = \"baton\"\nbalance = \"{balance}\"\n\
         [[route]]\npath = \"/\"\ndefault = {{ handoff = \"chat\" }}\n",
        weather.ack_timeout,
        order.join(", ")
    )
}

fn run(weather: &Weather, languages: &[Language], time: Duration) -> Run {
    let gateway = Gateway::start(&configuration(weather, languages.len(), 0));
    let start = |(n, language): (usize, &Language)| {
        Member::start(*language, gateway.path(&format!("{n}.sock")), weather.refused_percent)
    };
    let members: Vec<_> = languages.iter().enumerate().map(start).collect();
    let (asked, faults) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let deeds = Mutex::new(BTreeMap::new());
    let (clients_end, others_end) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut seen = Seen::default();
    let mut reloads = 0;
    std::thread::scope(|scope| {
        let play = || {
            let mut chance = Chance::new();
            while !clients_end.load(Ordering::Relaxed) {
                match client::live(gateway.address(), weather.late_ms, &mut chance) {
                    Ok(own) => asked.lock().expect("no panic").extend(own),
                    Err(fault) => faults.lock().expect("no panic").push(fault),
                }
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(play)).collect();
        for member in &members {
            let (others_end, deeds) = (&others_end, &deeds);
            scope.spawn(move || {
                let mut chance = Chance::new();
                let pause = |chance: &mut Chance, (from, to)| chance.milliseconds(from, to);
                while !others_end.load(Ordering::Relaxed) {
                    std::thread::park_timeout(pause(&mut chance, weather.calm_ms));
                    let deed = chance.one_of(weather.deeds);
                    let time = pause(&mut chance, weather.pause_ms);
                    member.suffer(deed, time, &mut chance);
                    *deeds.lock().expect("no panic").entry(deed).or_default() += 1;
                }
            });
        }
        let (begun, mut chance) = (Instant::now(), Chance::new());
        while begun.elapsed() < time {
            std::thread::park_timeout(chance.milliseconds(100, 500));
            if chance.percent(40) {
                reloads += 1;
                gateway.reload(&configuration(weather, languages.len(), reloads));
            }
            seen.look(&gateway, &members);
        }
        clients_end.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("no panic"));
        others_end.store(true, Ordering::Relaxed);
    });
    members.iter().for_each(Member::end);
    let (asked, faults) = (asked.into_inner().expect("no panic"), faults.into_inner().expect("no panic"));
    Run { asked, faults, deeds: deeds.into_inner().expect("no panic"), seen, reloads, gateway }
}

/// Judges a run, and prints its figures. `may_cut`: whether a client may have lost its daemon.
#[track_caller]
fn judge(what: &str, mut run: Run, may_cut: bool) {
    let lines = eventually("all lines of the access log", || {
        let count = run.gateway.log().len();
        std::thread::park_timeout(Duration::from_millis(200));
        Some(run.gateway.log()).filter(|lines| lines.len() == count)
    });
    let balance = ledger::balance(&run.asked, &lines, may_cut);
    println!("{what}: {} requests, {} reloads, {:?}", run.asked.len(), run.reloads, run.deeds);
    println!("  {:#?}", balance.kinds);
    println!("  of daemons: {:?}", balance.daemons);
    println!("  stood still: {:?}", run.seen);
    run.faults.extend(balance.faults);
    let said = run.gateway.stderr.all();
    for word in ["panicked", "lines lost"] {
        run.faults.extend(said.iter().filter(|line| line.contains(word)).cloned());
    }
    // A daemon that says TAKEN in the microseconds between the gateway's last look and its 503 cannot be held back: where
    // it happens it is said, and it is rare even where everybody is late.
    let both = run.asked.iter().filter(|one| one.got == Got::Both).count();
    let sealed = run.asked.iter().filter(|one| matches!(one.got, Got::Unavailable { .. })).count();
    let conflicts = said.iter().filter(|line| line.contains("conflict")).count();
    println!("  two voices: {both} beside {sealed} answers of the gateway's, {conflicts} called so");
    if both > conflicts || both > 1 + sealed / 200 {
        run.faults.push(format!("{both} clients had two voices, of which the log calls {conflicts} so"));
    }
    let ended: Vec<_> = said.iter().filter(|line| line.contains("the channel was ended")).collect();
    println!("  channels ended by the gateway: {}, {:?}", ended.len(), ended.first());
    for fault in run.faults.iter().take(10) {
        eprintln!("{fault}");
    }
    assert!(run.faults.is_empty(), "{what}: {} faults", run.faults.len());
    assert!(run.seen.looks > 0, "nobody ever stood still: {:?}", run.seen);
    assert!(run.seen.two_daemons_stay.is_empty(), "{:?}", run.seen);
}

/// Daemons that end as they should, stand still for a moment and say no: nobody notices.
#[test]
fn daemons_that_drain_stand_still_and_refuse_lose_nobody() {
    let weather = Weather {
        calm_ms: (100, 600),
        deeds: &[Deed::Stop, Deed::Replace, Deed::Replace, Deed::Restart],
        pause_ms: (5, 300),
        ack_timeout: "15s",
        late_ms: (0, 50),
        refused_percent: 15,
    };
    let run = run(&weather, &[RUST, PYTHON, C, PHP, RUST, C], seconds() / 2);
    judge("in calm weather", run, false);
}

/// Daemons that are killed in the middle of anything, and stand still for longer than anybody waits.
#[test]
fn daemons_that_are_killed_and_hang_leave_one_answer_or_an_end_that_is_explained() {
    let weather = Weather {
        calm_ms: (50, 500),
        deeds: &[Deed::Kill, Deed::Kill, Deed::Stop, Deed::Stop, Deed::Replace, Deed::Restart],
        pause_ms: (5, 1000),
        ack_timeout: "300ms",
        late_ms: (0, 400),
        refused_percent: 10,
    };
    let run = run(&weather, &[RUST, PYTHON, C, PHP, RUST, C], seconds() / 2);
    judge("in a storm", run, true);
}
