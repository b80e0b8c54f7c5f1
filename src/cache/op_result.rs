//! What became of an operation of a step, and why one is refused.

use crate::error::{Error, Status};

/// What became of an operation.
#[derive(Clone, Copy, Debug)]
pub struct OpResult {
    /// Ok, or why it was refused.
    pub status: Status,
    /// Row of the tables, -1 if none.
    pub row: i32,
    /// The sequence; 0 if none.
    pub sequence: u64,
    /// Blocks that the sequence got.
    pub blocks_added: u32,
    /// Blocks that were missing.
    pub blocks_missing: u32,
    /// The group that was short.
    pub group: u32,
    /// Blocks that became findable.
    pub blocks_committed: u32,
}

impl OpResult {
    pub(super) const DONE: Self = Self {
        status: Status::Ok,
        row: -1,
        sequence: 0,
        blocks_added: 0,
        blocks_missing: 0,
        group: 0,
        blocks_committed: 0,
    };

    /// An operation that was refused before it reached the cache.
    pub fn refused(status: Status) -> Self {
        Self { status, ..Self::DONE }
    }
}

/// Why an operation is refused: a status, and how many blocks are missing where.
pub(super) struct Refusal {
    pub(super) status: Status,
    pub(super) missing: u32,
    pub(super) group: u32,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { status: error.status, missing: 0, group: 0 }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { status, missing: 0, group: 0 }
    }
}

/// What an APPEND or a COMMIT did. With a refusal it goes back in two registers: nearly all operations are of these
/// kinds, and a result that was written in parts and is copied as a whole at once waits for its own writing.
#[derive(Clone, Copy)]
pub(super) struct Done {
    pub(super) row: u32,
    /// Blocks that the sequence got, or that became findable.
    pub(super) blocks: u32,
}

const _: () = assert!(size_of::<Result<Done, Refusal>>() <= 16);

pub(super) type OpOutcome = Result<OpResult, Refusal>;
