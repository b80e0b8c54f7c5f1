//! What a pool of pinned memory has and did.

/// Totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinnedStatistics {
    /// Bytes of all chunks.
    pub held_bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// Bytes that were asked for and not freed.
    pub live_bytes: u64,
    /// Ranges of them.
    pub live: u64,
    /// Bytes above what was asked for, of live ranges.
    pub slack_bytes: u64,
    /// Bytes of freed ranges whose stream may still copy.
    pub leaving_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// The most of them in a row.
    pub largest_free_bytes: u64,
    /// Bytes of the caller's that are pinned.
    pub registered_bytes: u64,
    /// Pieces of them.
    pub registered_pieces: u64,
    /// Bytes that are still to be pinned ahead.
    pub ahead_bytes: u64,
    /// Requests that what was held served.
    pub hits: u64,
    /// Requests that needed a new chunk.
    pub misses: u64,
    /// The NUMA node that memory is asked to lie on.
    pub node: Option<u32>,
}
