//! The operations RETAIN, PIN and UNPIN: what a caller says of the blocks of a stretch of tokens.
//!
//! Each is all or nothing: it checks before it changes anything, or takes back what it did. The target holds its
//! blocks, so none of them is inactive: what is said takes effect when the last holder lets go. The layer itself is
//! `retention`.

use super::group::Reach;
use super::retention::{HIGHEST, Pinner};
use super::sequence::Holders;
use super::state::State;
use super::step::{OpOutcome, OpResult, Refusal, Target};
use super::store::Store;
use crate::error::Status;
use crate::types::IdKind;

/// A stretch of tokens of a sequence or a lease.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// The sequence or the lease.
    pub target: Target,
    /// The first token.
    pub offset: u64,
    /// How many; 0 all from there on.
    pub tokens: u64,
}

/// Blocks of every group that a stretch of tokens touches.
struct Held {
    of_lease: bool,
    row: usize,
    first: u64,
    end: u64,
}

impl Held {
    /// The blocks of a group that a stretch touches, as far as it has blocks; all of those that are not of tokens.
    fn blocks<'a>(&self, holders: &'a Holders, store: &Store) -> &'a [i32] {
        let rows = if self.of_lease { &holders.lease_rows } else { &holders.rows };
        let (rows, each) = (&rows[store.group as usize], u64::from(store.block_tokens));
        if matches!(store.reach, Reach::State { .. } | Reach::Cross { .. }) {
            return rows.held(self.row);
        }
        let blocks = rows.row(self.row);
        let let_go = blocks.len() - rows.held(self.row).len();
        let end = (self.end.div_ceil(each) as usize).min(blocks.len());
        &blocks[((self.first / each) as usize).max(let_go).min(end)..end]
    }
}

impl State {
    /// Tells what time it is; lets priorities end.
    pub(super) fn set_time(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.stores.iter_mut().for_each(|store| store.expire(self.now_ms));
    }

    fn find_stretch(&self, stretch: &Stretch) -> Result<Held, Refusal> {
        let Stretch { target, offset, tokens } = *stretch;
        let (of_lease, row, length) = match target {
            Target::Id(id) if id.index(IdKind::Lease).is_some() => {
                let lease = self.holders.find_lease(id)?;
                (true, lease, self.holders.leases[lease].hit_tokens)
            }
            target => {
                let row = self.find_ready(target)?;
                (false, row, self.holders.sequences[row].length)
            }
        };
        let end = if tokens == 0 { Some(length) } else { offset.checked_add(tokens) };
        match end {
            Some(end) if end <= length && offset <= end => Ok(Held { of_lease, row, first: offset, end }),
            _ => Err(Status::InvalidArgument.into()),
        }
    }

    fn each_block(&mut self, held: &Held, mut act: impl FnMut(&mut Store, u32)) {
        for store in &mut self.stores {
            let blocks = held.blocks(&self.holders, store);
            blocks.iter().for_each(|&block| act(store, block as u32));
        }
    }

    pub(super) fn retain(&mut self, stretch: &Stretch, priority: u8, ttl_ms: u64) -> OpOutcome {
        if priority > HIGHEST {
            return Err(Status::InvalidArgument.into());
        }
        let held = self.find_stretch(stretch)?;
        let now_ms = self.now_ms;
        self.each_block(&held, |store, block| store.retain(block, priority, ttl_ms, now_ms));
        Ok(self.done(&held))
    }

    pub(super) fn pin(&mut self, stretch: &Stretch) -> OpOutcome {
        let held = self.find_stretch(stretch)?;
        for group in 0..self.stores.len() {
            let blocks = held.blocks(&self.holders, &self.stores[group]).iter();
            let Err(refusal) = self.stores[group].pin(Pinner::Operation, blocks.map(|&block| block as u32))
            else {
                continue;
            };
            for store in &mut self.stores[..group] {
                let blocks = held.blocks(&self.holders, store).iter();
                store.retention.take_pins(Pinner::Operation, blocks.map(|&block| block as u32));
            }
            return Err(refusal.into());
        }
        Ok(self.done(&held))
    }

    pub(super) fn unpin(&mut self, stretch: &Stretch) -> OpOutcome {
        let held = self.find_stretch(stretch)?;
        for store in &mut self.stores {
            let (blocks, shared) = (held.blocks(&self.holders, store), &mut self.shared);
            blocks.iter().for_each(|&block| store.unpin(Pinner::Operation, block as u32, shared));
        }
        Ok(self.done(&held))
    }

    fn done(&self, held: &Held) -> OpResult {
        match held.of_lease {
            true => OpResult::DONE,
            false => OpResult {
                row: held.row as i32,
                sequence: self.holders.sequence_id(held.row).0,
                ..OpResult::DONE
            },
        }
    }
}
