//! What happened in one seeded life, for its digest and for whoever has to find out why it failed.
//!
//! It outlives the panic that ends a life. It decides nothing.

use std::cell::{Cell, RefCell};

/// Events of the key concerned that a failure shows; the crashes and faults between them come on
/// top.
const HISTORY_EVENTS_MAX: usize = 25;

/// The events of one life.
#[derive(Default)]
pub struct Journal {
    events: RefCell<Vec<Event>>,
    suspect: RefCell<Option<String>>,
    digest: Cell<u64>,
}

struct Event {
    /// The key that it is about; every key's history shows those about none.
    key: Option<String>,
    text: String,
}

impl Journal {
    /// Something that concerns every key.
    pub fn note(&self, text: String) {
        self.push(None, text);
    }

    /// Something that concerns one key.
    pub fn note_of(&self, key: &str, text: String) {
        self.push(Some(key.to_owned()), text);
    }

    fn push(&self, key: Option<String>, text: String) {
        self.mix(&text);
        self.events.borrow_mut().push(Event { key, text });
    }

    /// Adds to the digest what is not worth a line.
    pub fn mix(&self, text: &str) {
        let mut digest = self.digest.get();
        for byte in text.bytes() {
            digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.digest.set(digest);
    }

    /// Equal for equal lives.
    pub fn digest(&self) -> u64 {
        self.digest.get()
    }

    /// Events so far.
    pub fn len(&self) -> usize {
        self.events.borrow().len()
    }

    /// Ends the life: a promise about `key` is broken.
    pub fn accuse(&self, key: &str, what: &str) -> ! {
        *self.suspect.borrow_mut() = Some(key.to_owned());
        panic!("{key}: {what}");
    }

    /// The last events that concern the key of the failure, or of all keys if it named none.
    pub fn history(&self) -> String {
        let suspect = self.suspect.borrow();
        let events = self.events.borrow();
        let concerns = |event: &&Event| match (&*suspect, &event.key) {
            (Some(suspect), Some(key)) => suspect == key,
            _ => true,
        };
        let mut lines: Vec<&str> = Vec::new();
        let mut of_key = 0;
        for event in events.iter().rev().filter(concerns) {
            lines.push(&event.text);
            of_key += usize::from(event.key.is_some());
            if of_key == HISTORY_EVENTS_MAX {
                break;
            }
        }
        lines.reverse();
        lines.join("\n  ")
    }
}
