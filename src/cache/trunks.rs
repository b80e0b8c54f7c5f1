//! Trunks: runs of blocks at the beginning of several sequences, held once for all of them.
//!
//! A fork turns the blocks of its parent into a trunk that both point at, so that it costs one copy of a row and no
//! touch of any block. Trunks form trees: a trunk begins where its parent ends, and every row that hangs on it has the
//! same blocks up to its end. `count == rows whose tip it is + trunks whose parent it is`; a block of a trunk has one
//! reference for all of its holders. A row holds for itself what lies behind the end of its tip.
//!
//! A trunk with one holder is that one's own. Nobody tells the holder; whoever comes across it makes it so, and a sweep
//! does when the pool runs out. After a sweep each trunk has two holders, so fewer trunks than rows are left, and a
//! pool of twice the rows pays a sweep by as many forks as there are rows.

use super::config::GROUPS_MAX;
use super::state::State;
use crate::error::{Error, Result};
use crate::sys::reserve::{filled, room};

/// A run of shared blocks; number 0 is none.
#[derive(Clone, Copy, Default)]
struct Trunk {
    parent: u32,
    /// 0 if it is in the pool.
    count: u32,
    /// Latest step in which a former holder was scheduled.
    last_step: u64,
}

/// All trunks of a cache. Its size is fixed.
pub(super) struct Trunks {
    trunks: Vec<Trunk>,
    /// `[trunk][group]`: the cell behind its last one; those of number 0 are 0.
    ends: Vec<u32>,
    groups: usize,
    free: Vec<u32>,
}

/// Most trunks that one operation makes.
const MOST_NEW: usize = 2;

impl Trunks {
    pub(super) fn new(max_sequences: u32, groups: usize) -> Result<Self> {
        let count = 2 * max_sequences as usize + 1 + MOST_NEW;
        let mut free = room(count)?;
        free.extend((1..count as u32).rev());
        Ok(Self { trunks: filled(count, Trunk::default())?, ends: filled(count * groups, 0)?, groups, free })
    }

    /// The first cell of a group that a row with this tip holds for itself.
    pub(super) fn end(&self, trunk: u32, group: usize) -> usize {
        self.ends[trunk as usize * self.groups + group] as usize
    }

    /// The first cell of a group that belongs to the trunk.
    fn start(&self, trunk: u32, group: usize) -> usize {
        self.end(self.trunks[trunk as usize].parent, group)
    }

    /// Numbers are below this.
    pub(super) fn count(&self) -> usize {
        self.trunks.len()
    }

    fn make(&mut self, trunk: Trunk, end: impl Fn(usize) -> usize) -> u32 {
        let number = self.free.pop().expect("the caller saw to it that the pool has trunks");
        self.trunks[number as usize] = trunk;
        for group in 0..self.groups {
            self.ends[number as usize * self.groups + group] = end(group) as u32;
        }
        number
    }

    /// Gives a trunk back to the pool; answers what it was.
    fn unmake(&mut self, number: u32) -> Trunk {
        self.free.push(number);
        self.ends[number as usize * self.groups..][..self.groups].fill(0);
        std::mem::take(&mut self.trunks[number as usize])
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.trunks.len() * (size_of::<Trunk>() + 4) + self.ends.len() * 4) as u64
    }
}

impl State {
    /// The first cell of a group that the row holds for itself.
    pub(super) fn own_from(&self, row: usize, group: usize) -> usize {
        self.trunks.end(self.holders.kin[row].tip, group)
    }

    /// Trunks that only this row holds become its own.
    pub(super) fn settle_tip(&mut self, row: usize) {
        let kin = &mut self.holders.kin[row];
        while kin.tip != 0 && self.trunks.trunks[kin.tip as usize].count == 1 {
            let Trunk { parent, last_step, .. } = self.trunks.unmake(kin.tip);
            kin.release_step = kin.release_step.max(last_step);
            kin.tip = parent;
        }
    }

    /// Sees to it that an operation finds as many trunks in the pool as it can need.
    pub(super) fn reserve_trunks(&mut self) {
        if self.trunks.free.len() >= MOST_NEW {
            return;
        }
        (0..self.holders.sequences.len()).for_each(|row| self.settle_tip(row));
        for number in 1..self.trunks.trunks.len() {
            if self.trunks.trunks[number].count == 0 {
                continue;
            }
            loop {
                let Trunk { parent, last_step, .. } = self.trunks.trunks[number];
                if parent == 0 || self.trunks.trunks[parent as usize].count > 1 {
                    break;
                }
                let above = self.trunks.unmake(parent);
                self.trunks.trunks[number] = Trunk {
                    parent: above.parent,
                    last_step: last_step.max(above.last_step),
                    ..self.trunks.trunks[number]
                };
            }
        }
    }

