//! Keys of blocks and the chain that makes them from tokens.
//!
//! `key(i) = hash(key(i - 1), tokens of link i, extras of link i)`, started from a root that is derived from the
//! cache's secret, the namespace, its salt and its adapter: no key of one namespace says anything about another.
//! BLAKE3 takes the parent as its key and the tokens as the message: one compression for 16 tokens. XXH3 is faster
//! but a fixed pair of messages collides under about 1 in 2^27 seeds (Cyan4973/xxHash issue 1127), so the store
//! compares tokens and ancestry exactly where it is used.

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
        HashKind::Xxh3 => xxh3_link(parent, message, extras),
    }
}

fn xxh3_link(parent: &Key, message: &[u8], extras: &Extras) -> Key {
    // The parent stands in front of the message; its first word also seeds, so that the root's secret acts on
    // every multiplication of the hash.
    let seed = parent.0[0];
    let hash = if *extras == Extras::NONE && message.len() == USUAL_LINK_TOKENS * 4 {
        // A length that the compiler knows: no byte is cleared first, and the hash is that of one length.
        let mut buffer = [0u8; 16 + USUAL_LINK_TOKENS * 4];
        buffer[..16].copy_from_slice(bytemuck::bytes_of(&[parent.0[0], parent.0[1]]));
        buffer[16..].copy_from_slice(message);
        xxh3::xxh3_128_with_seed(&buffer, seed)
    } else if *extras == Extras::NONE && message.len() <= SHORT_LINK_TOKENS * 4 {
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
    fn the_streaming_and_the_buffered_form_of_xxh3_agree() {
        let (tokens, root) = ([5i32; 16], Key([3, 4, 0, 0]));
        let mut hasher = xxh3::Xxh3::with_seed(3);
        hasher.update(bytemuck::bytes_of(&[3u64, 4]));
        hasher.update(bytemuck::cast_slice(&tokens));
        let hash = hasher.digest128();
        assert_eq!(
            link(HashKind::Xxh3, &root, &tokens, &Extras::NONE).0[..2],
            [hash as u64, (hash >> 64) as u64]
        );
    }
}
