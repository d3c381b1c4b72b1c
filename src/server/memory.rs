//! The one budget of all memory: what each part may take, why, and whether the machine has it.
//!
//! This file owns the split. Every part that grows with settings, connections or the folder's size
//! has a function here; what is in none of them is small and constant, and in `fixed`. It
//! is asked before anything starts, refuses in one line that names a flag, and enforces nothing:
//! pools, tiers and permits are made from its figures by those who own them.

use crate::http::limits::{
    CONNECTIONS_MAX, DELETE_BYTES_MAX, DELETES_MAX, LIST_BYTES_MAX, LISTS_MAX, connection_bytes_max,
};
use crate::size::Amount;
use forebay_io::memory::MemoryLimit;
use forebay_io::net::TLS_CORE_BYTES_MAX;
use forebay_io::rt::IO_MEMORY_BYTES;
use forebay_io::uplink::FETCH_BYTES_MAX;
use forebay_shards::absent::ABSENCES_BYTES_MAX;
use forebay_shards::heads::HEADS_BYTES_MAX;
use forebay_shards::messages::Message;
use forebay_shards::names::NAMES_BYTES_MAX;
use forebay_shards::parts::PARTS_BYTES_MAX;
use forebay_shards::ram::hot::{WINDOW_BLOCK_BYTES, WINDOW_BLOCKS_MAX};
use forebay_shards::router::MESH_CAPACITY;
use std::fmt;

const MIB: u64 = 1 << 20;

/// Most of the memory that all parts together may take, in percent. The rest is for the kernel:
/// socket buffers, the page cache of logs and binaries, and everything else on the machine.
const USABLE_PERCENT: u64 = 90;

/// Block buffers per core for what is on its way between disk, store and clients: sixteen of the
/// largest blocks and more of others. More connections than that share by waiting.
const IN_FLIGHT_BYTES_PER_CORE_MAX: u64 = 256 * MIB;

/// The least of them: two of the largest blocks in each direction.
const IN_FLIGHT_BYTES_PER_CORE_MIN: u64 = 64 * MIB;

/// Share of the memory that block buffers in flight take where that is less than their most: a
/// small machine must not be refused for traffic that it cannot carry.
const IN_FLIGHT_SHARE: u64 = 8;

/// Share of the memory that connections take at their worst where that is less than
/// [`CONNECTIONS_MAX`] would.
const CONNECTIONS_SHARE: u64 = 8;

/// The fewest connections that each core takes, whatever they cost.
const CONNECTIONS_PER_CORE_MIN: usize = 64;

/// Memory of the index for each block: the bound that the engine keeps.
pub const INDEX_BYTES_PER_BLOCK: u64 = 100;

/// What an upload holds outside block buffers: the client's write buffer and TLS records.
const UPLOAD_BYTES_MAX: u64 = MIB / 4;

/// The program itself, the main thread, the watchdog, and what the allocator keeps at hand.
const PROCESS_BYTES: u64 = 48 * MIB;

/// A core's threads beside its executor's own memory: stacks, rings, TLS sessions, counters; and
/// the shards' housekeeping: a record that moves, two footers.
const CORE_BYTES: u64 = 24 * MIB;

/// What the split depends on.
#[derive(Clone, Debug)]
pub struct MemoryNeeds {
    /// What there is.
    pub limit: MemoryLimit,
    /// Cores that serve.
    pub cores: usize,
    /// `--memCapacity`.
    pub mem_capacity: Amount,
    /// `--dbMemCapacity`.
    pub db_mem_capacity: Amount,
    /// Fetches, and uploads, in flight per core.
    pub operations_per_core: usize,
    /// `--diskQuota`, resolved.
    pub quota_bytes: u64,
    /// The smallest block size of any volume.
    pub block_bytes_min: u64,
    /// Whether connections are encrypted.
    pub tls: bool,
}

/// A part's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// What it is for, as `status` names it.
    pub name: &'static str,
    /// The most bytes that it takes.
    pub bytes: u64,
    /// The flag that makes it smaller.
    pub flag: Option<&'static str>,
}

