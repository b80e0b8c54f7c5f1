//! What a pool has and did.
//!
//! What it does: totals and shares from counts. Definitions of the shares: decision 0010. Invariant: a share lies
//! between 0 and 1, and is 0 where there is nothing to share. Pure.

/// One class of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClassStatistics {
    /// Size of a block.
    pub block_bytes: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Blocks that somebody has.
    pub in_use: u64,
    /// Released blocks whose stream may not be done with them.
    pub waiting: u64,
    /// Requests that a held block served.
    pub hits: u64,
    /// Requests that made the class grow.
    pub misses: u64,
    /// Batches made.
    pub expansions: u64,
    /// Batches given back.
    pub evictions: u64,
    /// Share of the pool's bytes that are free and cannot serve this class.
    pub fragmentation: f64,
}

/// A whole pool.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PoolStatistics {
    /// Requests that a held block served.
    pub hits: u64,
    /// Requests that made the pool grow.
    pub misses: u64,
    /// Requests that the limit refused.
    pub refusals: u64,
    /// Hits for which a stream was made to wait for another.
    pub stream_waits: u64,
    /// Times that the whole device was waited for, because a stream was gone with blocks behind it.
    pub device_waits: u64,
    /// Bytes held.
    pub held_bytes: u64,
    /// Those of them in managed memory: all or none.
    pub managed_bytes: u64,
    /// Most that was held at one time.
    pub peak_held_bytes: u64,
    /// Limit; 0 for none.
    pub max_bytes: u64,
    /// Bytes of blocks in use.
    pub in_use_bytes: u64,
    /// Bytes that were asked for, of the blocks in use.
    pub requested_bytes: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Blocks in use.
    pub in_use: u64,
    /// Released blocks whose stream may not be done with them.
    pub waiting: u64,
    /// Batches made.
    pub expansions: u64,
    /// Batches given back.
    pub evictions: u64,
    /// Hits of all requests that were served.
    pub hit_rate: f64,
    /// Bytes in use of those held.
    pub utilisation: f64,
    /// Share of the held bytes that are free and cannot serve a request; the mean over the requests so far.
    pub fragmentation: f64,
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

impl PoolStatistics {
    /// Sums and shares.
    pub(super) fn complete(
        mut totals: Self,
        mut classes: Vec<ClassStatistics>,
    ) -> (Self, Vec<ClassStatistics>) {
        let held = totals.held_bytes as f64;
        let free = (totals.held_bytes - totals.in_use_bytes) as f64;
        let mut stranded = 0.0;
        for class in &mut classes {
            let own = ((class.blocks - class.in_use) * class.block_bytes) as f64;
            class.fragmentation = share(free - own, held);
            totals.hits += class.hits;
            totals.misses += class.misses;
            totals.blocks += class.blocks;
            totals.in_use += class.in_use;
            totals.waiting += class.waiting;
            totals.expansions += class.expansions;
            totals.evictions += class.evictions;
            stranded += class.fragmentation * (class.hits + class.misses) as f64;
        }
        let requests = (totals.hits + totals.misses) as f64;
        totals.hit_rate = share(totals.hits as f64, requests);
        totals.utilisation = share(totals.in_use_bytes as f64, held);
        totals.fragmentation = share(stranded, requests);
        (totals, classes)
    }
}
