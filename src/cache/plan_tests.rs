//! What a message says is read back, and what no scheduler wrote is refused.

use super::*;

fn shape() -> Shape {
    let group = |block_tokens, blocks, row_cells| GroupShape {
        block_tokens,
        blocks,
        row_cells,
        has_slots: true,
        has_holes: false,
        copies: 2,
    };
    Shape::new(8, 64, 100, true, vec![group(4, 32, 25), group(8, 16, 13)], 1)
}

/// Batch entries, lengths, and for each group ranges, cells and blocks to zero.
type Parts<'a> = (&'a [u32], &'a [u32], [(&'a [u32], &'a [i32], &'a [i32]); 2]);

const GOOD: Parts<'static> = (
    &[3, 5, 2, 7, 0, 1, 99, 100],
    &[3, 7, 5, 0, 0, 100],
    [(&[3, 0, 2, 0, 24, 1], &[31, -1, 4], &[0, 31]), (&[3, 0, 1], &[15], &[])],
);

fn message_of(info: &PlanInfo, parts: Parts<'_>) -> Vec<u8> {
    message_with(info, parts, &[])
}

/// The copies are those of the first group.
fn message_with(info: &PlanInfo, (batch, lengths, groups): Parts<'_>, copies: &[TokenCopy]) -> Vec<u8> {
    let part =
        |(ranges, cells, zeros): &(&[u32], &[i32], &[i32])| 4 + ranges.len() + cells.len() + zeros.len();
    let words =
        batch.len() + lengths.len() + groups.iter().map(part).sum::<usize>() + COPY_WORDS * copies.len();
    let mut out = vec![0; message_bytes(words)];
    let counts = Counts {
        groups: 2,
        batch: batch.len() as u32 / 4,
        lengths: lengths.len() as u32 / 2,
        has_sizes: false,
    };
    let mut writer = Writer::new(&mut out, info, counts);
    writer.words(batch);
    writer.words(lengths);
    for (group, (ranges, cells, zeros)) in groups.into_iter().enumerate() {
        let copies = if group == 0 { copies } else { &[] };
        writer.words(&[ranges.len() as u32 / 3, cells.len() as u32, zeros.len() as u32, copies.len() as u32]);
        writer.words(ranges);
        writer.cells(cells);
        writer.cells(zeros);
        copies.iter().for_each(|copy| writer.cells(&copy.words()));
    }
    writer.finish();
    out
}

fn info() -> PlanInfo {
    PlanInfo {
        bytes: 0,
        scheduler: u64::MAX - 1,
        geometry: shape().digest,
        step: 1 << 40,
        number: 9,
        follows: 8,
        is_full: false,
    }
}

fn refused(message: &[u8]) -> Error {
    match Plan::read(message, &shape()) {
        Ok(_) => panic!("the message must be refused"),
        Err(error) => error,
    }
}

#[test]
fn a_message_is_read_back_word_by_word() {
    let message = message_of(&info(), GOOD);
    let plan = Plan::read(&message, &shape()).unwrap();
    assert_eq!(plan.info, PlanInfo { bytes: message.len() as u64, ..info() });
    assert_eq!(PlanInfo::read(&message).unwrap(), plan.info);
    assert_eq!(plan.batch.iter().collect::<Vec<_>>(), GOOD.0);
    assert_eq!(plan.lengths.entries().collect::<Vec<[u32; 2]>>(), [[3, 7], [5, 0], [0, 100]]);
    let words = |words: Words<'_>| words.iter().map(|word| word as i32).collect::<Vec<_>>();
    let mut count = 0;
    for (group, (ranges, cells, zeros)) in plan.groups().zip(GOOD.2) {
        assert_eq!(group.ranges.iter().collect::<Vec<_>>(), ranges);
        assert_eq!((words(group.cells), words(group.zeros)), (cells.to_vec(), zeros.to_vec()));
        count += 1;
    }
    assert_eq!(count, 2);
}

