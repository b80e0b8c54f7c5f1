//! The rounding ladder: a few sizes instead of all, so that buffers of about one size stand in for each other.
//!
//! Below 1 MB a size goes up to the next 0.1 MB, below 10 MB to 1 MB, below 100 MB to 10 MB, above to 50 MB, in decimal
//! megabytes; then up to 256 bytes, so that blocks lie aligned side by side. Invariant: the result is at least what was
//! asked, and rounding it again changes nothing. Pure.

/// Alignment of every block.
pub(super) const ALIGNMENT: u64 = 256;

/// 0.1 MB.
const STEP: u64 = 100_000;

/// The size of the rung that holds so many bytes; nothing for 0 bytes and beyond what 64 bits hold.
pub(super) fn ladder_bytes(bytes: u64) -> Option<u64> {
    if bytes == 0 {
        return None;
    }
    // A rung that was made a multiple of 256 is at most 255 bytes above its decimal size: it stays on its own rung.
    let step = step_of(bytes);
    let lower = bytes / step * step;
    if lower > 0 && lower.next_multiple_of(ALIGNMENT) >= bytes {
        return Some(lower.next_multiple_of(ALIGNMENT));
    }
    bytes.checked_next_multiple_of(step)?.checked_next_multiple_of(ALIGNMENT)
}

fn step_of(bytes: u64) -> u64 {
    match bytes / STEP {
        0..10 => STEP,
        10..100 => 10 * STEP,
        100..1000 => 100 * STEP,
        _ => 500 * STEP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(bytes: u64) -> Option<u64> {
        ladder_bytes(bytes).map(|rung| rung / 1000 * 1000)
    }

    #[test]
    fn sizes_go_up_to_the_next_rung_in_decimal_megabytes() {
        let wanted = [
            (1, 100_000),
            (500_000, 500_000),
            (999_999, 1_000_000),
            (1_500_000, 2_000_000),
            (9_999_999, 10_000_000),
            (15_000_000, 20_000_000),
            (150_000_000, 150_000_000),
            (150_001_000, 200_000_000),
        ];
        for (bytes, rung) in wanted {
            assert_eq!(decimal(bytes), Some(rung), "{bytes}");
        }
    }

    #[test]
    fn a_rung_is_aligned_holds_what_was_asked_and_stays_where_it_is() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200_000 {
            let bytes = random.u64(1..u64::MAX) >> random.u32(0..63);
            let Some(rung) = ladder_bytes(bytes.max(1)) else { continue };
            assert!(rung >= bytes && rung % ALIGNMENT == 0, "{bytes}");
            assert_eq!(ladder_bytes(rung), Some(rung), "{bytes}");
        }
    }

    #[test]
    fn nothing_and_too_much_have_no_rung() {
        assert_eq!(ladder_bytes(0), None);
        assert_eq!(ladder_bytes(u64::MAX), None);
    }
}
