//! Traffic of thousands of tenants without a memory of its own: what a request asks for follows from its number.
//!
//! Tenants come and go, a few of them make most of the traffic; each has some system prompts and conversations that
//! grow turn by turn while time goes by. One request in fifty is hostile: prompts that are never seen again, a cycle of
//! prompts that just does not fit, and other tenants' prompts under a name of one's own. A block's key follows from its
//! tenant, its context and its position, so 10^8 blocks take no more memory than one request.
//!
//! Invariant: the same seed and number give the same request on every machine; keys of two tenants differ, except those
//! that a prober copies on purpose.

use fastrand::Rng;
use serde::Serialize;

use crate::keys::{KEY_BYTES, mix};

/// Tenants at a time.
const TENANTS: usize = 5000;
/// Longest prompt in blocks.
pub(crate) const LONGEST: usize = 1024;
/// Requests for which a tenant stays, at least; up to sixteen times as long.
const STAY: u64 = 200_000;
/// Requests of a tenant's neighbours between two beginnings of its conversations.
const BUCKET: u64 = 2_000;
/// Turns of the longest conversation.
const TURNS: u64 = 16;
/// One request in so many is the next of the cycle that just does not fit.
const CYCLE_EVERY: u64 = 200;
/// Distinct blocks that a request brings between two rounds of that cycle, at least: 50 to 60 with 10^7 blocks, 50
/// to 75 with 10^6.
const DISTINCT_BLOCKS: u64 = 50;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sender {
    Tenant,
    /// Asks for what nobody asks for again.
    Scanner,
    /// Goes round and round.
    Thrasher,
    /// Asks for other tenants' prompts.
    Prober,
}

impl Sender {
    /// All of them, each at its own place.
    pub(crate) const ALL: [Sender; 4] = [Sender::Tenant, Sender::Scanner, Sender::Thrasher, Sender::Prober];

    /// Of many.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Sender::Tenant => "tenants",
            Sender::Scanner => "scanners",
            Sender::Thrasher => "cycle",
            Sender::Prober => "probers",
        }
    }
}

/// A request; its keys lie in the caller's buffer.
pub(crate) struct Ask {
    pub(crate) sender: Sender,
    pub(crate) namespace: u64,
}

/// The traffic.
pub(crate) struct Internet {
    seed: u64,
    /// Share of the traffic that the first n tenants make.
    shares: Vec<f64>,
    /// Prompts of the cycle.
    cycle: u64,
}

impl Internet {
    /// For a cache of so many blocks: when the cycle comes round, a few more than those were touched.
    pub(crate) fn new(seed: u64, capacity_blocks: u64) -> Internet {
        let mut sum = 0.0;
        let mut shares: Vec<f64> = (1..=TENANTS)
            .map(|rank| {
                sum += (rank as f64).powf(-0.9);
                sum
            })
            .collect();
        shares.iter_mut().for_each(|share| *share /= sum);
        let cycle = capacity_blocks.div_ceil(DISTINCT_BLOCKS * CYCLE_EVERY);
        Internet { seed, shares, cycle }
    }

    /// Writes the keys of request `number` and says whose it is.
    pub(crate) fn ask(&self, number: u64, keys: &mut Vec<u8>) -> Ask {
        keys.clear();
        let mut rng = Rng::with_seed(mix(self.seed ^ mix(number)));
        if number.is_multiple_of(CYCLE_EVERY) {
            let prompt = number / CYCLE_EVERY % self.cycle;
            self.push(keys, prompt, 2, 64 + (mix(prompt) % 128) as usize);
            return Ask { sender: Sender::Thrasher, namespace: 2 };
        }
        match rng.u32(0..200) {
            0 => {
                let length = rng.usize(100..=600);
                self.push(keys, mix(number) | 1, 1, length);
                Ask { sender: Sender::Scanner, namespace: 1 }
            }
            1 | 2 => {
                self.conversation(number, &mut rng, keys);
                Ask { sender: Sender::Prober, namespace: 3 }
            }
            _ => Ask { sender: Sender::Tenant, namespace: self.conversation(number, &mut rng, keys) },
        }
    }

