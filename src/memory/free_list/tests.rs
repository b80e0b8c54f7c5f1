//! That `validate()` can speak: each invariant broken by hand.

use super::*;

/// Gap, used, free, used, free, gap; the two free ones in different bins, and one in the bin of the first.
fn list() -> FreeList {
    let mut list = FreeList::new(2_000).unwrap();
    list.insert(100, 1_000).unwrap();
    for (start, count) in [(100, 50), (350, 50), (602, 10)] {
        list.carve(start, count).unwrap();
    }
    list.validate().unwrap();
    list
}

/// The node that begins at a granule.
fn at(list: &FreeList, granule: u32) -> usize {
    let index = list.containing(granule).unwrap() as usize;
    assert_eq!(list.nodes[index].start, granule);
    index
}

type Fault = (&'static str, fn(&mut FreeList));

#[rustfmt::skip]
const FAULTS: &[Fault] = &[
    ("a hole between nodes", |list| { let node = at(list, 350); list.nodes[node].start += 1 }),
    ("a count that overlaps", |list| { let node = at(list, 350); list.nodes[node].count += 1 }),
    ("a wrong link below", |list| { let node = at(list, 400); list.nodes[node].below = 0 }),
    ("a node of nothing", |list| { let node = at(list, 350); list.nodes[node].count = 0 }),
    ("a spare node in the range", |list| { let node = at(list, 350); list.nodes[node].kind = Kind::Spare }),
    ("two free nodes that touch", |list| { let node = at(list, 350); list.nodes[node].kind = FREE }),
    ("an early end", |list| { let node = at(list, 612); list.nodes[node].above = NONE }),
    ("a free start that is marked", |list| list.starts.insert(150)),
    ("a used start that is not", |list| list.starts.remove(350)),
    ("a bit of no node", |list| list.starts.insert(351)),
    ("a start that leads elsewhere", |list| list.node_at[350] = list.lowest),
    ("a wrong sum of free granules", |list| list.free_granules += 1),
    ("a wrong number of allocations", |list| list.used_ranges += 1),
    ("a free node in no bin", |list| { let node = at(list, 150); list.unlink(node as u32, bins::bin_of(200)) }),
    ("a free node in a wrong bin", |list| {
        let node = at(list, 150);
        list.unlink(node as u32, bins::bin_of(200));
        list.nodes[node].count = 300;
        list.link(node as u32);
        list.nodes[node].count = 200;
    }),
    ("a bin's bit", |list| list.bins.words[0] |= 1),
    ("a bit of the summary", |list| list.bins.summary ^= 1 << 5),
    ("a link back in a bin", |list| { let node = at(list, 150); list.nodes[node].prev = NONE }),
    ("a bin that does not end", |list| list.nodes[bins::bin_of(200) as usize].prev = NONE),
    ("a lost spare node", |list| list.spare = list.nodes[list.spare as usize].next),
    ("a circle of spare nodes", |list| {
        let spare = list.spare;
        list.nodes[spare as usize].next = spare;
    }),
    ("a used node among the spare ones", |list| list.spare = list.lowest),
];

#[test]
fn validate_sees_each_broken_invariant() {
    for (what, fault) in FAULTS {
        let mut list = list();
        fault(&mut list);
        assert!(list.validate().is_err(), "nobody saw {what}");
    }
}

#[test]
fn bins_hold_rising_counts_and_narrow_to_a_thirty_second() {
    let mut before = 0;
    for count in (1..100_000).chain((0..5_000).map(|step| u32::MAX - step * 858_993).rev()) {
        let bin = bins::bin_of(count);
        assert!(bin >= before && (bin as usize) < bins::BIN_COUNT, "{count} in {bin}");
        assert!(count >= 64 || bin == count);
        let doubled = u64::from(count) + u64::from(count) / 32 + 1;
        assert!(doubled > u64::from(u32::MAX) || bins::bin_of(doubled as u32) > bin, "{count} in {bin}");
        before = bin;
    }
}

#[test]
fn nodes_that_were_reserved_serve_half_as_many_calls_without_growth() {
    let mut list = FreeList::new(100_000).unwrap();
    list.insert(0, 100_000).unwrap();
    list.reserve_nodes(4_002).unwrap();
    let room = list.nodes.capacity();
    for _ in 0..2_000 {
        assert!(list.allocate(3, 4).unwrap().is_some());
    }
    assert_eq!(list.nodes.capacity(), room);
    list.validate().unwrap();
}
