//! Keys of blocks and the chain that makes them from tokens.
//!
//! `key(i) = hash(key(i - 1), tokens of link i, extras of link i)`, started from a root that is derived from the
//! cache's secret, the namespace, its salt and its adapter: no key of one namespace says anything about another.
//! BLAKE3 takes the parent as its key and the tokens as the message: one compression for 16 tokens. XXH3 is faster
//! but a fixed pair of messages collides under about 1 in 2^27 seeds (Cyan4973/xxHash issue 1127), so the store
//! compares tokens where it is used, and ancestry by what nobody can choose (`identity`).

use xxhash_rust::xxh3;

use super::config::HashKind;

/// Identity of a block's content: what it holds and all that came before it. Zero-padded to 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key(pub [u64; 4]);

impl Key {
    /// A key of at most 32 bytes that the caller chained.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut padded = [0u8; 32];
        // Of a length that the compiler knows, a copy is a move or two.
        match bytes.len() {
            8 => padded[..8].copy_from_slice(bytes),
            16 => padded[..16].copy_from_slice(bytes),
            32 => padded.copy_from_slice(bytes),
            length => padded[..length].copy_from_slice(bytes),
        }
        Self(bytemuck::cast(padded))
    }

    /// The key as bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        bytemuck::cast(self.0)
    }
}

/// Digest of the extras of one link, folded one after the other, so that their number is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extras(pub(super) [u64; 4]);

impl Extras {
    pub(super) const NONE: Self = Self([0; 4]);

    /// Adds one thing that a token at this offset depends on.
    pub(super) fn fold(&mut self, id: &[u8; 32], token_offset: u64) {
        let mut message = [0u8; 72];
        message[..32].copy_from_slice(bytemuck::bytes_of(&self.0));
        message[32..64].copy_from_slice(id);
        message[64..].copy_from_slice(&token_offset.to_le_bytes());
        self.0 = bytemuck::cast(*blake3::hash(&message).as_bytes());
    }
}

/// The root of a namespace's chain.
pub(super) fn root_key(secret: &[u8; 32], namespace_id: u64, adapter_id: u64, salt: &[u8]) -> Key {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(b"kavern 1 root");
    hasher.update(&namespace_id.to_le_bytes());
    hasher.update(&adapter_id.to_le_bytes());
    hasher.update(&(salt.len() as u64).to_le_bytes());
    hasher.update(salt);
    Key(bytemuck::cast(*hasher.finalize().as_bytes()))
}

/// A 64-bit name of whose bytes lie in a slot: namespace and salt, without the adapter. Never 0.
pub(super) fn tenant_tag(secret: &[u8; 32], namespace_id: u64, salt: &[u8]) -> u64 {
    let key = root_key(secret, namespace_id, u64::MAX, salt);
    (key.0[0] ^ key.0[1]).max(1)
}

/// Tokens up to which XXH3 reads one buffer on the stack.
const SHORT_LINK_TOKENS: usize = 64;

/// Tokens of a link in most caches.
const USUAL_LINK_TOKENS: usize = 16;

/// Chains links of so many tokens without extras, one after the other, and gives each key to `take`.
pub(super) fn chain(
    kind: HashKind,
    parent: Key,
    tokens: &[i32],
    link_tokens: usize,
    mut take: impl FnMut(Key),
) {
    if kind == HashKind::Xxh3 && link_tokens == USUAL_LINK_TOKENS {
        let [mut first, mut second, ..] = parent.0;
        for link in tokens.as_chunks().0 {
            [first, second] = usual_link([first, second], link);
            take(Key([first, second, 0, 0]));
        }
        return;
    }
    let mut key = parent;
    for tokens in tokens.chunks_exact(link_tokens) {
        key = link(kind, &key, tokens, &Extras::NONE);
        take(key);
    }
}