#[test]
fn a_cut_message_and_every_flipped_bit_are_refused() {
    let message = message_of(&info(), GOOD);
    for length in 0..message.len() {
        assert!(!refused(&message[..length]).text.is_empty());
    }
    let mut longer = message.clone();
    longer.extend([0; 4]);
    refused(&longer);
    for bit in 0..8 * message.len() {
        let mut flipped = message.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let expected = if (32..64).contains(&bit) { Status::Unsupported } else { Status::InvalidArgument };
        assert_eq!(refused(&flipped).status, expected, "bit {bit}");
    }
}

#[test]
fn copies_are_read_back_and_lie_inside_their_blocks() {
    let copy = TokenCopy { group: 0, row: 7, source_slot: 125, target_slot: 0, tokens: 3, shift: -9 };
    let of_nobody = TokenCopy { row: -1, ..copy };
    let message = message_with(&info(), GOOD, &[copy, of_nobody]);
    let plan = Plan::read(&message, &shape()).unwrap();
    let read: Vec<Vec<TokenCopy>> = plan.groups().map(|group| group.copies().collect()).collect();
    assert_eq!(read, [vec![copy, of_nobody], vec![]]);
    let far = TokenCopy { source_slot: 5 << 32, ..copy };
    assert_eq!(TokenCopy::from_words(far.words()), far);
    let bad = [
        TokenCopy { group: 1, ..copy },
        TokenCopy { row: -2, ..copy },
        TokenCopy { row: 8, ..copy },
        TokenCopy { tokens: 0, ..copy },
        TokenCopy { tokens: 4, ..copy },
        TokenCopy { tokens: u32::MAX, ..copy },
        TokenCopy { source_slot: 128, ..copy },
        TokenCopy { source_slot: -4, ..copy },
        TokenCopy { target_slot: i64::MAX, ..copy },
        TokenCopy { target_slot: 2, ..copy },
        far,
    ];
    for copy in bad {
        assert!(refused(&message_with(&info(), GOOD, &[copy])).text.contains("a copy"), "{copy:?}");
    }
    assert!(refused(&message_with(&info(), GOOD, &[copy; 3])).text.contains("a copy"));
}

/// A message of size classes that tells so much of the first group: its size, the blocks to zero, a copy.
fn message_of_sizes(sizes: [u32; 2], zeros: &[i32], copies: &[TokenCopy]) -> Vec<u8> {
    message_of_classes(sizes, &[], [(&[], &[], zeros), (&[], &[], &[])], copies)
}

/// Sizes, the batch, and for each group ranges, cells and blocks to zero; the copies are those of the first group.
fn message_of_classes(
    sizes: [u32; 2],
    batch: &[u32],
    groups: [(&[u32], &[i32], &[i32]); 2],
    copies: &[TokenCopy],
) -> Vec<u8> {
    let words = groups.iter().map(|(ranges, cells, zeros)| 4 + ranges.len() + cells.len() + zeros.len());
    let words = 2 + batch.len() + words.sum::<usize>() + COPY_WORDS * copies.len();
    let mut out = vec![0; message_bytes(words)];
    let info = PlanInfo { geometry: shape_of_classes().digest, ..info() };
    let counts = Counts { groups: 2, batch: batch.len() as u32 / 4, has_sizes: true, ..Counts::default() };
    let mut writer = Writer::new(&mut out, &info, counts);
    writer.words(batch);
    writer.words(&sizes);
    for ((ranges, cells, zeros), copies) in groups.into_iter().zip([copies, &[]]) {
        writer.words(&[ranges.len() as u32 / 3, cells.len() as u32, zeros.len() as u32, copies.len() as u32]);
        writer.words(ranges);
        writer.cells(cells);
        writer.cells(zeros);
        copies.iter().for_each(|copy| writer.cells(&copy.words()));
    }
    writer.finish();
    out
}

fn shape_of_classes() -> Shape {
    Shape::new(8, 64, 100, true, shape().groups, 2)
}

