//! The event of the KV cache's stream of news; its functions are in `cache`.

/// One numbered change of what is findable.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_event {
    /// Rises by one with each event of the cache.
    pub number: u64,
    /// A KAVERN_EVENT_ value.
    pub kind: u32,
    /// A KAVERN_REMOVE_ value.
    pub reason: u32,
    /// Group of the block; the KAVERN_RESET_ scope for KAVERN_EVENT_CLEARED.
    pub group: u32,
    /// The block, -1 for KAVERN_EVENT_CLEARED.
    pub block: i32,
    /// Its namespace.
    pub namespace_id: u64,
    /// First token of the block, counted from the start of its sequence.
    pub token_offset: u64,
    /// Its key, zero-padded.
    pub key: [u8; 32],
    /// Key of the block before it, zero for the first.
    pub parent_key: [u8; 32],
}
