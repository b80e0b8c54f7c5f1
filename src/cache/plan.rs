//! The plan of a step as a message: what a scheduler's cache tells the caches of its workers. Pure.
//!
//! Little-endian words of 32 bits; 64-bit numbers are two of them. A head of [`HEAD_WORDS`]; the batch, 4 words an
//! entry: row (with the number of its size class above the lowest 24 bits), tokens, first token, length of the row;
//! changed lengths, 2 words each: row, length; where memory moves between size classes, for each group the blocks
//! that need memory, and a flag in the head that says so; for each group a head of 4 words (changed ranges, their
//! cells, blocks to zero, copies), the ranges, 3 words each: row, first cell, cells, then the cells, the blocks, and
//! the copies as the device reads them; last a checksum of everything before it. Whoever reads checks every number
//! before anything is done, so a message that was cut, changed or made for another geometry does nothing.

use xxhash_rust::xxh3;

use super::copies::{COPY_WORDS, TokenCopy};
use crate::error::{Error, Result, Status};

/// First bytes of every plan.
const MAGIC: u32 = u32::from_le_bytes(*b"KVPL");
/// Version of the form.
const VERSION: u32 = 1;
/// Words of the head.
pub(super) const HEAD_WORDS: usize = 20;
/// Bits of a row in an entry of the batch.
const ROW_BITS: u32 = 24;
/// Words of the checksum.
const TAIL_WORDS: usize = 2;
/// Bit of the flags: the plan needs none before it.
const IS_FULL: u32 = 1;
/// Bit of the flags: the plan tells how many blocks of each group need memory. A reader of before refuses it.
const HAS_SIZES: u32 = 2;

/// What the head of a plan says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanInfo {
    /// Bytes of the message.
    pub bytes: u64,
    /// Names the cache that made it; drawn at random when that was made.
    pub scheduler: u64,
    /// Digest of the geometry that both sides must share.
    pub geometry: u64,
    /// The step.
    pub step: u64,
    /// Rises by one from plan to plan.
    pub number: u64,
    /// The plan that must have been applied before; 0 if none.
    pub follows: u64,
    /// It tells everything and not only what changed.
    pub is_full: bool,
}

/// What the head says beside that.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) groups: u32,
    pub(super) batch: u32,
    pub(super) lengths: u32,
    pub(super) has_sizes: bool,
}

/// One group of the geometry, as far as plans depend on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupShape {
    pub(super) block_tokens: u32,
    pub(super) blocks: u32,
    pub(super) row_cells: u32,
    pub(super) has_slots: bool,
    /// Cells may show the null block, whose number is `blocks`.
    pub(super) has_holes: bool,
    /// Most copies of a step.
    pub(super) copies: u32,
}

/// The geometry as far as plans depend on it. Heads, types and bytes of a block are not part of it: workers that
/// share a model by heads or layers take the same plans.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) digest: u64,
    max_sequences: u32,
    max_batch_tokens: u32,
    max_sequence_tokens: u64,
    groups: Vec<GroupShape>,
    /// Size classes of which each sequence has one.
    classes: u32,
}

/// The first word of an entry of the batch: a row is below 2^20.
pub(super) fn entry_word(row: u32, class: usize) -> u32 {
    row | (class as u32) << ROW_BITS
}

/// Row and class of such a word.
pub(super) fn split_entry(word: u32) -> (u32, usize) {
    (word & ((1 << ROW_BITS) - 1), (word >> ROW_BITS) as usize)
}

impl Shape {
    pub(super) fn new(
        max_sequences: u32,
        max_batch_tokens: u32,
        max_sequence_tokens: u64,
        scrubs: bool,
        groups: Vec<GroupShape>,
        classes: u32,
    ) -> Self {
        let mut words = vec![
            u64::from(VERSION),
            max_sequences.into(),
            max_batch_tokens.into(),
            max_sequence_tokens,
            scrubs.into(),
        ];
        for group in &groups {
            // The second bit says more of the same: what there was without holes has the same digest as before.
            let has_slots = u32::from(group.has_slots) | u32::from(group.has_holes) << 1;
            let numbers = [group.block_tokens, group.blocks, group.row_cells, has_slots, group.copies];
            words.extend(numbers.map(u64::from));
        }
        if classes > 1 {
            words.push(classes.into());
        }
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let digest = xxh3::xxh3_64(&bytes);
        Self { digest, max_sequences, max_batch_tokens, max_sequence_tokens, groups, classes }
    }
}

