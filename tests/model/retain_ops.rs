//! Random RETAIN, PIN and UNPIN.

use kavern::cache::{Op, StepSession, Stretch, Target};
use kavern::types::Id;

use crate::{Run, check};

impl Run<'_> {
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
                let op = Op::Retain { stretch, priority, ttl_ms: 0 };
                (op, self.model.retain(id, offset, tokens, priority))
            }
            2 => (Op::Pin { stretch }, self.model.pin(id, offset, tokens)),
            _ => (Op::Unpin { stretch }, self.model.unpin(id, offset, tokens)),
        };
        check(&op, &session.apply(&op), &expected);
    }
}