/// The split.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// What there is, and who says so.
    pub limit: MemoryLimit,
    /// Every part.
    pub shares: Vec<Share>,
    /// Budget of each core's RAM tier, bytes.
    pub ram_bytes_per_core: usize,
    /// Budget of the pool of block buffers that all cores share, RAM tiers included, bytes.
    pub pool_bytes: usize,
    /// Connections that each core takes.
    pub connections_per_core: usize,
}

/// The parts do not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct MemoryShort {
    needed_bytes: u64,
    usable_bytes: u64,
    limit: MemoryLimit,
    advice: String,
}

impl fmt::Display for MemoryShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (needed, usable) = (mib(self.needed_bytes), mib(self.usable_bytes));
        let total = mib(self.limit.bytes);
        write!(
            f,
            "memory: {needed} MiB are needed and {usable} MiB, {USABLE_PERCENT} % of "
        )?;
        match &self.limit.control_group {
            None => write!(f, "the machine's {total} MiB")?,
            Some(file) => write!(f, "the {total} MiB that {} allows", file.display())?,
        }
        write!(f, ", may be used; {}", self.advice)
    }
}

/// Whole MiB, rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(MIB)
}

/// Splits the memory, or says which flag would make it fit.
///
/// # Errors
/// When the parts together exceed what may be used.
pub fn plan(needs: &MemoryNeeds) -> Result<MemoryPlan, MemoryShort> {
    let connections_per_core = connections_per_core(needs);
    let (ram, in_flight) = (ram_tier(needs), in_flight(needs));
    let shares = [
        ("ram_tier", ram, Some("--memCapacity")),
        ("buffers_in_flight", in_flight, Some("--shards")),
        ("index", index(needs), Some("--diskQuota")),
        ("ledger", ledger(needs), Some("--dbMemCapacity")),
        (
            "connections",
            connections(needs, connections_per_core),
            Some("--shards"),
        ),
        ("store_transfers", store_transfers(needs), Some("--maxBops")),
        ("heads", heads(needs), Some("--shards")),
        ("lists", lists(needs), Some("--shards")),
        ("messages", messages(needs), Some("--shards")),
        ("fixed", fixed(needs), Some("--shards")),
    ]
    .map(|(name, bytes, flag)| Share { name, bytes, flag });
    check(&shares, &needs.limit, needs.cores)?;
    Ok(MemoryPlan {
        limit: needs.limit.clone(),
        shares: shares.to_vec(),
        ram_bytes_per_core: ram as usize / needs.cores,
        pool_bytes: (ram + in_flight) as usize,
        connections_per_core,
    })
}

impl MemoryPlan {
    /// The split in one line, for the log.
    pub fn summary(&self) -> String {
        let shares = self.shares.iter();
        let parts: Vec<String> = shares
            .map(|share| format!("{} {} MiB", share.name, mib(share.bytes)))
            .collect();
        let needed: u64 = self.shares.iter().map(|share| share.bytes).sum();
        let (needed, total) = (mib(needed), mib(self.limit.bytes));
        format!(
            "memory: at most {needed} of {total} MiB: {}",
            parts.join(", ")
        )
    }
}

/// Refuses a sum that does not fit. The advice is the first flag that alone would make it fit.
fn check(shares: &[Share], limit: &MemoryLimit, cores: usize) -> Result<(), MemoryShort> {
    let needed_bytes: u64 = shares
        .iter()
        .fold(0, |sum: u64, share| sum.saturating_add(share.bytes));
    let usable_bytes = usable(limit);
    let Some(excess) = needed_bytes
        .checked_sub(usable_bytes)
        .filter(|bytes| *bytes > 0)
    else {
        return Ok(());
    };
    // In the order in which an operator would rather give something up.
    let order = ["--memCapacity", "--dbMemCapacity", "--maxBops", "--shards"];
    let may_lower = |flag: &&&str| cores > 1 || **flag != "--shards";
    let lowest = order.iter().filter(may_lower).find_map(|flag| {
        // Each core makes its own requests to stores.
        let also = (*flag == "--shards").then_some("--maxBops");
        let of_flag = shares
            .iter()
            .filter(|share| share.flag == Some(flag) || also.is_some() && share.flag == also);
        let bytes: u64 = of_flag.map(|share| share.bytes).sum();
        let rest = bytes.checked_sub(excess).filter(|rest| *rest > 0)?;
        Some((*flag, rest))
    });
    let advice = match lowest {
        Some((flag @ ("--memCapacity" | "--dbMemCapacity"), bytes)) => {
            format!("lower {flag} to {}M or less", bytes / MIB)
        }
        Some((flag, _)) => format!("lower {flag}"),
        None => {
            let index = shares.iter().find(|share| share.name == "index");
            match index.filter(|index| index.bytes > excess) {
                Some(_) => "lower --diskQuota or give volumes larger blocks".to_owned(),
                None => "give it more memory".to_owned(),
            }
        }
    };
    Err(MemoryShort {
        needed_bytes,
        usable_bytes,
        limit: limit.clone(),
        advice,
    })
}

