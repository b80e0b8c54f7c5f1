//! Freed blocks in the order of streams, with the fences of a host device.

use super::*;
use crate::device::registry;
use crate::memory::fence::Fences;

fn block(class: u32, id: u64) -> Freed {
    Freed { class, id, bytes: 100 * (u64::from(class) + 1) }
}

#[test]
fn a_stream_gets_back_what_it_freed_and_another_only_behind_a_fence() {
    let device = registry::open("host").unwrap();
    let fences = Fences::new(device.clone());
    let [one, other] = [(); 2].map(|()| device.stream_create().unwrap());
    let mut order = Order::default();
    for id in 0..4 {
        order.free(one, block((id % 2) as u32, id));
    }
    assert_eq!((order.count(), order.bytes()), (4, 600));
    assert_eq!(order.take_same(one, 0).unwrap().id, 2);
    assert_eq!(order.take_same(other, 1), None);
    assert!(order.take_other(other, 1, 0).is_none(), "no event stands behind it yet");
    let blocks = order.take_all_open(one);
    assert_eq!(blocks.len(), 3);
    order.close(one, fences.record(one).unwrap(), blocks);
    order.validate().unwrap();
    let (owner, fence, taken) = order.take_other(other, 1, 0).unwrap();
    assert_eq!(owner, one);
    fence.hold_back(other).unwrap();
    order.free(other, taken);
    assert_eq!(order.take_same(one, 0).unwrap().id, 0, "its own, also behind an event");
    assert_eq!(order.count(), 2);
    order.validate().unwrap();
    device.synchronize().unwrap();
    assert!(order.oldest().iter().all(|fence| fence.is_reached().unwrap()));
    assert_eq!(order.take_reached(0).len(), 1);
    assert_eq!(order.take_stream(other), [taken]);
    assert_eq!((order.count(), order.bytes()), (0, 0));
    order.validate().unwrap();
    drop((order, fence));
    for stream in [one, other] {
        device.stream_destroy(stream).unwrap();
    }
}

#[test]
fn a_refused_wait_puts_the_block_behind_its_fence_again() {
    let device = registry::open("host").unwrap();
    let fences = Fences::new(device.clone());
    let [one, other] = [(); 2].map(|()| device.stream_create().unwrap());
    let mut order = Order::default();
    order.free(one, block(3, 7));
    let blocks = order.take_all_open(one);
    order.close(one, fences.record(one).unwrap(), blocks);
    let (owner, fence, taken) = order.take_other(other, 3, 0).unwrap();
    assert_eq!(order.count(), 0);
    order.put_back(owner, fence, taken);
    order.validate().unwrap();
    assert_eq!(order.take_same(one, 3), Some(taken));
}

#[test]
fn a_fence_is_asked_about_once_and_its_event_serves_the_next_one() {
    let device = registry::open("host?kind=event&fail_nth=0").unwrap();
    let fences = Fences::new(device.clone());
    let fence = fences.record(Stream::DEFAULT).unwrap();
    fence.wait().unwrap();
    let calls = device.call_count();
    assert!(fence.is_known_reached() && fence.is_reached().unwrap());
    fence.hold_back(Stream::DEFAULT).unwrap();
    assert_eq!(device.call_count(), calls, "create, record, wait; nothing after");
    drop(fence);
    fences.record(Stream::DEFAULT).unwrap();
    assert_eq!(device.call_count(), calls + 1, "only recorded");
}

#[test]
fn fences_that_go_under_a_lock_call_nobody_and_the_stock_shrinks_later() {
    let device = registry::open("host").unwrap();
    let fences = Fences::new(device.clone());
    let many: Vec<Arc<Fence>> = (0..1500).map(|_| fences.record(Stream::DEFAULT).unwrap()).collect();
    drop(many);
    assert_eq!(fences.spare_count(), 1500, "no event goes where a fence does");
    // Each of them gives one back beside the one that it needs, until there are no more than are kept.
    (0..1000).for_each(|_| drop(fences.record(Stream::DEFAULT).unwrap()));
    assert_eq!(fences.spare_count(), 1024);
}

#[test]
fn a_record_that_fails_loses_no_event() {
    let device = registry::open("host?kind=event&fail_nth=2&error=device").unwrap();
    let fences = Fences::new(device.clone());
    assert!(fences.record(Stream::DEFAULT).is_err());
    fences.record(Stream::DEFAULT).unwrap();
    assert_eq!(device.call_count(), 3, "created once, recorded twice");
}

