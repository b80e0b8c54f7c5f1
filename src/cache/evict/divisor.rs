//! Division by a number that is known long before: a multiplication, a shift and a correction.
//!
//! Invariant: equal to the division of the processor, which takes several times as long, for every numerator.

/// A number to divide by, at least 2.
#[derive(Clone, Copy)]
pub(super) struct Divisor {
    by: u64,
    /// 2^64 by it, rounded up.
    inverse: u64,
}

impl Divisor {
    pub(super) fn new(by: u64) -> Self {
        debug_assert!(by >= 2, "the inverse of 1 does not fit");
        Self { by, inverse: u64::MAX / by + 1 }
    }

    pub(super) fn get(self) -> u64 {
        self.by
    }

    /// What the inverse is too large by is less than the divisor, so the product is too large by less than one.
    #[inline]
    pub(super) fn divide(self, number: u64) -> u64 {
        let quotient = ((u128::from(number) * u128::from(self.inverse)) >> 64) as u64;
        quotient - u64::from(quotient.wrapping_mul(self.by) > number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_divides_as_the_processor_does() {
        let mut random = fastrand::Rng::with_seed(5);
        let divisors = [2, 3, 16, 17, 62, 625, 65_536, 1 << 31, u64::MAX / 2 + 1, u64::MAX];
        let wide = |random: &mut fastrand::Rng| random.u64(..) >> random.u32(0..64);
        for at in 0..2000 {
            let by = divisors.get(at).copied().unwrap_or_else(|| wide(&mut random).max(2));
            let divisor = Divisor::new(by);
            for _ in 0..50 {
                let near = wide(&mut random) / by * by;
                for number in [wide(&mut random), near, near.wrapping_sub(1), near + 1, u64::MAX, 0] {
                    assert_eq!(divisor.divide(number), number / by, "{number} by {by}");
                }
            }
        }
    }
}
