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
fn a_record_that_fails_loses_no_event() {
    let device = registry::open("host?kind=event&fail_nth=2&error=device").unwrap();
    let fences = Fences::new(device.clone());
    assert!(fences.record(Stream::DEFAULT).is_err());
    fences.record(Stream::DEFAULT).unwrap();
    assert_eq!(device.call_count(), 3, "created once, recorded twice");
}
