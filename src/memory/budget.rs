//! Limits on what may be allocated, charged before the device is asked.
//!
//! What it does not: know what is allocated; that is the ledger's. Invariant: `0 <= used <= limit` where there is a
//! limit; a charge that is dropped without `keep` goes back by itself.

use std::sync::atomic::{AtomicU64, Ordering};

use super::ledger::Where;
use crate::error::{Error, Result, Status};

/// Most bytes that a [`super::Memory`] hands out; 0 means no limit but the device's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Device memory.
    pub device_limit_bytes: u64,
    /// Pinned host memory.
    pub pinned_limit_bytes: u64,
}

struct Account {
    what: &'static str,
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

pub(super) struct Budget {
    device: Account,
    pinned: Account,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        let account = |what, limit_bytes| Account { what, limit_bytes, used_bytes: AtomicU64::new(0) };
        Self {
            device: account("device", limits.device_limit_bytes),
            pinned: account("pinned", limits.pinned_limit_bytes),
        }
    }

    fn account(&self, place: Where) -> &Account {
        match place {
            Where::Device => &self.device,
            Where::Pinned => &self.pinned,
        }
    }

    /// Takes bytes or says what is missing.
    pub(super) fn charge(&self, place: Where, bytes: u64) -> Result<Charge<'_>> {
        let account = self.account(place);
        let limit_bytes = if account.limit_bytes == 0 { u64::MAX } else { account.limit_bytes };
        let take = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= limit_bytes);
        match account.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, take) {
            Ok(_) => Ok(Charge { account, bytes }),
            Err(used) => Err(Error::new(
                match place {
                    Where::Device => Status::OutOfMemory,
                    Where::Pinned => Status::OutOfHostMemory,
                },
                format!(
                    "{bytes} bytes of {} memory requested, {} left of the limit of {limit_bytes}; free something or \
                     raise the limit",
                    account.what,
                    limit_bytes - used
                ),
            )),
        }
    }

    /// Gives kept bytes back.
    pub(super) fn discharge(&self, place: Where, bytes: u64) {
        self.account(place).give(bytes);
    }
}

impl Account {
    fn give(&self, bytes: u64) {
        let before = self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "more given back than taken");
    }
}

/// Bytes taken for something that may still fail.
pub(super) struct Charge<'a> {
    account: &'a Account,
    bytes: u64,
}

impl Charge<'_> {
    /// The thing was made; its owner gives the bytes back.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.account.give(self.bytes);
    }
}
