//! The position that each slot's key stands at: where it was computed, and by how much it was turned since.

use std::collections::HashMap;

use kavern::cache::TokenCopy;

/// The slot of a token whose sequence shows these blocks.
pub(crate) fn slot(row: &[i32], each: usize, token: usize) -> i64 {
    i64::from(row[token / each]) * each as i64 + (token % each) as i64
}

#[derive(Default)]
pub(crate) struct Positions {
    /// By group and slot.
    of: HashMap<(u32, i64), i64>,
}

impl Positions {
    /// What an engine does with the copies of one `tables`: all of them happen in their order, then keys are turned.
    pub(crate) fn follow(&mut self, copies: &[TokenCopy]) {
        for copy in copies {
            for at in 0..i64::from(copy.tokens) {
                let [source, target] =
                    [copy.source_slot, copy.target_slot].map(|slot| (copy.group, slot + at));
                match self.of.get(&source).copied() {
                    Some(position) => self.of.insert(target, position),
                    None => self.of.remove(&target),
                };
            }
        }
        for copy in copies {
            for slot in copy.target_slot..copy.target_slot + i64::from(copy.tokens) {
                let position = self.of.entry((copy.group, slot));
                position.and_modify(|position| *position += i64::from(copy.shift));
            }
        }
    }

    /// The step's work computes a key.
    pub(crate) fn write(&mut self, group: usize, slot: i64, token: usize) {
        self.of.insert((group as u32, slot), token as i64);
    }

    /// The key of a token stands at the token's own place in its sequence.
    pub(crate) fn check(&self, group: usize, slot: i64, token: usize) {
        let position = self.of.get(&(group as u32, slot));
        assert_eq!(position, Some(&(token as i64)), "group {group}, slot {slot}: the position of its key");
    }
}