fn usable(limit: &MemoryLimit) -> u64 {
    limit.bytes / 100 * USABLE_PERCENT
}

/// Hot blocks: as asked.
fn ram_tier(needs: &MemoryNeeds) -> u64 {
    needs.mem_capacity.resolve(needs.limit.bytes)
}

/// Block buffers on their way. One pool for all cores: a buffer that one core's connection filled
/// may end in another's RAM tier.
fn in_flight(needs: &MemoryNeeds) -> u64 {
    let cores = needs.cores as u64;
    (needs.limit.bytes / IN_FLIGHT_SHARE).clamp(
        cores * IN_FLIGHT_BYTES_PER_CORE_MIN,
        cores * IN_FLIGHT_BYTES_PER_CORE_MAX,
    )
}

/// The index of a full folder whose blocks are whole. Many small objects make it larger: then
/// `status` shows more blocks than the quota holds of the volumes' size.
fn index(needs: &MemoryNeeds) -> u64 {
    needs.quota_bytes / needs.block_bytes_min.max(1) * INDEX_BYTES_PER_BLOCK
}

/// The ledger's cache: as asked.
pub fn ledger(needs: &MemoryNeeds) -> u64 {
    needs.db_mem_capacity.resolve(needs.limit.bytes)
}

/// Connections that each core may have open: as many as their share of memory holds at their
/// worst.
fn connections_per_core(needs: &MemoryNeeds) -> usize {
    let share = needs.limit.bytes / CONNECTIONS_SHARE / needs.cores as u64;
    let count = share / connection_bytes_max(needs.tls) as u64;
    (count as usize).clamp(CONNECTIONS_PER_CORE_MIN, CONNECTIONS_MAX)
}

/// All of those connections, each at its worst, and what a few of them may have encrypted ahead.
fn connections(needs: &MemoryNeeds, per_core: usize) -> u64 {
    let tls_bytes = if needs.tls { TLS_CORE_BYTES_MAX } else { 0 };
    (needs.cores * (per_core * connection_bytes_max(needs.tls) + tls_bytes)) as u64
}

/// Requests to stores: what a body has in flight before it reaches a block buffer.
fn store_transfers(needs: &MemoryNeeds) -> u64 {
    let operations = (needs.cores * needs.operations_per_core) as u64;
    operations * (FETCH_BYTES_MAX as u64 + UPLOAD_BYTES_MAX)
}

/// What each core remembers of objects, and of their parts.
fn heads(needs: &MemoryNeeds) -> u64 {
    (needs.cores * (HEADS_BYTES_MAX + PARTS_BYTES_MAX + ABSENCES_BYTES_MAX)) as u64
}

/// The names that each core keeps of what is dirty, and the documents that it makes and takes.
fn lists(needs: &MemoryNeeds) -> u64 {
    let documents = LISTS_MAX * LIST_BYTES_MAX + DELETES_MAX * DELETE_BYTES_MAX;
    (needs.cores * (NAMES_BYTES_MAX + documents)) as u64
}

/// The queues between each two cores, which are allocated whole.
fn messages(needs: &MemoryNeeds) -> u64 {
    // An `ArrayQueue` adds a stamp to each place.
    let place = size_of::<Message>() + size_of::<usize>();
    (needs.cores * needs.cores * MESH_CAPACITY * place) as u64
}

