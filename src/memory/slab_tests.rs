//! That `validate()` can speak: each invariant broken by hand.

use super::*;

/// Pages of 100 slots: 3 is full, 5 has 20 live slots, 6 is empty, 4 has gone.
fn slab() -> Slab {
    let mut slab = Slab::new(100, 8).unwrap();
    [3, 4, 5].iter().for_each(|&page| slab.add_page(page).unwrap());
    slab.take_many(220, &mut Vec::new()).unwrap();
    for index in 0..100 {
        slab.give(Slot { page: 4, index }).unwrap();
    }
    slab.remove_page(4).unwrap();
    slab.add_page(6).unwrap();
    slab.add_page(7).unwrap();
    slab.remove_page(7).unwrap();
    slab.validate().unwrap();
    slab
}

type Fault = (&'static str, fn(&mut Slab));

#[rustfmt::skip]
const FAULTS: &[Fault] = &[
    ("a record of another page", |slab| slab.record_of[5] = slab.record_of[3]),
    ("a record that is not there", |slab| slab.record_of[5] = 77),
    ("a wrong number of free slots", |slab| { let record = slab.record(5).unwrap(); slab.records[record].free += 1 }),
    ("a wrong summary", |slab| { let record = slab.record(5).unwrap(); slab.records[record].summary = 1 }),
    ("a slot beyond the last", |slab| {
        let record = slab.record(5).unwrap();
        slab.words[record * 2 + 1] |= 1 << 40;
        slab.records[record].free += 1;
        slab.live_slots -= 1;
    }),
    ("a full page that is open", |slab| slab.open.insert(3)),
    ("a page with free slots that is not", |slab| slab.open.remove(5)),
    ("an open page that is not here", |slab| slab.open.insert(0)),
    ("a wrong number of live slots", |slab| slab.live_slots += 1),
    ("a wrong number of pages", |slab| slab.pages += 1),
    ("a lost spare record", |slab| slab.spare = 0),
    ("a spare record that is not there", |slab| slab.spare = 99),
];

#[test]
fn validate_sees_each_broken_invariant() {
    for (what, fault) in FAULTS {
        let mut slab = slab();
        fault(&mut slab);
        assert!(slab.validate().is_err(), "nobody saw {what}");
    }
}

#[test]
fn records_of_removed_pages_are_used_again() {
    let mut slab = slab();
    let records = slab.records.len();
    for page in [0, 1, 2, 4, 7].into_iter().cycle().take(1_000) {
        slab.add_page(page).unwrap();
        slab.remove_page(page).unwrap();
    }
    assert_eq!(slab.records.len(), records);
    slab.validate().unwrap();
}
