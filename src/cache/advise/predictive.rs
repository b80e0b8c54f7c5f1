//! Predictive: the largest class that, at the length which a sequence is going to have, wastes no more than it may.
//!
//! The length is what the caller expects, or the prompt and as many tokens as prompts of its size (by powers of two)
//! were followed by lately, with how much that varied. Each namespace is judged by its own sequences once it has a few,
//! before that by everybody's; names that share a place in the table share what is learned. Older sequences count less
//! and less: the mean of the latest sixteen or so rules.

use super::{Advice, Advisor, Ask, BUCKETS, Life, Terms, bucket};
use crate::error::Result;
use crate::sys::reserve::filled;

/// Places for namespaces.
const PLACES: usize = 64;
/// Sequences over which a mean is taken.
const MEMORY: u32 = 16;
/// Sequences of its own from which on a namespace is judged by them.
const ENOUGH: u32 = 8;

/// What followed prompts of one size.
#[derive(Clone, Copy, Default)]
struct Learned {
    mean: f32,
    /// Mean distance from the mean.
    spread: f32,
    /// Sequences, at most [`MEMORY`].
    seen: u32,
}

impl Learned {
    fn take(&mut self, tokens: f32) {
        self.seen = MEMORY.min(self.seen + 1);
        let share = 1.0 / self.seen as f32;
        let distance = (tokens - self.mean).abs();
        self.mean += share * (tokens - self.mean);
        // The first one has no distance from others.
        let distance = if self.seen == 1 { 0.0 } else { distance };
        self.spread += share * (distance - self.spread);
    }
}

struct Predictive {
    terms: Terms,
    /// `[place][bucket]`; the first place is everybody's.
    learned: Vec<Learned>,
}

pub(super) fn make(terms: &Terms) -> Result<Box<dyn Advisor>> {
    let learned = filled((1 + PLACES) * BUCKETS, Learned::default())?;
    Ok(Box::new(Predictive { terms: *terms, learned }))
}

fn place(namespace_id: u64) -> usize {
    1 + (namespace_id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % PLACES
}

impl Predictive {
    fn learned(&self, ask: &Ask) -> &Learned {
        let bucket = bucket(ask.prompt_tokens);
        let own = &self.learned[place(ask.namespace_id) * BUCKETS + bucket];
        if own.seen >= ENOUGH { own } else { &self.learned[bucket] }
    }
}

impl Advisor for Predictive {
    fn advise(&self, ask: &Ask) -> Advice {
        let learned = self.learned(ask);
        let known = ask.known_tokens() as f64;
        let (tokens, spread) = match learned.seen {
            _ if ask.expected_tokens > 0 => (known, known),
            0..ENOUGH => (known, known),
            _ => (ask.prompt_tokens as f64 + f64::from(learned.mean), f64::from(learned.spread)),
        };
        // Sequences end early as often as late: what counts against a large block is the shorter ones.
        let low = if ask.expected_tokens > 0 { known } else { (tokens - spread).max(known) };
        let class = self.terms.largest_within(low, spread);
        Advice { class, tokens: tokens as u64 }
    }

    fn ended(&mut self, life: &Life) {
        let answer = life.tokens.saturating_sub(life.ask.prompt_tokens) as f32;
        let bucket = bucket(life.ask.prompt_tokens);
        self.learned[bucket].take(answer);
        self.learned[place(life.ask.namespace_id) * BUCKETS + bucket].take(answer);
    }

    fn bytes(&self) -> u64 {
        (self.learned.len() * size_of::<Learned>()) as u64
    }
}
