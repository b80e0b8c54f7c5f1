//! What a store does when two contents meet under one key, which nobody outside can bring about.

use super::*;
use crate::cache::block::Counters;
use crate::cache::block::{Publication, Published};
use crate::cache::events::CacheEventKind;
use crate::cache::evict;
use crate::cache::hash::{Extras, Key};
use crate::cache::namespace::{Home, KeyMode, Namespaces};
use crate::cache::steps::Steps;
use crate::format::Strides;

const KEY: Key = Key([1, 2, 0, 0]);
const NEXT: Key = Key([3, 4, 0, 0]);

/// A store of four blocks of two tokens that compares them, and the namespace that publishes.
fn store() -> (Store, Shared, u32) {
    seeded_store([5, 6, 7, 8])
}

fn seeded_store(seed: [u64; 4]) -> (Store, Shared, u32) {
    let geometry = GroupGeometry {
        content: crate::cache::Content::Opaque { block_bytes: 16 },
        reach: Reach::All,
        snapshot_tokens: 0,
        strides: Strides::default(),
        block_tokens: 2,
        blocks: 4,
        first_blocks: 4,
        is_elastic: false,
        block_bytes: 16,
        row_cells: 4,
    };
    let options = StoreOptions {
        scrub: Scrub::None,
        compares_tokens: true,
        keeps_events: true,
        mirrors: true,
        finds_partial: false,
        owners: 8,
        namespaces: 4,
        exact_order: true,
        small_bytes: 0,
    };
    let policy = evict::make("lru", 4).unwrap();
    let mut shared = Shared {
        namespaces: Namespaces::new([0; 32], 4).unwrap(),
        events: crate::cache::events::Events::new(16).unwrap(),
        steps: Steps::new(1, 1, &[]),
        counters: Counters::default(),
    };
    let namespace = shared.namespaces.open(&Home::new(1, 0, b"", KeyMode::Tokens)).unwrap();
    (Store::new(0, &geometry, policy, seed, options).unwrap(), shared, namespace)
}

fn content(key: Key, namespace: u32, parent_serial: u64) -> Publication {
    Publication {
        key,
        namespace,
        parent_key: Key::default(),
        parent_serial,
        extras: Extras::NONE,
        position: 0,
        has_tokens: true,
    }
}

fn found(store: &Store, wanted: &Publication, tokens: &[i32], shared: &mut Shared) -> Option<u32> {
    store.find(store.index.hash(&wanted.key, wanted.namespace), wanted, tokens, &mut shared.counters)
}

/// A held block that is filled with these tokens.
fn filled(store: &mut Store, shared: &mut Shared, tokens: [i32; 2]) -> u32 {
    let block = store.allocate(1, shared);
    store.keep_tokens(block, 0, &tokens);
    block
}

#[test]
fn other_tokens_under_the_same_key_are_not_found_and_stay_private_with_all_that_follows() {
    let (mut store, mut shared, namespace) = store();
    let first = content(KEY, namespace, ROOT_SERIAL);
    let ours = filled(&mut store, &mut shared, [1, 2]);
    assert_eq!(store.publish(ours, &first, &mut shared), Published::Stored);
    assert_eq!(found(&store, &first, &[1, 2], &mut shared), Some(ours));
    assert_eq!(found(&store, &first, &[1, 3], &mut shared), None);
    assert_eq!(shared.counters.collisions, 1);
    let theirs = filled(&mut store, &mut shared, [1, 3]);
    assert_eq!(store.publish(theirs, &first, &mut shared), Published::Refused);
    assert_eq!((shared.counters.collisions, store.block(theirs).is_findable()), (2, false));
    let follower = filled(&mut store, &mut shared, [5, 6]);
    let after_theirs = content(NEXT, namespace, store.origin(theirs).serial);
    assert_eq!(store.publish(follower, &after_theirs, &mut shared), Published::Refused);
    let after_ours = content(NEXT, namespace, store.origin(ours).serial);
    assert_eq!(found(&store, &after_ours, &[5, 6], &mut shared), None);
    assert_eq!((store.index.count(), shared.counters.committed_blocks), (1, 1));
}