#[test]
fn sizes_of_classes_are_read_back_and_bound_what_the_work_of_the_step_touches() {
    let copy = TokenCopy { group: 0, row: 7, source_slot: 80, target_slot: 0, tokens: 3, shift: 0 };
    let classes = shape_of_classes();
    let message = message_of_sizes([21, 16], &[20], &[copy]);
    let plan = Plan::read(&message, &classes).unwrap();
    assert_eq!(plan.sizes().unwrap().collect::<Vec<_>>(), [21, 16]);
    assert_eq!(plan.groups().map(|group| group.zeros.len()).collect::<Vec<_>>(), [1, 0]);
    let without = message_of(&info(), GOOD);
    assert!(Plan::read(&without, &shape()).unwrap().sizes().is_none());
    let refused = |message: &[u8]| match Plan::read(message, &classes) {
        Ok(_) => panic!("the message must be refused"),
        Err(error) => error,
    };
    for sizes in [[0, 16], [33, 16], [21, 17], [u32::MAX, 1]] {
        assert!(refused(&message_of_sizes(sizes, &[], &[])).text.contains("a size"), "{sizes:?}");
    }
    assert!(refused(&message_of_sizes([20, 16], &[20], &[])).text.contains("to fill with zeros"));
    assert!(refused(&message_of_sizes([20, 16], &[], &[copy])).text.contains("a copy"));
    // Parts of a form that is not known are not skipped.
    let mut other = message.clone();
    other[4 * 14] |= 4;
    let end = other.len() - 4 * TAIL_WORDS;
    let sum = xxh3::xxh3_64(&other[..end]);
    other[end..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(refused(&other).status, Status::Unsupported);
}

/// Ranges and cells of a group.
type Told<'a> = (&'a [u32], &'a [i32]);

#[test]
fn blocks_without_memory_are_refused_where_the_step_looks_for_them_and_nowhere_else() {
    let classes = shape_of_classes();
    // Row 3 has 9 tokens in blocks of 4, row 5 has 9 in blocks of 8: three cells and two.
    let batch = [entry_word(3, 0), 1, 8, 9, entry_word(5, 1), 2, 7, 9];
    let read = |sizes, ranges: [Told<'_>; 2]| {
        let groups = ranges.map(|(ranges, cells)| (ranges, cells, &[][..]));
        Plan::read(&message_of_classes(sizes, &batch, groups, &[]), &classes).map(drop)
    };
    let none: Told<'_> = (&[], &[]);
    let good: [[Told<'_>; 2]; 5] = [
        [(&[3, 0, 3], &[19, 0, 19]), (&[5, 0, 2], &[9, 0])],
        // Beyond the length, of another row, of a row of the other class, of none.
        [(&[3, 3, 2], &[20, 31]), (&[5, 2, 1], &[15])],
        [(&[4, 0, 3], &[20, 20, 20]), none],
        [(&[5, 0, 2], &[31, 31]), (&[3, 0, 2], &[10, 15])],
        [(&[2, 0, 1, 3, 2, 2], &[31, 19, 31]), (&[5, 1, 1], &[-1])],
    ];
    for ranges in good {
        read([20, 10], ranges).unwrap_or_else(|error| panic!("{ranges:?}: {error}"));
    }
    let bad: [([Told<'_>; 2], &str); 4] = [
        (
            [(&[3, 0, 3], &[0, 0, 20]), none],
            "20 blocks of group 0, and its sequence in row 3 has tokens in block 20",
        ),
        ([(&[2, 0, 1, 3, 2, 2], &[31, 31, 0]), none], "in row 3 has tokens in block 31"),
        (
            [none, (&[5, 1, 1], &[10])],
            "10 blocks of group 1, and its sequence in row 5 has tokens in block 10",
        ),
        ([(&[3, 0, 1], &[19]), (&[5, 0, 1], &[15])], "in row 5 has tokens in block 15"),
    ];
    for (ranges, text) in bad {
        let error = read([20, 10], ranges).expect_err("a block without memory");
        assert_eq!(error.status, Status::InvalidArgument);
        assert!(error.text.contains(text), "{error}");
        read([32, 16], ranges).unwrap_or_else(|error| panic!("{ranges:?}: {error}"));
    }
}

#[test]
fn another_geometry_and_numbers_out_of_range_are_refused_although_the_checksum_is_right() {
    let (batch, lengths, [one, two]) = GOOD;
    let bad: &[(&str, Parts<'_>)] = &[
        ("a row of the batch", (&[8, 1, 0, 1], lengths, [one, two])),
        ("tokens past the length", (&[3, 6, 2, 7], lengths, [one, two])),
        ("a sequence too long", (&[3, 1, 100, 101], lengths, [one, two])),
        ("too many tokens", (&[3, 33, 0, 33, 4, 32, 0, 32], lengths, [one, two])),
        ("too many entries", (&[0; 36], lengths, [one, two])),
        ("a row of a length", (batch, &[8, 1], [one, two])),
        ("a length", (batch, &[7, 101], [one, two])),
        ("a row of a range", (batch, lengths, [(&[8, 0, 1], &[0], &[]), two])),
        ("a range past the row", (batch, lengths, [(&[1, 24, 2], &[0, 0], &[]), two])),
        ("a range past everything", (batch, lengths, [(&[1, u32::MAX, 2], &[0, 0], &[]), two])),
        ("fewer cells", (batch, lengths, [(&[1, 0, 2], &[0], &[]), two])),
        ("a cell", (batch, lengths, [(&[1, 0, 1], &[32], &[]), two])),
        ("a negative cell", (batch, lengths, [(&[1, 0, 1], &[-2], &[]), two])),
        ("a block to zero", (batch, lengths, [one, (&[], &[], &[16])])),
        ("a negative block to zero", (batch, lengths, [one, (&[], &[], &[-1])])),
        ("too many blocks to zero", (batch, lengths, [one, (&[], &[], &[1; 17])])),
    ];
    for &(name, parts) in bad {
        let error = refused(&message_of(&info(), parts));
        assert_eq!(error.status, Status::InvalidArgument, "{name}: {error}");
    }
    for wrong in [PlanInfo { step: 0, ..info() }, PlanInfo { number: 0, ..info() }] {
        refused(&message_of(&wrong, GOOD));
    }
    let other = message_of(&PlanInfo { geometry: 5, ..info() }, GOOD);
    assert!(refused(&other).text.contains("geometry"));
}

#[test]
fn the_digest_knows_every_number_that_a_plan_depends_on() {
    let group = GroupShape {
        block_tokens: 4,
        blocks: 32,
        row_cells: 25,
        has_slots: true,
        has_holes: false,
        copies: 2,
    };
    let of = |sequences, batch, longest, scrubs, groups| {
        Shape::new(sequences, batch, longest, scrubs, groups, 1).digest
    };
    let mut digests = vec![
        of(8, 64, 100, true, vec![group]),
        of(9, 64, 100, true, vec![group]),
        of(8, 65, 100, true, vec![group]),
        of(8, 64, 101, true, vec![group]),
        of(8, 64, 100, false, vec![group]),
        of(8, 64, 100, true, vec![group, group]),
        of(8, 64, 100, true, vec![GroupShape { block_tokens: 5, ..group }]),
        of(8, 64, 100, true, vec![GroupShape { blocks: 33, ..group }]),
        of(8, 64, 100, true, vec![GroupShape { row_cells: 26, ..group }]),
        of(8, 64, 100, true, vec![GroupShape { has_slots: false, ..group }]),
        of(8, 64, 100, true, vec![GroupShape { has_holes: true, ..group }]),
        of(8, 64, 100, true, vec![GroupShape { copies: 3, ..group }]),
    ];
    let count = digests.len();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), count);
}
