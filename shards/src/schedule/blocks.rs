//! What is kept of each dirty block, by slot. It owns the memory, never the order or the policy.
//!
//! Memory per block: 48 bytes here, 20 in the map at 7/16 to 7/8 load and one byte of control, and
//! a few in each of the two lists ([`super::order`]) that name it: about 110 at the worst moment.
//! Only a block that failed costs more, for it has something to tell.

use super::{Age, Held};
use crate::index::Uniform;
use crate::key::BlockHash;
use forebay_io::runtime::MonoTime;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Entries that are allocated together, so that growing copies nothing: 192 KiB.
const SLAB_ENTRIES: usize = 4096;

/// Bytes of a failure's message that are kept: enough for a store's code and sentence, and bounded
/// since a store may answer anything.
const MESSAGE_BYTES_MAX: usize = 256;

/// Where a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In its store's lane of those that have not failed.
    Fresh,
    /// In its store's lane of those that failed together with the store.
    Again,
    /// In its store's lane of those that failed by themselves, waiting or due.
    Blamed,
    /// This content is being uploaded.
    Uploading,
    /// Older content is being uploaded; this waits for that to end.
    Behind,
    /// Not to be uploaded until somebody says so.
    Held(Held),
}

/// A dirty block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Which.
    pub block: BlockHash,
    /// Its place in the order.
    pub age: Age,
    /// Payload length; a block is shorter than 4 GiB.
    pub bytes: u32,
    /// Number of its store.
    pub store: u32,
    /// Uploads of this content that failed, of whatever cause.
    pub attempts: u32,
    /// Where it stands.
    pub place: Place,
}

const _: () = assert!(size_of::<Entry>() == 48);

/// What is known of a block that failed.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    /// The last error.
    pub message: Box<str>,
    /// Failures that were its own, in a row. It is in the blamed lane while there are any.
    pub own_failures: u32,
    /// When it may be tried again; of a block in the blamed lane.
    pub due: MonoTime,
    /// Failures with its store although others succeeded in between.
    pub suspicion: u32,
    /// How many uploads of its store had succeeded when it last failed with the store.
    pub successes_seen: Option<u64>,
}

impl Trouble {
    pub fn new(message: &str) -> Trouble {
        let mut trouble = Trouble {
            message: Box::default(),
            own_failures: 0,
            due: MonoTime(0),
            suspicion: 0,
            successes_seen: None,
        };
        trouble.tell(message);
        trouble
    }

    /// Keeps what can be kept of a message.
    pub fn tell(&mut self, message: &str) {
        let mut end = message.len().min(MESSAGE_BYTES_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        self.message = message[..end].into();
    }
}

/// A block's hash without the alignment of a 16-byte number, which would cost 12 bytes per block.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Name([u32; 4]);

impl Name {
    fn of(block: BlockHash) -> Name {
        let part = |shift: u32| (block.0 >> shift) as u32;
        Name([part(0), part(32), part(64), part(96)])
    }

    fn block(&self) -> BlockHash {
        let part = |at: usize| u128::from(self.0[at]) << (32 * at);
        BlockHash(part(0) | part(1) | part(2) | part(3))
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let [_, _, low, high] = self.0;
        hasher.write_u128(u128::from(high) << 96 | u128::from(low) << 64);
    }
}

/// All dirty blocks of a core.
#[derive(Default)]
pub(super) struct Blocks {
    slabs: Vec<Vec<Entry>>,
    free: Vec<u32>,
    slots: HashMap<Name, u32, BuildHasherDefault<Uniform>>,
    /// By slot.
    troubles: BTreeMap<u32, Trouble>,
}

impl Blocks {
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// All blocks, in no order.
    pub fn hashes(&self) -> impl Iterator<Item = BlockHash> {
        self.slots.keys().map(|name| name.block())
    }

    pub fn find(&self, block: BlockHash) -> Option<u32> {
        self.slots.get(&Name::of(block)).copied()
    }

    pub fn get(&self, slot: u32) -> &Entry {
        &self.slabs[slot as usize / SLAB_ENTRIES][slot as usize % SLAB_ENTRIES]
    }

