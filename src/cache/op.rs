//! The operations of a step, as the cache is asked for them.
//!
//! What they do is in `step` and the files that it names; what becomes of them in `op_result`.

use super::change::Change;
use super::lookup::Naming;
use super::retain::Stretch;
use crate::error::Status;
use crate::types::Id;

/// What an operation acts on.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// A sequence or lease by its id.
    Id(Id),
    /// What an earlier ADMIT of the same list led to.
    Admitted(Result<Id, Status>),
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// Turns a lease into a sequence and schedules tokens.
    Admit {
        /// The lease.
        lease: Id,
        /// Tokens to schedule.
        tokens: u64,
        /// Tokens beyond those for which blocks are held.
        lookahead: u32,
        /// Row of the tables, or negative.
        row: i32,
        /// Tokens that the sequence is expected to reach: blocks up to there are promised to it; 0 if none are.
        expected_tokens: u64,
    },
    /// Schedules more tokens of a sequence.
    Append {
        /// The sequence.
        target: Target,
        /// Tokens to schedule.
        tokens: u64,
        /// Tokens beyond those for which blocks are held.
        lookahead: u32,
    },
    /// The next tokens of a sequence are final.
    Commit {
        /// The sequence.
        target: Target,
        /// How many tokens.
        tokens: u64,
        /// Their ids, or the keys of the links that they complete.
        naming: Naming<'a>,
    },
    /// Ends a sequence.
    Free {
        /// The sequence.
        target: Target,
    },
    /// Drops a lease.
    Release {
        /// The lease.
        lease: Id,
    },
    /// Lets go of blocks before a token, in the groups that can do without them.
    Trim {
        /// The sequence.
        target: Target,
        /// First token that is still needed.
        offset: u64,
    },
    /// Changes a sequence otherwise than at its end.
    Change {
        /// The sequence.
        target: Target,
        /// How.
        change: Change<'a>,
    },
    /// Gives the blocks of a stretch of tokens a priority and a time to live.
    Retain {
        /// The stretch.
        stretch: Stretch,
        /// 0 to 100; 50 is ordinary.
        priority: u8,
        /// Milliseconds until it is ordinary again; 0 never.
        ttl_ms: u64,
    },
    /// Keeps the findable blocks of a stretch of tokens from eviction.
    Pin {
        /// The stretch.
        stretch: Stretch,
    },
    /// Takes one pin of each of them away.
    Unpin {
        /// The stretch.
        stretch: Stretch,
    },
}

impl Op<'_> {
    /// The target on which later operations of the same list depend on this one, if any do.
    pub fn dependants(&self) -> Option<Target> {
        match *self {
            Self::Append { target, .. } | Self::Commit { target, .. } | Self::Trim { target, .. } => {
                Some(target)
            }
            Self::Change { target, ref change } => change.has_dependants().then_some(target),
            Self::Admit { .. } | Self::Free { .. } | Self::Release { .. } => None,
            Self::Retain { .. } | Self::Pin { .. } | Self::Unpin { .. } => None,
        }
    }
}
