//! Small folders to damage, and what must be true of them afterwards.
//!
//! Both targets that damage folders (`flip`, `fuzz`) share this. It makes folders with the engine
//! itself, so that it knows no byte of the format but where a page has its checksum. It damages
//! nothing itself.

// Each target uses another part of it.
#![allow(dead_code)]

#[path = "../sim/support/mod.rs"]
pub mod support;

use forebay_io::buffer::PAGE;
use forebay_io::sim::SimDisk;
use forebay_shards::check::{SegmentReport, SegmentSource, check_segment};
use forebay_shards::key::Volume;
use forebay_shards::messages::ReadError;
use forebay_shards::range::RangeSpec;
use forebay_shards::segment::parse_segment_name;
use forebay_shards::superblock::Superblock;
use std::io;
use std::sync::Arc;
use support::client::{self, Refusal};
use support::ops::content;
use support::world::{FOLDER, Geometry, Machine, SETTLE, World};

/// A checker's buffer: small, so that records cross its end.
const CHECK_BUFFER_BYTES: usize = 4 * PAGE;

/// How the program ended that made a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order: every segment has a footer.
    Stop,
    /// Suddenly, with nothing on its way: the last segments have none.
    Crash,
}

/// A number from the environment.
pub fn from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} must be a whole number")),
        Err(_) => default,
    }
}

/// A folder with replaced and deleted blocks, and the store behind it.
pub struct Folder {
    /// The store; its disk is the damaged one of the moment.
    pub machine: Machine,
    /// As the program left it.
    pub intact: SimDisk,
    /// Every key that was ever written: its volume, and what the store has of it now.
    pub expected: Vec<(Arc<Volume>, String, Option<Vec<u8>>)>,
    /// Every key's former versions.
    history: Vec<(String, Option<Vec<u8>>)>,
}

/// What is written, in order: on the immutable volume or on the checked one, the key, and the bytes
/// of the object, or nothing to delete it.
///
/// What is deleted or replaced at the end is alone in a segment that has no footer after a crash:
/// there, damage can hide that it ever happened.
const WRITES: [(bool, &str, Option<u64>); 12] = [
    (true, "a", Some(5_000)),
    (true, "b", Some(3_000)),
    (false, "e", Some(4_096)),
    (true, "c", Some(2_000)),
    (false, "f", Some(2_500)),
    (true, "a", Some(4_500)),
    (false, "g", Some(1)),
    (false, "e", Some(6_000)),
    (false, "f", None),
    (true, "d", Some(9_000)),
    (true, "b", Some(3_500)),
    (true, "c", None),
];

impl Folder {
    /// Makes the folder. Equal arguments make equal folders.
    pub fn make(geometry: Geometry, end: End) -> Folder {
        let mut machine = Machine::new(geometry);
        let mut world = machine.start(1, 1);
        let mut expected: Vec<(Arc<Volume>, String, Option<Vec<u8>>)> = Vec::new();
        let mut history = Vec::new();
        for (version, (immutable, key, length)) in WRITES.into_iter().enumerate() {
            let volume = match immutable {
                true => machine.immutable(),
                false => machine.checked(),
            };
            let bytes = length.map(|length| content(version as u64, length));
            write(&mut world, &volume, key, bytes.clone());
            let former = expected.iter().position(|(_, known, _)| known == key);
            if let Some(at) = former {
                let (_, key, bytes) = expected.remove(at);
                history.push((key, bytes));
            }
            expected.push((volume, key.to_owned(), bytes.map(|bytes| bytes.to_vec())));
        }
        world.rest(SETTLE);
        match end {
            End::Stop => world.stop(),
            End::Crash => drop(world),
        }
        let intact = machine.disk.clone();
        machine.disk = intact.duplicate();
        Folder {
            machine,
            intact,
            expected,
            history,
        }
    }

    /// Whether the key ever held this before it was replaced or deleted.
    pub fn was_once(&self, key: &str, bytes: Option<&[u8]>) -> bool {
        let mut versions = self.history.iter().filter(|(known, _)| known == key);
        versions.any(|(_, version)| version.as_deref() == bytes)
    }

    /// Writes and deletes once more what every key holds.
    pub fn write_again(&self, world: &mut World) {
        for (volume, key, bytes) in &self.expected {
            let bytes = bytes.clone().map(bytes::Bytes::from);
            write(world, volume, key, bytes);
        }
    }

    /// Forgets all damage.
    pub fn restore(&mut self) {
        self.machine.disk = self.intact.duplicate();
    }

    /// Starts on the damaged folder and reads every key whole. Every answer must be the store's.
    pub fn assert_right_bytes(&self, seed: u64) -> World {
        let mut world = self.machine.start(seed, 1);
        for (volume, key, expected) in &self.expected {
            let found = read(&mut world, volume, key);
            assert!(
                found == *expected,
                "wrong bytes for {key}: {:?} bytes instead of {:?}",
                found.map(|bytes| bytes.len()),
                expected.as_ref().map(Vec::len)
            );
        }
        world
    }
}

fn write(world: &mut World, volume: &Arc<Volume>, key: &str, bytes: Option<bytes::Bytes>) {
    let (node, volume, key) = (world.nodes[0].clone(), volume.clone(), key.to_owned());
    world.run(async move {
        match bytes {
            Some(bytes) => client::put(&node, &volume, &key, &bytes, false)
                .await
                .map(drop),
            None => client::delete(&node, &volume, &key).await,
        }
        .expect("a write without faults");
    });
}

/// Reads an object whole; nothing if there is none.
pub fn read(world: &mut World, volume: &Arc<Volume>, key: &str) -> Option<Vec<u8>> {
    let (node, volume, key) = (world.nodes[0].clone(), volume.clone(), key.to_owned());
    let wanted = Some(RangeSpec::All);
    match world.run(async move { client::read(&node, &volume, &key, wanted).await }) {
        Ok(answer) => Some(answer.bytes),
        Err(Refusal::Error(ReadError::NotFound)) => None,
        Err(refusal) => panic!("{refusal:?}"),
    }
}

/// A segment's file in memory, for the checker.
struct Image {
    bytes: Vec<u8>,
    passed: u64,
}

impl SegmentSource for Image {
    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn passed(&mut self, bytes: u64) {
        self.passed += bytes;
    }
}

/// Checks every segment of a simulated folder, in the order of their names.
pub fn check(disk: &SimDisk, geometry: &Geometry) -> Vec<(String, SegmentReport)> {
    let reports = disk.names().into_iter().filter_map(|name| {
        let report = check_one(disk, geometry, &name)?;
        Some((name, report))
    });
    reports.collect()
}

/// Checks one file of a simulated folder, if it is a segment.
pub fn check_one(disk: &SimDisk, geometry: &Geometry, name: &str) -> Option<SegmentReport> {
    let (shard, segment) = parse_segment_name(name)?;
    let superblock = Superblock {
        folder: FOLDER,
        shards: geometry.shards,
        segment_bytes: geometry.segment_bytes,
    };
    let mut image = Image {
        bytes: disk.content(name),
        passed: 0,
    };
    let mut buffer = vec![0; CHECK_BUFFER_BYTES];
    let report = check_segment(&mut image, &mut buffer, &superblock, shard, segment);
    let all = (image.bytes.len() as u64).min(geometry.segment_bytes);
    assert_eq!(image.passed, all, "progress of {name}");
    Some(report)
}
