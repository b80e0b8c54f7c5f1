//! Structs of the operations of a step that are more than a number, and their way from the header to the room.

/// A run of tokens that a step copies from slots to slots before its work. All of a block's tokens are the whole block.
///
/// A slot is block x block_tokens + offset, also in opaque groups. A run lies in one block on either side.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_token_copy {
    /// The group.
    pub group: u32,
    /// Row of the sequence that it is for.
    pub row: i32,
    /// First slot that is read.
    pub source_slot: i64,
    /// First slot that is written.
    pub target_slot: i64,
    /// Tokens.
    pub tokens: u32,
    /// What is added to the positions of these tokens, 0 or negative: where keys carry their position (RoPE), rotate
    /// those in the target slots by it before attention reads them.
    pub shift: i32,
}

const _: () = assert!(size_of::<kavern_kv_token_copy>() == size_of::<crate::cache::TokenCopy>());
