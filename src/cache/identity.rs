//! The identity of a block's content, where keys do not suffice: what XXH3 names is proved by its tokens and by the
//! identity of what came before it.
//!
//! It tells all tokens up to the end of a block apart. So content that was evicted and is stored anew has the identity
//! that it had, and what follows it is found again. Somebody may make prefixes whose keys collide, but an identity is a
//! hash under numbers that are drawn for each store and that nobody sees: of a block the sum of its tokens, each times
//! such a number, of a prefix the polynomial with these as coefficients at one more such number, modulo a prime. Two
//! prefixes of at most n blocks, whoever chose them, share an identity with a chance of at most n / 2^61. Extras are no
//! part of it: a block's digest of them tells all of those before it.
//! Source of the idea: the universal classes of hash functions of Carter and Wegman.

use super::block::ROOT_SERIAL;
use crate::error::Result;
use crate::sys::reserve::filled;

const PRIME: u64 = (1 << BITS) - 1;
const BITS: u32 = 61;
/// The least identity of a block; what is less means something else.
const FIRST: u64 = ROOT_SERIAL + 1;
/// Tokens of a block in most caches.
const USUAL_TOKENS: usize = 16;

/// The numbers of a store.
pub(super) struct Identities {
    point: u64,
    /// One for each token of a block.
    factors: Vec<u64>,
}

impl Identities {
    /// For blocks of so many tokens.
    pub(super) fn new(seed: [u64; 4], block_tokens: usize) -> Result<Self> {
        let mut factors = filled(1 + block_tokens, 0)?;
        let mut hasher = blake3::Hasher::new_keyed(&bytemuck::cast(seed));
        hasher.update(b"kavern 1 identities").finalize_xof().fill(bytemuck::cast_slice_mut(&mut factors));
        factors.iter_mut().for_each(|number| *number &= PRIME);
        Ok(Self { point: factors.pop().unwrap_or_default(), factors })
    }

    /// The identity of a block of these tokens after content of that identity.
    #[inline]
    pub(super) fn after(&self, parent: u64, tokens: &[i32]) -> u64 {
        let before = u128::from(parent) * u128::from(self.point);
        let product = |(&token, &factor)| u128::from(factor) * u128::from(token as u32);
        // Less than 2^123, and 2^93 for each token.
        let sum = match (<&[i32; USUAL_TOKENS]>::try_from(tokens), self.factors.first_chunk::<USUAL_TOKENS>())
        {
            // Of a length that the compiler knows, there is no loop.
            (Ok(tokens), Some(factors)) => before + tokens.iter().zip(factors).map(product).sum::<u128>(),
            _ => before + tokens.iter().zip(&self.factors).map(product).sum::<u128>(),
        };
        // 2^61 is 1.
        let [low, middle, high] = [0, BITS, 2 * BITS].map(|bits| (sum >> bits) as u64 & PRIME);
        let sum = low + middle + high;
        let sum = (sum & PRIME) + (sum >> BITS);
        FIRST + if sum < PRIME { sum } else { sum - PRIME }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the book: reduced after every step.
    fn expected(identities: &Identities, parent: u64, tokens: &[i32]) -> u64 {
        let (prime, before) = (u128::from(PRIME), u128::from(parent) * u128::from(identities.point));
        let product = |(&token, &factor)| u128::from(factor) * u128::from(token as u32);
        let products = tokens.iter().zip(&identities.factors).map(product);
        FIRST + products.fold(before % prime, |sum, product| (sum + product) % prime) as u64
    }

    #[test]
    fn an_identity_is_the_sum_of_products_modulo_the_prime_for_every_length() {
        let mut random = fastrand::Rng::with_seed(61);
        for count in (0..=70).chain([1000, 100_001]) {
            let drawn = Identities::new([random.u64(..); 4], count).unwrap();
            assert_eq!(drawn.factors.len(), count);
            let largest = Identities { point: PRIME, factors: vec![PRIME; count] };
            let tokens: Vec<i32> = (0..count).map(|_| random.i32(..)).collect();
            for tokens in [tokens, vec![-1; count]] {
                for parent in [ROOT_SERIAL, FIRST, FIRST + PRIME - 1, FIRST + random.u64(..PRIME)] {
                    for identities in [&drawn, &largest] {
                        let identity = identities.after(parent, &tokens);
                        assert_eq!(identity, expected(identities, parent, &tokens), "{count} tokens");
                        assert!((FIRST..FIRST + PRIME).contains(&identity));
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
