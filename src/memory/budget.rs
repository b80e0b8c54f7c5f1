//! Limits on what may be allocated, charged before the device is asked.
//!
//! What it does: limits of one manager, of anything inside it ([`Quota`]), and of all managers that share a name, in
//! one process or in several of a user on a machine ([`MachineBudget`]); a quota stands below others, and bytes are
//! charged to all of them or to none. What it does not: know what is allocated; that is the ledger's.
//! Invariant: `0 <= used <= limit` where there is a limit; a charge that is dropped without `keep` goes back by itself.
//! No locks but the machine's, which is held for one sum.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ledger::Where;
use crate::error::{Error, Result, Status};
use crate::sys::tally::Tally;

/// Most bytes that a [`super::Memory`] hands out; 0 means no limit but the device's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Device memory.
    pub device_limit_bytes: u64,
    /// Device memory above which nothing is kept that nobody uses, and others are asked to give; 0 for none.
    pub device_soft_limit_bytes: u64,
    /// Pinned host memory.
    pub pinned_limit_bytes: u64,
}

struct Account {
    what: &'static str,
    limit_bytes: u64,
    used_bytes: AtomicU64,
    /// Most that was used at one time, with charges of others that were refused after all.
    peak_bytes: AtomicU64,
}

/// What one manager may take.
pub(super) struct Budget {
    device: Account,
    pinned: Account,
    /// 0 for none.
    soft_bytes: u64,
    /// Used device memory for which others were asked already; at least the soft limit.
    asked_bytes: AtomicU64,
    /// What managers share, of this process and of others.
    machine: Option<Arc<MachineBudget>>,
}

impl Budget {
    pub(super) fn new(limits: Limits, machine: Option<Arc<MachineBudget>>) -> Self {
        let account = |what, limit_bytes| Account {
            what,
            limit_bytes,
            used_bytes: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
        };
        Self {
            device: account("device", limits.device_limit_bytes),
            pinned: account("pinned", limits.pinned_limit_bytes),
            soft_bytes: limits.device_soft_limit_bytes,
            asked_bytes: AtomicU64::new(limits.device_soft_limit_bytes),
            machine,
        }
    }

    /// Device memory that is charged now, and that was at most.
    pub(super) fn device_bytes(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        (read(&self.device.used_bytes), read(&self.device.peak_bytes))
    }

    /// Device memory above the soft limit.
    pub(super) fn over_bytes(&self) -> u64 {
        match self.soft_bytes {
            0 => 0,
            soft_bytes => self.device_bytes().0.saturating_sub(soft_bytes),
        }
    }

    /// Whether more than the soft limit is used, and more than when others were asked for it last.
    pub(super) fn is_newly_over(&self) -> bool {
        if self.soft_bytes == 0 {
            return false;
        }
        let used = self.device_bytes().0;
        if used > self.asked_bytes.load(Ordering::Relaxed) {
            return true;
        }
        // It follows what is used on the way down, so that the next rise is told.
        self.asked_bytes.store(used.max(self.soft_bytes), Ordering::Relaxed);
        false
    }

    /// All were asked who can give for what is used now.
    pub(super) fn note_relief(&self) {
        self.asked_bytes.store(self.device_bytes().0.max(self.soft_bytes), Ordering::Relaxed);
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
            Ok(_) => {
                let mut charge = Charge { account, machine: None, bytes };
                if let Some(machine) = self.machine.as_deref().filter(|_| place == Where::Device) {
                    // The manager's part goes back by itself if the machine refuses.
                    machine.charge(bytes)?;
                    charge.machine = Some(machine);
                }
                Ok(charge)
            }
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

    /// Checks that no limit is passed.
    pub(super) fn validate(&self) -> Result<()> {
        for account in [&self.device, &self.pinned] {
            let used = account.used_bytes.load(Ordering::Acquire);
            if account.limit_bytes > 0 && used > account.limit_bytes {
                let (what, limit) = (account.what, account.limit_bytes);
                return Err(Error::internal(format!(
                    "{used} bytes of {what} memory above the limit of {limit}"
                )));
            }
        }
        Ok(())
    }

    /// Gives kept bytes back.
    pub(super) fn discharge(&self, place: Where, bytes: u64) {
        if let Some(machine) = self.machine.as_deref().filter(|_| place == Where::Device) {
            machine.discharge(bytes);
        }
        self.account(place).give(bytes);
    }
}

impl Account {
    fn note_peak(&self) {
        self.peak_bytes.fetch_max(self.used_bytes.load(Ordering::Acquire), Ordering::AcqRel);
    }

    fn give(&self, bytes: u64) {
        let before = self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "more given back than taken");
    }
}

/// Bytes taken for something that may still fail.
pub(super) struct Charge<'a> {
    account: &'a Account,
    machine: Option<&'a MachineBudget>,
    bytes: u64,
}

