//! Notices that files change, however they are changed: written in place, renamed over, swapped behind symbolic links
//! as Kubernetes does with `..data`, or together with the folder that they are in.
//!
//! A watch on the file itself would be lost with the first rename. Watched are the folders in which something on the way
//! to the file can be replaced; an event only means "look again", and a poll does the same where events do not arrive
//! (network file systems, exhausted watches). A change counts once it has settled: two equal looks in a row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time;

/// How often files are looked at without being told to.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Between two looks that must be equal before a change counts.
const SETTLE_INTERVAL: Duration = Duration::from_millis(100);
/// Events come in bursts; this much of one is answered by one look.
const BURST: Duration = Duration::from_millis(10);
/// As many symbolic links as the kernel follows (path_resolution(7)).
const LINK_COUNT_MAX: usize = 40;

/// Watches a set of files.
#[derive(Debug)]
pub struct Watcher {
    look_again: Arc<Notify>,
    /// None where the kernel has no watches left: then only the poll finds changes.
    events: Option<RecommendedWatcher>,
    /// Watched folders, and which they were when the watch was set.
    folders: BTreeMap<PathBuf, Option<Inode>>,
    /// Watched files, as they were when they were last reported.
    files: BTreeMap<PathBuf, Option<Look>>,
}

/// Device and inode.
type Inode = (u64, u64);

/// What a file looks like from outside. `ctime` cannot be set, so that a change that keeps size and `mtime` is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    inode: Inode,
    bytes: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Watcher {
    /// Watches `paths`, which are absolute, from now on: what was read before may be older.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let look_again = Arc::new(Notify::new());
        let notify = Arc::clone(&look_again);
        let events = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_only_reading(event.kind)) {
                return;
            }
            notify.notify_one();
        });
        if let Err(error) = &events {
            tracing::warn!("files are looked at every {POLL_INTERVAL:?} only: {error}");
        }
        let (folders, files) = (BTreeMap::new(), BTreeMap::new());
        let mut watcher = Self { look_again, events: events.ok(), folders, files };
        watcher.watch(paths);
        watcher
    }

    /// Watches `paths` and nothing else. What was watched already is still compared with what was reported of it.
    pub fn watch(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        let mut before = std::mem::take(&mut self.files);
        let keep = |path: PathBuf| {
            let seen = before.remove(&path).unwrap_or_else(|| look(&path));
            (path, seen)
        };
        // Two policies may have one module: the second of them would be looked at anew, and a change forgotten.
        let paths: BTreeSet<PathBuf> = paths.into_iter().collect();
        self.files = paths.into_iter().map(keep).collect();
        self.watch_folders();
    }

    /// Takes every file as it is now for reported: whoever calls this reads all of them behind it.
    pub fn report_all(&mut self) {
        self.files = self.looks();
    }

    /// Waits until files have changed and settled, and says which. A file that vanished has changed too.
    ///
    /// # Cancel safety
    /// Safe to drop: a change counts as reported only when it is returned.
    pub async fn changed(&mut self) -> Vec<PathBuf> {
        let mut before = self.looks();
        loop {
            // The way to a file may have changed with it.
            self.watch_folders();
            if before.iter().eq(self.files.iter()) {
                tokio::select! {
                    () = self.look_again.notified() => time::sleep(BURST).await,
                    () = time::sleep(POLL_INTERVAL) => {}
                }
                before = self.looks();
                if before.iter().eq(self.files.iter()) {
                    continue;
                }
            }
            time::sleep(SETTLE_INTERVAL).await;
            let now = self.looks();
            let settled = |path: &&PathBuf| now[*path] == before[*path] && now[*path] != self.files[*path];
            let changed: Vec<PathBuf> = now.keys().filter(settled).cloned().collect();
            if !changed.is_empty() {
                self.files.extend(changed.iter().map(|path| (path.clone(), now[path])));
                return changed;
            }
            before = now;
        }
    }

    fn looks(&self) -> BTreeMap<PathBuf, Option<Look>> {
        self.files.keys().map(|path| (path.clone(), look(path))).collect()
    }

    /// Sets watches on all folders on the way to the files, and again on those that have been replaced.
    fn watch_folders(&mut self) {
        let Some(events) = &mut self.events else { return };
        let wanted: BTreeSet<PathBuf> = self.files.keys().flat_map(|path| folders(path)).collect();
        self.folders.retain(|folder, _| {
            let keep = wanted.contains(folder);
            if !keep {
                // Fails where the folder is gone, and its watch with it.
                drop(events.unwatch(folder));
            }
            keep
        });
        for folder in wanted {
            let now = inode(&folder);
            if self.folders.get(&folder).copied().flatten() == now && now.is_some() {
                continue;
            }
            drop(events.unwatch(&folder));
            // One that cannot be watched is tried again at the next look, which the poll brings.
            let watched = events.watch(&folder, RecursiveMode::NonRecursive).is_ok();
            self.folders.insert(folder, now.filter(|_| watched));
        }
    }
}

/// Our own reading is an event too.
fn is_only_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

