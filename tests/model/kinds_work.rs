//! A step's work, which writes and reads slots as the tables say, and a look at everything that they hold.

use std::collections::HashSet;

use kavern::device::DeviceSlice;

use super::*;

impl Run {
    fn pool(&self, group: usize) -> DeviceSlice {
        let about = self.cache.describe(group as u32).unwrap();
        // SAFETY: the pool of the cache, which lives as long as `self`.
        unsafe {
            DeviceSlice::from_foreign(self.device.key(), about.base_address, BLOCKS * about.block_bytes)
        }
        .unwrap()
    }

    /// First bytes of a token in its pool: of its key and its value, or of its row.
    fn places(&self, group: usize, row: &[i32], token: usize) -> [usize; 2] {
        let (strides, each) =
            (self.cache.describe(group as u32).unwrap().strides, self.groups[group].1 as usize);
        assert!((0..BLOCKS as i32).contains(&row[token / each]), "group {group}, token {token}: {row:?}");
        let first = row[token / each] as u64 * strides.block + (token % each) as u64 * strides.token;
        [first as usize, (first + strides.kv) as usize]
    }

    /// The step's work, and a look at everything.
    pub(super) fn work(&mut self) {
        let (groups, rows, starts, lengths, copies) = self
            .cache
            .tables(self.step, self.stream, |tables| {
                let group = |group: usize| {
                    let view = tables.group(group).unwrap();
                    let cells = view.row_cells as usize;
                    let rows: Vec<Vec<i32>> = view.block_table.chunks(cells).map(<[i32]>::to_vec).collect();
                    (rows, view.slot_mapping.to_vec())
                };
                let rows = tables.batch_rows()?.to_vec();
                let starts = tables.batch_starts()?.to_vec();
                let groups: Vec<_> = (0..self.groups.len()).map(group).collect();
                Ok((groups, rows, starts, tables.sequence_lengths().to_vec(), tables.copies().to_vec()))
            })
            .unwrap();
        self.device.stream_synchronize(self.stream).unwrap();
        self.positions.follow(&copies);
        let held: Vec<Sequence> = self.live.iter().filter(|s| !s.is_dropped()).cloned().collect();
        held.iter().for_each(|s| assert_eq!(lengths[s.row] as usize, s.tokens.len()));
        for (group, (table, slots)) in groups.iter().enumerate() {
            let mut bytes = vec![0; self.pool(group).bytes() as usize];
            self.device.read(self.pool(group), &mut bytes).unwrap();
            match self.groups[group].0 {
                Reach::State { .. } => self.work_states(group, table, &mut bytes, &held),
                Reach::Cross { tokens } => self.work_input(group, table, &mut bytes, &held, tokens as usize),
                _ => {
                    for sequence in &held {
                        let mut of_step: Vec<i64> = Vec::new();
                        for (at, _) in
                            rows.iter().enumerate().filter(|(_, row)| **row as usize == sequence.row)
                        {
                            of_step.extend(&slots[starts[at] as usize..starts[at + 1] as usize]);
                        }
                        let each = self.groups[group].1 as usize;
                        let row = &table[sequence.row];
                        for (token, slot) in (sequence.written..sequence.tokens.len()).zip(&of_step) {
                            assert_eq!(*slot as usize, row[token / each] as usize * each + token % each);
                        }
                        let pending = sequence.tokens.len() - sequence.written;
                        assert_eq!(of_step.len(), pending, "tokens of {:x} in the batch", sequence.id);
                    }
                    self.work_tokens(group, table, &mut bytes, &held);
                }
            }
            self.device.write(self.pool(group), &bytes).unwrap();
        }
        self.live.iter_mut().for_each(|s| s.written = if s.is_dropped() { 0 } else { s.tokens.len() });
        self.is_tabled = true;
    }

