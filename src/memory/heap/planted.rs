//! Mistakes in the order of streams that a test plants to see that it would find them. Nothing of it is in the library.

use super::Heap;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Mistake {
    /// A fence counts as reached without asking.
    FenceTaken = 1,
    /// A block of another stream is taken without the wait.
    WaitForgotten,
    /// The wait is for a fence that was recorded before the block was freed.
    WaitTooOld,
    /// The fence of a batch is recorded on the default stream.
    FenceElsewhere,
    /// Other users of a block are not asked when it is freed.
    UsersForgotten,
    /// Only the other users are asked.
    OwnerForgotten,
    /// One of several users is enough.
    AnyUser,
    /// A freed block is free for all at once.
    FreeForAll,
    /// A freed block is put down as freed on the default stream.
    WrongLane,
    /// A stream that goes is not waited for.
    StreamNotAwaited,
    /// What comes out of the front caches is free for all.
    CachesForAll,
    /// A batch behind one that was reached counts as reached too.
    NextBatchToo,
    /// What is cut off a live block is free for all, whoever had it before.
    TailForAll,
    /// What is lent of the last page of a live large block likewise.
    EndForAll,
}

#[cfg(test)]
impl Mistake {
    /// All of them.
    pub(super) const ALL: [Self; 14] = [
        Self::FenceTaken,
        Self::WaitForgotten,
        Self::WaitTooOld,
        Self::FenceElsewhere,
        Self::UsersForgotten,
        Self::OwnerForgotten,
        Self::AnyUser,
        Self::FreeForAll,
        Self::WrongLane,
        Self::StreamNotAwaited,
        Self::CachesForAll,
        Self::NextBatchToo,
        Self::TailForAll,
        Self::EndForAll,
    ];
}

impl Heap {
    /// Whether the test planted this one.
    #[cfg(test)]
    pub(super) fn has(&self, mistake: Mistake) -> bool {
        self.mistake.load(std::sync::atomic::Ordering::Relaxed) == mistake as u32
    }

    /// Makes a sum of the books wrong.
    #[cfg(test)]
    pub(crate) fn plant_false_entry(&self) {
        self.core.lock().idle_large_bytes += 1;
    }

    /// Nothing is planted in the library.
    #[cfg(not(test))]
    #[inline(always)]
    pub(super) const fn has(&self, _mistake: Mistake) -> bool {
        false
    }
}
