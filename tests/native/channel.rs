//! Channels: opened when they are needed, kept, and what stays of them.

use std::fs;

use baton::handoff::native::frame::Frame;
use nix::sys::signal::Signal;

use crate::support::native::{Script, report};
use crate::support::{Client, Gateway, eventually, folder};
use crate::{admin, start, toml};

fn get(gateway: &Gateway, path: &str) -> Client {
    let mut client = gateway.client();
    client.get(path);
    client
}

#[test]
fn nobody_is_connected_to_before_somebody_is_handed_over() {
    let (gateway, scripts) = start(1, "");
    assert_eq!(gateway.status("/answer"), 200);
    assert!(!scripts[0].has_somebody());
    let mut client = get(&gateway, "/");
    let channel = &mut scripts[0].accept(10);
    let lent = channel.lent();
    channel.serve(lent, "ok", false);
    assert_eq!(client.answer().body, "ok");
    let mut client = get(&gateway, "/");
    let lent = channel.lent();
    assert_eq!(lent.id, 2, "over the same channel");
    channel.serve(lent, "ok", false);
    assert_eq!(client.answer().body, "ok");
    assert!(!scripts[0].has_somebody());
}

#[test]
fn several_frames_in_a_packet_are_as_good_as_several_packets() {
    let (gateway, scripts) = start(1, "");
    let mut clients = [get(&gateway, "/0"), get(&gateway, "/1")];
    let channel = &mut scripts[0].accept(10);
    let lent = [channel.lent(), channel.lent()];
    let ids = [lent[0].id, lent[1].id];
    let frames = [Frame::Taken { id: ids[0] }, Frame::Taken { id: ids[1] }, Frame::Ping(b"x".to_vec())];
    channel.send_with(&frames, &[]).expect("sent");
    assert_eq!(channel.frame().0, Frame::Pong(b"x".to_vec()));
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    lent.iter().for_each(|lent| lent.write(answer));
    let unread = Vec::new;
    let frames = ids.map(|id| Frame::Return { id, report: report(200, 40), unread: unread() });
    use std::os::fd::AsFd as _;
    channel.send_with(&frames, &[lent[0].client.as_fd(), lent[1].client.as_fd()]).expect("sent");
    drop(lent);
    for client in &mut clients {
        assert_eq!(client.answer().body, "ok");
        client.get("/answer");
        assert_eq!(client.answer().body, "answer");
    }
}

#[test]
fn a_ping_is_answered_at_once_whoever_reads_it() {
    let (gateway, scripts) = start(1, "");
    let mut client = get(&gateway, "/");
    let channel = &mut scripts[0].accept(10);
    for n in 0..200 {
        let lent = channel.lent();
        let began = std::time::Instant::now();
        channel.send_with(&[Frame::Taken { id: lent.id }, Frame::Ping(vec![n])], &[]).expect("sent");
        assert_eq!(channel.frame().0, Frame::Pong(vec![n]));
        assert!(began.elapsed() < std::time::Duration::from_secs(3), "{n}: {:?}", began.elapsed());
        lent.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        channel.give_back(&lent, report(200, 40), b"");
        assert_eq!(client.answer().body, "ok");
        client.get("/");
    }
}

#[test]
fn a_reload_keeps_the_channels_of_daemons_that_stay_and_lets_the_others_finish() {
    let (gateway, scripts) = start(2, "balance = \"round-robin\"");
    let mut clients = [get(&gateway, "/0"), get(&gateway, "/1")];
    let mut channels = [scripts[0].accept(10), scripts[1].accept(10)];
    let lent = channels.each_mut().map(|channel| {
        let lent = channel.lent();
        channel.take(&lent);
        lent
    });
    let before = gateway.reload(&toml(1, "balance = \"least-in-flight\""));
    gateway.stderr.wait(before, &["configuration", "reloaded"]);
    let mut client = get(&gateway, "/new");
    let new = channels[0].lent();
    channels[0].serve(new, "same channel", false);
    assert_eq!(client.answer().body, "same channel");
    for ((channel, lent), client) in channels.iter_mut().zip(lent).zip(&mut clients) {
        lent.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        channel.done(lent, report(200, 40));
        assert_eq!(client.answer().body, "ok");
    }
    let log = eventually("three lines", || Some(gateway.log()).filter(|log| log.len() == 3));
    assert!(log.iter().all(|line| line["status"] == 200), "{log:#?}");
    assert!(channels[1].has_ended(), "it has nothing to do any more");
}

#[test]
fn streams_survive_the_gateways_kill_and_its_successor_opens_channels_of_its_own() {
    let folder = folder();
    let script = Script::listen(&folder.path().join("0.sock"));
    let mut gateway = Gateway::start_in(folder, &toml(1, ""), |command| command);
    let mut client = get(&gateway, "/");
    let mut channel = script.accept(10);
    let lent = channel.lent();
    channel.take(&lent);
    lent.write("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none ");
    let mut untaken = get(&gateway, "/untaken");
    let other = channel.lent();
    gateway.signal(Signal::SIGKILL);
    gateway.wait();
    assert!(channel.has_ended());
    // Nobody takes it any more: whoever keeps the page lets go of it.
    drop(other);
    assert_eq!(untaken.rest(), "");
    lent.write("two");
    drop(lent);
    assert!(client.rest().ends_with("\r\n\r\none two"));
    let next =
        Gateway::start(&toml(1, "").replace("\"DIR/0.sock\"", &format!("\"{}\"", gateway.path("0.sock").display())));
    let mut client = get(&next, "/");
    let mut channel = script.accept(10);
    let lent = channel.lent();
    channel.serve(lent, "next", false);
    assert_eq!(client.answer().body, "next");
}

#[test]
fn the_operator_sees_the_daemons() {
    let (gateway, scripts) = start(1, "");
    let targets = || {
        let (status, body) = admin(&gateway.path("admin.sock"), "GET", "/targets");
        assert_eq!(status, 200);
        serde_json::from_str::<serde_json::Value>(&body).expect("JSON")["targets"][0].clone()
    };
    assert_eq!((&targets()["up"], &targets()["channels"]), (&true.into(), &0.into()));
    let mut client = get(&gateway, "/");
    let channel = &mut scripts[0].accept(10);
    let lent = channel.lent();
    let now = targets();
    assert_eq!((&now["target"], &now["member"], &now["in_flight"]), (&"chat".into(), &"chat/0".into(), &1.into()));
    channel.serve(lent, "ok", false);
    assert_eq!(client.answer().body, "ok");
    let now = eventually("it is counted", || Some(targets()).filter(|now| now["in_flight"] == 0));
    assert_eq!((&now["taken"], &now["refused"], &now["channels"]), (&1.into(), &0.into(), &1.into()));
    fs::remove_file(gateway.path("0.sock")).expect("it is there");
    channel.send(&Frame::Draining);
    eventually("it is seen", || (targets()["up"] == false).then_some(()));
}
