//! Stretches against a plain list, and what a call costs.

use super::*;

const GRANULE: u64 = 2;

fn block(id: u64, granules: u64) -> Freed {
    Freed { class: 7, id, bytes: granules * GRANULE }
}

/// What the list says: neighbours joined, in the order of their places.
fn rows(blocks: &[Freed]) -> Vec<Stretch> {
    let mut sorted = blocks.to_vec();
    sorted.sort_unstable_by_key(|block| block.id);
    let mut rows: Vec<Stretch> = Vec::new();
    for block in sorted {
        match rows.last_mut() {
            Some(row) if row.id + row.bytes / GRANULE == block.id => row.bytes += block.bytes,
            _ => rows.push(Stretch { id: block.id, bytes: block.bytes }),
        }
    }
    rows
}

#[test]
fn stretches_are_what_a_plain_list_of_blocks_joins_to() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        // The first block of each place and its length; the blocks tile the places.
        let mut outside: Vec<Freed> = Vec::new();
        let mut at = 0;
        while outside.len() < 60 {
            let granules = random.u64(1..6);
            outside.push(block(at, granules));
            at += granules + u64::from(random.u32(..4) == 0);
        }
        let (mut stretches, mut inside) = (Stretches::new(7, GRANULE), Vec::new());
        for _ in 0..300 {
            match random.u32(..6) {
                0..3 if !outside.is_empty() => {
                    let block = outside.swap_remove(random.usize(..outside.len()));
                    stretches.insert(block);
                    inside.push(block);
                }
                3 => {
                    let bytes = random.u64(1..6) * GRANULE;
                    let last = inside.iter().rposition(|block: &Freed| block.bytes == bytes);
                    let wanted = last.map(|at| inside.remove(at));
                    assert_eq!(stretches.take_sized(bytes), wanted, "the last one of its length");
                    outside.extend(wanted);
                }
                4 => {
                    let bytes = random.u64(1..16) * GRANULE;
                    let (longer, shorter): (Vec<Stretch>, Vec<Stretch>) =
                        rows(&inside).into_iter().partition(|row| row.bytes >= bytes);
                    let longest = shorter.iter().map(|row| row.bytes).max();
                    assert_eq!(stretches.longest_below(bytes).next().map(|row| row.bytes), longest);
                    let found = stretches.shortest(bytes);
                    assert_eq!(found, longer.into_iter().min_by_key(|row| (row.bytes, row.id)));
                    let Some(found) = found else { continue };
                    let first = stretches.take_first(found, bytes);
                    let sum: u64 = first.iter().map(|block| block.bytes).sum();
                    assert!(sum >= bytes && sum - first[first.len() - 1].bytes < bytes);
                    assert_eq!(rows(&first), [Stretch { id: found.id, bytes: sum }]);
                    inside.retain(|block| !first.contains(block));
                    outside.extend(first);
                }
                _ if !inside.is_empty() => {
                    let block = inside.swap_remove(random.usize(..inside.len()));
                    // From here on the order of the two lists is not the same any more: put in anew.
                    outside.push(block);
                    assert!(stretches.take_all().contains(&block));
                    inside.iter().for_each(|&block| stretches.insert(block));
                }
                _ => {}
            }
            stretches.validate().unwrap();
            assert_eq!(stretches.len(), inside.len());
            let longest = rows(&inside).iter().map(|row| row.bytes).max().unwrap_or(0);
            assert!(random.bool() || stretches.longest_bytes() == longest);
        }
        let mut count = 0;
        while let Some(block) = stretches.take_any() {
            assert!(inside.contains(&block));
            count += 1;
        }
        assert_eq!(count, inside.len());
        stretches.validate().unwrap();
    }
}

#[test]
fn what_a_call_looks_at_does_not_grow_with_what_is_held() {
    let steps_beside = |held: u64| {
        let mut stretches = Stretches::new(7, GRANULE);
        (0..held).for_each(|at| stretches.insert(block(10 * at, 3 + at % 5)));
        stretches.longest_bytes();
        let before = stretches.steps;
        for turn in 0..1000 {
            let bytes = (1 + turn % 9) * GRANULE;
            let found = stretches.take_sized(bytes).map(|block| vec![block]);
            let found = found.or_else(|| {
                let stretch = stretches.shortest(bytes)?;
                Some(stretches.take_first(stretch, bytes))
            });
            found.into_iter().flatten().for_each(|block| stretches.insert(block));
        }
        stretches.steps - before
    };
    let (few, many) = (steps_beside(100), steps_beside(10_000));
    assert!(many <= 2 * few, "{few} steps beside 100 blocks, {many} beside 10,000");
}

#[test]
fn a_false_entry_is_found() {
    let mut stretches = Stretches::new(7, GRANULE);
    (0..40).for_each(|at| stretches.insert(block(4 * at, 4 - at % 2)));
    stretches.validate().unwrap();
    let forgeries: [fn(&mut Stretches); 4] = [
        |all| assert!(all.by_length.pop_first().is_some()),
        |all| assert!(all.stretches.insert(1000, 2).is_none()),
        |all| assert!(all.by_bytes.pop_last().is_some()),
        |all| all.recent[0].class = 3,
    ];
    for forge in forgeries {
        let mut forged = Stretches::new(7, GRANULE);
        stretches.blocks().for_each(|block| forged.insert(block));
        forged.validate().unwrap();
        forge(&mut forged);
        assert!(forged.validate().is_err());
    }
}
