//! What only the inside of the balancer shows: what happens between its look at the classes and what it does then.

use std::sync::Arc;

use super::*;
use crate::cache::{AdaptiveBlocks, Content, GroupConfig};
use crate::device::registry;
use crate::event::NoSink;
use crate::memory::{Limits, Memory};

const PAGE: u64 = 4096;
/// Pages of each class.
const PAGES: u64 = 128;

/// Three classes of equally much memory, whose blocks are a sixteenth of a page, a quarter, and one.
fn cache() -> KvCache {
    let group = |block_tokens: u32| {
        GroupConfig::new(Content::Opaque { block_bytes: u64::from(block_tokens) * PAGE / 64 }, block_tokens)
    };
    let config = CacheConfig {
        capacity_bytes: 3 * PAGES * PAGE,
        max_sequence_tokens: 1024,
        max_leases: 4,
        steps_in_flight: 2,
        max_blocks: 3 * 16 * PAGES,
        adaptive: Some(AdaptiveBlocks {
            classes: vec![1, 2, 3],
            advisor: "predictive".to_owned(),
            waste_permille: 50,
            table_permille: 35,
        }),
        ..CacheConfig::new(vec![group(4), group(16), group(64)], 0)
    };
    let device = registry::open(&format!("host?page_bytes={PAGE}")).unwrap();
    KvCache::new(&Memory::new(device, Limits::default(), Arc::new(NoSink)), &config).unwrap()
}

fn targets(cache: &KvCache) -> [u32; CLASSES_MAX] {
    [0, 1, 2].map(|group| cache.resizer.target(group))
}

/// The small class was refused something since the last poll.
fn be_short(cache: &KvCache) {
    cache.state().sizes.as_mut().unwrap().counts[0].refused_ops += 1;
}

/// A poll in the middle of which, between the look and what follows, somebody does something.
fn poll_with(cache: &KvCache, between: impl FnOnce(&mut Balance)) {
    let balancer = cache.balancer.as_ref().unwrap();
    let mut turn = balancer.take_turn().unwrap();
    // Others are not kept out while it lasts, and leave this poll to whoever has it.
    cache.poll().unwrap();
    let balance = turn.get();
    balance.polls += 1;
    let seen = cache.look_at_classes(balance, balancer.classes);
    between(balance);
    cache.move_memory(balance, &seen, balancer.classes).unwrap();
}

#[test]
fn what_the_caller_resizes_in_the_middle_of_a_poll_stays_as_the_caller_wants_it() {
    let cache = cache();
    (0..QUIET).for_each(|_| cache.poll().unwrap());
    be_short(&cache);
    // Either could give a step to the small class.
    poll_with(&cache, |_| {
        cache.resize(1, 500).unwrap();
        cache.resize(2, 120).unwrap();
    });
    assert_eq!(targets(&cache), [2048, 500, 120]);
    (0..REST + 1).for_each(|_| cache.poll().unwrap());
    assert_eq!(targets(&cache), [2048, 500, 120]);
    // Left alone, one of them gives.
    be_short(&cache);
    poll_with(&cache, |_| ());
    let [_, primary, large] = targets(&cache);
    assert!((primary, large) == (500 - 128, 120) || (primary, large) == (500, 120 - 32));
}

#[test]
fn a_class_that_the_caller_resizes_while_it_gets_the_spare_stays_as_the_caller_wants_it() {
    let cache = cache();
    (0..QUIET).for_each(|_| cache.poll().unwrap());
    be_short(&cache);
    poll_with(&cache, |balance| {
        // A step that somebody gave, whose pages are back.
        balance.spare_bytes = balance.step_bytes;
        balance.limit_bytes += balance.step_bytes;
        cache.resize(0, 1000).unwrap();
    });
    assert_eq!(targets(&cache)[0], 1000);
}

#[test]
fn what_a_class_was_giving_is_nobodys_once_the_caller_resizes_it() {
    let cache = cache();
    let of = |balance: &Balance| (balance.limit_bytes, balance.spare_bytes, balance.giving.is_some());
    let now = || of(cache.balancer.as_ref().unwrap().take_turn().unwrap().get());
    let before = now();
    (0..QUIET).for_each(|_| cache.poll().unwrap());
    // A step in flight keeps the pages of the class that gives.
    drop(cache.step(1).unwrap());
    be_short(&cache);
    let whole = targets(&cache);
    cache.poll().unwrap();
    let (limit, spare, is_giving) = now();
    assert!(is_giving && spare > 0 && limit == before.0);
    let giver = (0..CLASSES_MAX).find(|&group| targets(&cache)[group] < whole[group]).unwrap();
    cache.resize(giver as u32, whole[giver].into()).unwrap();
    cache.poll().unwrap();
    assert_eq!(now(), before);
    cache.step_done(1, None).unwrap();
}
