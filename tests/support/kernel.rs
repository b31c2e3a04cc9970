//! What the kernel tells about processes and sockets that are not ours.

use std::net::SocketAddr;
use std::path::Path;

use super::{Client, eventually};

/// The row of `/proc/net/tcp` about the other end of a client's connection, in its columns.
fn row_of_the_other_end(client: &Client) -> Option<Vec<String>> {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let own = port(client.stream.local_addr().expect("a socket"));
    let peer = port(client.stream.peer_addr().expect("a socket"));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    // The table can be long: thousands of connections wait out their time in it.
    table.lines().filter(|line| line.contains(&own) && line.contains(&peer)).find_map(|line| {
        let columns: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let is_it = columns.len() > 9 && columns[1].ends_with(&peer) && columns[2].ends_with(&own);
        // One that nobody holds any more has the inode 0.
        (is_it && columns[9] != "0").then_some(columns)
    })
}

/// The inode of the gateway's, or a daemon's, end of a client's connection.
#[track_caller]
pub fn inode_of(client: &Client) -> u64 {
    eventually("the other end's inode", || row_of_the_other_end(client)?[9].parse().ok())
}

/// What has come to the gateway's end of a connection and was not read by anybody.
pub fn unread_at_the_gateway(client: &Client) -> Option<u64> {
    let row = row_of_the_other_end(client)?;
    let (_, unread) = row[4].split_once(':')?;
    u64::from_str_radix(unread, 16).ok()
}

/// Whether a process has the socket with that inode open.
pub fn holds(pid: u32, inode: u64) -> bool {
    let name = format!("socket:[{inode}]");
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == Path::new(&name)))
}

/// Whether every thread of a process waits: it has done what it had to do for now.
pub fn is_asleep(pid: u32) -> bool {
    are_all(pid, 'S')
}

/// Whether every thread of a process is in that state (proc_pid_stat(5)).
pub fn are_all(pid: u32, state: char) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, behind)| behind.starts_with(state))
    })
}

/// Connections to a Unix socket that nobody has accepted yet (`/proc/net/unix`).
pub fn waiting_at(socket: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/net/unix").expect("Linux");
    let path = socket.to_str().expect("text");
    // State 02: connecting or queued. An accepted connection is 03 like any other.
    let waits = |line: &&str| line.ends_with(path) && line.split_whitespace().nth(5) == Some("02");
    table.lines().filter(waits).count()
}
