//! What a store does when two contents meet under one key, which nobody outside can bring about, and what becomes of
//! the cells of blocks that departed.

use super::*;
use crate::cache::block::Counters;
use crate::cache::block::{Publication, Published, ROOT_SERIAL, Shared};
use crate::cache::events::{CacheEventKind, RemoveReason};
use crate::cache::evict;
use crate::cache::hash::{Extras, Key};
use crate::cache::mirror::BlockHash;
use crate::cache::namespace::{Home, KeyMode, Namespaces};
use crate::cache::steps::{StepState, Steps};
use crate::format::Strides;

const KEY: Key = Key([1, 2, 0, 0]);
const NEXT: Key = Key([3, 4, 0, 0]);

/// A store of four blocks of two tokens that compares them, and the namespace that publishes.
fn store() -> (Store, Shared, u32) {
    seeded_store([5, 6, 7, 8])
}

fn seeded_store(seed: [u64; 4]) -> (Store, Shared, u32) {
    store_of(4, true, seed)
}

fn store_of(blocks: u32, exact_order: bool, seed: [u64; 4]) -> (Store, Shared, u32) {
    let geometry = GroupGeometry {
        content: crate::cache::Content::Opaque { block_bytes: 16 },
        reach: Reach::All,
        snapshot_tokens: 0,
        strides: Strides::default(),
        block_tokens: 2,
        blocks,
        first_blocks: blocks,
        is_elastic: false,
        block_bytes: 16,
        row_cells: 4,
    };
    let options = StoreOptions {
        scrub: Scrub::None,
        compares_tokens: true,
        keeps_events: true,
        mirrors: true,
        finds_children: true,
        owners: 8,
        namespaces: 4,
        exact_order,
        small_bytes: 0,
    };
    let policy = evict::make("lru", blocks).unwrap();
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
    let block = store.allocate(None, 1, shared);
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
    assert_eq!((store.findable_count(), shared.counters.committed_blocks), (1, 1));
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

/// A held block that follows a root which was evicted, and the root that was stored in its place, of these tokens.
fn bereaved(
    store: &mut Store,
    shared: &mut Shared,
    namespace: u32,
    new_root: [i32; 2],
) -> (u32, Publication) {
    let first = content(KEY, namespace, ROOT_SERIAL);
    let root = filled(store, shared, [1, 2]);
    store.publish(root, &first, shared);
    let child = filled(store, shared, [3, 4]);
    let after_old = content(NEXT, namespace, store.origin(root).serial);
    assert_eq!(store.publish(child, &after_old, shared), Published::Stored);
    store.release(root, 0, shared);
    assert_eq!(store.evict_some(1, RemoveReason::Requested, shared), 1);
    let root = filled(store, shared, new_root);
    assert_eq!(store.publish(root, &first, shared), Published::Stored);
    (child, content(NEXT, namespace, store.origin(root).serial))
}

#[test]
fn what_follows_an_ancestor_that_was_stored_anew_is_found_again() {
    let (mut store, mut shared, namespace) = store();
    let (child, after_new) = bereaved(&mut store, &mut shared, namespace, [1, 2]);
    assert_eq!(found(&store, &after_new, &[3, 4], &mut shared), Some(child));
    let equal = filled(&mut store, &mut shared, [3, 4]);
    assert_eq!(store.publish(equal, &after_new, &mut shared), Published::Duplicate);
    assert_eq!(shared.counters.collisions, 0);
}

#[test]
fn what_follows_other_tokens_under_the_same_key_is_not_found_and_gives_way_once_nobody_holds_it() {
    let (mut store, mut shared, namespace) = store();
    let (orphan, after_new) = bereaved(&mut store, &mut shared, namespace, [1, 3]);
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

fn prove(store: &Store) {
    store.validate_departed().unwrap();
    store.validate_lists().unwrap();
}

/// Makes one cached block go for which nobody has a use.
fn evict(store: &mut Store, shared: &mut Shared) {
    assert_eq!(store.evict_some(1, RemoveReason::Requested, shared), 1);
    prove(store);
}

/// A block that was found under this key, and has departed.
fn departed(store: &mut Store, shared: &mut Shared, as_what: &Publication) -> u32 {
    let block = store.allocate(None, shared.namespaces.get(as_what.namespace).tenant, shared);
    store.keep_tokens(block, 0, &[1, 2]);
    assert_eq!(store.publish(block, as_what, shared), Published::Stored);
    assert_eq!(found(store, as_what, &[1, 2], shared), Some(block));
    store.release(block, 0, shared);
    evict(store, shared);
    assert!(store.block(block).is_departed());
    assert_eq!(found(store, as_what, &[1, 2], shared), None);
    assert_eq!(store.find_named(&as_what.key, as_what.namespace), None);
    block
}

/// Cells in the index and in the image of the device's.
fn cells(store: &Store) -> [u32; 2] {
    [store.index.count(), store.mirror().unwrap().count()]
}

#[test]
fn a_block_that_departed_leaves_its_key_to_the_next_one() {
    let (mut store, mut shared, namespace) = store();
    let first = content(KEY, namespace, ROOT_SERIAL);
    let next = filled(&mut store, &mut shared, [1, 2]);
    let gone = departed(&mut store, &mut shared, &first);
    assert_eq!((cells(&store), store.findable_count()), ([1; 2], 0));
    assert_eq!(store.publish(next, &first, &mut shared), Published::Stored);
    assert!(!store.block(gone).is_departed());
    assert_eq!(found(&store, &first, &[1, 2], &mut shared), Some(next));
    assert_eq!((cells(&store), store.findable_count()), ([1; 2], 1));
    prove(&store);
}

#[test]
fn a_block_that_departed_is_in_no_table_once_it_is_handed_out() {
    for (count, is_run) in [(1, false), (1, true), (2, true)] {
        let (mut store, mut shared, namespace) = store_of(4, !is_run, [5, 6, 7, 8]);
        let before = filled(&mut store, &mut shared, [1, 2]);
        let (first, second) = (content(KEY, namespace, ROOT_SERIAL), content(NEXT, namespace, ROOT_SERIAL));
        let gone = departed(&mut store, &mut shared, &first);
        let mut taken = Vec::new();
        match is_run {
            false => taken.push(store.allocate(None, 1, &mut shared)),
            true => store.allocate_run(count, Some(before), 1, &mut shared, |block| taken.push(block)),
        }
        assert_eq!((taken[0], cells(&store)), (gone, [0; 2]));
        prove(&store);
        store.keep_tokens(gone, 0, &[3, 4]);
        assert_eq!(store.publish(gone, &second, &mut shared), Published::Stored);
        assert_eq!(found(&store, &second, &[3, 4], &mut shared), Some(gone));
        assert_eq!(cells(&store), [1; 2]);
        prove(&store);
    }
}

/// A store that is full of content which nobody holds, of which all but the first `ordinary` have a high priority.
fn full(blocks: u32, ordinary: u32, exact_order: bool) -> (Store, Shared) {
    let (mut store, mut shared, namespace) = store_of(blocks, exact_order, [5, 6, 7, 8]);
    for number in 0..blocks {
        let block = filled(&mut store, &mut shared, [1, 2]);
        let as_what = content(Key([number.into(), 1, 0, 0]), namespace, ROOT_SERIAL);
        assert_eq!(store.publish(block, &as_what, &mut shared), Published::Stored);
        if number >= ordinary {
            store.retain(block, 90, 0, 0);
        }
        store.release(block, 0, &mut shared);
    }
    assert_eq!((store.free_count(), store.available()), (0, blocks));
    (store, shared)
}

#[test]
fn where_none_is_free_many_go_for_one_unless_the_store_is_small_or_the_order_exact() {
    for (blocks, exact_order, gone) in
        [(4096, false, 32_u32), (1024, false, 17), (128, false, 3), (32, false, 1), (4096, true, 1)]
    {
        let (mut store, mut shared) = full(blocks, blocks, exact_order);
        for taken in 1..=gone {
            store.allocate_run(1, None, 1, &mut shared, |_| {});
            assert_eq!((store.free_count(), store.available()), (gone - taken, blocks - taken));
        }
        assert_eq!(shared.counters.evicted_blocks, u64::from(gone));
        prove(&store);
        store.allocate_run(1, None, 1, &mut shared, |_| {});
        assert_eq!(shared.counters.evicted_blocks, 2 * u64::from(gone));
        prove(&store);
    }
}

#[test]
fn a_high_priority_goes_for_what_is_needed_and_not_for_what_is_to_spare() {
    for (ordinary, wanted, gone) in [(0, 1, 1), (5, 1, 5), (5, 5, 5), (5, 6, 6), (0, 100, 100), (4000, 1, 32)]
    {
        let (mut store, mut shared) = full(4096, ordinary, false);
        store.allocate_run(wanted, None, 1, &mut shared, |_| {});
        assert_eq!((shared.counters.evicted_blocks, store.free_count()), (gone, gone as u32 - wanted));
        prove(&store);
    }
}

#[test]
fn a_block_that_somebody_holds_or_waits_for_leaves_the_tables_at_once() {
    let (mut store, mut shared, namespace) = store();
    shared.steps.open(1).unwrap();
    let keys = [KEY, NEXT, Key([5, 6, 0, 0])];
    let blocks = keys.map(|key| {
        let block = filled(&mut store, &mut shared, [1, 2]);
        store.publish(block, &content(key, namespace, ROOT_SERIAL), &mut shared);
        block
    });
    store.release_all(&blocks[1..].iter().map(|&block| block as i32).collect::<Vec<_>>(), 1, &mut shared);
    assert_eq!(store.waiting_count(), 2);
    for block in &blocks[..2] {
        store.remove(*block, RemoveReason::Reset, &mut shared);
        prove(&store);
    }
    assert_eq!((cells(&store), store.has_departed()), ([1; 2], false));
    let (at, _) = shared.steps.begin_done(1).unwrap().unwrap();
    shared.steps.end_done(at, StepState::Complete);
    let mut list = *shared.steps.waiting(1, 0);
    shared.steps.note_complete(1);
    store.give_back_waiting(&mut list, &mut shared);
    assert_eq!((store.waiting_count(), store.inactive_count(), store.free_count()), (0, 1, 2));
    prove(&store);
}

#[test]
fn content_that_moves_finds_the_slot_of_a_block_that_departed_in_no_table() {
    let (mut store, mut shared, namespace) = store();
    shared.steps.open(1).unwrap();
    let [first, second] = [KEY, NEXT].map(|key| content(key, namespace, ROOT_SERIAL));
    let held = filled(&mut store, &mut shared, [3, 4]);
    store.publish(held, &second, &mut shared);
    let gone = departed(&mut store, &mut shared, &first);
    let slot = store.take_slot(None, &mut shared);
    assert_eq!((slot, cells(&store)), (gone, [1; 2]));
    store.note_copy(held, slot, 1);
    store.relocate(held, slot, &mut shared);
    assert_eq!(found(&store, &second, &[3, 4], &mut shared), Some(slot));
    let hash = BlockHash::of(shared.namespaces.get(namespace), store.block(slot));
    assert!(store.mirror().unwrap().has(hash, slot));
    prove(&store);
}

#[test]
fn the_next_namespace_in_an_entry_does_not_find_what_departed_from_it() {
    let (mut store, mut shared, _) = store();
    let home = |id| Home::new(id, 0, b"", KeyMode::Keys(8));
    let ours = shared.namespaces.open(&home(7)).unwrap();
    let as_what = |namespace| Publication { has_tokens: false, ..content(KEY, namespace, ROOT_SERIAL) };
    let next = filled(&mut store, &mut shared, [1, 2]);
    let gone = departed(&mut store, &mut shared, &as_what(ours));
    shared.namespaces.drop_use(ours);
    let theirs = shared.namespaces.open(&home(8)).unwrap();
    assert_eq!(theirs, ours, "the entry is another's");
    assert_eq!(store.find_named(&KEY, theirs), None);
    assert_eq!(store.publish(next, &as_what(theirs), &mut shared), Published::Stored);
    let hash = BlockHash::of(shared.namespaces.get(theirs), store.block(next));
    assert!(store.mirror().unwrap().has(hash, next));
    assert_eq!((store.find_named(&KEY, theirs), store.block(gone).is_departed()), (Some(next), false));
    prove(&store);
}

#[test]
fn children_that_departed_are_neither_found_nor_in_the_way_of_others() {
    let (mut store, mut shared, namespace) = store();
    let parent = Parent { key: KEY, namespace };
    let child = |number: u64| Publication {
        parent_key: KEY,
        ..content(Key([number, 0, 0, 0]), namespace, ROOT_SERIAL)
    };
    let children = |store: &Store| {
        let first = store.first_child(&parent);
        std::iter::successors(first, |&child| store.next_child(child)).collect::<Vec<_>>()
    };
    let early = filled(&mut store, &mut shared, [1, 2]);
    let only = departed(&mut store, &mut shared, &child(1));
    assert!(children(&store).is_empty());
    assert!(store.children.as_ref().unwrap().has(only));
    let [a, b, c] = [2, 3, 4].map(|number| {
        // The first comes while the one that departed is still listed.
        let block = if number == 2 { early } else { filled(&mut store, &mut shared, [1, 2]) };
        assert_eq!(store.publish(block, &child(number), &mut shared), Published::Stored);
        prove(&store);
        block
    });
    assert_eq!(children(&store), [c, b, a]);
    for (leaving, others) in [(b, &[c, a][..]), (c, &[a]), (a, &[])] {
        store.release(leaving, 0, &mut shared);
        evict(&mut store, &mut shared);
        assert_eq!((children(&store), store.block(leaving).is_departed()), (others.to_vec(), true));
    }
    let last = filled(&mut store, &mut shared, [1, 2]);
    assert_eq!(last, a, "freed last");
    assert_eq!(store.publish(last, &child(5), &mut shared), Published::Stored);
    assert_eq!(children(&store), [last]);
    prove(&store);
}

#[test]
fn the_image_of_the_devices_index_is_rid_of_what_departed_before_it_is_sent() {
    let (mut store, mut shared, namespace) = store();
    let [first, second] = [KEY, NEXT].map(|key| content(key, namespace, ROOT_SERIAL));
    let held = filled(&mut store, &mut shared, [3, 4]);
    store.publish(held, &second, &mut shared);
    let gone = departed(&mut store, &mut shared, &first);
    assert_eq!((cells(&store), store.take_out_latest()), ([2; 2], 1));
    assert_eq!((cells(&store), store.take_out_latest()), ([1; 2], 0));
    assert!(!store.block(gone).is_departed() && !store.has_departed());
    assert_eq!(filled(&mut store, &mut shared, [1, 2]), gone);
    prove(&store);
}
