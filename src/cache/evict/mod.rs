//! Eviction policies: which findable block that nobody holds goes first.
//!
//! A policy owns its own links and knows blocks only as indices. The store calls it under its lock:
//! `committed` when a block becomes findable (its holder still has it), `released` when the last holder lets go,
//! `acquired` when somebody takes it again, `missed` when its content is computed anew beside it, `moved` when a held
//! one gets another index, `removed` when it stops being findable, in whatever state it is.
//! `victim` names the next to go among the released ones and forgets it. A call takes a bounded time, however many
//! blocks are held.
//! Priorities, expiry and pins are a layer above every policy (`retention`): a block that they govern counts as held
//! here.

mod adaptive;
mod cost;
mod divisor;
mod fifo;
mod ghosts;
mod lfu;
mod lru;
mod odds;
mod queues;
mod ranks;
mod runs;
mod s3fifo;

use std::ops::Range;

use super::hash::Key;
use crate::error::{Error, Result, Status};

/// What a policy is told of a block that became findable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    pub(super) key: Key,
    pub(super) namespace: u32,
    /// Blocks before it in its sequence.
    pub(super) position: u64,
    /// Tokens in a block.
    pub(super) tokens: u32,
}

impl Facts {
    /// Digest of key and namespace, evenly spread although keys of callers may be plain counts: equal when the same
    /// content comes again, and the same in every run.
    pub(super) fn fingerprint(&self) -> u64 {
        self.key.0.iter().fold(u64::from(self.namespace) + 1, |digest, word| {
            let mixed = (digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
        })
    }
}

/// What a policy answers to.
pub(super) trait Policy: Send {
    /// The block became findable; somebody holds it.
    fn committed(&mut self, block: u32, facts: &Facts);
    /// Somebody took a released block.
    fn acquired(&mut self, block: u32);
    /// The last holder let go.
    fn released(&mut self, block: u32);
    /// The content of a released block was wanted and computed anew, because something before it was gone.
    fn missed(&mut self, _block: u32) {}
    /// The content of a held block lies in `to` now, where there was none.
    fn moved(&mut self, from: u32, to: u32);
    /// The block stops being findable; `was_released` tells its state.
    fn removed(&mut self, block: u32, was_released: bool);
    /// So many of the blocks that it was made for may be in use from now on.
    fn room(&mut self, _blocks: u32) {}
    /// The next to go; it is already forgotten when this returns.
    fn victim(&mut self) -> Option<u32>;
    /// The same of several at once, in the order in which single ones would go, as many as there are places; answers
    /// how many. What bounds the time of one call may let the later ones go earlier than they would by themselves.
    fn victims(&mut self, places: &mut [u32]) -> usize {
        let mut count = 0;
        while count < places.len()
            && let Some(victim) = self.victim()
        {
            places[count] = victim;
            count += 1;
        }
        count
    }
    /// Gives blocks that are likely to go next, about `most` of them. A guess that changes no victim: what evictions of
    /// them read is fetched ahead.
    fn likely_victims(&mut self, _most: usize, _each: &mut dyn FnMut(u32)) {}
    /// Has fetched what the choice of so many victims reads, if they are likely to lie in a row; answers that row.
    fn fetch_next(&mut self, _most: usize) -> Option<Range<usize>> {
        None
    }
    /// Has fetched what `acquired` and `released` read of a block.
    fn fetch(&self, _block: u32) {}
    /// Has fetched what `committed` reads for that content.
    fn fetch_for(&self, _facts: &Facts) {}
    /// Bytes of its bookkeeping.
    fn bytes(&self) -> u64;
    /// Checks the links: exactly the blocks for which `is_released` holds can be victims.
    fn validate(&self, is_released: &dyn Fn(u32) -> bool, is_findable: &dyn Fn(u32) -> bool) -> Result<()>;
}

/// A policy by name.
struct Registration {
    name: &'static str,
    make: fn(blocks: u32) -> Result<Box<dyn Policy>>,
}

/// One line each.
static POLICIES: &[Registration] = &[
    Registration { name: DEFAULT_POLICY, make: adaptive::make },
    Registration { name: "lru", make: lru::make },
    Registration { name: "fifo", make: fifo::make },
    Registration { name: "lfu", make: lfu::make },
    Registration { name: "s3fifo", make: s3fifo::make },
    Registration { name: "cost", make: cost::make },
    Registration { name: "runs-lru", make: runs::make },
];

/// The policy of a cache that names none.
pub const DEFAULT_POLICY: &str = "adaptive";

/// Names of all policies.
pub fn policy_names() -> impl Iterator<Item = &'static str> {
    POLICIES.iter().map(|policy| policy.name)
}

