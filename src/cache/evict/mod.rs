//! Eviction policies: which findable block that nobody holds goes first.
//!
//! A policy owns its own links and knows blocks only as indices. The store calls it under its lock:
//! `committed` when a block becomes findable (its holder still has it), `released` when the last holder lets go,
//! `acquired` when somebody takes it again, `removed` when it stops being findable, in whatever state it is.
//! `victim` names the next to go among the released ones and forgets it. Every call is O(1), at worst amortised.
//! Priorities, expiry and pins are a layer above every policy (`retention`): a block that they govern counts as held
//! here.

mod adaptive;
mod cost;
mod fifo;
mod ghosts;
mod lfu;
mod lru;
mod odds;
mod ranks;
mod runs;
mod s3fifo;

use crate::error::{Error, Result, Status};

/// What a policy is told of a block that became findable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// Digest of key and namespace, evenly spread: equal when the same content comes again.
    pub(super) fingerprint: u64,
    /// Blocks before it in its sequence.
    pub(super) position: u64,
    /// Tokens in a block.
    pub(super) tokens: u32,
}

/// What a policy answers to.
pub(super) trait Policy: Send {
    /// The block became findable; somebody holds it.
    fn committed(&mut self, block: u32, facts: &Facts);
    /// Somebody took a released block.
    fn acquired(&mut self, block: u32);
    /// The last holder let go.
    fn released(&mut self, block: u32);
    /// The block stops being findable; `was_released` tells its state.
    fn removed(&mut self, block: u32, was_released: bool);
    /// So many of the blocks that it was made for may be in use from now on.
    fn room(&mut self, _blocks: u32) {}
    /// The next to go; it is already forgotten when this returns.
    fn victim(&mut self) -> Option<u32>;
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

    /// Blocks of few contents, so that ghosts come back.
    fn facts(block: u32) -> Facts {
        Facts {
            fingerprint: u64::from(block + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            position: 3,
            tokens: 16,
        }
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
