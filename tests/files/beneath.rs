//! What cannot be had by any path, link or race, and what can.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use baton::files::Folder;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo, setfsuid};

use super::{Site, ask, now, says, whole};

#[test]
fn hidden_files_and_names_that_nobody_means_are_not_there() {
    let site = Site::new();
    for name in
        [".env", ".git/config", "a/.htaccess", "a/b", "a\\b", ".well-known/security.txt", ".well-known/.x", "%2e"]
    {
        site.put(name, name);
    }
    for target in ["/.env", "/%2Eenv", "/.git/config", "/a/.htaccess", "/.well-known/.x", "/.git/", "/a%2Fb", "/a/b%00"]
    {
        site.refuses(target, 404);
    }
    for target in ["/a/../a/b", "/../www/a/b", "/%2e%2e/www/a/b", "/./a/b", "//a/b", "/a/b/", "/a/b%0A", "/%zz"] {
        site.refuses(target, 404);
    }
    site.refuses(&format!("/{}", "x".repeat(256)), 404);
    site.refuses(&"/x".repeat(4000), 404);
    assert_eq!(site.get("/.well-known/security.txt", &[]).1, b".well-known/security.txt");
    assert_eq!(site.get("/a%5Cb", &[]).1, b"a\\b");
    // Decoded once.
    assert_eq!(site.get("/%252e", &[]).1, b"%2e");
}

#[test]
fn links_are_followed_below_the_folder_only() {
    let site = Site::new();
    site.put("a/real.txt", "real");
    fs::write(site.around.path().join("secret"), "secret").unwrap();
    for (to, name) in [
        ("a/real.txt", "within.txt"),
        ("../a", "a/loopless"),
        ("a", "folder"),
        ("../secret", "out"),
        ("a/../../secret", "around"),
        ("..", "above"),
        ("/etc/passwd", "absolute"),
        ("/proc/self/root/etc/passwd", "magic"),
        ("loop", "loop"),
        ("nowhere", "dangling"),
        ("/dev/zero", "zero"),
    ] {
        symlink(to, site.path(name)).unwrap();
    }
    symlink(site.path("a/real.txt"), site.path("full")).unwrap();
    for target in ["/within.txt", "/folder/real.txt", "/a/loopless/real.txt"] {
        assert_eq!(site.get(target, &[]).1, b"real", "{target}");
    }
    assert_eq!(says(&site.refuses("/folder", 301), "location"), "/folder/");
    for target in ["/out", "/around", "/above/secret", "/above", "/absolute", "/magic", "/loop", "/zero", "/full"] {
        let refusal = site.refuses(target, 404);
        assert!(refusal.error.unwrap().contains("link"), "{target}");
    }
    assert_eq!(site.refuses("/dangling", 404).error, None);
    assert_eq!(site.open_files(), 0);
}

#[test]
fn what_is_no_file_is_neither_served_nor_waited_for() {
    let site = Site::new();
    mkfifo(&site.path("pipe"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let _listener = UnixListener::bind(site.path("socket")).unwrap();
    for target in ["/pipe", "/socket", "/pipe/", "/socket/"] {
        site.refuses(target, 404);
    }
    assert_eq!(site.open_files(), 0);
}

#[test]
fn a_file_that_may_not_be_read_is_forbidden() {
    let site = Site::new();
    let file = site.put("a", "x");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(site.around.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Root may read anything: a thread of another user (setfsuid(2)) may not.
    let files = site.files.clone();
    let asked = std::thread::spawn(move || {
        setfsuid(Uid::from_raw(65534));
        now(ask(&files, "GET", "/a", &[])).unwrap_err()
    });
    let refusal = asked.join().unwrap();
    assert_eq!(refusal.status, 403, "{refusal:?}");
    assert!(refusal.error.unwrap().contains("ermission"));
}

#[test]
fn a_folder_that_is_gone_is_our_fault_until_it_is_back() {
    let site = Site::new();
    site.put("a", "x");
    let away = site.around.path().join("away");
    fs::rename(site.path(""), &away).unwrap();
    let refusal = site.refuses("/a", 503);
    assert!(refusal.error.unwrap().contains("/www: "));
    fs::rename(&away, site.path("")).unwrap();
    assert_eq!(site.get("/a", &[]).1, b"x");
}

/// While one thread swaps what stands at two names, `ask` is asked again and again.
fn while_swapping(one: PathBuf, other: PathBuf, mut ask: impl FnMut()) {
    let stop = Arc::new(AtomicBool::new(false));
    let swaps = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
                count += 1;
            }
            count
        }
    });
    for _ in 0..20_000 {
        ask();
    }
    stop.store(true, Ordering::Relaxed);
    let swaps: u32 = swaps.join().unwrap();
    assert!(swaps > 100, "{swaps}");
}

#[test]
fn swapping_links_at_full_speed_shows_nothing_of_what_is_outside() {
    let site = Site::new();
    site.put("file", "inside");
    site.put("folder/file", "inside");
    let outside = site.around.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "outside").unwrap();
    symlink("../outside/file", site.path("file-out")).unwrap();
    symlink("../outside", site.path("folder-out")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (name, target) in [("file", "/file"), ("folder", "/folder/file")] {
        let (mut shown, mut refused) = (0, 0);
        while_swapping(site.path(name), site.path(&format!("{name}-out")), || {
            runtime.block_on(async {
                match ask(&site.files, "GET", target, &[]).await {
                    Ok(answer) => {
                        assert_eq!(whole(answer.body).await.unwrap(), b"inside");
                        shown += 1;
                    }
                    Err(refusal) => {
                        assert_eq!(refusal.status, 404, "{refusal:?}");
                        refused += 1;
                    }
                }
            });
        });
        // Both were met, or nothing was shown.
        assert!(shown > 0 && refused > 0, "{name}: {shown} shown, {refused} refused");
        println!("{name}: {shown} shown, {refused} refused");
    }
    assert_eq!(site.open_files(), 0);
}

#[test]
fn a_deployment_that_swaps_the_folder_loses_no_request() {
    let site = Site::new();
    for (release, content) in [("r1", "one"), ("r2", "two, longer")] {
        site.put(&format!("{release}/a/index.html"), content);
    }
    symlink("r1", site.path("current")).unwrap();
    symlink("r2", site.path("next")).unwrap();
    let files = Folder::new(site.path("current"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut seen = [0, 0];
    while_swapping(site.path("current"), site.path("next"), || {
        runtime.block_on(async {
            let answer = ask(&files, "GET", "/a/", &[]).await.unwrap();
            let length = answer.body.length();
            let content = whole(answer.body).await.unwrap();
            assert_eq!(length, Some(content.len() as u64));
            match &content[..] {
                b"one" => seen[0] += 1,
                b"two, longer" => seen[1] += 1,
                other => panic!("{other:?}"),
            }
        });
    });
    assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
    assert_eq!(site.open_files(), 0);
}
