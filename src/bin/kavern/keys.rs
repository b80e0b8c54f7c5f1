//! Keys, tokens and byte patterns of blocks, all derived from the node of the prefix tree and a seed.
//!
//! A node stands for a block and all before it, so a key made of the node alone is chained by construction. The mixing
//! is a bijection of 64 bits: two nodes never get the same key under one seed. It is no secret; the library's own hash
//! is what separates tenants.

use crate::workload::Workload;

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 16;

/// Tokens of a block where tokens are replayed instead of keys: the block size of the Mooncake traces.
pub(crate) const BLOCK_TOKENS: usize = 512;

/// Size of the vocabulary that token ids are drawn from; a power of two near those of current models.
const VOCABULARY: u64 = 1 << 17;

/// Keys and pattern seeds of all blocks of a workload, in its order.
pub(crate) struct Keys {
    /// KEY_BYTES a block.
    pub(crate) bytes: Vec<u8>,
    /// What the content of each block is made from.
    pub(crate) patterns: Vec<u64>,
}

impl Keys {
    /// Computed once, before the clock starts.
    pub(crate) fn of(workload: &Workload, seed: u64) -> Keys {
        let mut bytes = Vec::with_capacity(workload.blocks() * KEY_BYTES);
        let mut patterns = Vec::with_capacity(workload.blocks());
        for &node in workload.nodes() {
            let low = word(seed, node, 0);
            bytes.extend(low.to_le_bytes());
            bytes.extend(word(seed, node, 1).to_le_bytes());
            patterns.push(mix(low));
        }
        Keys { bytes, patterns }
    }

    /// The keys of the blocks in `range`.
    pub(crate) fn slice(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.bytes[range.start * KEY_BYTES..range.end * KEY_BYTES]
    }
}

/// Writes the tokens of `nodes` into `tokens`, BLOCK_TOKENS for each; returns how many that are.
pub(crate) fn write_tokens(seed: u64, nodes: &[u32], tokens: &mut [i32]) -> usize {
    for (&node, block) in nodes.iter().zip(tokens.chunks_exact_mut(BLOCK_TOKENS)) {
        let start = word(seed, node, 2);
        for (token, step) in block.iter_mut().zip(0u64..) {
            *token = (mix(start.wrapping_add(step)) % VOCABULARY) as i32;
        }
    }
    nodes.len() * BLOCK_TOKENS
}

/// 32 bytes that key the library's hash chain, so that two runs with one seed compute the same.
pub(crate) fn secret(seed: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (part, lane) in bytes.chunks_exact_mut(8).zip(3..) {
        part.copy_from_slice(&word(seed, 0, lane).to_le_bytes());
    }
    bytes
}

/// The `lane`th word of a node; for a fixed seed and lane different nodes give different words.
fn word(seed: u64, node: u32, lane: u64) -> u64 {
    mix(mix(seed.wrapping_add(lane << 32)).wrapping_add(u64::from(node)))
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection in which each input bit moves each output bit.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_are_equal_exactly_where_nodes_are() {
        let mut workload = Workload::new("test".into());
        [0, 1, 2, 1, 0].into_iter().for_each(|node| workload.push_block(node));
        workload.finish_request(0);
        let keys = Keys::of(&workload, 7);
        assert_eq!(keys.slice(0..2), [keys.slice(4..5), keys.slice(3..4)].concat());
        assert_eq!(keys.bytes.chunks(KEY_BYTES).collect::<HashSet<_>>().len(), 3);
        assert_ne!(keys.bytes, Keys::of(&workload, 8).bytes);
    }

    #[test]
    fn tokens_are_valid_ids_and_differ_between_nodes() {
        let mut tokens = vec![-1; 3 * BLOCK_TOKENS];
        assert_eq!(write_tokens(1, &[4, 5, 4], &mut tokens), tokens.len());
        assert!(tokens.iter().all(|token| (0..VOCABULARY as i32).contains(token)));
        let blocks: Vec<_> = tokens.chunks(BLOCK_TOKENS).collect();
        assert!(blocks[0] == blocks[2] && blocks[0] != blocks[1]);
    }
}
