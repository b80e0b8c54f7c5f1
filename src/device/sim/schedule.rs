//! Who runs next: policies that pick a stream, from a seed.
//!
//! What it does: numbers from a seed, one pick at a time. What it does not: know streams; it gets those that could run.
//! Invariant: the same seed and the same questions give the same answers.

use crate::device::registry::Spec;
use crate::error::{Error, Result};

/// How streams take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    /// One after the other.
    Fair,
    /// Any.
    Random,
    /// One stream only when no other can; which one changes now and then.
    Starve,
    /// Only what somebody waits for.
    Latest,
    /// The one of the highest rank; ranks fall at random moments.
    Priority,
}

const POLICIES: &[(&str, Policy)] = &[
    ("fair", Policy::Fair),
    ("random", Policy::Random),
    ("starve", Policy::Starve),
    ("latest", Policy::Latest),
    ("priority", Policy::Priority),
];

/// Picks between two changes of the starved stream.
const STARVED_PICKS: u64 = 64;
/// A rank falls once in so many picks.
const RANK_PICKS: u64 = 16;

/// Mixes two numbers (the finaliser of SplitMix64).
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_add(b.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The state of a policy.
#[derive(Debug)]
pub(super) struct Schedule {
    policy: Policy,
    seed: u64,
    picks: u64,
    latest: u32,
    /// How often the rank of a stream has fallen, by its number.
    falls: Vec<u32>,
}

impl Schedule {
    /// The policy of a spec; random turns if it names none.
    pub(super) fn of(spec: &Spec) -> Result<Self> {
        let name = spec.text("schedule").unwrap_or("random");
        let Some((_, policy)) = POLICIES.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = POLICIES.iter().map(|(name, _)| *name).collect();
            return Err(Error::argument(format!(
                "schedule={name} is unknown; known are {}",
                known.join(", ")
            )));
        };
        let seed = spec.number("seed")?.unwrap_or(0);
        Ok(Self { policy: *policy, seed, picks: 0, latest: 0, falls: Vec::new() })
    }

    /// Picks from here on as one that was made with this seed.
    pub(super) fn reseed(&mut self, seed: u64) {
        *self = Self { policy: self.policy, seed, picks: 0, latest: 0, falls: Vec::new() };
    }

    /// The seed.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether only what is waited for runs.
    pub(super) fn is_latest(&self) -> bool {
        self.policy == Policy::Latest
    }

    /// Picks one of the streams that could run, given by their numbers in rising order: its place in the list.
    pub(super) fn pick(&mut self, ready: &[u32]) -> usize {
        self.picks += 1;
        if ready.len() < 2 {
            return 0;
        }
        let random = mix(self.seed, self.picks);
        let any = (random % ready.len() as u64) as usize;
        match self.policy {
            Policy::Random | Policy::Latest => any,
            Policy::Fair => {
                let place = ready.iter().position(|&number| number > self.latest).unwrap_or(0);
                self.latest = ready[place];
                place
            }
            Policy::Starve => {
                let round = mix(self.seed, !(self.picks / STARVED_PICKS));
                let starved = ready.iter().max_by_key(|&&number| mix(round, u64::from(number)));
                if Some(&ready[any]) == starved { (any + 1) % ready.len() } else { any }
            }
            Policy::Priority => {
                let rank = |number: u32| {
                    let falls = self.falls.get(number as usize).copied().unwrap_or(0);
                    (std::cmp::Reverse(falls), mix(self.seed, u64::from(number) << 32 | u64::from(falls)))
                };
                let best = (0..ready.len()).max_by_key(|&place| rank(ready[place])).unwrap_or(0);
                if random.is_multiple_of(RANK_PICKS) {
                    let number = ready[best] as usize;
                    self.falls.resize(self.falls.len().max(number + 1), 0);
                    self.falls[number] += 1;
                }
                best
            }
        }
    }
}