/// Bytes of a message with so many words between head and checksum.
pub(super) fn message_bytes(body_words: usize) -> usize {
    4 * (HEAD_WORDS + body_words + TAIL_WORDS)
}

/// Writes a message into a buffer that is exactly as long.
pub(super) struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    /// Begins with the head.
    pub(super) fn new(out: &'a mut [u8], info: &PlanInfo, counts: Counts) -> Self {
        let mut writer = Self { out, at: 0 };
        writer.words(&[MAGIC, VERSION]);
        for number in
            [writer.out.len() as u64, info.scheduler, info.geometry, info.step, info.number, info.follows]
        {
            writer.words(&[number as u32, (number >> 32) as u32]);
        }
        let full = if info.is_full { IS_FULL } else { 0 };
        let flags = full | if counts.has_sizes { HAS_SIZES } else { 0 };
        writer.words(&[flags, counts.groups, counts.batch, counts.lengths, 0, 0]);
        writer
    }

    pub(super) fn words(&mut self, words: &[u32]) {
        let target = self.out[self.at..][..4 * words.len()].chunks_exact_mut(4);
        target.zip(words).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_le_bytes()));
        self.at += 4 * words.len();
    }

    pub(super) fn cells(&mut self, cells: &[i32]) {
        self.words(bytemuck::cast_slice(cells));
    }

    /// Ends with the checksum.
    pub(super) fn finish(mut self) {
        let sum = xxh3::xxh3_64(&self.out[..self.at]);
        self.words(&[sum as u32, (sum >> 32) as u32]);
        debug_assert_eq!(self.at, self.out.len(), "the message is as long as was worked out");
    }
}

/// Words of a message.
#[derive(Clone, Copy)]
pub(super) struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    pub(super) fn len(&self) -> usize {
        self.0.len() / 4
    }

    pub(super) fn get(&self, index: usize) -> u32 {
        let bytes = &self.0[4 * index..][..4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn get_64(&self, index: usize) -> u64 {
        u64::from(self.get(index)) | u64::from(self.get(index + 1)) << 32
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u32> + 'a {
        self.0.chunks_exact(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Entries of so many words.
    pub(super) fn entries<const N: usize>(self) -> impl Iterator<Item = [u32; N]> + 'a {
        (0..self.len() / N).map(move |entry| std::array::from_fn(|word| self.get(N * entry + word)))
    }

    fn split_at(self, words: usize) -> Option<(Self, Self)> {
        let (head, rest) = self.0.split_at_checked(words.checked_mul(4)?)?;
        Some((Self(head), Self(rest)))
    }
}

/// What changes in one group.
pub(super) struct GroupPlan<'a> {
    /// Row, first cell, cells.
    pub(super) ranges: Words<'a>,
    /// The cells of all ranges, one after the other.
    pub(super) cells: Words<'a>,
    /// Blocks to fill with zeros.
    pub(super) zeros: Words<'a>,
    /// Copies before the step's work, in their order.
    copies: Words<'a>,
}

impl<'a> GroupPlan<'a> {
    /// Copies before the step's work, in their order.
    pub(super) fn copies(&self) -> impl Iterator<Item = TokenCopy> + use<'a> {
        self.copies.entries::<COPY_WORDS>().map(|words| TokenCopy::from_words(words.map(|word| word as i32)))
    }
}

/// A message whose every number was checked.
pub(super) struct Plan<'a> {
    pub(super) info: PlanInfo,
    /// Row, tokens, first token, length.
    pub(super) batch: Words<'a>,
    /// Row, length.
    pub(super) lengths: Words<'a>,
    /// By group, blocks that need memory; empty if it tells none.
    sizes: Words<'a>,
    groups: Words<'a>,
}

fn broken(what: &str) -> Error {
    Error::argument(format!("the plan is no whole and unchanged message: {what}"))
}

