//! Who may have how much of a shared pool: minimum, weight and cap of each model, and who is asked to give.
//!
//! What it does: charges bytes to a model so that every other can still reach its minimum. What it does not: own
//! memory, or ask anybody. A model's *level* is what it has over its minimum, divided by its weight; who needs memory
//! takes from those of a higher level than it would have itself, the highest first, and never what is under a minimum.
//!
//! Invariant: `sum of max(minimum, used) = booked <= limit`, so that a model below its minimum is never refused for
//! lack of room. Lock order: its one lock, then nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::budget::Payer;
use crate::error::{Error, Result, Status};
use crate::sync::Mutex;

/// What a model is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// It can always have so much.
    pub min_bytes: u64,
    /// Its part of what is over the minimums, next to the others' weights; at least 1.
    pub weight: u64,
    /// It never has more; 0 for no cap but the pool's limit.
    pub cap_bytes: u64,
}

#[derive(Clone, Copy, Default)]
struct Share {
    terms: Terms,
    used_bytes: u64,
    peak_bytes: u64,
}

impl Share {
    fn booked_bytes(&self) -> u64 {
        self.used_bytes.max(self.terms.min_bytes)
    }
}

#[derive(Default)]
struct Books {
    models: BTreeMap<u64, Share>,
    used_bytes: u64,
    booked_bytes: u64,
}

/// The books of a pool.
pub(super) struct Shares {
    limit_bytes: u64,
    books: Mutex<Books>,
}

/// Whom to ask, and for how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) bytes: u64,
}