/// One link of the chain.
pub(super) fn link(kind: HashKind, parent: &Key, tokens: &[i32], extras: &Extras) -> Key {
    let message: &[u8] = bytemuck::cast_slice(tokens);
    match kind {
        HashKind::Blake3 if *extras == Extras::NONE => {
            Key(bytemuck::cast(*blake3::keyed_hash(&parent.to_bytes(), message).as_bytes()))
        }
        HashKind::Blake3 => {
            // Longer than any message without extras of the same link size, so the two never meet.
            let mut hasher = blake3::Hasher::new_keyed(&parent.to_bytes());
            hasher.update(message).update(bytemuck::bytes_of(&extras.0));
            Key(bytemuck::cast(*hasher.finalize().as_bytes()))
        }
        HashKind::Xxh3 => match tokens.try_into() {
            Ok(tokens) if *extras == Extras::NONE => {
                let [first, second] = usual_link([parent.0[0], parent.0[1]], tokens);
                Key([first, second, 0, 0])
            }
            _ => xxh3_link(parent, message, extras),
        },
    }
}

fn xxh3_link(parent: &Key, message: &[u8], extras: &Extras) -> Key {
    // The parent stands in front of the message; its first word also seeds, so that the root's secret acts on
    // every multiplication of the hash.
    let seed = parent.0[0];
    let hash = if *extras == Extras::NONE && message.len() <= SHORT_LINK_TOKENS * 4 {
        let mut buffer = [0u8; 16 + SHORT_LINK_TOKENS * 4];
        buffer[..16].copy_from_slice(bytemuck::bytes_of(&[parent.0[0], parent.0[1]]));
        buffer[16..16 + message.len()].copy_from_slice(message);
        xxh3::xxh3_128_with_seed(&buffer[..16 + message.len()], seed)
    } else {
        let mut hasher = xxh3::Xxh3::with_seed(seed);
        hasher.update(bytemuck::bytes_of(&[parent.0[0], parent.0[1]]));
        hasher.update(message);
        if *extras != Extras::NONE {
            hasher.update(bytemuck::bytes_of(&extras.0));
        }
        hasher.digest128()
    };
    Key([hash as u64, (hash >> 64) as u64, 0, 0])
}

/// Constants of XXH3: three of its primes, the multiplier of its last mixing, and the start of its secret.
const PRIME_1: u64 = 0x9e37_79b1_85eb_ca87;
const PRIME_2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const PRIME_4: u64 = 0x85eb_ca77_c2b2_ae63;
const LAST_MULTIPLIER: u64 = 0x1656_6791_9e37_79f9;
const SECRET: [u64; 12] = [
    0xbe4b_a423_396c_feb8,
    0x1cad_21f7_2c81_017c,
    0xdb97_9083_e96d_d4de,
    0x1f67_b3b7_a4a4_4072,
    0x78e5_c0cc_4ee6_79cb,
    0x2172_ffcc_7dd0_5a82,
    0x8e24_43f7_7446_08b8,
    0x4c26_3a81_e690_35e0,
    0xcb00_c391_bb52_283c,
    0xa32e_531b_8b65_d088,
    0x4ef9_0da2_9748_6471,
    0xd8ac_dea9_46ef_1938,
];