/// Reads the head, after the checksum.
fn read_head(message: &[u8]) -> Result<(PlanInfo, Counts, Words<'_>)> {
    let Some((head, rest)) = Words(message).split_at(HEAD_WORDS) else {
        return Err(broken("it is shorter than a head"));
    };
    if head.get(0) != MAGIC {
        return Err(broken("it does not begin as one"));
    }
    if head.get(1) != VERSION {
        let text = format!("the plan has form {}, this library reads form {VERSION}", head.get(1));
        return Err(Error::new(Status::Unsupported, text));
    }
    let info = PlanInfo {
        bytes: head.get_64(2),
        scheduler: head.get_64(4),
        geometry: head.get_64(6),
        step: head.get_64(8),
        number: head.get_64(10),
        follows: head.get_64(12),
        is_full: head.get(14) & IS_FULL != 0,
    };
    if info.bytes != message.len() as u64 || !message.len().is_multiple_of(4) || rest.len() < TAIL_WORDS {
        return Err(broken(&format!("{} bytes of {}", message.len(), info.bytes)));
    }
    let (body, tail) = rest.split_at(rest.len() - TAIL_WORDS).ok_or_else(|| broken("no checksum"))?;
    if xxh3::xxh3_64(&message[..message.len() - 4 * TAIL_WORDS]) != tail.get_64(0) {
        return Err(broken("its checksum is wrong"));
    }
    if head.get(14) & !(IS_FULL | HAS_SIZES) != 0 || head.get(18) != 0 || head.get(19) != 0 {
        return Err(Error::new(Status::Unsupported, "the plan has parts that this library does not know"));
    }
    let has_sizes = head.get(14) & HAS_SIZES != 0;
    let counts = Counts { groups: head.get(15), batch: head.get(16), lengths: head.get(17), has_sizes };
    Ok((info, counts, body))
}

impl PlanInfo {
    /// Reads what a message is about; checks that it is whole, not what it says.
    pub fn read(message: &[u8]) -> Result<Self> {
        read_head(message).map(|(info, _, _)| info)
    }
}

impl<'a> Plan<'a> {
    /// Reads a message and checks every number in it against the geometry of the reader.
    pub(super) fn read(message: &'a [u8], shape: &Shape) -> Result<Self> {
        let (info, counts, body) = read_head(message)?;
        if info.geometry != shape.digest {
            let text = "the plan is for another geometry; a worker has the groups, sequences, batch tokens and \
                        scrubbing of its scheduler";
            return Err(Error::argument(text));
        }
        let cut = || broken("its parts are longer than it");
        let (batch, rest) = body.split_at(4 * counts.batch as usize).ok_or_else(cut)?;
        let (lengths, rest) = rest.split_at(2 * counts.lengths as usize).ok_or_else(cut)?;
        let sizes = if counts.has_sizes { counts.groups as usize } else { 0 };
        let (sizes, groups) = rest.split_at(sizes).ok_or_else(cut)?;
        let plan = Self { info, batch, lengths, sizes, groups };
        if info.step == 0 || info.number == 0 || counts.groups as usize != shape.groups.len() {
            return Err(broken("its step, number or groups cannot be"));
        }
        plan.check_rows(shape)?;
        plan.check_sizes(shape)?;
        plan.check_groups(shape)?;
        Ok(plan)
    }

    fn check_rows(&self, shape: &Shape) -> Result<()> {
        let is_length = |length: u32| u64::from(length) <= shape.max_sequence_tokens;
        let mut tokens = 0;
        for [word, count, first, length] in self.batch.entries() {
            let (row, class) = split_entry(word);
            tokens += u64::from(count);
            let end = u64::from(first) + u64::from(count);
            let is_named = row < shape.max_sequences && class < shape.classes as usize;
            if !is_named || !is_length(length) || end > u64::from(length) {
                return Err(broken("an entry of its batch is out of range"));
            }
        }
        if self.batch.len() / 4 > shape.max_sequences as usize || tokens > u64::from(shape.max_batch_tokens) {
            return Err(broken("its batch is larger than one may be"));
        }
        let is_good = |[row, length]: [u32; 2]| row < shape.max_sequences && is_length(length);
        if !self.lengths.entries().all(is_good) {
            return Err(broken("a length is out of range"));
        }
        Ok(())
    }

    fn check_sizes(&self, shape: &Shape) -> Result<()> {
        let has_classes = shape.classes as usize == shape.groups.len() && shape.classes > 1;
        let mut sizes = self.sizes.iter().zip(&shape.groups);
        match (self.sizes.len() == 0 || has_classes) && sizes.all(|(size, g)| (1..=g.blocks).contains(&size))
        {
            true => Ok(()),
            false => Err(broken("a size of a class is out of range")),
        }
    }