    /// The row lets go of everything that it holds, leaf first.
    pub(super) fn release_sequence(&mut self, row: usize) {
        self.settle_tip(row);
        let last_step = self.last_use(row);
        for group in 0..self.stores.len() {
            self.release_cells(
                row,
                group,
                self.own_from(row, group).max(self.holders.rows[group].first(row))
                    ..self.holders.rows[group].count(row),
                last_step,
            );
        }
        self.drop_tip(row, last_step);
    }

    /// Whether a row may write into a block that it holds. Former holders of a trunk may have had tokens where it has
    /// none, so their steps must be over.
    pub(super) fn is_writable(&self, row: usize, group: usize, at: usize) -> bool {
        let completed = self.shared.steps.completed();
        at >= self.own_from(row, group)
            && self.holders.kin[row].release_step <= completed
            && self.stores[group].is_exclusive(self.holders.rows[group].row(row)[at] as u32, completed)
    }

    /// The trunk by which a row holds a cell that is not its own.
    pub(super) fn trunk_of(&self, row: usize, group: usize, at: usize) -> Option<usize> {
        let mut number = self.holders.kin[row].tip;
        while number != 0 && at < self.trunks.start(number, group) {
            number = self.trunks.trunks[number as usize].parent;
        }
        (number != 0 && at < self.trunks.end(number, group)).then_some(number as usize)
    }

    /// Latest step that may use what the row holds for itself.
    pub(super) fn last_use(&self, row: usize) -> u64 {
        self.holders.sequences[row].last_step.max(self.holders.kin[row].release_step)
    }

    /// Lets go of some cells of a row, last first.
    pub(super) fn release_cells(
        &mut self,
        row: usize,
        group: usize,
        cells: std::ops::Range<usize>,
        last_step: u64,
    ) {
        let (store, blocks) = (&mut self.stores[group], self.holders.rows[group].row(row));
        store.release_all(&blocks[cells], last_step, &mut self.shared);
    }

    /// The row leaves its trunks; those that nobody else holds end.
    pub(super) fn drop_tip(&mut self, row: usize, mut last_step: u64) {
        let mut number = std::mem::take(&mut self.holders.kin[row].tip);
        while number != 0 {
            let trunk = &mut self.trunks.trunks[number as usize];
            trunk.last_step = trunk.last_step.max(last_step);
            trunk.count -= 1;
            if trunk.count > 0 {
                return;
            }
            last_step = trunk.last_step;
            for group in 0..self.stores.len() {
                let cells = self.trunks.start(number, group)..self.trunks.end(number, group);
                self.release_cells(row, group, cells, last_step);
            }
            number = self.trunks.unmake(number).parent;
        }
    }

    /// The row keeps only its first `keep(group)` cells of what it shares. The caller has settled its tip, seen to a
    /// trunk in the pool, and lets go of its own cells.
    pub(super) fn cut(&mut self, row: usize, keep: impl Fn(usize) -> usize) {
        let last_step = self.last_use(row);
        loop {
            let tip = self.holders.kin[row].tip;
            let groups = 0..self.stores.len();
            if tip == 0 || groups.clone().all(|group| self.trunks.end(tip, group) <= keep(group)) {
                return;
            }
            let old = self.trunks.trunks[tip as usize];
            let start = |trunks: &Trunks, group: usize| trunks.start(tip, group);
            let is_past = |group: usize| {
                let start = start(&self.trunks, group);
                keep(group) <= start || self.trunks.end(tip, group) == start
            };
            // Where a position lies differs by less than a block between groups, so that a row may leave a trunk in
            // one and keep some cells of it in another: it holds those for itself from then on.
            let left = if groups.clone().all(is_past)
                || groups.clone().any(|group| keep(group) < start(&self.trunks, group))
            {
                for group in groups {
                    for at in start(&self.trunks, group)..keep(group).min(self.trunks.end(tip, group)) {
                        let block = self.holders.rows[group].row(row)[at] as u32;
                        self.stores[group].hold_twice(block);
                    }
                }
                if old.parent != 0 {
                    self.trunks.trunks[old.parent as usize].count += 1;
                }
                old.parent
            } else {
                let ends: [usize; GROUPS_MAX] =
                    std::array::from_fn(|group| match group < self.stores.len() {
                        true => keep(group).min(self.trunks.end(tip, group)),
                        false => 0,
                    });
                let number = self.trunks.make(Trunk { count: 2, ..old }, |group| ends[group]);
                self.trunks.trunks[tip as usize].parent = number;
                number
            };
            let trunk = &mut self.trunks.trunks[tip as usize];
            trunk.count -= 1;
            trunk.last_step = trunk.last_step.max(last_step);
            self.holders.kin[row].tip = left;
        }
    }

