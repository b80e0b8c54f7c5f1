//! What is measured of returns, and when it is trusted.

use super::*;

/// Lead enough for any trial.
const ENOUGH: f64 = 1e9;

/// Blocks that are let go and have not come back, by class.
fn waiting(odds: &Odds) -> [u32; CLASSES] {
    std::array::from_fn(|class| odds.waiting.iter().map(|counts| counts[class]).sum())
}

fn touch(odds: &mut Odds, count: u64) {
    for at in 0..count {
        odds.hold();
        odds.let_go((at % 4) as usize);
    }
}

/// Made for 8,192 blocks, of which 1,024 are in use when it has seen so many touches.
fn small(touches: u64) -> Odds {
    let mut odds = Odds::new(8192).unwrap();
    odds.room(1024);
    odds.lead = ENOUGH;
    touch(&mut odds, touches);
    odds
}

#[test]
fn a_cache_that_changes_its_size_is_measured_in_slots_of_the_new_one() {
    let mut odds = small(10_001);
    assert!((960..1100).contains(&odds.lru_age), "{}", odds.lru_age);
    let returned = |odds: &Odds| odds.returns.as_flattened().iter().sum::<f64>();
    for age in 100..900 {
        odds.hold();
        odds.came_back(1, age, true);
        odds.unhold();
    }
    let (before, returns, now) = (waiting(&odds), returned(&odds), odds.now());
    odds.room(8192);
    assert_eq!((odds.slot_touches.get(), odds.slot), (512, now / 512));
    assert_eq!(waiting(&odds), before, "nothing is lost");
    assert!((returned(&odds) / returns - 1.0).abs() < 0.02, "{} of {returns}", returned(&odds));
    assert!((7500..=8192 + 900).contains(&odds.lru_age), "{}", odds.lru_age);
    touch(&mut odds, 12 * 8192);
    assert!(odds.is_in_span(11 * 8192) && !odds.is_in_span(13 * 8192));
    assert!((8000..8400).contains(&odds.lru_age), "{}", odds.lru_age);
    // Back again: what is older than is remembered then is forgotten.
    odds.room(1024);
    assert_eq!((odds.slot_touches.get(), odds.slot), (64, odds.now() / 64));
    let kept: u32 = waiting(&odds).iter().sum();
    assert!((191 * 64..=192 * 64).contains(&u64::from(kept)), "{kept}");
    assert!((960..1100).contains(&odds.lru_age), "{}", odds.lru_age);
    touch(&mut odds, 1000);
    assert_eq!(odds.slot, odds.now() / 64);
}

#[test]
fn in_a_cache_of_a_few_blocks_lru_is_followed() {
    let trusts = |blocks| {
        let mut odds = Odds::new(8192).unwrap();
        odds.room(blocks);
        odds.lead = ENOUGH;
        touch(&mut odds, 20_000);
        odds.trusts_itself
    };
    let least = LEAST_BLOCKS as u32;
    assert_eq!([least - 1, least].map(trusts), [false, true]);
    // And when it shrinks to that.
    let mut shrunk = small(20_000);
    shrunk.room(least - 1);
    touch(&mut shrunk, 100);
    assert!(!shrunk.trusts_itself);
}

#[test]
fn what_was_learned_holds_after_a_change_and_what_was_not_is_learned_in_the_new_size() {
    let mut learned = small(64 * (LEARN_SLOTS + 30));
    assert!(learned.trusts_itself);
    learned.room(8192);
    touch(&mut learned, 512);
    assert!(learned.trusts_itself && learned.slot >= learned.learn_slots);
    let mut young = small(64 * (LEARN_SLOTS - 8));
    young.room(8192);
    touch(&mut young, 512 * 30);
    assert!(!young.trusts_itself, "three times the cache was not seen yet");
    touch(&mut young, 512 * 30);
    assert!(young.trusts_itself);
}

/// Half of the touches are of blocks that never come back, the others of as many as half a cache that come back, each
/// when so many touches are over.
fn mixed(blocks: u32, back_after: u64, touches: u64) -> Odds {
    let mut odds = Odds::new(blocks).unwrap();
    let mut waiting = std::collections::VecDeque::new();
    for _ in 0..touches {
        odds.hold();
        odds.let_go(0);
        if let Some(&stamp) = waiting.front().filter(|stamp| odds.now() - **stamp >= back_after) {
            waiting.pop_front();
            // Whoever follows lru has lost it.
            odds.came_back(3, odds.now() - stamp, odds.now() - stamp <= odds.lru_age);
        }
        if waiting.len() < blocks as usize / 2 {
            odds.hold();
            waiting.push_back(odds.let_go(3));
        }
    }
    odds
}

#[test]
fn its_own_choice_is_made_once_it_would_have_brought_more() {
    // Those that come back are gone under lru and fit by choice.
    let ahead = mixed(1024, 3000, 40_000);
    assert!(ahead.trusts_itself);
    assert!(ahead.kept_slots[3] * ahead.slot_touches.get() >= 3000, "{:?}", ahead.kept_slots);
    // Lru has them too.
    let level = mixed(1024, 500, 40_000);
    assert_eq!((level.trusts_itself, level.lead), (false, 0.0));
}

#[test]
fn a_return_that_was_not_found_is_no_hit_and_goes_on_waiting() {
    let mut odds = small(10_001);
    assert!(odds.trusts_itself);
    let (before, balance) = (waiting(&odds), odds.balance);
    odds.missed(1, 100);
    assert_eq!((waiting(&odds), odds.balance), (before, balance - 1.0));
    odds.missed(1, 5000);
    assert_eq!(odds.balance, balance - 1.0, "lru would not have had it either");
    odds.missed(1, u64::MAX);
}