/// Makes the policy of that name for a pool of that size.
pub(super) fn make(name: &str, blocks: u32) -> Result<Box<dyn Policy>> {
    match POLICIES.iter().find(|policy| policy.name == name) {
        Some(policy) => (policy.make)(blocks),
        None => {
            let known: Vec<_> = policy_names().collect();
            Err(Error::new(
                Status::InvalidArgument,
                format!("policy '{name}' is unknown; use one of {}", known.join(", ")),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::now_ns;

    /// Blocks of few contents, so that ghosts come back.
    fn facts(block: u32) -> Facts {
        Facts { key: Key([u64::from(block), 0, 0, 0]), namespace: 1, position: 3, tokens: 16 }
    }

    /// Every policy, whatever its order, hands out each released block exactly once and never a held one.
    #[test]
    fn no_policy_evicts_what_is_held_or_loses_what_is_released() {
        for name in policy_names() {
            let blocks = 64u32;
            let mut policy = make(name, blocks).unwrap();
            let mut random = fastrand::Rng::with_seed(7);
            // 0 not findable, 1 held, 2 released
            let mut state = vec![0u8; blocks as usize];
            for _ in 0..50_000 {
                let block = random.u32(0..blocks);
                match (state[block as usize], random.u8(0..10)) {
                    (0, _) => (policy.committed(block, &facts(block)), state[block as usize] = 1).0,
                    (1, 0) => (policy.removed(block, false), state[block as usize] = 0).0,
                    (1, _) => (policy.released(block), state[block as usize] = 2).0,
                    (2, 0) => (policy.removed(block, true), state[block as usize] = 0).0,
                    (2, 1..=4) => (policy.acquired(block), state[block as usize] = 1).0,
                    _ => match policy.victim() {
                        Some(victim) => {
                            assert_eq!(state[victim as usize], 2, "{name} evicted block {victim}");
                            state[victim as usize] = 0;
                        }
                        None => assert!(!state.contains(&2), "{name} found no victim"),
                    },
                }
                let (is_released, is_findable) =
                    (|b: u32| state[b as usize] == 2, |b: u32| state[b as usize] != 0);
                if random.u8(..) == 0 {
                    policy.validate(&is_released, &is_findable).unwrap();
                }
            }
            while let Some(victim) = policy.victim() {
                assert_eq!(std::mem::replace(&mut state[victim as usize], 0), 2);
            }
            assert!(!state.contains(&2), "{name} lost a released block");
        }
    }

    /// The same is done to two of each policy, but in one of them content moves between indices: the same content goes.
    #[test]
    fn content_that_moves_keeps_its_place_among_others() {
        // One looks for neighbours by index, which is what a move changes; it has nothing else to keep.
        for name in policy_names().filter(|&name| name != "runs-lru") {
            let blocks = 48usize;
            let mut policies =
                [make(name, 2 * blocks as u32).unwrap(), make(name, 2 * blocks as u32).unwrap()];
            let mut random = fastrand::Rng::with_seed(9);
            // By content: its index where it moves, and its state: 0 not findable, 1 held, 2 released.
            let (mut at, mut state): (Vec<u32>, _) = ((0..blocks as u32).collect(), vec![0u8; blocks]);
            let mut spare: Vec<u32> = (blocks as u32..2 * blocks as u32).collect();
            let mut moved = 0;
            for round in 0..40_000 {
                let content = random.usize(..blocks);
                let places = [content as u32, at[content]];
                let mut both = |act: &mut dyn FnMut(&mut dyn Policy, u32)| {
                    policies.iter_mut().zip(places).for_each(|(policy, block)| act(policy.as_mut(), block));
                };
                match (state[content], random.u8(0..10)) {
                    (0, _) => {
                        both(&mut |policy, block| policy.committed(block, &facts(content as u32)));
                        state[content] = 1;
                    }
                    (1, 0) => {
                        both(&mut |policy, block| policy.removed(block, false));
                        state[content] = 0;
                    }
                    (1, 1..=4) => {
                        let to = spare.swap_remove(random.usize(..spare.len()));
                        policies[1].moved(at[content], to);
                        spare.push(std::mem::replace(&mut at[content], to));
                        moved += 1;
                    }
                    (1, _) => {
                        both(&mut |policy, block| policy.released(block));
                        state[content] = 2;
                    }
                    (2, 1..=5) => {
                        both(&mut |policy, block| policy.acquired(block));
                        state[content] = 1;
                    }
                    _ => {
                        let [one, other] = &mut policies;
                        let (one, other) = (one.victim().unwrap(), other.victim().unwrap());
                        assert_eq!(at[one as usize], other, "{name} in round {round}");
                        state[one as usize] = 0;
                    }
                }
                if random.u8(..) == 0 {
                    let state_at = |block: u32| {
                        at.iter().position(|&at| at == block).map_or(0, |content| state[content])
                    };
                    policies[1]
                        .validate(&|block| state_at(block) == 2, &|block| state_at(block) != 0)
                        .unwrap();
                }
            }
            assert!(moved > 1000, "{name}: {moved}");
        }
    }

    /// The same is done to two of each policy, of which one names victims one by one and the other several at once.
    #[test]
    fn several_victims_at_once_are_those_that_would_go_one_by_one() {
        for name in policy_names() {
            let blocks = 200u32;
            let (mut one, mut other) = (make(name, blocks).unwrap(), make(name, blocks).unwrap());
            let mut random = fastrand::Rng::with_seed(11);
            // 0 not findable, 1 held, 2 released
            let mut state = vec![0u8; blocks as usize];
            for round in 0..60_000 {
                let block = random.u32(0..blocks);
                let mut both = |act: &dyn Fn(&mut dyn Policy)| (act(one.as_mut()), act(other.as_mut())).0;
                let now = &mut state[block as usize];
                match *now {
                    0 => (both(&|policy| policy.committed(block, &facts(block))), *now = 1).0,
                    1 => (both(&|policy| policy.released(block)), *now = 2).0,
                    _ if random.u8(0..20) > 0 => (both(&|policy| policy.acquired(block)), *now = 1).0,
                    _ => {
                        let mut places = [u32::MAX; 40];
                        let most = random.usize(0..=40);
                        let count = other.victims(&mut places[..most]);
                        let singly: Vec<_> = std::iter::from_fn(|| one.victim()).take(most).collect();
                        assert_eq!(places[..count], singly, "{name} in round {round}");
                        singly.iter().for_each(|&victim| state[victim as usize] = 0);
                    }
                }
            }
        }
    }

    /// The time of one call, because what it looks at is the policy's own; the least of a few, because others may run.
    #[test]
    fn a_victim_among_half_a_million_held_blocks_takes_microseconds() {
        const BLOCKS: u32 = 500_000;
        for name in policy_names() {
            let took = (0..3).map(|_| {
                let mut policy = make(name, BLOCKS).unwrap();
                (0..BLOCKS).for_each(|block| policy.committed(block, &facts(block)));
                policy.released(BLOCKS - 1);
                let start = now_ns();
                assert_eq!(policy.victim(), Some(BLOCKS - 1));
                now_ns() - start
            });
            let least = took.min().unwrap();
            assert!(least < 200_000, "{name}: {least} ns");
        }
    }

    #[test]
    fn what_is_fetched_ahead_is_the_row_in_which_the_next_victims_lie() {
        let cases: [(Vec<u32>, Option<Range<usize>>); 5] = [
            ((10..40).collect(), Some(10..18)),
            ((10..40).rev().collect(), Some(32..40)),
            ((60..64).collect(), Some(60..64)),
            ((0..4).rev().collect(), Some(0..4)),
            (vec![10, 20, 30], None),
        ];
        for name in ["adaptive", "lru"] {
            for (order, row) in &cases {
                let mut policy = make(name, 64).unwrap();
                assert_eq!(policy.fetch_next(8), None, "{name}: nothing may go");
                order.iter().for_each(|&block| policy.committed(block, &facts(block)));
                order.iter().for_each(|&block| policy.released(block));
                assert_eq!(policy.fetch_next(8), *row, "{name} of {order:?}");
            }
        }
    }

    #[test]
    fn lru_takes_the_longest_released_and_fifo_the_longest_findable() {
        let (mut lru, mut fifo) = (make("lru", 4).unwrap(), make("fifo", 4).unwrap());
        for policy in [&mut lru, &mut fifo] {
            for block in 0..3 {
                policy.committed(block, &facts(block));
                policy.released(block);
            }
            policy.acquired(0);
            policy.released(0);
        }
        assert_eq!(
            [lru.victim(), lru.victim(), lru.victim(), lru.victim()],
            [Some(1), Some(2), Some(0), None]
        );
        assert_eq!(
            [fifo.victim(), fifo.victim(), fifo.victim(), fifo.victim()],
            [Some(0), Some(1), Some(2), None]
        );
    }

    #[test]
    fn an_unknown_policy_names_the_known_ones() {
        let error = make("clock", 1).err().unwrap();
        assert!(error.text.contains("adaptive, lru, fifo"), "{error}");
    }
}
