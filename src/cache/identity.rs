//! The identity of a block's content, where keys do not suffice: what XXH3 names is proved by its tokens and by the
//! identity of what came before it.
//!
//! It tells all tokens up to the end of a block apart. So content that was evicted and is stored anew has the identity
//! that it had, and what follows it is found again. Somebody may make prefixes whose keys collide, but an identity is a
//! hash under numbers that are drawn for each store and that nobody sees: of a block the sum of products of its tokens,
//! two by two, with such numbers added, of a prefix the polynomial with these as coefficients, at one more such number,
//! all modulo a prime. Two prefixes of at most n blocks, whoever chose them, share an identity with a chance of at most
//! n / 2^61. Extras are no part of it: a block's digest of them tells all of those before it.
//! Source of the idea: universal hashing as in UMAC (Black, Halevi, Krawczyk, Krovetz, Rogaway).

use super::block::ROOT_SERIAL;
use crate::error::Result;
use crate::sys::reserve::filled;

/// The prime; what is reduced twice is hardly larger.
const PRIME: u64 = (1 << BITS) - 1;
const BITS: u32 = 61;
/// The least identity of a block; what is less means something else.
const FIRST: u64 = ROOT_SERIAL + 1;
/// Products of less than 2^123 that fit into a sum of 128 bits with what is left of the sum before.
const SUMMED: usize = 16;

/// The numbers of a store.
pub(super) struct Identities {
    point: u64,
    /// Two for each two tokens of a block.
    addends: Vec<[u64; 2]>,
}

impl Identities {
    /// For blocks of so many tokens.
    pub(super) fn new(seed: [u64; 4], block_tokens: usize) -> Result<Self> {
        let mut addends = filled(1 + block_tokens.div_ceil(2), [0; 2])?;
        let mut hasher = blake3::Hasher::new_keyed(&bytemuck::cast(seed));
        hasher.update(b"kavern 1 identities").finalize_xof().fill(bytemuck::cast_slice_mut(&mut addends));
        addends.as_flattened_mut().iter_mut().for_each(|number| *number &= PRIME);
        let [point, _] = addends.pop().unwrap_or_default();
        Ok(Self { point, addends })
    }

    /// The identity of a block of these tokens after content of that identity.
    #[inline]
    pub(super) fn after(&self, parent: u64, tokens: &[i32]) -> u64 {
        let (pairs, last) = tokens.as_chunks::<2>();
        let mut sum = u128::from(parent) * u128::from(self.point);
        for (pairs, addends) in pairs.chunks(SUMMED).zip(self.addends.chunks(SUMMED)) {
            sum = reduced(sum)
                + pairs.iter().zip(addends).map(|(pair, addends)| product(*pair, *addends)).sum::<u128>();
        }
        if let (&[last], Some(&addends)) = (last, self.addends.last()) {
            sum = reduced(sum) + product([last, 0], addends);
        }
        let sum = reduced(reduced(sum)) as u64;
        FIRST + if sum < PRIME { sum } else { sum - PRIME }
    }
}

#[inline(always)]
fn product([a, b]: [i32; 2], [to_a, to_b]: [u64; 2]) -> u128 {
    u128::from(to_a + u64::from(a as u32)) * u128::from(to_b + u64::from(b as u32))
}

/// The same modulo the prime, and nearly as small.
#[inline(always)]
fn reduced(sum: u128) -> u128 {
    (sum & u128::from(PRIME)) + (sum >> BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the book: reduced after every step.
    fn expected(identities: &Identities, parent: u64, tokens: &[i32]) -> u64 {
        let prime = u128::from(PRIME);
        let pairs = tokens.chunks(2).zip(&identities.addends).map(|(pair, [to_a, to_b])| {
            let token = |at: usize| u128::from(pair.get(at).map_or(0, |&token| token as u32));
            (u128::from(*to_a) + token(0)) % prime * ((u128::from(*to_b) + token(1)) % prime) % prime
        });
        let before = u128::from(parent) * u128::from(identities.point) % prime;
        FIRST + pairs.fold(before, |sum, product| (sum + product) % prime) as u64
    }

    #[test]
    fn an_identity_is_the_sum_of_products_modulo_the_prime_for_every_length() {
        let mut random = fastrand::Rng::with_seed(61);
        for count in (0..=70).chain([1000, 1001]) {
            let drawn = Identities::new([random.u64(..); 4], count).unwrap();
            let largest = Identities { point: PRIME, addends: vec![[PRIME; 2]; drawn.addends.len()] };
            let tokens: Vec<i32> = (0..count).map(|_| random.i32(..)).collect();
            for tokens in [tokens, vec![-1; count]] {
                for parent in [ROOT_SERIAL, FIRST, FIRST + PRIME - 1, FIRST + random.u64(..PRIME)] {
                    for identities in [&drawn, &largest] {
                        let identity = identities.after(parent, &tokens);
                        assert_eq!(identity, expected(identities, parent, &tokens), "{count} tokens");
                        assert!(identity >= FIRST);
                    }
                }
            }
        }
    }

    #[test]
    fn every_token_and_what_came_before_change_an_identity_and_equal_content_does_not() {
        for count in [1usize, 2, 15, 16, 33, 100] {
            let [one, equal, other] =
                [[1; 4], [1; 4], [2; 4]].map(|seed| Identities::new(seed, count).unwrap());
            let tokens: Vec<i32> = (0..count as i32).collect();
            let base = one.after(ROOT_SERIAL, &tokens);
            assert_eq!(base, equal.after(ROOT_SERIAL, &tokens));
            let mut all = vec![base, other.after(ROOT_SERIAL, &tokens), one.after(base, &tokens)];
            for at in 0..count {
                let mut changed = tokens.clone();
                changed[at] ^= 1 << (at % 32);
                all.push(one.after(ROOT_SERIAL, &changed));
            }
            // The places of tokens count, also of two that stand together.
            let mut turned = tokens.clone();
            turned.reverse();
            all.extend((count > 1).then(|| one.after(ROOT_SERIAL, &turned)));
            let known = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), known, "{count} tokens");
        }
    }
}
