//! Reactive: starts with what would suit a sequence that gets no longer, and follows what is measured, without
//! predicting anything.
//!
//! For each size of known length (by powers of two) it remembers the class in use and what the latest sequences there
//! wasted and cost. Above the bound of waste it goes to smaller blocks; below it, if these sequences or all together
//! cost more cells than they may, to larger ones, unless the waste there would be above its bound: waste grows as the
//! blocks do. After a change it looks at a few sequences of the new class before the next, so that it does not swing.
//! What suits a length suits longer ones in blocks as large at least, and shorter ones in blocks no larger: they
//! follow.

use super::{Advice, Advisor, Ask, BUCKETS, Life, Terms, bucket};
use crate::error::Result;

/// Sequences of a class before it is judged, or blocks of the next larger class that would be full.
const ENOUGH: u32 = 4;
const ENOUGH_BLOCKS: u64 = 64;
/// Of what was measured this share is forgotten with each sequence: one in so many.
const FORGET: u64 = 8;
/// The same for all sizes together, of which some come seldom.
const FORGET_ALL: u64 = 512;

/// One size of known length.
#[derive(Clone, Copy, Default)]
struct Measured {
    class: u8,
    /// Sequences since the class changed.
    seen: u32,
    tokens: u64,
    slots: u64,
    cells: u64,
}

struct Reactive {
    terms: Terms,
    measured: [Measured; BUCKETS],
    /// Tokens and cells of all sequences lately.
    all: [u64; 2],
}

pub(super) fn make(terms: &Terms) -> Result<Box<dyn Advisor>> {
    let measured = std::array::from_fn(|bucket| {
        // The shortest of the bucket, which may end anywhere in a block.
        let tokens = (1u64 << bucket) as f64;
        Measured { class: terms.largest_within(tokens, tokens) as u8, ..Measured::default() }
    });
    Ok(Box::new(Reactive { terms: *terms, measured, all: [0; 2] }))
}

impl Measured {
    fn take(&mut self, life: &Life) {
        self.seen += 1;
        for (sum, new) in
            [(&mut self.tokens, life.tokens), (&mut self.slots, life.slots), (&mut self.cells, life.cells)]
        {
            *sum = *sum - *sum / FORGET + new;
        }
    }

    /// The class that what was measured asks for.
    fn wanted(&self, terms: &Terms, all: [u64; 2]) -> usize {
        let class = usize::from(self.class);
        let wasted = self.slots.saturating_sub(self.tokens);
        let is_within = |wasted: u64| 1000 * wasted <= terms.waste_permille * (self.tokens + wasted);
        if !is_within(wasted) {
            return class.saturating_sub(1);
        }
        let is_dear = |[tokens, cells]: [u64; 2]| 1000 * cells > terms.table_permille * tokens;
        if !(is_dear([self.tokens, self.cells]) || is_dear(all)) || class + 1 == terms.classes() {
            return class;
        }
        // Half a block for each sequence, at least: that is what a chance length wastes.
        let ended = self.seen.min(FORGET as u32);
        let least = u64::from(ended) * terms.block_tokens[class] / 2;
        let larger = wasted.max(least) * terms.block_tokens[class + 1] / terms.block_tokens[class];
        if is_within(larger) { class + 1 } else { class }
    }
}

impl Advisor for Reactive {
    fn advise(&self, ask: &Ask) -> Advice {
        let tokens = ask.known_tokens();
        Advice { class: self.measured[bucket(tokens)].class.into(), tokens }
    }

    fn ended(&mut self, life: &Life) {
        for (sum, new) in self.all.iter_mut().zip([life.tokens, life.cells]) {
            *sum = *sum - *sum / FORGET_ALL + new;
        }
        let bucket = bucket(life.ask.known_tokens());
        let measured = &mut self.measured[bucket];
        // What ran in another class, by its hits or for want of room, says nothing of this one.
        if usize::from(measured.class) != life.class {
            return;
        }
        measured.take(life);
        let wanted = measured.wanted(&self.terms, self.all);
        let next = *self.terms.block_tokens.get(life.class + 1).unwrap_or(&0);
        let is_enough = measured.seen >= ENOUGH || (next > 0 && measured.tokens >= ENOUGH_BLOCKS * next);
        if !is_enough || wanted == life.class {
            return;
        }
        let (new, is_larger) = (wanted as u8, wanted > life.class);
        let lengths = if is_larger { bucket..BUCKETS } else { 0..bucket + 1 };
        for measured in &mut self.measured[lengths] {
            let follows = if is_larger { measured.class < new } else { measured.class > new };
            if follows {
                *measured = Measured { class: new, ..Measured::default() };
            }
        }
    }

    fn bytes(&self) -> u64 {
        size_of::<Self>() as u64
    }
}
