//! Bodies on their way: from memory and from the disk, of files that shrink and grow meanwhile.

use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use baton::upstream::{Fault, Piece};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{PIECE, Site, ask, next, noise, now, whole};

#[test]
fn a_large_file_arrives_as_it_is_from_memory_and_from_the_disk() {
    let site = Site::new();
    let content = noise(10_000_000);
    let path = site.put("large", &content);
    let file = File::open(&path).unwrap();
    file.sync_all().unwrap();
    assert!(site.get("/large", &[]).1 == content);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    assert!(site.get("/large", &[]).1 == content);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let range = [("range", "bytes=5000001-9999998")];
    assert!(site.get("/large", &range).1 == content[5_000_001..9_999_999]);
}

#[test]
fn the_length_counts_down_and_a_body_that_is_dropped_is_closed() {
    let site = Site::new();
    site.put("a", noise(5 * PIECE));
    let mut answer = site.ask("GET", "/a", &[]).unwrap();
    for left in (0..5).rev() {
        assert_eq!(site.open_files(), 1);
        let Some(Ok(Piece::Data(piece))) = now(next(&mut answer.body)) else { panic!("no piece") };
        assert_eq!((piece.len(), answer.body.length()), (PIECE, Some((left * PIECE) as u64)));
    }
    assert_eq!(now(next(&mut answer.body)), None);
    assert_eq!(now(next(&mut answer.body)), None);
    drop(answer);
    drop(site.ask("GET", "/a", &[]).unwrap());
    assert_eq!(site.open_files(), 0);
}

#[test]
fn a_file_that_shrinks_is_cut_and_never_filled_up() {
    let site = Site::new();
    let content = noise(20 * PIECE);
    for left in [0, 1, PIECE, PIECE + 1, 20 * PIECE - 1] {
        let path = site.put("a", &content);
        now(async {
            let mut answer = ask(&site.files, "GET", "/a", &[]).await.unwrap();
            let Some(Ok(Piece::Data(first))) = next(&mut answer.body).await else { panic!("no piece") };
            File::options().write(true).open(&path).unwrap().set_len(left as u64).unwrap();
            let (rest, fault) = whole(answer.body).await.unwrap_err();
            let served = [&first[..], &rest].concat();
            assert!(served == content[..PIECE.max(left)], "{left}");
            assert!(matches!(&fault, Fault::Broken(why) if why.contains("missing")), "{fault}");
        });
    }
    assert_eq!(site.open_files(), 0);
}

#[test]
fn a_cut_stays_one_however_often_it_is_asked_for_more() {
    let site = Site::new();
    let path = site.put("a", noise(2 * PIECE));
    now(async {
        let mut answer = ask(&site.files, "GET", "/a", &[]).await.unwrap();
        next(&mut answer.body).await.unwrap().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        for _ in 0..3 {
            assert!(matches!(next(&mut answer.body).await, Some(Err(Fault::Broken(_)))));
        }
    });
}

#[test]
fn a_file_that_grows_is_served_as_long_as_it_was() {
    let site = Site::new();
    let content = noise(2 * PIECE + 1);
    let path = site.put("a", &content);
    now(async {
        let answer = ask(&site.files, "GET", "/a", &[]).await.unwrap();
        File::options().append(true).open(&path).unwrap().write_all(&content).unwrap();
        assert!(whole(answer.body).await.unwrap() == content);
    });
}

/// A client that takes whatever comes at once leaves a turn to others.
#[test]
fn a_file_in_memory_does_not_keep_a_worker_to_itself() {
    let site = Site::new();
    let content = noise(64 << 20);
    site.put("a", &content);
    let (turns, done) = (AtomicU64::new(0), AtomicBool::new(false));
    now(async {
        let read = async {
            let answer = ask(&site.files, "GET", "/a", &[]).await.unwrap();
            let length = whole(answer.body).await.unwrap().len();
            done.store(true, Ordering::Relaxed);
            length
        };
        let others = async {
            while !done.load(Ordering::Relaxed) {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        };
        assert_eq!(tokio::join!(read, others).0, content.len());
    });
    assert!(turns.into_inner() >= 3);
}