impl Charge<'_> {
    /// The thing was made; its owner gives the bytes back.
    pub(super) fn keep(self) {
        self.account.note_peak();
        self.detach();
    }

    /// Whoever gives the bytes back is yet to say whether the thing was made.
    fn detach(self) {
        std::mem::forget(self);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        if let Some(machine) = self.machine {
            machine.discharge(self.bytes);
        }
        self.account.give(self.bytes);
    }
}

/// What bytes are charged to before they are taken.
pub trait Payer: Send + Sync {
    /// Takes bytes, or says what is missing and takes nothing.
    fn charge(&self, bytes: u64) -> Result<()>;
    /// Gives bytes back that were charged.
    fn discharge(&self, bytes: u64);
    /// What was charged last is there: until then it is nothing that was ever held.
    fn settle(&self);
    /// Most that a charge could take now; others may be faster.
    fn left_bytes(&self) -> u64;
    /// What is charged now, by everybody who is charged here; 0 where that is not known.
    fn used_bytes(&self) -> u64 {
        0
    }
    /// Whether the soft limit is passed: nothing is then kept that nobody uses.
    fn is_strained(&self) -> bool;
    /// As `left_bytes`, where what has to be found out first counts as used.
    fn certain_bytes(&self) -> u64 {
        self.left_bytes()
    }
    /// The limit that leaves the least, whose it is and what was used of it, for people.
    fn limit_text(&self) -> String {
        String::new()
    }
    /// Most that may be taken for something that nobody has asked for yet: up to the soft limit.
    fn spare_bytes(&self) -> u64 {
        if self.is_strained() { 0 } else { self.certain_bytes() }
    }
}

/// The device part of a manager's budget, as a payer.
pub(super) struct DeviceShare(pub(super) Arc<Budget>);

impl Payer for DeviceShare {
    fn charge(&self, bytes: u64) -> Result<()> {
        self.0.charge(Where::Device, bytes).map(Charge::detach)
    }

    fn settle(&self) {
        self.0.device.note_peak();
    }

    fn discharge(&self, bytes: u64) {
        self.0.discharge(Where::Device, bytes);
    }

    fn left_bytes(&self) -> u64 {
        let account = self.0.account(Where::Device);
        match account.limit_bytes {
            0 => u64::MAX,
            limit_bytes => limit_bytes.saturating_sub(account.used_bytes.load(Ordering::Acquire)),
        }
        .min(self.0.machine.as_ref().map_or(u64::MAX, |machine| machine.left_bytes()))
    }

    fn used_bytes(&self) -> u64 {
        self.0.device_bytes().0
    }

    fn is_strained(&self) -> bool {
        self.0.over_bytes() > 0
    }

    fn spare_bytes(&self) -> u64 {
        let soft = match self.0.soft_bytes {
            0 => u64::MAX,
            soft_bytes => soft_bytes.saturating_sub(self.0.device_bytes().0),
        };
        self.certain_bytes().min(soft)
    }

    fn certain_bytes(&self) -> u64 {
        let machine = self.0.machine.as_ref().map_or(u64::MAX, |machine| machine.certain_bytes());
        self.left_bytes().min(machine)
    }

    fn limit_text(&self) -> String {
        let (used, peak) = self.0.device_bytes();
        let limit = self.0.account(Where::Device).limit_bytes;
        let own_left = if limit == 0 { u64::MAX } else { limit.saturating_sub(used) };
        let machine = self.0.machine.as_ref().filter(|machine| machine.certain_bytes() < own_left);
        match machine {
            Some(machine) => {
                format!("{}; this manager holds {used}, at most {peak} so far", machine.limit_text())
            }
            None if limit == 0 => {
                format!("no limit is set; this manager holds {used} bytes, at most {peak} so far")
            }
            None => format!(
                "the limit is {limit} bytes, this manager's own; it holds {used}, at most {peak} so far"
            ),
        }
    }
}

/// Soft and hard limit of one purpose, below other payers. 0 means no limit.
pub struct Quota {
    what: &'static str,
    soft_bytes: u64,
    hard_bytes: u64,
    used_bytes: AtomicU64,
    above: Vec<Arc<dyn Payer>>,
}

impl Quota {
    /// A quota of `what`; what it takes is charged to all `above` too.
    pub fn new(
        what: &'static str,
        soft_bytes: u64,
        hard_bytes: u64,
        above: Vec<Arc<dyn Payer>>,
    ) -> Arc<Self> {
        Arc::new(Self { what, soft_bytes, hard_bytes, used_bytes: AtomicU64::new(0), above })
    }

    /// Charged now.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Acquire)
    }

    fn refuse(&self, bytes: u64, used: u64) -> Error {
        let (what, limit) = (self.what, self.hard_bytes);
        let left = limit.saturating_sub(used);
        let text = format!(
            "{bytes} bytes of {what} requested, {left} available of the limit of {limit}; free something or raise the \
             limit"
        );
        Error::new(Status::OutOfMemory, text)
    }
}