fn look(path: &Path) -> Option<Look> {
    let found = fs::metadata(path).ok()?;
    Some(Look {
        inode: (found.dev(), found.ino()),
        bytes: found.len(),
        mtime: (found.mtime(), found.mtime_nsec()),
        ctime: (found.ctime(), found.ctime_nsec()),
    })
}

fn inode(path: &Path) -> Option<Inode> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// The folders in which something can be replaced so that `path` leads to another file: those that hold a symbolic link
/// on the way, the one that holds the file, and the one that holds that folder.
fn folders(path: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut rest: VecDeque<OsString> = steps(path).collect();
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(step) = rest.pop_front() {
        if step == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&step);
        match fs::read_link(&next) {
            Ok(target) if links < LINK_COUNT_MAX => {
                links += 1;
                folders.insert(at.clone());
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for step in steps(&target).collect::<Vec<_>>().into_iter().rev() {
                    rest.push_front(step);
                }
            }
            _ => at = next,
        }
    }
    if let Some(parent) = at.parent() {
        folders.insert(parent.to_owned());
        folders.extend(parent.parent().map(Path::to_owned));
    }
    folders
}

fn steps(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    async fn changes(watcher: &mut Watcher, path: &Path) {
        let changed = time::timeout(Duration::from_secs(5), watcher.changed()).await;
        assert_eq!(changed.expect("events bring it long before the poll does"), [path]);
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
    }

    #[test]
    fn a_file_is_seen_to_change_in_place_and_by_rename_again_and_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.wasm");
        fs::write(&file, "0").expect("written");
        let mut watcher = Watcher::new([file.clone()]);
        runtime().block_on(async {
            for n in 1..4 {
                fs::write(&file, n.to_string()).expect("written");
                changes(&mut watcher, &file).await;
                let new = folder.path().join("new");
                fs::write(&new, n.to_string()).expect("written");
                fs::rename(&new, &file).expect("renamed");
                changes(&mut watcher, &file).await;
            }
            fs::remove_file(&file).expect("removed");
            changes(&mut watcher, &file).await;
            fs::write(&file, "back").expect("written");
            changes(&mut watcher, &file).await;
        });
    }

    #[test]
    fn a_change_is_not_forgotten_when_two_watch_one_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.wasm");
        fs::write(&file, "0").expect("written");
        let twice = || [file.clone(), file.clone()];
        let mut watcher = Watcher::new(twice());
        fs::write(&file, "another").expect("written");
        watcher.watch(twice());
        runtime().block_on(changes(&mut watcher, &file));
    }

    #[test]
    fn links_can_be_swapped_anywhere_on_the_way() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let version = |n: u32| {
            fs::create_dir(root.join(format!("..v{n}"))).expect("created");
            fs::write(root.join(format!("..v{n}/p.wasm")), n.to_string()).expect("written");
            symlink(format!("..v{n}"), root.join("..new")).expect("linked");
            fs::rename(root.join("..new"), root.join("..data")).expect("swapped");
        };
        version(1);
        let file = root.join("p.wasm");
        symlink("..data/p.wasm", &file).expect("linked");
        let mut watcher = Watcher::new([file.clone()]);
        runtime().block_on(async {
            for n in 2..5 {
                version(n);
                fs::remove_dir_all(root.join(format!("..v{}", n - 1))).expect("removed");
                changes(&mut watcher, &file).await;
            }
            fs::write(root.join("..v4/p.wasm"), "in place behind the links").expect("written");
            changes(&mut watcher, &file).await;
        });
    }

    #[test]
    fn a_folder_can_be_replaced_with_everything_in_it() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("policies");
        let file = folder.join("p.wasm");
        fs::create_dir(&folder).expect("created");
        fs::write(&file, "0").expect("written");
        let mut watcher = Watcher::new([file.clone()]);
        runtime().block_on(async {
            for n in 1..3 {
                let new = root.path().join("new");
                fs::create_dir(&new).expect("created");
                fs::write(new.join("p.wasm"), n.to_string()).expect("written");
                fs::rename(&folder, root.path().join(format!("old{n}"))).expect("moved away");
                fs::rename(&new, &folder).expect("moved in");
                changes(&mut watcher, &file).await;
            }
            fs::write(&file, "in place in the new folder").expect("written");
            changes(&mut watcher, &file).await;
        });
    }

    #[test]
    fn only_what_changed_is_reported_and_only_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = ["a", "b"].map(|name| folder.path().join(name));
        for file in &files {
            fs::write(file, "0").expect("written");
        }
        let mut watcher = Watcher::new(files.clone());
        runtime().block_on(async {
            fs::write(&files[1], "1").expect("written");
            changes(&mut watcher, &files[1]).await;
            time::timeout(Duration::from_millis(300), watcher.changed()).await.expect_err("nothing else changed");
            watcher.watch([files[0].clone()]);
            fs::write(&files[1], "2").expect("written");
            fs::write(&files[0], "1").expect("written");
            changes(&mut watcher, &files[0]).await;
        });
    }
}
