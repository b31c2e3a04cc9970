//! Who has whose socket, at moments when everybody stands still.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use crate::members::{Member, Still};
use crate::support::Gateway;

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub looks: usize,
    /// Looks that came to nothing, because somebody did not come to stand still in time.
    restless: usize,
    /// Sockets of clients that the gateway alone has.
    gateways: usize,
    /// That one daemon alone has.
    daemons: usize,
    /// That are lent, or on their way back: the gateway and one daemon.
    lent: usize,
    /// One daemon has given the client back, and another has it already: the first lets go of it at once.
    two_daemons: usize,
    /// Two daemons that both had it still when they had had time to let go.
    pub two_daemons_stay: Vec<String>,
}

impl Seen {
    pub fn look(&mut self, gateway: &Gateway, members: &[Member]) {
        let mut suspects = self.look_once(gateway, members);
        // Given time, whoever has given a client back has closed its copy.
        let begun = Instant::now();
        while !suspects.is_empty() && begun.elapsed().as_secs() < 3 {
            std::thread::park_timeout(std::time::Duration::from_millis(50));
            let looks = self.looks;
            let again = self.look_once(gateway, members);
            if self.looks > looks {
                suspects.retain(|inode, holders| again.get(inode).is_some_and(|now| now.is_superset(holders)));
            }
        }
        self.two_daemons_stay.extend(suspects.iter().map(|(inode, holders)| format!("{inode} of {holders:?}")));
    }

    /// Sockets of clients that two daemons have.
    fn look_once(&mut self, gateway: &Gateway, members: &[Member]) -> BTreeMap<u64, BTreeSet<u32>> {
        let Some(still) = Still::stand(gateway.child.id(), members) else {
            self.restless += 1;
            return BTreeMap::new();
        };
        let clients = clients(gateway.address().port());
        let mut holders: BTreeMap<u64, BTreeSet<(usize, u32)>> = BTreeMap::new();
        for (daemon, pid) in &still.processes {
            for inode in sockets(*pid).into_iter().filter(|inode| clients.contains(inode)) {
                holders.entry(inode).or_default().insert((*daemon, *pid));
            }
        }
        drop(still);
        self.looks += 1;
        let mut two = BTreeMap::new();
        for (inode, of) in holders {
            let has_gateway = of.iter().any(|(daemon, _)| *daemon == 0);
            // A daemon of several processes is one.
            let daemons: BTreeSet<_> = of.iter().map(|(daemon, _)| *daemon).filter(|daemon| *daemon > 0).collect();
            match (has_gateway, daemons.len()) {
                (true, 0) => self.gateways += 1,
                (false, 1) => self.daemons += 1,
                (true, 1) => self.lent += 1,
                _ => {
                    self.two_daemons += 1;
                    two.insert(inode, of.iter().filter(|(daemon, _)| *daemon > 0).map(|(_, pid)| *pid).collect());
                }
            }
        }
        two
    }
}

/// Sockets that a process has open.
fn sockets(pid: u32) -> BTreeSet<u64> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let inode = |to: std::path::PathBuf| to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    open.filter_map(|fd| fs::read_link(fd.path()).ok().and_then(inode)).collect()
}

/// The inodes of this end of connections to a port (`/proc/net/tcp`).
fn clients(port: u16) -> BTreeSet<u64> {
    let table = fs::read_to_string("/proc/net/tcp").expect("Linux");
    let own = format!(":{port:04X}");
    let inode = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let is_listener = columns.get(3) == Some(&"0A");
        (columns.get(1)?.ends_with(&own) && !is_listener).then(|| columns.get(9)?.parse().ok())?
    };
    table.lines().filter_map(inode).filter(|inode| *inode != 0).collect()
}
