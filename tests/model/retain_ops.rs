//! Random RETAIN, PIN and UNPIN, and time that passes.

use kavern::cache::{Op, StepSession, Stretch, Target};
use kavern::types::Id;

use crate::retain::TICK_MS;
use crate::{Run, check, until_ok};

impl Run<'_> {
    /// Lets time pass before a step goes on. A call turns the wheel by a bounded number of places: several catch up.
    pub(crate) fn pass(&mut self, step: u64) {
        let now_ms = self.model.now_ms + [0, 0, 20, 64, 300, 4000][self.random.usize(0..6)];
        (0..6).for_each(|_| until_ok(|| self.cache.step_at(step, now_ms).map(drop)));
        self.model.pass(now_ms);
    }

    /// One of the three, on a sequence or a lease, on all of it or on a stretch that may be too long.
    pub(crate) fn retain(&mut self, session: &mut StepSession<'_>) {
        let of_leases = self.random.bool();
        let id = self.some_id(of_leases);
        let (offset, tokens) = match self.random.bool() {
            true => (0, 0),
            false => (self.random.usize(0..24), self.random.usize(0..24)),
        };
        let target = Target::Id(Id(id));
        let stretch = Stretch { target, offset: offset as u64, tokens: tokens as u64 };
        let (op, expected) = match self.random.u8(0..4) {
            0 | 1 => {
                let priority = [0, 10, 50, 60, 100][self.random.usize(0..5)];
                let mut ttl_ms = if self.random.bool() { self.random.u64(1..20_000) } else { 0 };
                // Of several that end at one tick the wheel chooses who is first.
                while ttl_ms > 0 && self.model.ends_at(self.model.expiry(ttl_ms)) {
                    ttl_ms += TICK_MS;
                }
                let op = Op::Retain { stretch, priority, ttl_ms };
                (op, self.model.retain(id, offset, tokens, priority, ttl_ms))
            }
            2 => (Op::Pin { stretch }, self.model.pin(id, offset, tokens)),
            _ => (Op::Unpin { stretch }, self.model.unpin(id, offset, tokens)),
        };
        check(&op, &session.apply(&op), &expected);
    }
}
