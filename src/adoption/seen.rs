//! Which events were there already on the way through a table.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::event::Event;

/// The events so far, as digests: 64 bits of what makes each one the one it is. Of a billion events, two might be taken for
/// each other.
#[derive(Default)]
pub(super) struct Seen {
    once: HashSet<u64>,
    /// Mail, kind, link and second → the microseconds of the opens or clicks within it, and of whom.
    again: HashMap<u64, Vec<(u32, u64)>>,
}

impl Seen {
    /// Whether an event like this was noted: one within the same second, if one of the two knows no more than that.
    pub(super) fn has_twin(&self, event: &Event) -> bool {
        if !event.kind.happens_again() {
            return self.once.contains(&digest(event));
        }
        let (micros, recipient) = (event.occurred_at.microsecond(), of_recipient(event));
        self.again.get(&digest(event)).is_some_and(|noted| {
            noted.iter().any(|(other, of)| {
                (*other == micros || *other == 0 || micros == 0) && (*of == recipient || *of == 0 || recipient == 0)
            })
        })
    }

    pub(super) fn note(&mut self, event: &Event) {
        if event.kind.happens_again() {
            let one = (event.occurred_at.microsecond(), of_recipient(event));
            self.again.entry(digest(event)).or_default().push(one);
        } else {
            self.once.insert(digest(event));
        }
    }
}

fn digest(event: &Event) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.log_uuid.hash(&mut hasher);
    event.message_id.hash(&mut hasher);
    event.kind.hash(&mut hasher);
    if event.kind.happens_again() {
        event.occurred_at.unix_timestamp().hash(&mut hasher);
        event.detail.link.hash(&mut hasher);
    } else {
        event.recipient.hash(&mut hasher);
    }
    hasher.finish()
}

/// Zero is nobody.
fn of_recipient(event: &Event) -> u64 {
    if event.recipient.is_empty() {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    event.recipient.hash(&mut hasher);
    hasher.finish().max(1)
}