impl Shares {
    pub(super) fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self { limit_bytes, books: Mutex::default() })
    }

    /// Checks terms that can never be kept.
    pub(super) fn check(&self, terms: &Terms) -> Result<()> {
        let limit = self.limit_bytes;
        if terms.weight == 0 {
            return Err(Error::argument("a weight of 0; take at least 1"));
        }
        if terms.min_bytes > terms.cap_bytes || terms.min_bytes > limit {
            return Err(Error::argument(format!(
                "a minimum of {} bytes under a cap of {} and a limit of {limit}; it must fit under both",
                terms.min_bytes, terms.cap_bytes
            )));
        }
        let promised: u64 = self.books.lock().models.values().map(|share| share.terms.min_bytes).sum();
        if terms.min_bytes > limit - promised {
            return Err(Error::argument(format!(
                "a minimum of {} bytes, but {promised} of the limit of {limit} are promised to others",
                terms.min_bytes
            )));
        }
        Ok(())
    }

    /// Takes a model in whose terms were checked; refused while others use what its minimum needs.
    pub(super) fn admit(&self, id: u64, terms: Terms) -> Result<()> {
        self.check(&terms)?;
        let mut books = self.books.lock();
        let left = self.limit_bytes - books.booked_bytes;
        if terms.min_bytes > left {
            return Err(Error::new(
                Status::OutOfMemory,
                format!("a minimum of {} bytes requested, {left} available now", terms.min_bytes),
            ));
        }
        books.booked_bytes += terms.min_bytes;
        books.models.insert(id, Share { terms, ..Share::default() });
        Ok(())
    }

    /// Strikes a model out, which uses nothing any more.
    pub(super) fn remove(&self, id: u64) {
        let mut books = self.books.lock();
        if let Some(share) = books.models.remove(&id) {
            books.booked_bytes -= share.booked_bytes();
            books.used_bytes -= share.used_bytes;
        }
    }

    fn charge(&self, id: u64, bytes: u64) -> Result<()> {
        let mut books = self.books.lock();
        let left = self.left_of(&books, id);
        let Some(share) = books.models.get_mut(&id) else {
            return Err(Error::new(Status::NotFound, "the model was unregistered"));
        };
        if bytes > left {
            let text = format!(
                "{bytes} bytes requested, {left} available to this model, which has {} of its cap of {}",
                share.used_bytes, share.terms.cap_bytes
            );
            return Err(Error::new(Status::OutOfMemory, text));
        }
        let before = share.booked_bytes();
        share.used_bytes += bytes;
        let after = share.booked_bytes();
        books.booked_bytes += after - before;
        books.used_bytes += bytes;
        Ok(())
    }

    fn discharge(&self, id: u64, bytes: u64) {
        let mut books = self.books.lock();
        let Some(share) = books.models.get_mut(&id) else { return };
        let before = share.booked_bytes();
        share.used_bytes -= bytes;
        let after = share.booked_bytes();
        books.booked_bytes -= before - after;
        books.used_bytes -= bytes;
    }

    /// What was charged last is there.
    fn settle(&self, id: u64) {
        if let Some(share) = self.books.lock().models.get_mut(&id) {
            share.peak_bytes = share.peak_bytes.max(share.used_bytes);
        }
    }

    fn left_of(&self, books: &Books, id: u64) -> u64 {
        books.models.get(&id).map_or(0, |share| {
            let promised = share.terms.min_bytes.saturating_sub(share.used_bytes);
            let room = self.limit_bytes - books.booked_bytes + promised;
            room.min(share.terms.cap_bytes - share.used_bytes)
        })
    }

    /// Whom a model that needs `bytes` more may ask next, apart from those that `was_asked` names; none where nobody
    /// has more than is due.
    pub(super) fn next_request(
        &self,
        id: u64,
        bytes: u64,
        was_asked: impl Fn(u64) -> bool,
    ) -> Option<Request> {
        let books = self.books.lock();
        let asker = books.models.get(&id)?;
        if bytes > asker.terms.cap_bytes - asker.used_bytes {
            return None;
        }
        let over = |used: u64, terms: &Terms| u128::from(used.saturating_sub(terms.min_bytes));
        let target = over(asker.used_bytes.saturating_add(bytes), &asker.terms);
        self.rank(&books, (target, asker.terms.weight), |other| other != id && !was_asked(other))
            .map(|(other, over)| Request { id: other, bytes: over.min(self.short(&books, id, bytes)) })
    }

    /// Whom to ask so that a new minimum of `bytes` has room.
    pub(super) fn next_request_for_minimum(
        &self,
        bytes: u64,
        was_asked: impl Fn(u64) -> bool,
    ) -> Option<Request> {
        let books = self.books.lock();
        let short = bytes.saturating_sub(self.limit_bytes - books.booked_bytes);
        let (id, bytes_over) = self.rank(&books, (0, 1), |other| !was_asked(other))?;
        (short > 0).then(|| Request { id, bytes: bytes_over.min(short) })
    }

    /// Whom somebody outside of the pool may ask, who needs `bytes`: the model of the highest level, for what it has
    /// over its minimum.
    pub(super) fn next_spare(&self, bytes: u64, was_asked: impl Fn(u64) -> bool) -> Option<Request> {
        let books = self.books.lock();
        let (id, over) = self.rank(&books, (0, 1), |other| !was_asked(other))?;
        Some(Request { id, bytes: over.min(bytes) })
    }

    /// The model of the highest level among those above `target`, with the bytes that bring it down to that.
    fn rank(
        &self,
        books: &Books,
        (target, weight): (u128, u64),
        may: impl Fn(u64) -> bool,
    ) -> Option<(u64, u64)> {
        let above = books.models.iter().filter(|(id, _)| may(**id)).filter_map(|(&id, share)| {
            let over = share.used_bytes.saturating_sub(share.terms.min_bytes);
            let keeps = target * u128::from(share.terms.weight) / u128::from(weight);
            let gives = u128::from(over).checked_sub(keeps).filter(|&gives| gives > 0)? as u64;
            Some((id, over, share.terms.weight, gives))
        });
        let level = |(_, over, weight, _): &(u64, u64, u64, u64)| (u128::from(*over), u128::from(*weight));
        let highest = above.max_by(|a, b| {
            let ((over_a, weight_a), (over_b, weight_b)) = (level(a), level(b));
            (over_a * weight_b).cmp(&(over_b * weight_a))
        });
        highest.map(|(id, _, _, gives)| (id, gives))
    }

    /// How much of `bytes` the books have no room for; all of it where it is not the books that refuse.
    fn short(&self, books: &Books, id: u64, bytes: u64) -> u64 {
        match bytes.saturating_sub(self.left_of(books, id)) {
            0 => bytes,
            short => short,
        }
    }

    /// Bytes of all models.
    pub(super) fn used_bytes(&self) -> u64 {
        self.books.lock().used_bytes
    }

    /// Used now, and at most.
    pub(super) fn of(&self, id: u64) -> (u64, u64) {
        self.books.lock().models.get(&id).map_or((0, 0), |share| (share.used_bytes, share.peak_bytes))
    }

    /// Checks the invariant in the file head.
    pub(super) fn validate(&self) -> Result<()> {
        let books = self.books.lock();
        let sum = |of: fn(&Share) -> u64| books.models.values().map(of).sum::<u64>();
        let (booked, used) = (sum(Share::booked_bytes), sum(|share| share.used_bytes));
        if (booked, used) != (books.booked_bytes, books.used_bytes) || booked > self.limit_bytes {
            return Err(Error::internal(format!(
                "shares: {booked} bytes booked and {used} used, but the books say {} and {} of {}",
                books.booked_bytes, books.used_bytes, self.limit_bytes
            )));
        }
        Ok(())
    }
}

