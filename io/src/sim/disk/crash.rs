//! What a crash leaves of a simulated folder.
//!
//! Two crashes are told apart. A *kill* ends the process: what was complete stays, whether synced
//! or not, and of each write in flight any set of sectors may be there. A *power cut* also takes
//! any set of sectors, in any order, of what no sync had made durable.

use super::pages::{ALL, Pending, SECTORS};
use super::{InFlight, State};
use crate::sim::random::Dice;

/// How a run of the program ends when it does not end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// kill -9, OOM kill, panic: the machine goes on.
    Kill,
    /// The machine loses power.
    PowerCut,
}

/// Something that a crash may leave or take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// A sector of a write.
    Sector {
        /// Which write, in the order of their beginning.
        write: u64,
        /// Page of the file.
        page: u32,
        /// Sector of the page.
        sector: u8,
    },
    /// A file whose making had not returned: whether its name is there.
    Creation {
        /// Number of the file.
        file: u64,
    },
    /// A removed file: whether it stays removed.
    Removal {
        /// Number of the file.
        file: u64,
    },
}

/// What a crash took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrashReport {
    /// Position among all completions of the oldest write that was reported complete and of which
    /// a sector is gone now. What was complete before it is all there.
    pub lost_since: Option<u64>,
}

/// How the sectors that a crash leaves are chosen.
enum Pattern {
    All,
    None,
    Prefix(usize),
    Suffix(usize),
    AllBut(usize),
    /// Each sector by itself, so often in a thousand.
    Sectors(u32),
    /// Each write as a whole.
    Writes(u64),
}

impl Pattern {
    fn draw(dice: &mut Dice, count: usize) -> Pattern {
        let at = dice.below(count as u64 + 1) as usize;
        match dice.below(8) {
            0 => Pattern::All,
            1 => Pattern::None,
            2 => Pattern::Prefix(at),
            3 => Pattern::Suffix(at),
            4 => Pattern::AllBut(at),
            5 => Pattern::Sectors(950),
            6 => Pattern::Sectors(500),
            _ => Pattern::Writes(dice.draw()),
        }
    }

    fn keeps(&self, dice: &mut Dice, number: usize, what: Undecided) -> bool {
        match self {
            Pattern::All => true,
            Pattern::None => false,
            Pattern::Prefix(at) => number < *at,
            Pattern::Suffix(at) => number >= *at,
            Pattern::AllBut(at) => number != *at,
            Pattern::Sectors(per_mille) => dice.strikes(*per_mille),
            Pattern::Writes(salt) => match what {
                Undecided::Sector { write, .. } => Dice::new(salt ^ write).one_in(2),
                Undecided::Creation { .. } | Undecided::Removal { .. } => dice.one_in(2),
            },
        }
    }
}

impl State {
    /// All that `crash` may leave or take, in a fixed order.
    pub(super) fn undecided(&self, crash: Crash) -> Vec<Undecided> {
        let mut all = Vec::new();
        let mut twin = self.clone();
        twin.settle(crash, &mut |what| {
            all.push(what);
            true
        });
        all
    }

    /// Ends the run by `crash`, leaving what `keep` says of each.
    pub(super) fn settle(
        &mut self,
        crash: Crash,
        keep: &mut dyn FnMut(Undecided) -> bool,
    ) -> CrashReport {
        match crash {
            Crash::Kill => {
                self.settle_in_flight(keep);
                self.half_made.clear();
                CrashReport::default()
            }
            Crash::PowerCut => self.settle_power_cut(keep),
        }
    }

    /// As [`State::settle`], by a pattern that the dice choose.
    pub(super) fn settle_by_chance(&mut self, crash: Crash) -> CrashReport {
        let count = match crash {
            Crash::Kill => self.in_flight.values().map(sectors_left).sum(),
            Crash::PowerCut => self.undecided(crash).len(),
        };
        let mut dice = Dice::new(self.dice.draw());
        let pattern = Pattern::draw(&mut dice, count);
        if crash == Crash::PowerCut && dice.one_in(2) {
            for file in self.files.values_mut() {
                shuffle(&mut dice, &mut file.pending);
            }
        }
        let mut number = 0;
        self.settle(crash, &mut |what| {
            number += 1;
            pattern.keeps(&mut dice, number - 1, what)
        })
    }

    /// Of each write in flight some sectors land, and stay pending like any other.
    fn settle_in_flight(&mut self, keep: &mut dyn FnMut(Undecided) -> bool) {
        self.order += 1;
        let order = self.order;
        for (write, in_flight) in std::mem::take(&mut self.in_flight) {
            let Some(file) = self.files.get_mut(&in_flight.file) else {
                continue;
            };
            for page in in_flight.landed..in_flight.pages.len() {
                let number = in_flight.first_page + page as u32;
                let sectors = mask(|sector| {
                    let page = number;
                    keep(Undecided::Sector {
                        write,
                        page,
                        sector,
                    })
                });
                if sectors != 0 {
                    file.land(Pending {
                        write,
                        page: number,
                        content: in_flight.pages[page].clone(),
                        sectors,
                        order: Some(order),
                        acknowledged: false,
                    });
                }
            }
            file.complete(write, order, false);
        }
    }

    fn settle_power_cut(&mut self, keep: &mut dyn FnMut(Undecided) -> bool) -> CrashReport {
        // What is in flight may land in full; below, any of its sectors may be lost.
        self.settle_in_flight(&mut |_| true);
        let mut lost_since: Option<u64> = None;
        let mut lost = |when: Option<u64>| {
            lost_since = [lost_since, when].into_iter().flatten().min();
        };
        for file in self.files.values_mut() {
            for pending in std::mem::take(&mut file.pending) {
                let (write, page) = (pending.write, pending.page);
                let kept = mask(|sector| {
                    pending.sectors & (1 << sector) != 0
                        && keep(Undecided::Sector {
                            write,
                            page,
                            sector,
                        })
                });
                if kept != pending.sectors {
                    lost(pending.acknowledged_order());
                }
                file.keep(&pending, kept);
            }
            lost(file.forgotten);
            file.lose_the_rest();
        }
        for file in std::mem::take(&mut self.half_made) {
            if !keep(Undecided::Creation { file }) {
                self.names.retain(|_, number| *number != file);
            }
        }
        for (name, file) in std::mem::take(&mut self.removed) {
            if !keep(Undecided::Removal { file }) {
                self.names.entry(name).or_insert(file);
            }
        }
        CrashReport { lost_since }
    }
}

fn sectors_left(in_flight: &InFlight) -> usize {
    (in_flight.pages.len() - in_flight.landed) * SECTORS
}

/// The sectors of a page of which `keep` says yes.
fn mask(mut keep: impl FnMut(u8) -> bool) -> u8 {
    (0..SECTORS as u8)
        .filter(|sector| keep(*sector))
        .fold(0, |mask, sector| mask | 1 << sector)
        & ALL
}

/// Fisher and Yates.
fn shuffle<T>(dice: &mut Dice, items: &mut [T]) {
    for at in (1..items.len()).rev() {
        items.swap(at, dice.below(at as u64 + 1) as usize);
    }
}