#[test]
fn a_refused_wait_for_an_older_fence_lets_nothing_go_that_stands_behind_a_younger_one() {
    let device = registry::open("host").unwrap();
    let fences = Fences::new(device.clone());
    let [one, other] = [(); 2].map(|()| device.stream_create().unwrap());
    let mut order = Order::default();
    order.free(one, block(1, 10));
    let blocks = order.take_all_open(one);
    order.close(one, fences.record(one).unwrap(), blocks);
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let hold = Box::new(move || {
        let _ = gate.recv();
    });
    device.stream_callback(one, hold).unwrap();
    order.free(one, block(2, 20));
    let blocks = order.take_all_open(one);
    order.close(one, fences.record(one).unwrap(), blocks);
    let (owner, older, taken) = order.take_other(other, 1, 0).unwrap();
    order.put_back(owner, Arc::clone(&older), taken);
    order.validate().unwrap();
    older.wait().unwrap();
    assert_eq!(order.take_reached(0), [taken], "the work before the other still runs");
    drop(open);
    device.synchronize().unwrap();
    assert!(order.oldest()[0].is_reached().unwrap());
    assert_eq!(order.take_reached(0), [block(2, 20)]);
    order.validate().unwrap();
}

/// A freed block, its stream, and the place of its fence among those of the stream.
type Waiting = (Freed, Stream, Option<u64>);

/// Blocks of a class of one size, and of two that do not say it.
fn some_block(random: &mut fastrand::Rng, id: u64) -> Freed {
    match random.u32(..3) {
        0 => Freed { class: LARGE - 1, id, bytes: 64 },
        // Two large ones never touch here.
        1 => Freed { class: LARGE, id: 1000 * id, bytes: random.u64(1..6) << 21 },
        _ => Freed { class: LARGE + 1, id: 2 * id + random.u64(..2), bytes: 16 * random.u64(1..9) },
    }
}

#[test]
fn random_use_agrees_with_a_plain_list() {
    let device = registry::open("host").unwrap();
    let streams = [(); 3].map(|()| device.stream_create().unwrap());
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let fences = Fences::new(device.clone());
        let mut order = Order::of_heap();
        let mut all: Vec<Waiting> = Vec::new();
        let mut known: Vec<Arc<Fence>> = Vec::new();
        let mut of_streams: BTreeMap<u64, Stream> = BTreeMap::new();
        let take = |all: &mut Vec<Waiting>, block: Freed| {
            let at = all.iter().position(|(other, ..)| *other == block).expect("what is given is there");
            all.remove(at)
        };
        for id in 0..400 {
            let stream = streams[random.usize(..3)];
            let bytes = 16 * random.u64(1..9);
            let own = |all: &[Waiting]| -> Vec<Waiting> {
                all.iter().filter(|(_, owner, _)| *owner == stream).copied().collect()
            };
            match random.u32(..12) {
                0..4 => {
                    let block = some_block(&mut random, id);
                    order.free(stream, block);
                    all.push((block, stream, None));
                }
                4 => {
                    let blocks = order.take_all_open(stream);
                    let open = own(&all).iter().filter(|(.., fence)| fence.is_none()).count();
                    assert_eq!(blocks.len(), open);
                    let fence = fences.record(stream).unwrap();
                    of_streams.insert(fence.number(), stream);
                    for (_, owner, number) in &mut all {
                        if *owner == stream && number.is_none() {
                            *number = Some(fence.number());
                        }
                    }
                    order.close(stream, fence, blocks);
                }
                5 => {
                    let wanted = own(&all).iter().any(|(block, ..)| block.class == LARGE - 1);
                    let found = order.take_same(stream, LARGE - 1);
                    assert_eq!(found.is_some(), wanted);
                    found.into_iter().for_each(|block| assert_eq!(take(&mut all, block).1, stream));
                }
                6 => {
                    let bytes = random.u64(1..6) << 21;
                    let fits = |block: &Freed| block.class == LARGE && block.bytes == bytes;
                    let wanted = own(&all).iter().any(|(block, ..)| fits(block));
                    let found = order.take_same_sized(stream, LARGE, bytes);
                    assert_eq!(found.is_some(), wanted);
                    found
                        .into_iter()
                        .for_each(|block| assert!(fits(&block) && take(&mut all, block).1 == stream));
                }
                7 => {
                    let fits = |(block, _, fence): &&Waiting| {
                        block.class == LARGE + 1
                            && block.bytes >= bytes
                            && block.id % 2 == 0
                            && fence.is_none()
                    };
                    let wanted = own(&all).iter().filter(fits).map(|(block, ..)| block.bytes).min();
                    let found = order.take_open_run(stream, LARGE + 1, bytes, 2);
                    assert_eq!(found.map(|block| block.bytes), wanted);
                    found.into_iter().for_each(|block| assert_eq!(take(&mut all, block).1, stream));
                }
                8 => {
                    let runs: Vec<Waiting> =
                        own(&all).into_iter().filter(|(block, ..)| is_run(block, 0, bytes)).collect();
                    let open =
                        runs.iter().filter(|(.., fence)| fence.is_none()).map(|(block, ..)| block.bytes);
                    let wanted = open.min().or_else(|| runs.iter().map(|(block, ..)| block.bytes).min());
                    let found = order.take_same_run(stream, 0, bytes);
                    assert_eq!(found.map(|block| block.bytes), wanted);
                    found.into_iter().for_each(|block| assert_eq!(take(&mut all, block).1, stream));
                }
                9 => {
                    let others: Vec<Waiting> = all
                        .iter()
                        .filter(|(_, owner, at)| *owner != stream && at.is_some())
                        .copied()
                        .collect();
                    let runs = others.iter().filter(|(block, ..)| is_run(block, 0, bytes));
                    let wanted = runs.map(|(block, ..)| block.bytes).min();
                    let found = order.take_other_run(stream, 0, bytes);
                    assert_eq!(found.as_ref().map(|(.., block)| block.bytes), wanted);
                    let Some((owner, fence, block)) = found else { continue };
                    let noted = take(&mut all, block);
                    assert_eq!((noted.1, noted.2), (owner, Some(fence.number())));
                    if random.bool() {
                        order.put_back(owner, fence, block);
                        all.push((block, owner, noted.2));
                    } else {
                        order.free(stream, block);
                        all.push((block, stream, None));
                    }
                }
                10 => {
                    let asked = if random.bool() { order.oldest() } else { order.youngest() };
                    device.synchronize().unwrap();
                    known.extend(asked.into_iter().filter(|fence| fence.is_reached().unwrap()));
                    let reached = order.take_reached(0);
                    let is_past = |(_, owner, at): &Waiting| {
                        let of = |fence: &&Arc<Fence>| of_streams.get(&fence.number()) == Some(owner);
                        at.is_some_and(|at| known.iter().filter(of).any(|fence| fence.number() >= at))
                    };
                    let past = all.iter().filter(|waiting| is_past(waiting)).count();
                    assert_eq!(reached.len(), past);
                    reached.into_iter().for_each(|block| assert!(is_past(&take(&mut all, block))));
                }
                _ => {
                    let mut runs = order.take_own_runs(stream, LARGE);
                    let wanted = own(&all).iter().filter(|(block, ..)| block.class == LARGE + 1).count();
                    assert_eq!(runs.len(), wanted);
                    runs.drain(..).for_each(|block| assert_eq!(take(&mut all, block).1, stream));
                }
            }
            order.validate().unwrap();
            assert_eq!(order.count(), all.len());
        }
        for stream in streams {
            let left = order.take_stream(stream);
            assert_eq!(left.len(), all.iter().filter(|(_, owner, _)| *owner == stream).count());
        }
        assert_eq!((order.count(), order.bytes()), (0, 0));
        order.validate().unwrap();
    }
    for stream in streams {
        device.stream_destroy(stream).unwrap();
    }
}