    fn work_tokens(&mut self, group: usize, table: &[Vec<i32>], bytes: &mut [u8], held: &[Sequence]) {
        let each = self.groups[group].1 as usize;
        for sequence in held {
            for token in sequence.written..sequence.tokens.len() {
                for at in self.places(group, &table[sequence.row], token) {
                    bytes[at..at + 4].copy_from_slice(&sequence.numbers[token].to_le_bytes());
                }
                self.positions.write(group, slot(&table[sequence.row], each, token), token);
            }
        }
        // After all writes: one may have found what another writes in the same step, and none may be overwritten.
        let null = self.cache.describe(group as u32).unwrap().null_block.map(|block| block as i32);
        for sequence in held {
            let row = &table[sequence.row];
            assert!(row[..sequence.firsts[group]].iter().all(|&cell| Some(cell) == null), "group {group}");
            let length = sequence.tokens.len();
            let first = sequence.first.unwrap_or(length);
            for token in self.needed(group, first, sequence.trimmed)..length {
                self.positions.check(group, slot(row, each, token), token);
                for at in self.places(group, row, token) {
                    let seen = i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    let of = sequence.id;
                    assert_eq!(seen, sequence.numbers[token], "group {group}, token {token} of {of:x}");
                }
            }
        }
    }

    fn work_states(&self, group: usize, table: &[Vec<i32>], bytes: &mut [u8], held: &[Sequence]) {
        let block_bytes = self.cache.describe(group as u32).unwrap().block_bytes as usize;
        let place = |block: i32| block as usize * block_bytes..block as usize * block_bytes + 4;
        let is_pending = |sequence: &&Sequence| sequence.written < sequence.tokens.len();
        for sequence in held.iter().filter(is_pending).filter(|sequence| sequence.written > 0) {
            let [current, start] = table[sequence.row][..] else { panic!("two cells") };
            let state = &bytes[place(if start >= 0 { start } else { current })];
            let (seen, of) = (i32::from_le_bytes(state.try_into().unwrap()), sequence.id);
            assert_eq!(seen, sequence.numbers[sequence.written - 1], "group {group}: the start of {of:x}");
        }
        let mut written = HashSet::new();
        for sequence in held.iter().filter(is_pending) {
            let current = table[sequence.row][0];
            assert!(written.insert(current), "two write block {current}");
            bytes[place(current)].copy_from_slice(&sequence.numbers[sequence.tokens.len() - 1].to_le_bytes());
        }
        for sequence in held.iter().filter(|sequence| !sequence.tokens.is_empty()) {
            let [current, start] = table[sequence.row][..] else { panic!("two cells") };
            let state = &bytes[place(current)];
            let (seen, of) = (i32::from_le_bytes(state.try_into().unwrap()), sequence.id);
            assert_eq!(
                seen,
                sequence.numbers[sequence.tokens.len() - 1],
                "group {group}: the state of {of:x}"
            );
            assert!(
                start < 0 || !written.contains(&start),
                "group {group}: {of:x} starts from what is written"
            );
        }
    }

    fn work_input(
        &self,
        group: usize,
        table: &[Vec<i32>],
        bytes: &mut [u8],
        held: &[Sequence],
        tokens: usize,
    ) {
        let of = |sequence: &Sequence, token: usize| i32::from(sequence.input) * 1000 + token as i32;
        for sequence in held.iter().filter(|s| s.written == 0 && !s.tokens.is_empty()) {
            for token in (0..tokens).filter(|_| sequence.found >> group & 1 == 0) {
                for at in self.places(group, &table[sequence.row], token) {
                    bytes[at..at + 4].copy_from_slice(&of(sequence, token).to_le_bytes());
                }
            }
        }
        for sequence in held.iter().filter(|s| !s.tokens.is_empty()) {
            for token in 0..tokens {
                for at in self.places(group, &table[sequence.row], token) {
                    let seen = i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    assert_eq!(
                        seen,
                        of(sequence, token),
                        "group {group}, input {token} of {:x}",
                        sequence.id
                    );
                }
            }
        }
    }

    /// The counts are those of the tokens that the sequences have and hold.
    pub(super) fn compare(&self) {
        let s = self.cache.statistics();
        assert_eq!(s.sequences as usize, self.live.len());
        let held = self.live.iter().filter(|s| !s.is_dropped());
        let tokens: usize = held.clone().map(|s| s.tokens.len()).sum();
        assert_eq!(s.used_tokens as usize, tokens);
        let mut held_tokens = 0;
        for (group, &(reach, each)) in self.groups.iter().enumerate() {
            held_tokens += match reach {
                Reach::State { .. } => 0,
                Reach::Cross { tokens } => tokens as usize * held.clone().count(),
                _ => tokens - held.clone().map(|s| s.firsts[group] * each as usize).sum::<usize>(),
            };
        }
        assert_eq!(s.held_tokens as usize, held_tokens);
        self.cache.validate().unwrap();
    }
}
