//! The content of one simulated file: what reads show, what a power cut leaves, what lies between.
//!
//! Pages are shared and never changed in place, so a copy of a whole file costs a pointer a page.
//! Durability is kept by sector: a pending write names the sectors of its page that it covers.
//! This file decides nothing by chance and knows no faults.

use crate::buffer::PAGE;
use std::collections::BTreeSet;
use std::rc::Rc;

/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// Sectors of a page.
pub(super) const SECTORS: usize = PAGE / SECTOR;

/// All sectors of a page.
pub(super) const ALL: u8 = u8::MAX;

const _: () = assert!(SECTORS == u8::BITS as usize, "a mask has one bit a sector");

pub(super) type Page = Rc<[u8; PAGE]>;

/// A page of a file; `None` stands for zeros.
#[derive(Clone, Default)]
struct PageState {
    /// What a read gives.
    visible: Option<Page>,
    /// What is left if every pending write is lost.
    durable: Option<Page>,
    /// What a read gave before the last write.
    former: Option<Page>,
}

/// Sectors of one page that were written and not yet made durable.
#[derive(Clone)]
pub(super) struct Pending {
    /// The write that they belong to.
    pub write: u64,
    pub page: u32,
    pub content: Page,
    /// Which sectors of `content` were written.
    pub sectors: u8,
    /// Position among all completions; `None` as long as the write is in flight.
    pub order: Option<u64>,
    /// Whether the write was reported complete.
    pub acknowledged: bool,
}

impl Pending {
    /// Position among all completions, if it was reported complete.
    pub fn acknowledged_order(&self) -> Option<u64> {
        self.order.filter(|_| self.acknowledged)
    }
}

/// A file.
#[derive(Clone, Default)]
pub(super) struct Content {
    length: u64,
    pages: Vec<PageState>,
    /// In the order in which they landed.
    pub pending: Vec<Pending>,
    /// Position among all completions of the oldest write that a failed sync gave up.
    pub forgotten: Option<u64>,
    /// Pages that can no longer be read.
    pub unreadable: BTreeSet<u32>,
    /// Pages that can no longer be written.
    pub unwritable: BTreeSet<u32>,
}

impl Content {
    /// A file of `length` zeros.
    pub fn zeros(length: u64) -> Content {
        let mut content = Content::default();
        content.resize(length);
        content
    }

    /// A file that was there before, durable.
    pub fn of(bytes: &[u8]) -> Content {
        let mut content = Content::zeros(bytes.len() as u64);
        for (page, chunk) in bytes.chunks(PAGE).enumerate() {
            let mut whole = [0; PAGE];
            whole[..chunk.len()].copy_from_slice(chunk);
            let whole = Some(Rc::new(whole));
            content.pages[page].visible.clone_from(&whole);
            content.pages[page].durable = whole;
        }
        content
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn page_count(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Lengthens the file, with zeros.
    pub fn resize(&mut self, length: u64) {
        self.length = length;
        let pages = length.div_ceil(PAGE as u64) as usize;
        self.pages.resize_with(pages, PageState::default);
    }

    /// What a read gives of a page; zeros past the end.
    pub fn visible(&self, page: u32) -> Option<&Page> {
        self.pages.get(page as usize)?.visible.as_ref()
    }

    /// What a read gave of a page before it was written last.
    pub fn former(&self, page: u32) -> Option<&Page> {
        self.pages.get(page as usize)?.former.as_ref()
    }

    /// Everything that a read gives.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.pages.len() * PAGE];
        for (state, target) in self.pages.iter().zip(bytes.chunks_mut(PAGE)) {
            if let Some(page) = &state.visible {
                target.copy_from_slice(&page[..]);
            }
        }
        bytes.truncate(self.length as usize);
        bytes
    }

    /// Shows the `sectors` of `pending.content` to reads from now on, and keeps them pending.
    pub fn land(&mut self, pending: Pending) {
        let needed = (u64::from(pending.page) + 1) * PAGE as u64;
        if needed > self.length {
            self.resize(needed);
        }
        let state = &mut self.pages[pending.page as usize];
        let before = state.visible.take();
        state.visible = Some(merge(before.as_ref(), &pending.content, pending.sectors));
        state.former = before;
        self.pending.push(pending);
    }

    /// Says that a write is complete, as position `order` among all completions.
    pub fn complete(&mut self, write: u64, order: u64, acknowledged: bool) {
        let of_write = |pending: &&mut Pending| pending.write == write;
        for pending in self.pending.iter_mut().filter(of_write) {
            pending.order = Some(order);
            pending.acknowledged = acknowledged;
        }
    }

    /// Makes durable what was complete at the completion `order`.
    pub fn sync(&mut self, order: u64) {
        for pending in std::mem::take(&mut self.pending) {
            if pending.order.is_some_and(|at| at <= order) {
                self.keep(&pending, pending.sectors);
            } else {
                self.pending.push(pending);
            }
        }
    }

    /// Gives up what was complete at the completion `order`: reads show it, no sync saves it.
    pub fn forget(&mut self, order: u64) {
        let (lost, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.order.is_some_and(|at| at <= order));
        self.pending = rest;
        let oldest = lost.iter().filter_map(Pending::acknowledged_order).min();
        self.forgotten = [self.forgotten, oldest].into_iter().flatten().min();
    }

    /// Makes `sectors` of a pending write durable.
    pub fn keep(&mut self, pending: &Pending, sectors: u8) {
        if let Some(state) = self.pages.get_mut(pending.page as usize)
            && sectors != 0
        {
            let merged = merge(state.durable.as_ref(), &pending.content, sectors);
            state.durable = Some(merged);
        }
    }

    /// Reads show only what is durable from now on.
    pub fn lose_the_rest(&mut self) {
        self.pending.clear();
        self.forgotten = None;
        for state in &mut self.pages {
            state.visible.clone_from(&state.durable);
        }
    }

    /// Flips the lowest bit of a byte wherever its page is kept: no sync mends it.
    pub fn flip_bit(&mut self, offset: usize) {
        let (page, at) = (offset / PAGE, offset % PAGE);
        let flip = |page: &mut Page| Rc::make_mut(page)[at] ^= 1;
        let state = &mut self.pages[page];
        // Zeros are not stored: a flip makes a page of them.
        flip(state.visible.get_or_insert_with(|| Rc::new([0; PAGE])));
        flip(state.durable.get_or_insert_with(|| Rc::new([0; PAGE])));
        for pending in &mut self.pending {
            if pending.page as usize == page {
                flip(&mut pending.content);
            }
        }
    }
}

/// `under`, with `sectors` of `over` on it.
fn merge(under: Option<&Page>, over: &Page, sectors: u8) -> Page {
    if sectors == ALL {
        return over.clone();
    }
    let mut merged = under.map_or([0; PAGE], |page| **page);
    for sector in (0..SECTORS).filter(|sector| sectors & (1 << sector) != 0) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        merged[range.clone()].copy_from_slice(&over[range]);
    }
    Rc::new(merged)
}