#[test]
fn what_another_class_has_behind_fences_is_not_looked_through() {
    let device = registry::open("host").unwrap();
    let fences = Fences::new(device.clone());
    let one = Stream::DEFAULT;
    // The least of several groups, in time of this thread: other work on the machine only adds to it.
    let time_beside = |held: u64| {
        let mut order = Order::of_heap();
        let blocks = (0..held).map(|id| Freed { class: LARGE, id: 100 * id, bytes: 34 << 20 });
        order.close(one, fences.record(one).unwrap(), blocks.collect());
        let groups = (0..20).map(|_| {
            let start = crate::sys::clock::thread_ns();
            for turn in 0..500 {
                assert_eq!(order.take_same(one, 3), None);
                assert_eq!(order.take_same_sized(one, LARGE, (36 + turn % 7) << 20), None);
                assert!(order.take_other(Stream(9), 3, 0).is_none());
            }
            crate::sys::clock::thread_ns() - start
        });
        groups.min().unwrap()
    };
    let (few, many) = (time_beside(20), time_beside(10_000));
    assert!(many < 8 * few, "{few} ns beside 20 blocks, {many} beside 10,000");
}

#[test]
fn a_free_costs_the_same_beside_many_streams() {
    let time_beside = |held: u64| {
        let mut order = Order::of_heap();
        (0..held).for_each(|stream| order.free(Stream(stream), block(3, stream)));
        let groups = (0..20).map(|_| {
            let start = crate::sys::clock::thread_ns();
            for turn in 0..500 {
                order.free(Stream(turn * 7 % held), block(4, turn));
                assert!(order.take_same(Stream(turn * 7 % held), 4).is_some());
                assert!(order.over().is_empty());
            }
            crate::sys::clock::thread_ns() - start
        });
        groups.min().unwrap()
    };
    let (few, many) = (time_beside(4), time_beside(8_000));
    assert!(many < 16 * few, "{few} ns beside 4 streams, {many} beside 8,000");
}