    /// By group, the blocks that need memory; `None` if the plan tells none.
    pub(super) fn sizes(&self) -> Option<impl Iterator<Item = u32> + use<'a>> {
        (self.sizes.len() > 0).then(|| self.sizes.iter())
    }

    fn check_groups(&self, shape: &Shape) -> Result<()> {
        let mut rest = self.groups;
        for (index, group) in shape.groups.iter().enumerate() {
            let bad = |what: &str| broken(&format!("{what} of group {index}"));
            let (plan, after) = split_group(rest).ok_or_else(|| bad("the end"))?;
            rest = after;
            let mut cells = 0;
            for [row, first, count] in plan.ranges.entries() {
                cells += u64::from(count);
                let end = u64::from(first) + u64::from(count);
                if row >= shape.max_sequences || end > u64::from(group.row_cells) {
                    return Err(bad("a range"));
                }
            }
            if cells != plan.cells.len() as u64 {
                return Err(bad("the number of cells"));
            }
            // What the step's work touches has memory. Cells may be left of rows that ended.
            let with_memory = if self.sizes.len() > 0 { self.sizes.get(index) } else { group.blocks };
            // -1 is a cell that shows no block, and the null block stands for those that were let go.
            let end = group.blocks + u32::from(group.has_holes);
            if !plan.cells.iter().all(|cell| cell < end || cell as i32 == -1) {
                return Err(bad("a cell"));
            }
            if with_memory < group.blocks {
                self.check_shown(shape, index, &plan, with_memory)?;
            }
            if plan.zeros.len() > group.blocks as usize || !plan.zeros.iter().all(|block| block < with_memory)
            {
                return Err(bad("a block to fill with zeros"));
            }
            let is_good = |copy: TokenCopy| {
                let lies = |slot: i64| {
                    let (each, count) = (i64::from(group.block_tokens), i64::from(copy.tokens));
                    (0..each * i64::from(with_memory)).contains(&slot) && slot % each + count <= each
                };
                copy.group == index as u32
                    && (-1..i64::from(shape.max_sequences)).contains(&copy.row.into())
                    && copy.tokens > 0
                    && lies(copy.source_slot)
                    && lies(copy.target_slot)
            };
            if plan.copies.len() > COPY_WORDS * group.copies as usize || !plan.copies().all(is_good) {
                return Err(bad("a copy"));
            }
        }
        if rest.len() > 0 {
            return Err(broken("there is more than it says"));
        }
        Ok(())
    }

    /// Refuses blocks without memory where the step's work looks for blocks: in cells of the batch's sequences, in the
    /// group of their size class, up to their length. Such blocks are rare in any cell, so each one has the whole batch
    /// looked through.
    fn check_shown(&self, shape: &Shape, group: usize, plan: &GroupPlan<'_>, with_memory: u32) -> Result<()> {
        let GroupShape { block_tokens, blocks, .. } = shape.groups[group];
        // Classes stand in rising order of their blocks.
        let own_class = shape.groups.iter().filter(|other| other.block_tokens < block_tokens).count();
        let ranges = plan
            .ranges
            .entries()
            .flat_map(|[row, first, count]| (first..first + count).map(move |at| (row, at)));
        for ((row, at), cell) in
            ranges.zip(plan.cells.iter()).filter(|(_, cell)| (with_memory..blocks).contains(cell))
        {
            let first_token = u64::from(at) * u64::from(block_tokens);
            let is_shown = |[word, _, _, length]: [u32; 4]| {
                split_entry(word) == (row, own_class) && first_token < length.into()
            };
            if self.batch.entries().any(is_shown) {
                return Err(Error::argument(format!(
                    "the plan has memory for {with_memory} blocks of group {group}, and its sequence in row {row} has \
                     tokens in block {cell}"
                )));
            }
        }
        Ok(())
    }

    /// The groups in order.
    pub(super) fn groups(&self) -> impl Iterator<Item = GroupPlan<'a>> + use<'a> {
        let mut rest = self.groups;
        std::iter::from_fn(move || {
            let (plan, after) = split_group(rest)?;
            rest = after;
            Some(plan)
        })
    }
}

fn split_group(words: Words<'_>) -> Option<(GroupPlan<'_>, Words<'_>)> {
    let (head, rest) = words.split_at(4)?;
    let [ranges, cells, zeros, copies] = std::array::from_fn(|word| head.get(word) as usize);
    let (ranges, rest) = rest.split_at(3 * ranges)?;
    let (cells, rest) = rest.split_at(cells)?;
    let (zeros, rest) = rest.split_at(zeros)?;
    let (copies, rest) = rest.split_at(COPY_WORDS * copies)?;
    Some((GroupPlan { ranges, cells, zeros, copies }, rest))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
