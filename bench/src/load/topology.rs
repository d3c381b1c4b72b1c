//! Which core owns what: owns a Forebay's map of cores as clients see it, and who of the connections sends what, so that a
//! request meets the core that it is meant for. Knows nothing of the server but `GET /-/topology` and `x-forebay-core`.
//!
//! All cores listen on one port, and the kernel deals connections to them. So a connection asks on which core it has landed,
//! and whoever wants another one tries again. Only the home of an object, its block 0, is looked at.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, PoisonError};

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::load::plan::CoreChoice;
use crate::load::response::Head;
use crate::load::target::Target;
use crate::load::wire::Wire;

/// Longest topology that is taken: 100,000 shards at 10 bytes a line.
const TOPOLOGY_BYTES_MAX: usize = 1 << 20;

/// Connections that are opened for each core to find one that lands there: a miss of all is less likely than one in 10^27.
const TRIES_PER_CORE: usize = 64;

/// Most requests that wait for a connection to their core in a run without a count; then others wait for those connections.
const WAITING_MAX: usize = 1024;

/// What `GET /-/topology` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Topology {
    pub(super) cores: usize,
    shards: usize,
    hash: String,
    shard_to_core: Vec<usize>,
    /// The core that answered, on which the connection stays.
    #[serde(default)]
    pub(super) core: Option<usize>,
}

impl Topology {
    /// The core that owns the object of `name`, which is `volume/key`.
    fn owner(&self, name: &str) -> usize {
        let hash = xxh3_128_with_seed(name.as_bytes(), 0);
        self.shard_to_core[(hash % self.shards as u128) as usize]
    }

    fn checked(self) -> Result<Self, String> {
        let whole = self.hash == "xxh3-128"
            && self.cores > 0
            && self.shards > 0
            && self.shard_to_core.len() == self.shards
            && self.shard_to_core.iter().all(|core| *core < self.cores)
            && self.core.is_none_or(|core| core < self.cores);
        if whole {
            Ok(self)
        } else {
            Err("/-/topology is not in the form that this program knows".into())
        }
    }
}

/// Asks over `wire`, which no request is under way on.
pub(super) async fn ask(wire: &mut Wire, target: &Target) -> io::Result<Topology> {
    let request = format!("GET /-/topology HTTP/1.1\r\nHost: {}\r\n\r\n", target.host);
    wire.send(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let wrong = |why: &str| io::Error::other(format!("/-/topology: {why}"));
    loop {
        wire.receive(|bytes| answer.extend_from_slice(bytes))
            .await?;
        if answer.len() > TOPOLOGY_BYTES_MAX {
            return Err(wrong("too long"));
        }
        let Some(head) = Head::parse(&answer).map_err(|why| wrong(&why))? else {
            continue;
        };
        if head.status != 200 {
            return Err(wrong(&format!("status {}", head.status)));
        }
        if (answer.len() - head.bytes) as u64 >= head.declared {
            let parsed: Topology = serde_json::from_slice(&answer[head.bytes..])
                .map_err(|error| wrong(&error.to_string()))?;
            return parsed.checked().map_err(io::Error::other);
        }
    }
}

/// Who sends what, for all threads.
#[derive(Debug)]
pub(super) struct Dispatcher {
    topology: Topology,
    choice: CoreChoice,
    /// What the names of objects begin with: the volume, and what of the key stands in the target.
    prefix: String,
    /// Numbers of objects that wait for a connection to the core.
    waiting: Vec<Mutex<VecDeque<u64>>>,
    waiting_max: usize,
}

impl Dispatcher {
    /// `counted`: each object is asked for, however many wait.
    pub(super) fn new(
        topology: Topology,
        choice: CoreChoice,
        target: &Target,
        counted: bool,
    ) -> Result<Self, String> {
        if topology.core.is_none() {
            return Err("/-/topology does not say which core answers: the server is too old for a choice of cores".into());
        }
        if choice == CoreChoice::Wrong && topology.cores < 2 {
            return Err("the server has one core: none is wrong".into());
        }
        let path = percent_decode_str(target.path.trim_start_matches('/'));
        Ok(Self {
            waiting: (0..topology.cores).map(|_| Mutex::default()).collect(),
            prefix: path.decode_utf8_lossy().into_owned(),
            waiting_max: if counted { usize::MAX } else { WAITING_MAX },
            topology,
            choice,
        })
    }

    /// The core that connection `number` is to be on; `None` if any will do.
    pub(super) fn wanted_core(&self, number: usize) -> Option<usize> {
        (self.choice != CoreChoice::Any).then_some(number % self.topology.cores)
    }

    /// Connections that are tried for a wanted core.
    pub(super) fn tries(&self) -> usize {
        TRIES_PER_CORE * self.topology.cores
    }

    /// The core whose connections send a request for `key`; `None` if any may.
    pub(super) fn sender(&self, key: &str) -> Option<usize> {
        let owner = self.topology.owner(&format!("{}{key}", self.prefix));
        match self.choice {
            CoreChoice::Owner => Some(owner),
            CoreChoice::Wrong => Some((owner + 1) % self.topology.cores),
            CoreChoice::Any => None,
        }
    }

    /// The next object that waits for `core`.
    pub(super) fn take(&self, core: usize) -> Option<u64> {
        let mut waiting = self.waiting[core]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front()
    }

    /// Leaves an object to the connections of `core`; false if too many wait already.
    pub(super) fn leave(&self, core: usize, number: u64) -> bool {
        let mut waiting = self.waiting[core]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let has_room = waiting.len() < self.waiting_max;
        if has_room {
            waiting.push_back(number);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(cores: usize) -> Topology {
        let map: Vec<usize> = (0..16).map(|shard| shard % cores).collect();
        let text = serde_json::json!({
            "version": 1, "cores": cores, "shards": 16, "hash": "xxh3-128", "shard_to_core": map, "core": 0,
        });
        serde_json::from_value::<Topology>(text)
            .unwrap()
            .checked()
            .unwrap()
    }

    #[test]
    fn owners_are_those_of_the_server() {
        // XXH3-128 of "demo/a/b" ends in 0x...dc98, as a test of the server's says: shard 8 of 16.
        assert_eq!(topology(3).owner("demo/a/b"), 2);
        assert_eq!(topology(5).owner("demo/a/b"), 3);
    }

    #[test]
    fn requests_go_to_the_owner_or_past_it() {
        let target = Target {
            text: String::new(),
            address: ([127, 0, 0, 1], 1).into(),
            host: String::new(),
            path: "/demo/a/".into(),
            tls: None,
        };
        let new = |choice, cores| Dispatcher::new(topology(cores), choice, &target, false);
        assert_eq!(new(CoreChoice::Owner, 3).unwrap().sender("b"), Some(2));
        assert_eq!(new(CoreChoice::Wrong, 3).unwrap().sender("b"), Some(0));
        assert_eq!(new(CoreChoice::Any, 3).unwrap().sender("b"), None);
        assert!(new(CoreChoice::Wrong, 1).is_err());
        let dispatcher = new(CoreChoice::Owner, 3).unwrap();
        assert!((0..WAITING_MAX as u64).all(|number| dispatcher.leave(1, number)));
        assert!(!dispatcher.leave(1, 7) && dispatcher.leave(2, 7));
        assert_eq!((dispatcher.take(1), dispatcher.take(0)), (Some(0), None));
    }

    #[test]
    fn a_map_that_makes_no_sense_is_refused() {
        let odd = Topology {
            cores: 1,
            ..topology(3)
        };
        assert!(odd.checked().is_err());
    }
}
