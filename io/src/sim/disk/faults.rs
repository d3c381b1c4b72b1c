//! What can go wrong with an operation of a simulated disk, by script or by seeded chance.
//!
//! This file decides whether and how an operation is struck; [`super`] makes it so. Every strike
//! of a chance is counted by its kind and taken from a budget, so that a test can say how much a
//! run has to bear and which faults a night of runs has never seen.

use crate::sim::random::Dice;

/// Operations that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOperation {
    /// [`crate::disk::DiskFile::read`]
    Read,
    /// [`crate::disk::DiskFile::write`]
    Write,
    /// [`crate::disk::DiskFile::sync`]
    Sync,
    /// [`crate::disk::Disk::create`]
    Create,
}

/// Faults that strike by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskFault {
    /// A read fails with EIO. The next one of the same place succeeds.
    ReadError,
    /// A read fails with EIO, and so does every later one that touches its first page.
    UnreadablePlace,
    /// A read ends early, although the file goes on.
    ShortRead,
    /// A read gives what its pages held before they were last written.
    StaleRead,
    /// A read gives what lies elsewhere in the file.
    MisdirectedRead,
    /// A write fails with EIO; any of its sectors may have been written.
    WriteError,
    /// A write fails with EIO, and so does every later one that touches its first page.
    UnwritablePlace,
    /// A write is reported complete and nothing is written.
    LostWrite,
    /// A write is reported complete and goes to another place of this or another file.
    MisdirectedWrite,
    /// A sync fails with EIO; nothing becomes durable, the next one saves it.
    SyncError,
    /// A sync fails with EIO and gives its writes up: reads show them, later syncs succeed, and
    /// the next power cut takes them (fsyncgate).
    SyncLie,
    /// A file cannot be made: ENOSPC.
    CreateFull,
    /// An operation takes seconds.
    Stall,
    /// A bit of some written page flips while something else is being done.
    BitRot,
}

impl DiskFault {
    /// All of them.
    pub const ALL: [DiskFault; 14] = [
        DiskFault::ReadError,
        DiskFault::UnreadablePlace,
        DiskFault::ShortRead,
        DiskFault::StaleRead,
        DiskFault::MisdirectedRead,
        DiskFault::WriteError,
        DiskFault::UnwritablePlace,
        DiskFault::LostWrite,
        DiskFault::MisdirectedWrite,
        DiskFault::SyncError,
        DiskFault::SyncLie,
        DiskFault::CreateFull,
        DiskFault::Stall,
        DiskFault::BitRot,
    ];

    /// Whether the disk breaks its word without saying so, or for good: what it had taken may be
    /// gone or wrong afterwards although nobody was told in time to act.
    pub fn is_damage(self) -> bool {
        use DiskFault::{
            BitRot, CreateFull, LostWrite, MisdirectedRead, MisdirectedWrite, ReadError, ShortRead,
            StaleRead, Stall, SyncError, SyncLie, UnreadablePlace, UnwritablePlace, WriteError,
        };
        match self {
            UnreadablePlace | ShortRead | StaleRead | MisdirectedRead | UnwritablePlace
            | LostWrite | MisdirectedWrite | BitRot => true,
            // A lie of a sync matters at a power cut, whose report includes it.
            ReadError | WriteError | SyncError | SyncLie | CreateFull | Stall => false,
        }
    }

    fn place(self) -> usize {
        let place = DiskFault::ALL.iter().position(|kind| *kind == self);
        place.expect("all of them are listed")
    }
}

/// Chances of each fault, in thousandths of the operations that it can strike.
#[derive(Clone, Debug, Default)]
pub struct DiskChances([u32; DiskFault::ALL.len()]);

impl DiskChances {
    /// Sets one chance.
    pub fn with(mut self, fault: DiskFault, per_mille: u32) -> DiskChances {
        self.0[fault.place()] = per_mille;
        self
    }

    fn of(&self, fault: DiskFault) -> u32 {
        self.0[fault.place()]
    }
}

/// An operation that fails with an errno.
#[derive(Clone)]
struct ScriptedFault {
    operation: DiskOperation,
    errno: i32,
    /// Operations of the kind that are still let through first.
    skips: u32,
    /// Failures left.
    times: u32,
}

/// The script, the chances and what they have done.
#[derive(Clone, Default)]
pub(super) struct Faults {
    script: Vec<ScriptedFault>,
    chances: DiskChances,
    /// Strikes of chances that are left.
    budget: u32,
    struck: [u64; DiskFault::ALL.len()],
}

impl Faults {
    pub fn script(&mut self, operation: DiskOperation, errno: i32, skips: u32, times: u32) {
        self.script.push(ScriptedFault {
            operation,
            errno,
            skips,
            times,
        });
    }

    pub fn set_chances(&mut self, chances: DiskChances, budget: u32) {
        (self.chances, self.budget) = (chances, budget);
    }

    pub fn heal(&mut self) {
        self.script.clear();
        self.set_chances(DiskChances::default(), 0);
    }

    pub fn struck(&self, fault: DiskFault) -> u64 {
        self.struck[fault.place()]
    }

    /// The errno with which the script makes this operation fail.
    pub fn scripted(&mut self, operation: DiskOperation) -> Option<i32> {
        let of_kind = |fault: &ScriptedFault| fault.operation == operation;
        let at = self.script.iter().position(of_kind)?;
        let fault = &mut self.script[at];
        if fault.skips > 0 {
            fault.skips -= 1;
            return None;
        }
        let errno = fault.errno;
        fault.times -= 1;
        if fault.times == 0 {
            self.script.remove(at);
        }
        Some(errno)
    }

    /// Whether one fault strikes now.
    pub fn strikes(&mut self, dice: &mut Dice, fault: DiskFault) -> bool {
        if self.budget == 0 || !dice.strikes(self.chances.of(fault)) {
            return false;
        }
        self.budget -= 1;
        self.struck[fault.place()] += 1;
        true
    }

    /// The first of `faults` that strikes now.
    pub fn draw(&mut self, dice: &mut Dice, faults: &[DiskFault]) -> Option<DiskFault> {
        if self.budget == 0 {
            return None;
        }
        let mut faults = faults.iter().copied();
        faults.find(|fault| self.strikes(dice, *fault))
    }
}