    /// Makes `child`, a row without anything, share the first `cells(group)` cells of `parent`.
    pub(super) fn share(&mut self, parent: usize, child: usize, cells: impl Fn(usize) -> usize) {
        self.settle_tip(parent);
        let tip = self.holders.kin[parent].tip;
        let own = |trunks: &Trunks, group: usize| trunks.end(tip, group);
        if (0..self.stores.len()).any(|group| cells(group) > own(&self.trunks, group)) {
            let ends: [usize; GROUPS_MAX] = std::array::from_fn(|group| match group < self.stores.len() {
                true => cells(group).max(own(&self.trunks, group)),
                false => 0,
            });
            let last_step = self.holders.kin[parent].release_step;
            let trunk = Trunk { parent: tip, count: 1, last_step };
            self.holders.kin[parent].tip = self.trunks.make(trunk, |group| ends[group]);
        }
        let tip = self.holders.kin[parent].tip;
        if tip != 0 {
            self.trunks.trunks[tip as usize].count += 1;
        }
        self.holders.kin[child].tip = tip;
        for (group, rows) in self.holders.rows.iter_mut().enumerate() {
            rows.copy_row(parent, child, cells(group));
        }
        self.cut(child, cells);
    }

    /// Counts the references that the rows hold to the blocks of a group, each trunk once.
    pub(super) fn count_row_refs(&self, group: usize, refs: &mut [u32]) -> Result<()> {
        let rows = &self.holders.rows[group];
        let mut shown_by = filled(self.trunks.trunks.len(), usize::MAX)?;
        for row in 0..self.holders.sequences.len() {
            let cells = rows.row(row);
            let tip = self.holders.kin[row].tip;
            if self.trunks.end(tip, group) > cells.len() {
                return Err(Error::internal(format!("row {row} is shorter than its trunk")));
            }
            let own_from = self.trunks.end(tip, group).max(rows.first(row));
            cells[own_from..].iter().for_each(|&block| refs[block as usize] += 1);
            let mut number = tip;
            while number != 0 {
                let part = self.trunks.start(number, group)..self.trunks.end(number, group);
                if part.start > part.end {
                    return Err(Error::internal(format!("trunk {number} ends before it begins")));
                }
                match shown_by[number as usize] {
                    usize::MAX => {
                        shown_by[number as usize] = row;
                        cells[part].iter().for_each(|&block| refs[block as usize] += 1);
                    }
                    other if rows.row(other)[part.clone()] == cells[part.clone()] => {}
                    other => {
                        return Err(Error::internal(format!("rows {row} and {other} differ inside a trunk")));
                    }
                }
                number = self.trunks.trunks[number as usize].parent;
            }
        }
        Ok(())
    }

    /// Checks the counts of all trunks and that the pool has the others.
    pub(super) fn validate_trunks(&self) -> Result<()> {
        let trunks = &self.trunks.trunks;
        let mut counts = filled(trunks.len(), 0u32)?;
        self.holders.kin.iter().for_each(|kin| counts[kin.tip as usize] += 1);
        trunks.iter().filter(|trunk| trunk.count > 0).for_each(|trunk| counts[trunk.parent as usize] += 1);
        for number in 1..trunks.len() {
            if trunks[number].count != counts[number] {
                let text =
                    format!("trunk {number} counts {}, {} found", trunks[number].count, counts[number]);
                return Err(Error::internal(text));
            }
        }
        let used = trunks.iter().filter(|trunk| trunk.count > 0).count();
        if used + self.trunks.free.len() + 1 != trunks.len() {
            return Err(Error::internal("the pool of trunks lost one"));
        }
        Ok(())
    }
}
