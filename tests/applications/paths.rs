//! A path that an application names is looked at and used as one thing: what stands there is changed while clients are
//! handed over, and none gets out (A5, CHECKS 12).

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::application::Application;
use super::support::{Daemon, folder};
use super::{behind, get, hands_over, start};

/// Puts a link to `to` where something is, in one step.
fn swap_link(to: &Path, at: &Path) {
    let new = at.with_extension("new");
    symlink(to, &new).expect("a free name");
    std::fs::rename(new, at).expect("renamed");
}

/// The socket itself, and the folder in which it is, become links that lead out, and what they were, in turns.
#[test]
fn nobody_is_handed_over_outside_while_the_path_is_swapped() {
    let (inside, outside) = (folder(), folder());
    std::fs::create_dir(inside.path().join("sub")).expect("a folder");
    let good = Daemon::start(&inside.path().join("sub/good.sock"), "seqpacket", "serve", &["name=inside"]);
    let evil = Daemon::start(&outside.path().join("d.sock"), "seqpacket", "serve", &["name=outside"]);
    std::fs::create_dir(inside.path().join("real")).expect("a folder");
    for place in ["real/d.sock", "d.sock"] {
        std::fs::hard_link(inside.path().join("sub/good.sock"), inside.path().join(place)).expect("a second name");
    }
    let application = Application::start({
        let inside = inside.path().to_owned();
        move |asked| hands_over(&inside.join(&asked.target()[1..]), "", "")
    });
    let (root, out) = (inside.path().to_owned(), outside.path().to_owned());
    let gateway = start(inside, &behind(&application, ""));
    let ends = Arc::new(AtomicBool::new(false));
    let swapping = std::thread::spawn({
        let (ends, root) = (Arc::clone(&ends), root.clone());
        move || {
            let mut swaps = 0_u64;
            while !ends.load(Ordering::Relaxed) {
                swap_link(&out.join("d.sock"), &root.join("d.sock"));
                swap_link(&out, &root.join("way"));
                std::fs::hard_link(root.join("sub/good.sock"), root.join("again")).expect("a second name");
                std::fs::rename(root.join("again"), root.join("d.sock")).expect("renamed");
                // A folder cannot take a link's place in one step: for a moment nothing is there.
                std::fs::remove_file(root.join("way")).expect("ours");
                std::fs::rename(root.join("real"), root.join("way")).expect("renamed");
                std::fs::rename(root.join("way"), root.join("real")).expect("renamed");
                swaps += 1;
            }
            swaps
        }
    });
    let mut seen = [0_u32; 3];
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end || seen.contains(&0) {
        assert!(Instant::now() < end + super::support::patience(), "one of the three never came: {seen:?}");
        for path in ["/d.sock", "/way/d.sock"] {
            let answer = gateway.ask(&get(path).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
            let kind = match () {
                () if answer.ends_with("from inside\n") => 0,
                () if answer.starts_with("HTTP/1.1 403 ") => 1,
                () if answer.starts_with("HTTP/1.1 503 ") => 2,
                () => panic!("{answer}"),
            };
            seen[kind] += 1;
        }
    }
    ends.store(true, Ordering::Relaxed);
    let swaps = swapping.join().expect("no panic");
    assert!(swaps > 100, "{swaps}");
    assert!(evil.events("accepted").is_empty(), "{seen:?}");
    assert_eq!(good.events("got").len(), seen[0] as usize);
}
