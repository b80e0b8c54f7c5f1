//! What is known of one sequence or lease, and in which order it lies in memory.
//!
//! What it does not: hold blocks, which is `sequence`. Invariant: what an APPEND touches of a sequence is one line of
//! the processor's cache, what a COMMIT touches beside it the next one.

use std::mem::offset_of;

use super::advise::Ask;
use super::change::Hits;
use super::classes::Groups;
use super::hash::{Extras, Key};

/// What a lease and a sequence have in common: whose it is and where its chain stands. What every operation reads comes
/// first, see [`Sequence`].
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Holder {
    pub(super) generation: u32,
    pub(super) is_live: bool,
    pub(super) no_store: bool,
    /// The groups of which it has blocks.
    pub(super) groups: Groups,
    /// What it computes may be published while this is its owner's epoch.
    pub(super) epoch: u64,
    pub(super) namespace: u32,
    /// A request asked for `no_store`: the sequence keeps to that also when another lookup resumes it.
    pub(super) is_private: bool,
    /// Key of the last complete link.
    pub(super) key: Key,
    /// Digest of all extras so far.
    pub(super) extras: Extras,
}

impl Holder {
    /// Of a request that asked for `no_store` or did not.
    pub(super) fn wishing(no_store: bool) -> Self {
        Self { no_store, is_private: no_store, ..Self::default() }
    }
}

/// Hits that are kept alive.
#[derive(Clone, Copy, Default)]
pub(super) struct Lease {
    pub(super) holder: Holder,
    pub(super) hit_tokens: u64,
    /// What the lookup told of the length.
    pub(super) ask: Ask,
    /// The blocks are no prefix: they are read where they lie, until the lease is released.
    pub(super) is_chunks: bool,
    /// Somebody asked where the blocks lie: they stay there.
    pub(super) is_told: bool,
}

/// A running sequence. A step touches all of them, long after the one before it, so what an APPEND reads and writes
/// lies in one line of the processor's cache, what a COMMIT needs beside it in the next one, the rest behind.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Sequence {
    /// Tokens that were scheduled.
    pub(super) length: u64,
    /// Tokens whose ids or keys are final.
    pub(super) committed: u64,
    /// Latest step in which it was scheduled.
    pub(super) last_step: u64,
    /// Call of `step` in which an operation on it was refused.
    pub(super) refused_in_call: u64,
    /// Its place in the batch of `last_step`.
    pub(super) batch_position: u32,
    /// Its open block may be another's too, or findable: the next append looks.
    pub(super) may_share: bool,
    pub(super) pause: Pause,
    /// Tokens that an APPEND may reach beyond `length`, its lookahead included, and need look at nothing but this line:
    /// the sequence runs, no operation on it was refused, there are blocks for them, no open block is shared, none is
    /// promised. 0 where it must look.
    pub(super) ready: u16,
    pub(super) holder: Holder,
    /// Length up to which blocks are promised; 0: none are.
    pub(super) expected_tokens: u64,
    /// What was told of its length when it was looked up; nothing if it was forked.
    pub(super) ask: Ask,
    /// Tokens before this one are not needed in groups that can do without them: TRIM said so.
    pub(super) trimmed: u64,
    /// Windows hold no token before this one, though their first block has a place for it: an EDIT moved them.
    pub(super) edited: u64,
    pub(super) hits: Hits,
    /// Step in which it published other inputs, and of which groups, as bits.
    pub(super) inputs: (u64, u32),
}

/// Bytes of a line of the processor's cache.
pub(super) const LINE_BYTES: usize = 64;
const _: () = assert!(offset_of!(Sequence, holder) + offset_of!(Holder, key) == LINE_BYTES);
const _: () = assert!(offset_of!(Sequence, expected_tokens) == 2 * LINE_BYTES);

impl Sequence {
    /// Its open blocks may be somebody else's too from now on.
    pub(super) fn share(&mut self) {
        (self.may_share, self.ready) = (true, 0);
    }

    /// Runs or pauses.
    pub(super) fn set_pause(&mut self, pause: Pause) {
        (self.pause, self.ready) = (pause, 0);
    }
}

/// Whether a sequence runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pause {
    #[default]
    Running,
    /// Preempted with its blocks.
    Kept,
    /// Preempted without.
    Dropped,
}