#[test]
fn other_extras_under_the_same_key_are_a_collision_too() {
    let (mut store, mut shared, namespace) = store();
    let plain = content(KEY, namespace, ROOT_SERIAL);
    let block = filled(&mut store, &mut shared, [1, 2]);
    store.publish(block, &plain, &mut shared);
    let mut extras = Extras::NONE;
    extras.fold(&[7; 32], 0);
    let pictured = Publication { extras, ..plain };
    assert_eq!(found(&store, &pictured, &[1, 2], &mut shared), None);
    let other = filled(&mut store, &mut shared, [1, 2]);
    assert_eq!(store.publish(other, &pictured, &mut shared), Published::Refused);
    assert_eq!(shared.counters.collisions, 2);
}

#[test]
fn what_follows_a_duplicate_is_found_after_the_first() {
    let (mut store, mut shared, namespace) = store();
    let first = content(KEY, namespace, ROOT_SERIAL);
    let [ours, theirs] = [0; 2].map(|_| filled(&mut store, &mut shared, [1, 2]));
    store.publish(ours, &first, &mut shared);
    assert_eq!(store.publish(theirs, &first, &mut shared), Published::Duplicate);
    assert_eq!(store.origin(theirs).serial, store.origin(ours).serial);
    assert_eq!(store.block(theirs).key, KEY);
    let follower = filled(&mut store, &mut shared, [3, 4]);
    let after = content(NEXT, namespace, store.origin(theirs).serial);
    assert_eq!(store.publish(follower, &after, &mut shared), Published::Stored);
    assert_eq!(found(&store, &after, &[3, 4], &mut shared), Some(follower));
}

#[test]
fn an_orphan_is_not_found_after_a_new_ancestor_and_gives_way_once_nobody_holds_it() {
    let (mut store, mut shared, namespace) = store();
    let first = content(KEY, namespace, ROOT_SERIAL);
    let root = filled(&mut store, &mut shared, [1, 2]);
    store.publish(root, &first, &mut shared);
    let orphan = filled(&mut store, &mut shared, [3, 4]);
    let after_old = content(NEXT, namespace, store.origin(root).serial);
    store.publish(orphan, &after_old, &mut shared);
    store.release(root, 0, &mut shared);
    assert!(store.evict_some(1, RemoveReason::Requested, &mut shared) == 1);
    let root = filled(&mut store, &mut shared, [1, 2]);
    assert_eq!(store.publish(root, &first, &mut shared), Published::Stored);
    let after_new = content(NEXT, namespace, store.origin(root).serial);
    assert_eq!(found(&store, &after_new, &[3, 4], &mut shared), None);
    let equal = filled(&mut store, &mut shared, [3, 4]);
    assert_eq!(store.publish(equal, &after_new, &mut shared), Published::Refused, "the orphan is held");
    store.release(orphan, 0, &mut shared);
    assert_eq!(store.publish(equal, &after_new, &mut shared), Published::Stored);
    assert_eq!(found(&store, &after_new, &[3, 4], &mut shared), Some(equal));
    assert!(!store.block(orphan).is_findable());
    assert_eq!((store.free_count(), store.inactive_count(), shared.counters.collisions), (2, 0, 0));
    let last = shared.events.after(shared.events.last() - 2).unwrap().unwrap();
    assert_eq!((last.kind, last.reason), (CacheEventKind::Removed, RemoveReason::Replaced));
}

#[test]
fn one_namespace_never_finds_anothers_block_even_where_the_hashes_meet() {
    // Without a seed and with this key the namespace drops out of the hash.
    let key = Key([0, 1, 2, 3]);
    let (mut store, mut shared, owner) = seeded_store([0; 4]);
    let other = shared.namespaces.open(&Home::new(2, 0, b"", KeyMode::Tokens)).unwrap();
    assert_eq!(store.index.hash(&key, owner), store.index.hash(&key, other));
    let block = filled(&mut store, &mut shared, [1, 2]);
    assert_eq!(store.publish(block, &content(key, owner, ROOT_SERIAL), &mut shared), Published::Stored);
    assert_eq!(found(&store, &content(key, other, ROOT_SERIAL), &[1, 2], &mut shared), None);
    let theirs = filled(&mut store, &mut shared, [1, 2]);
    assert_eq!(store.publish(theirs, &content(key, other, ROOT_SERIAL), &mut shared), Published::Stored);
    assert_eq!(found(&store, &content(key, other, ROOT_SERIAL), &[1, 2], &mut shared), Some(theirs));
    assert_eq!(found(&store, &content(key, owner, ROOT_SERIAL), &[1, 2], &mut shared), Some(block));
}
