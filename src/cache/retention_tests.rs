//! The layer of priorities by itself: order of victims, the wheel against a plain list of times, pins.

use super::*;

fn retention(blocks: u32) -> Retention {
    Retention::new(blocks, blocks / 2).unwrap()
}

#[test]
fn victims_come_by_priority_and_within_one_by_age() {
    let mut retention = retention(8);
    for (block, priority) in [(0, 90), (1, 10), (2, 51), (3, 10), (4, ORDINARY)] {
        retention.retain(block, priority, 0, 0);
        assert_eq!(retention.released(block), priority != ORDINARY);
    }
    let mut places = [9; 3];
    assert_eq!((retention.victims_below(&mut places[..1]), places), (1, [1, 9, 9]), "one place");
    assert_eq!((retention.victims_below(&mut places), places), (1, [3, 9, 9]));
    assert_eq!(retention.victims_below(&mut places), 0);
    assert_eq!((retention.victims_above(&mut places), places), (2, [2, 0, 9]));
    assert_eq!(retention.victims_above(&mut places), 0);
}

#[test]
fn priorities_end_in_time_never_early_and_at_most_a_tick_late() {
    let mut random = fastrand::Rng::with_seed(5);
    let blocks = 4096;
    let mut retention = retention(blocks);
    let start = 1_000_003;
    let mut ends = Vec::new();
    for block in 0..blocks {
        let ttl = match random.u8(0..4) {
            0 => random.u64(1..100),
            1 => random.u64(1..10_000),
            2 => random.u64(1..1_000_000),
            _ => random.u64(1..40_000_000_000),
        };
        retention.retain(block, 70, ttl, start);
        assert!(retention.released(block));
        ends.push(start + ttl);
    }
    let mut now = start;
    while retention.timed > 0 {
        // Small steps at first, long silence later.
        now += random.u64(1..=(now - start) / 8 + 50);
        loop {
            let expired = retention.expire(now, |_| true);
            for &block in expired.blocks() {
                assert!(ends[block as usize] <= now, "block {block} ended early");
                ends[block as usize] = u64::MAX;
            }
            if expired.blocks().is_empty() && retention.tick >= (now / TICK_MS) as u32 {
                break;
            }
        }
        let late = ends.iter().filter(|&&end| end != u64::MAX && end + 2 * TICK_MS < now).count();
        assert_eq!(late, 0, "{now}: still retained");
    }
    assert!(ends.iter().all(|&end| end == u64::MAX));
}

#[test]
fn after_a_long_silence_few_calls_end_what_came_due_meanwhile() {
    let (blocks, hour) = (1024, 3_600_000);
    let mut retention = retention(blocks);
    for block in 0..blocks {
        retention.retain(block, 70, 1 + u64::from(block) * hour / u64::from(blocks), 0);
        assert!(retention.released(block));
    }
    // Each block moves from level to level at most: no call is spent on the time in which nothing ended.
    let calls = (1..).find(|_| {
        retention.expire(hour + 2 * TICK_MS, |_| true);
        retention.timed == 0
    });
    assert!(calls.unwrap() <= LEVELS * blocks / EXPIRE_MOST as u32, "{calls:?}");
}

#[test]
fn no_more_than_the_limit_is_pinned_and_the_last_unpin_lets_go() {
    let mut retention = retention(4);
    retention.pin(Pinner::Name, u32::MAX, [0, 0, 1].into_iter()).unwrap();
    for refused in [[0, 2], [2, 0]] {
        let error = retention.pin(Pinner::Name, u32::MAX, refused.into_iter()).unwrap_err();
        assert_eq!(error.status, Status::LimitReached);
    }
    assert_eq!(retention.pinned(), 2);
    assert!(retention.released(0) && retention.released(1));
    assert_eq!((retention.victims_below(&mut [0]), retention.victims_above(&mut [0])), (0, 0));
    assert!(!retention.unpin(Pinner::Operation, 0, true), "the name's pins are the name's");
    assert!(!retention.unpin(Pinner::Name, 0, true) && retention.unpin(Pinner::Name, 0, true));
    assert_eq!((retention.pinned(), retention.pinned_inactive()), (1, 1));
    assert!(!retention.unpin(Pinner::Name, 2, false), "it was not pinned");
}

#[test]
fn a_cleared_block_is_ordinary() {
    let mut retention = retention(4);
    retention.retain(3, 80, 500, 0);
    retention.pin(Pinner::Name, u32::MAX, [3].into_iter()).unwrap();
    assert!(retention.governs(3));
    retention.clear(3);
    assert!(!retention.governs(3) && retention.pinned() == 0 && retention.timed == 0);
    retention.validate(&|_| false, &|_| false).unwrap();
}