/// XXH3 of the parent's two words and one link of 16 tokens, without extras.
///
/// Each link waits for the one before it, so what counts is how soon a link's hash follows from its parent's. Written
/// for this one length, all of it stays in registers and the parent meets the sums of the tokens last.
#[inline(always)]
fn usual_link([seed, second]: [u64; 2], tokens: &[i32; USUAL_LINK_TOKENS]) -> [u64; 2] {
    const BYTES: u64 = 16 + USUAL_LINK_TOKENS as u64 * 4;
    let words: [u64; USUAL_LINK_TOKENS / 2] = bytemuck::cast(*tokens);
    let [a, b, c, d, e, f, g, h] = words.map(u64::from_le);
    let mix = |low: u64, high: u64, secret: usize| {
        let low = low ^ SECRET[secret].wrapping_add(seed);
        let product = u128::from(low) * u128::from(high ^ SECRET[secret + 1].wrapping_sub(seed));
        product as u64 ^ (product >> 64) as u64
    };
    // From the middle of the message outwards, its first part with its last at the end.
    let (mut low, mut high) = (BYTES.wrapping_mul(PRIME_1), 0u64);
    let mut add = |first: [u64; 2], last: [u64; 2], secret: usize| {
        low = low.wrapping_add(mix(first[0], first[1], secret)) ^ last[0].wrapping_add(last[1]);
        high = high.wrapping_add(mix(last[0], last[1], secret + 2)) ^ first[0].wrapping_add(first[1]);
    };
    add([c, d], [c, d], 8);
    add([a, b], [e, f], 4);
    add([seed, second], [g, h], 0);
    let last = |value: u64| {
        let mixed = (value ^ value >> 37).wrapping_mul(LAST_MULTIPLIER);
        mixed ^ mixed >> 32
    };
    let sum = low.wrapping_mul(PRIME_1).wrapping_add(high.wrapping_mul(PRIME_4));
    let length = BYTES.wrapping_sub(seed).wrapping_mul(PRIME_2);
    [last(low.wrapping_add(high)), last(sum.wrapping_add(length)).wrapping_neg()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_link_changes_its_key() {
        for kind in [HashKind::Blake3, HashKind::Xxh3] {
            for count in [1usize, 16, 64, 65, 512] {
                let tokens: Vec<i32> = (0..count as i32).collect();
                let root = root_key(&[7; 32], 1, 2, b"salt");
                let base = link(kind, &root, &tokens, &Extras::NONE);
                assert_eq!(base, link(kind, &root, &tokens, &Extras::NONE));
                let mut changed = tokens.clone();
                changed[count - 1] += 1;
                let mut extras = Extras::NONE;
                extras.fold(&[1; 32], 0);
                let mut later = Extras::NONE;
                later.fold(&[1; 32], 1);
                let all = [
                    base,
                    link(kind, &root, &changed, &Extras::NONE),
                    link(kind, &base, &tokens, &Extras::NONE),
                    link(kind, &root, &tokens, &extras),
                    link(kind, &root, &tokens, &later),
                    link(kind, &root_key(&[7; 32], 2, 2, b"salt"), &tokens, &Extras::NONE),
                    link(kind, &root_key(&[7; 32], 1, 3, b"salt"), &tokens, &Extras::NONE),
                    link(kind, &root_key(&[7; 32], 1, 2, b"salz"), &tokens, &Extras::NONE),
                    link(kind, &root_key(&[8; 32], 1, 2, b"salt"), &tokens, &Extras::NONE),
                ];
                for (i, a) in all.iter().enumerate() {
                    assert!(all[i + 1..].iter().all(|b| a != b), "{kind:?} with {count} tokens");
                }
            }
        }
    }

    #[test]
    fn a_link_of_every_length_is_what_xxh3_says_of_its_bytes() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..200 {
            for count in [1usize, 15, 16, 17, 60, 64, 65] {
                let tokens: Vec<i32> = (0..count).map(|_| random.i32(..)).collect();
                let root = Key([random.u64(..), random.u64(..), random.u64(..), 0]);
                let mut hasher = xxh3::Xxh3::with_seed(root.0[0]);
                hasher.update(bytemuck::bytes_of(&[root.0[0], root.0[1]]));
                hasher.update(bytemuck::cast_slice(&tokens));
                let hash = hasher.digest128();
                assert_eq!(
                    link(HashKind::Xxh3, &root, &tokens, &Extras::NONE).0,
                    [hash as u64, (hash >> 64) as u64, 0, 0],
                    "{count} tokens"
                );
            }
        }
    }

    #[test]
    fn a_chain_is_its_links_one_after_the_other() {
        let tokens: Vec<i32> = (0..200).map(|i: i32| i.wrapping_mul(7_654_321)).collect();
        for kind in [HashKind::Blake3, HashKind::Xxh3] {
            for each in [1usize, 16, 32, 64] {
                let root = root_key(&[7; 32], 1, 2, b"salt");
                let mut keys = Vec::new();
                chain(kind, root, &tokens, each, |key| keys.push(key));
                let mut parent = root;
                let links = tokens.chunks_exact(each).map(|tokens| {
                    parent = link(kind, &parent, tokens, &Extras::NONE);
                    parent
                });
                assert_eq!(keys, links.collect::<Vec<_>>(), "{kind:?}, links of {each}");
            }
        }
    }
}
