//! Content that can be found though the open step is yet to write it.
//!
//! Whoever finds such a block in that step may read it in the step's work and may not copy it before. What a COMMIT
//! published is told by events; a block is known by the number of its last token, which its whole past determines.

use std::collections::HashMap;

/// A group and a cell of a row.
pub(crate) type Cell = (usize, usize);

#[derive(Default)]
pub(crate) struct Unwritten {
    /// By group and block: the number of its last token.
    numbers: HashMap<(u32, i32), i32>,
}

impl Unwritten {
    /// The step is over.
    pub(crate) fn clear(&mut self) {
        self.numbers.clear();
    }

    /// A block became findable that begins at a token of a sequence with these numbers, of which `written` lie in their
    /// slots.
    pub(crate) fn store(
        &mut self,
        (group, block): (u32, i32),
        first: usize,
        each: usize,
        (numbers, written): (&[i32], usize),
    ) {
        let end = first + each;
        if end > written {
            self.numbers.insert((group, block), numbers[end - 1]);
        }
    }

    /// Keeps the blocks that can be found still.
    pub(crate) fn retain(&mut self, is_findable: impl Fn(&(u32, i32)) -> bool) {
        self.numbers.retain(|place, _| is_findable(place));
    }

    /// Which cells of a hit with these numbers are such content, in a group with `each` tokens in a block.
    pub(crate) fn cells(&self, group: usize, each: usize, numbers: &[i32]) -> Vec<Cell> {
        let is_here =
            |number: &i32| self.numbers.iter().any(|(place, of)| place.0 as usize == group && of == number);
        let blocks = numbers.chunks_exact(each).enumerate();
        blocks.filter(|(_, block)| is_here(&block[each - 1])).map(|(cell, _)| (group, cell)).collect()
    }
}

/// What is left of them in a row that keeps its first tokens, of groups with so many tokens in a block each.
pub(crate) fn keep_before(mut cells: Vec<Cell>, each: &[usize], tokens: usize) -> Vec<Cell> {
    cells.retain(|&(group, cell)| cell * each[group] < tokens);
    cells
}

/// Whether the open block of a row is one of them, in any group: an append copies it.
pub(crate) fn is_open(cells: &[Cell], each: &[usize], length: usize) -> bool {
    let is_open = |&(group, cell): &Cell| !length.is_multiple_of(each[group]) && length / each[group] == cell;
    cells.iter().any(is_open)
}

/// Whether an EDIT of a group copies one of these cells: `from` is the first token that lies elsewhere afterwards, in a
/// row that has `length` tokens before.
pub(crate) fn copies(
    cells: &[Cell],
    group: usize,
    each: usize,
    from: usize,
    (offset, tokens, length): (usize, usize, usize),
) -> bool {
    let source = |token: usize| if token < offset { token } else { token + tokens };
    (from..length - tokens).any(|token| cells.contains(&(group, source(token) / each)))
}