    pub fn get_mut(&mut self, slot: u32) -> &mut Entry {
        &mut self.slabs[slot as usize / SLAB_ENTRIES][slot as usize % SLAB_ENTRIES]
    }

    /// Takes in a block that is not here.
    pub fn insert(&mut self, entry: Entry) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| self.grow(entry));
        *self.get_mut(slot) = entry;
        let former = self.slots.insert(Name::of(entry.block), slot);
        assert!(former.is_none(), "a dirty block has one entry");
        slot
    }

    fn grow(&mut self, entry: Entry) -> u32 {
        if self.slabs.last().is_none_or(|s| s.len() == SLAB_ENTRIES) {
            self.slabs.push(Vec::with_capacity(SLAB_ENTRIES));
        }
        let slabs_full = self.slabs.len() - 1;
        let slab = &mut self.slabs[slabs_full];
        slab.push(entry);
        u32::try_from(slabs_full * SLAB_ENTRIES + slab.len() - 1)
            .expect("4 billion dirty blocks do not fit into memory")
    }

    /// Forgets a block. The memory of a backlog is given back when the last one goes.
    pub fn remove(&mut self, slot: u32) {
        let block = self.get(slot).block;
        self.slots.remove(&Name::of(block));
        self.troubles.remove(&slot);
        self.free.push(slot);
        if self.slots.is_empty() && self.slabs.len() > 1 {
            *self = Blocks::default();
        }
    }

    pub fn trouble(&self, slot: u32) -> Option<&Trouble> {
        self.troubles.get(&slot)
    }

    pub fn trouble_mut(&mut self, slot: u32) -> Option<&mut Trouble> {
        self.troubles.get_mut(&slot)
    }

    /// Notes an error of a block.
    pub fn tell(&mut self, slot: u32, message: &str) -> &mut Trouble {
        let trouble = self.troubles.entry(slot);
        let trouble = trouble.or_insert_with(|| Trouble::new(message));
        trouble.tell(message);
        trouble
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u128) -> Entry {
        Entry {
            block: BlockHash(number << 64),
            age: Age {
                acked_unix_ms: 1,
                sequence: number as u64,
            },
            bytes: 1,
            store: 0,
            attempts: 0,
            place: Place::Fresh,
        }
    }

    #[test]
    fn slots_are_used_again_and_the_memory_of_a_backlog_is_given_back() {
        let mut blocks = Blocks::default();
        let slots: Vec<u32> = (0..10_000).map(|n| blocks.insert(entry(n))).collect();
        assert_eq!(blocks.find(BlockHash(7 << 64)), Some(slots[7]));
        blocks.remove(slots[7]);
        assert_eq!(blocks.find(BlockHash(7 << 64)), None);
        assert_eq!(blocks.insert(entry(20_000)), slots[7]);
        assert_eq!(blocks.slabs.len(), 3);
        for slot in slots {
            blocks.remove(slot);
        }
        assert!(blocks.slabs.is_empty() && blocks.slots.capacity() == 0);
    }

    #[test]
    fn all_blocks_are_told() {
        let mut blocks = Blocks::default();
        let hashes = [
            BlockHash(1),
            BlockHash(u128::MAX),
            BlockHash(0x1234_5678 << 61),
        ];
        for block in hashes {
            blocks.insert(Entry { block, ..entry(0) });
        }
        let mut told: Vec<BlockHash> = blocks.hashes().collect();
        told.sort();
        assert_eq!(told, [hashes[0], hashes[2], hashes[1]]);
        assert_eq!(blocks.len(), 3);
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let trouble = Trouble::new(&"ä".repeat(MESSAGE_BYTES_MAX));
        assert_eq!(trouble.message.len(), MESSAGE_BYTES_MAX);
        let trouble = Trouble::new(&format!("x{}", "ä".repeat(MESSAGE_BYTES_MAX)));
        assert_eq!(trouble.message.len(), MESSAGE_BYTES_MAX - 1);
    }
}