impl Payer for Quota {
    fn charge(&self, bytes: u64) -> Result<()> {
        let limit = if self.hard_bytes == 0 { u64::MAX } else { self.hard_bytes };
        let take = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= limit);
        if let Err(used) = self.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, take) {
            return Err(self.refuse(bytes, used));
        }
        for (index, payer) in self.above.iter().enumerate() {
            if let Err(error) = payer.charge(bytes) {
                self.above[..index].iter().for_each(|payer| payer.discharge(bytes));
                self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
                return Err(error);
            }
        }
        Ok(())
    }

    fn discharge(&self, bytes: u64) {
        self.above.iter().for_each(|payer| payer.discharge(bytes));
        let before = self.used_bytes.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "more given back than taken");
    }

    fn settle(&self) {
        self.above.iter().for_each(|payer| payer.settle());
    }

    fn left_bytes(&self) -> u64 {
        let own =
            if self.hard_bytes == 0 { u64::MAX } else { self.hard_bytes.saturating_sub(self.used_bytes()) };
        self.above.iter().map(|payer| payer.left_bytes()).fold(own, u64::min)
    }

    fn used_bytes(&self) -> u64 {
        self.above.iter().map(|payer| payer.used_bytes()).fold(self.used_bytes(), u64::max)
    }

    fn is_strained(&self) -> bool {
        let is_past = self.soft_bytes > 0 && self.used_bytes() > self.soft_bytes;
        is_past || self.above.iter().any(|payer| payer.is_strained())
    }

    fn spare_bytes(&self) -> u64 {
        let limits = [self.soft_bytes, self.hard_bytes].into_iter().filter(|limit| *limit > 0);
        let own = limits.map(|limit| limit.saturating_sub(self.used_bytes())).min().unwrap_or(u64::MAX);
        self.above.iter().map(|payer| payer.spare_bytes()).fold(own, u64::min)
    }

    fn certain_bytes(&self) -> u64 {
        self.above.iter().map(|payer| payer.certain_bytes()).fold(self.left_bytes(), u64::min)
    }
}

/// A limit that all managers share that know its name, in this process and in others of this user on this machine.
///
/// A process that ends, however it ends, gives its part back.
pub struct MachineBudget {
    name: String,
    tally: Tally,
}

impl MachineBudget {
    /// Takes part. The first process sets the limit; 0 takes the one that is there.
    pub fn open(name: &str, limit_bytes: u64) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { name: name.to_owned(), tally: Tally::open(name, limit_bytes)? }))
    }

    /// The limit.
    pub fn limit_bytes(&self) -> u64 {
        self.tally.limit_bytes()
    }

    /// Charged by all processes; those that have just died may still count.
    pub fn used_bytes(&self) -> u64 {
        self.tally.sum_bytes()
    }
}

impl Payer for MachineBudget {
    fn charge(&self, bytes: u64) -> Result<()> {
        self.tally.add(bytes)?.map_err(|left| {
            let (name, limit) = (&self.name, self.tally.limit_bytes());
            let text = format!(
                "{bytes} bytes requested, {left} available of the limit of {limit} that the processes of this machine \
                 share as \"{name}\"; free something in one of them"
            );
            Error::new(Status::OutOfMemory, text)
        })
    }

    fn discharge(&self, bytes: u64) {
        self.tally.remove(bytes);
    }

    fn settle(&self) {}

    fn left_bytes(&self) -> u64 {
        // What is charged may belong to processes that are dead; only a charge finds out.
        self.tally.limit_bytes()
    }

    fn is_strained(&self) -> bool {
        false
    }

    fn certain_bytes(&self) -> u64 {
        self.limit_bytes().saturating_sub(self.used_bytes())
    }

    fn limit_text(&self) -> String {
        let (name, limit, used) = (&self.name, self.limit_bytes(), self.used_bytes());
        format!(
            "the limit is {limit} bytes, which the processes of this machine share as \"{name}\"; they hold {used}"
        )
    }
}

/// Bytes charged to a payer, given back on drop.
pub(super) struct Paid {
    payer: Arc<dyn Payer>,
    bytes: u64,
}

impl Paid {
    pub(super) fn charge(payer: &Arc<dyn Payer>, bytes: u64) -> Result<Self> {
        payer.charge(bytes)?;
        Ok(Self { payer: Arc::clone(payer), bytes })
    }

    /// What they were charged for is there.
    pub(super) fn settle(&self) {
        self.payer.settle();
    }

    /// As `settle`, and somebody else gives the bytes back.
    pub(super) fn keep(mut self) {
        self.settle();
        self.bytes = 0;
    }
}

impl Drop for Paid {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.payer.discharge(self.bytes);
        }
    }
}