/// What does not grow: code, threads, executors, the RAM tiers' memory of what was read.
fn fixed(needs: &MemoryNeeds) -> u64 {
    let window = (WINDOW_BLOCKS_MAX * WINDOW_BLOCK_BYTES) as u64;
    PROCESS_BYTES + needs.cores as u64 * (CORE_BYTES + IO_MEMORY_BYTES as u64 + window)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn needs(total: u64) -> MemoryNeeds {
        MemoryNeeds {
            limit: MemoryLimit {
                bytes: total,
                control_group: None,
            },
            cores: 2,
            mem_capacity: Amount::Percent(10.0),
            db_mem_capacity: Amount::Percent(10.0),
            operations_per_core: 32,
            quota_bytes: 1 << 40,
            block_bytes_min: 4 << 20,
            tls: true,
        }
    }

    fn refusal(needs: &MemoryNeeds) -> String {
        let text = plan(needs).expect_err("does not fit").to_string();
        assert!(!text.contains('\n'));
        text
    }

    #[test]
    fn the_defaults_fit_machines_of_every_size() {
        for (gib, cores) in [(2, 1), (4, 2), (24, 2), (64, 16), (512, 64)] {
            let needs = MemoryNeeds {
                cores,
                ..needs(gib << 30)
            };
            let plan = plan(&needs).unwrap_or_else(|error| panic!("{gib} GiB: {error}"));
            let sum: u64 = plan.shares.iter().map(|share| share.bytes).sum();
            assert!(sum <= (gib << 30) / 10 * 9, "{gib} GiB");
            assert!(plan.ram_bytes_per_core * cores < plan.pool_bytes);
            assert!(plan.connections_per_core * cores >= 256, "{gib} GiB");
            assert!(plan.summary().contains("ram_tier"));
        }
    }

    #[test]
    fn a_thousand_connections_are_taken_by_a_machine_of_four_gib() {
        let plan = plan(&needs(4 << 30)).expect("fits");
        assert!(plan.connections_per_core * 2 >= 1000, "{plan:?}");
    }

    #[test]
    fn what_does_not_fit_names_the_flag_to_lower_and_the_value_that_fits() {
        let greedy = MemoryNeeds {
            mem_capacity: Amount::Bytes(15 << 30),
            ..needs(16 << 30)
        };
        let text = refusal(&greedy);
        assert!(text.contains("the machine's 16384 MiB"), "{text}");
        let (_, advice) = text.split_once("lower --memCapacity to ").expect("advice");
        let mebibytes: u64 = advice
            .split_once('M')
            .and_then(|(number, _)| number.parse().ok())
            .expect("a size");
        let fitting = MemoryNeeds {
            mem_capacity: Amount::Bytes(mebibytes << 20),
            ..greedy
        };
        plan(&fitting).expect("the advice is right");
        let ledger = MemoryNeeds {
            db_mem_capacity: Amount::Percent(95.0),
            ..needs(16 << 30)
        };
        assert!(refusal(&ledger).contains("lower --dbMemCapacity to "));
        let busy = MemoryNeeds {
            operations_per_core: 65_536,
            ..needs(16 << 30)
        };
        assert!(refusal(&busy).contains("lower --maxBops"));
        let crowded = MemoryNeeds {
            cores: 400,
            ..needs(16 << 30)
        };
        assert!(refusal(&crowded).contains("lower --shards"));
        let vast = MemoryNeeds {
            quota_bytes: 1 << 50,
            block_bytes_min: 256 << 10,
            ..needs(16 << 30)
        };
        assert!(refusal(&vast).contains("lower --diskQuota"));
    }

    #[test]
    fn a_control_group_is_named_where_it_is_the_limit() {
        let confined = MemoryNeeds {
            limit: MemoryLimit {
                bytes: 128 << 20,
                control_group: Some(PathBuf::from("/sys/fs/cgroup/memory.max")),
            },
            ..needs(0)
        };
        let text = refusal(&confined);
        assert!(
            text.contains("128 MiB that /sys/fs/cgroup/memory.max allows"),
            "{text}"
        );
    }
}