/// One model's part, to charge pages to.
pub(super) struct ModelPayer {
    pub(super) shares: Arc<Shares>,
    pub(super) id: u64,
}

impl Payer for ModelPayer {
    fn charge(&self, bytes: u64) -> Result<()> {
        self.shares.charge(self.id, bytes)
    }

    fn discharge(&self, bytes: u64) {
        self.shares.discharge(self.id, bytes);
    }

    fn settle(&self) {
        self.shares.settle(self.id);
    }

    fn left_bytes(&self) -> u64 {
        self.shares.left_of(&self.shares.books.lock(), self.id)
    }

    fn is_strained(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(min_bytes: u64, weight: u64, cap_bytes: u64) -> Terms {
        Terms { min_bytes, weight, cap_bytes }
    }

    fn shares(models: &[Terms]) -> Arc<Shares> {
        let shares = Shares::new(1000);
        for (id, terms) in models.iter().enumerate() {
            shares.admit(id as u64, *terms).unwrap();
        }
        shares
    }

    #[test]
    fn a_minimum_is_kept_free_for_its_model() {
        let shares = shares(&[terms(300, 1, 1000), terms(0, 1, 1000)]);
        assert!(shares.charge(1, 701).is_err());
        shares.charge(1, 700).unwrap();
        assert_eq!(shares.next_request(1, 1, |_| false), None);
        shares.charge(0, 300).unwrap();
        shares.validate().unwrap();
        assert_eq!(shares.next_request(0, 100, |_| false), Some(Request { id: 1, bytes: 100 }));
        shares.discharge(1, 100);
        shares.charge(0, 100).unwrap();
        shares.validate().unwrap();
    }

    #[test]
    fn those_of_the_highest_level_are_asked_first_and_not_below_the_asker() {
        let shares = shares(&[terms(0, 1, 1000), terms(0, 2, 1000), terms(100, 1, 1000)]);
        shares.charge(0, 300).unwrap();
        shares.charge(1, 400).unwrap();
        shares.charge(2, 300).unwrap();
        // Levels are 300, 200 and 200; the third would come to 201.
        assert_eq!(shares.next_request(2, 1, |_| false), Some(Request { id: 0, bytes: 1 }));
        assert_eq!(shares.next_request(2, 1, |id| id == 0), None);
        assert_eq!(shares.next_request(2, 99, |_| false), Some(Request { id: 0, bytes: 1 }));
        assert_eq!(shares.next_request(2, 100, |_| false), None);
        // The first is highest already.
        assert_eq!(shares.next_request(0, 1, |_| false), None);
    }

    #[test]
    fn only_what_is_missing_is_asked_for() {
        let shares = shares(&[terms(0, 1, 1000), terms(100, 1, 1000)]);
        shares.charge(0, 700).unwrap();
        assert_eq!(shares.next_request(1, 450, |_| false), Some(Request { id: 0, bytes: 150 }));
        // Where there is room in the books, somebody else has refused, and all of it is wanted.
        assert_eq!(shares.next_request(1, 300, |_| false), Some(Request { id: 0, bytes: 300 }));
    }

    #[test]
    fn a_new_minimum_takes_from_whoever_is_above_theirs() {
        let shares = shares(&[terms(200, 1, 1000), terms(0, 5, 600)]);
        shares.charge(0, 400).unwrap();
        shares.charge(1, 600).unwrap();
        assert_eq!(shares.admit(2, terms(100, 1, 1000)).err().unwrap().status, Status::OutOfMemory);
        assert_eq!(shares.next_request_for_minimum(100, |_| false), Some(Request { id: 0, bytes: 100 }));
        assert_eq!(shares.next_request_for_minimum(100, |id| id == 0), Some(Request { id: 1, bytes: 100 }));
        shares.discharge(0, 100);
        shares.admit(2, terms(100, 1, 1000)).unwrap();
        shares.validate().unwrap();
    }

    #[test]
    fn terms_that_cannot_be_kept_are_refused() {
        let shares = shares(&[terms(600, 1, 1000)]);
        for wrong in [terms(1, 0, 5), terms(6, 1, 5), terms(401, 1, 1000), terms(2000, 1, 3000)] {
            assert_eq!(shares.admit(7, wrong).err().unwrap().status, Status::InvalidArgument);
        }
        shares.charge(0, 1000).unwrap();
        assert!(shares.charge(0, 1).is_err());
        shares.remove(0);
        shares.validate().unwrap();
        assert_eq!(shares.used_bytes(), 0);
    }
}