    /// A turn of a conversation of one of the tenants; answers which.
    fn conversation(&self, number: u64, rng: &mut Rng, keys: &mut Vec<u8>) -> u64 {
        let draw = rng.f64();
        let slot = self.shares.partition_point(|&share| share < draw).min(TENANTS - 1) as u64;
        // A tenant leaves its place to another one after its time.
        let stay = STAY * (1 + mix(slot ^ self.seed) % 16);
        let era = (number + mix(slot) % stay) / stay;
        let tenant = mix(slot << 32 | era) | 1 << 63;
        let prompt = rng.u64(0..4).min(rng.u64(0..4));
        let of_prompt = mix(tenant ^ prompt);
        self.push(keys, of_prompt, 3, 8 + (of_prompt % 120) as usize);
        // Ages at equal ratios: most turns belong to young conversations, some to old ones.
        let bucket = number / BUCKET;
        let age = (64f64.powf(rng.f64()) - 1.0) as u64;
        let mut born = bucket.saturating_sub(age);
        let mut context = mix(of_prompt ^ mix(born << 8 | rng.u64(0..2)));
        let gap = 1 + context % 4;
        let mut turns = 1 + (bucket - born) / gap;
        if turns > 1 + context / 7 % TURNS {
            (born, turns) = (bucket, 1);
            context = mix(of_prompt ^ mix((born << 8) | (3 + rng.u64(0..5))));
        }
        let blocks: u64 = (0..turns).map(|turn| 3 + mix(context ^ turn) % 40).sum();
        self.push(keys, context, 4, blocks as usize);
        tenant
    }

    /// Appends keys of the blocks of a context.
    fn push(&self, keys: &mut Vec<u8>, context: u64, kind: u64, blocks: usize) {
        let start = mix(context ^ mix(self.seed ^ kind));
        let room = LONGEST - keys.len() / KEY_BYTES;
        for position in 0..blocks.min(room) as u64 {
            let low = mix(start.wrapping_add(position));
            keys.extend(low.to_le_bytes());
            keys.extend((start ^ position.rotate_left(32)).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn a_number_gives_the_same_request_each_time() {
        let (one, other) = (Internet::new(3, 1000), Internet::new(4, 1000));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for number in [0, 17, 1_000_000] {
            let namespace = one.ask(number, &mut a).namespace;
            assert_eq!(one.ask(number, &mut b).namespace, namespace);
            assert!(a == b && !a.is_empty() && a.len() <= LONGEST * KEY_BYTES);
            other.ask(number, &mut b);
            assert_ne!(a, b);
        }
    }

    #[test]
    fn keys_have_one_owner_and_one_predecessor_and_many_come_again() {
        let internet = Internet::new(1, 1_000_000);
        let (mut keys, mut seen, mut owners) = (Vec::new(), HashMap::new(), HashMap::new());
        let (mut senders, mut touches, mut tenants) = (HashSet::new(), 0usize, HashSet::new());
        for number in 0..20_000 {
            let ask = internet.ask(number, &mut keys);
            senders.insert(ask.sender);
            let mut before = None;
            for key in keys.chunks(KEY_BYTES) {
                touches += 1;
                assert_eq!(*seen.entry(key.to_vec()).or_insert(before.clone()), before);
                if ask.sender != Sender::Prober {
                    assert_eq!(*owners.entry(key.to_vec()).or_insert(ask.namespace), ask.namespace);
                    tenants.insert(ask.namespace);
                }
                before = Some(key.to_vec());
            }
        }
        assert_eq!(senders.len(), 4, "{senders:?}");
        assert!(tenants.len() > 1000, "{} tenants", tenants.len());
        let reused = 1.0 - seen.len() as f64 / touches as f64;
        assert!((0.3..0.95).contains(&reused), "{reused}");
    }

    #[test]
    fn the_cycle_comes_round_when_a_little_more_was_touched_than_the_cache_holds() {
        const CAPACITY: u64 = 200_000;
        let internet = Internet::new(1, CAPACITY);
        let (mut keys, mut seen) = (Vec::new(), HashSet::new());
        let (mut first, mut rounds) = (None, 0);
        for number in 0..20_000 {
            let sender = internet.ask(number, &mut keys).sender;
            if sender == Sender::Thrasher && *first.get_or_insert_with(|| keys.clone()) == keys {
                let touched = seen.len() as u64;
                assert!(rounds == 0 || (CAPACITY..2 * CAPACITY).contains(&touched), "{touched}");
                rounds += 1;
                seen.clear();
            }
            seen.extend(keys.chunks(KEY_BYTES).map(<[u8]>::to_vec));
        }
        assert!(rounds > 2, "{rounds} rounds");
    }
}
