//! Which class a new sequence gets, and what the classes turn out to cost.
//!
//! What it does: asks the advisor, weighs its answer against longer hits in other classes, passes over classes without
//! room, counts. What it does not: predict, which is `advise`; find or hold blocks. Invariant: everything here is O(1)
//! for each class, and nothing is done in a cache with one class.
//!
//! Hits are weighed in tokens. A hit that is longer in another class than the advisor's saves so many tokens of
//! computing; the wrong class costs slots that hold nothing and cells of tables, each counted as a token: an empty
//! slot is the place of a token that could be found instead, and a cell is far less than one. So a long conversation
//! stays in the blocks that it began with, and a short prefix that everybody has does not pull a document into small
//! ones.

use super::advise::{self, Advice, Advisor, Ask, Life, Terms};
use super::classes::{CLASSES_MAX, Groups};
use super::config::{CacheConfig, Geometry};
use super::hash::Key;
use super::kv_cache::KvCache;
use super::lookup::Request;
use super::op_result::{OpResult, Refusal};
use super::prefix::LinkKeys;
use super::state::State;
use super::walk::Search;
use crate::error::{Error, Result, Status};

/// Rows that are read under one hold of the lock.
const STRETCH: usize = 1024;

/// What is known or wanted of the length of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizing {
    /// Tokens that it is expected to reach; 0 unknown.
    pub expected_tokens: u64,
    /// The size class that it must have: 1, 2 or 3; 0 leaves it to the advisor.
    pub class: u32,
}

/// The class that would be chosen for a sequence that hits nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassAdvice {
    /// The class: 1, 2 or 3.
    pub size_class: u32,
    /// Its group.
    pub group: u32,
    /// Tokens of a block there.
    pub block_tokens: u32,
    /// Tokens that the sequence is taken to reach.
    pub predicted_tokens: u64,
}

/// What a size class holds and did; see the C header for each field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of kavern_kv_class_statistics, documented there")]
pub struct ClassStatistics {
    pub size_class: u32,
    pub block_tokens: u32,
    pub sequences: u64,
    pub tokens: u64,
    pub slots: u64,
    pub cells: u64,
    pub begun_sequences: u64,
    pub ended_sequences: u64,
    pub ended_tokens: u64,
    pub ended_slots: u64,
    pub ended_cells: u64,
    pub passed_over: u64,
    pub refused_ops: u64,
    pub gained_bytes: u64,
    pub given_bytes: u64,
}

/// What is looked up in a cache of full groups, and the row of the leases that receives what is found.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) keys: &'a LinkKeys<'a>,
    pub(super) namespace: u32,
    pub(super) row: usize,
    pub(super) root: Key,
    /// Nothing is to be found.
    pub(super) is_cold: bool,
}

/// What a lookup found in the class that it chose.
#[derive(Clone, Copy, Default)]
pub(super) struct Found {
    pub(super) groups: Groups,
    /// Before the request left out its end.
    pub(super) found_tokens: u64,
    pub(super) hit_tokens: u64,
    /// Of the last link.
    pub(super) key: Key,
    /// Classes that suited better and had no room, as bits.
    pub(super) passed_over: u8,
}

/// The classes of a cache that has several.
pub(super) struct Sizes {
    advisor: Box<dyn Advisor>,
    terms: Terms,
    pub(super) counts: [ClassStatistics; CLASSES_MAX],
    max_sequence_tokens: u64,
}

/// The number of the class that a group belongs to.
fn class_with(classes: &[Groups], group: usize) -> usize {
    let class = classes.iter().position(|class| class.has(group));
    class.expect("every group is one of the single class, or a class of its own")
}

impl Sizes {
    pub(super) fn new(config: &CacheConfig, geometry: &Geometry) -> Result<Option<Self>> {
        let Some(adaptive) = config.adaptive.as_ref().filter(|_| geometry.is_adaptive()) else {
            return Ok(None);
        };
        let mut counts = [ClassStatistics::default(); CLASSES_MAX];
        let mut block_tokens = [0; CLASSES_MAX];
        for (class, groups) in geometry.classes.iter().enumerate() {
            let tokens = geometry.groups[groups.first()].block_tokens;
            counts[class].size_class = adaptive.classes[groups.first()];
            counts[class].block_tokens = tokens;
            block_tokens[class] = tokens.into();
        }
        let (waste_permille, table_permille) =
            (adaptive.waste_permille.into(), adaptive.table_permille.into());
        let terms = Terms { block_tokens, waste_permille, table_permille };
        let advisor = advise::make(&adaptive.advisor, &terms)?;
        Ok(Some(Self { advisor, terms, counts, max_sequence_tokens: geometry.max_sequence_tokens }))
    }

    /// The class that suits a sequence, and how long it is taken to get: no longer than one can.
    fn advise(&self, ask: &Ask) -> Advice {
        let Advice { class, tokens } = self.advisor.advise(ask);
        Advice { class, tokens: tokens.min(self.max_sequence_tokens) }
    }

    pub(super) fn bytes(&self) -> u64 {
        size_of::<Self>() as u64 + self.advisor.bytes()
    }
}

impl Request<'_> {
    /// What an advisor is told.
    pub(super) fn ask(&self, max_sequence_tokens: u64) -> Ask {
        Ask {
            prompt_tokens: self.token_count.clamp(1, max_sequence_tokens),
            expected_tokens: self.sizing.expected_tokens.min(max_sequence_tokens),
            namespace_id: self.namespace_id,
        }
    }
}

impl State {
    /// The number of the class that a request names; `None` where the advisor chooses.
    pub(super) fn class_named(&self, sizing: &Sizing) -> Result<Option<usize>> {
        let class = sizing.class;
        let known = self.sizes.as_ref().map_or(&[][..], |sizes| &sizes.counts[..self.classes.len()]);
        match known.iter().position(|counts| counts.size_class == class) {
            _ if class == 0 => Ok(None),
            Some(at) => Ok(Some(at)),
            None => {
                let text = format!("size class {class} is not one of this cache's {} classes", known.len());
                Err(Error::argument(text))
            }
        }
    }

    /// Fills the rows of a lease, in the groups of the class that suits best, with the longest prefix of a prompt, not
    /// yet acquired. For caches of full groups.
    pub(super) fn find_plain(&mut self, look: &Look<'_>, named: Option<usize>) -> Found {
        let Look { request, keys, namespace, row: lease, root, .. } = *look;
        let mut found = [Found::default(); CLASSES_MAX];
        let advice = match (&self.sizes, named) {
            (Some(sizes), None) => Some(sizes.advise(&request.ask(self.max_sequence_tokens))),
            _ => None,
        };
        let classes = named.map_or(0..self.classes.len(), |class| class..class + 1);
        // The advised class first: nothing is worth more than all of the prompt there.
        let advised = advice.map_or(classes.start, |advice| advice.class);
        let others = classes.clone().filter(|&class| class != advised);
        for class in std::iter::once(advised).chain(others) {
            let groups = self.classes[class];
            let (found_tokens, hit_tokens, key) = match look.is_cold {
                true => (0, 0, root),
                false => {
                    self.find_prefix(&Search { request, keys, namespace, row: lease }, groups);
                    // What is left to promises was found all the same.
                    let found_tokens =
                        if self.promises.are_made() { self.reached_tokens(lease, groups) } else { 0 };
                    let has_promises = self.leave_promised(lease, groups);
                    let (left_tokens, hit_tokens, key) = match self.finds_partial && !has_promises {
                        true => self.settle_partial(look, groups),
                        false => self.settle_hits(request, lease, groups, root),
                    };
                    (found_tokens.max(left_tokens), hit_tokens, key)
                }
            };
            found[class] = Found { groups, found_tokens, hit_tokens, key, passed_over: 0 };
            let tokens =
                request.token_count.max(request.sizing.expected_tokens).min(self.max_sequence_tokens);
            let is_best = advice.is_some_and(|advice| advice.class == class);
            let is_whole = is_best && hit_tokens == request.token_count;
            if is_whole && self.has_room(groups, lease, hit_tokens, tokens) {
                return found[class];
            }
        }
        let Some(advice) = advice else { return found[classes.start] };
        let (chosen, passed_over) = self.choose_class(request, lease, &found, advice);
        for class in classes.filter(|&class| class != chosen) {
            self.classes[class].range().for_each(|group| self.holders.lease_rows[group].truncate(lease, 0));
        }
        Found { passed_over, ..found[chosen] }
    }

    /// The class for what was found in each, and those that would have been better and have no room, as bits.
    fn choose_class(
        &self,
        request: &Request<'_>,
        lease: usize,
        found: &[Found; CLASSES_MAX],
        advice: Advice,
    ) -> (usize, u8) {
        let Some(sizes) = &self.sizes else { return (0, 0) };
        let Advice { class: advised, tokens } = advice;
        let worth = |class: usize| {
            let excess = sizes.terms.excess(class, advised, tokens);
            (found[class].hit_tokens as i64 - excess as i64, class == advised)
        };
        let mut order: [usize; CLASSES_MAX] = std::array::from_fn(|class| class);
        let order = &mut order[..self.classes.len()];
        order.sort_unstable_by_key(|&class| std::cmp::Reverse(worth(class)));
        let tokens = request.token_count.max(request.sizing.expected_tokens).min(self.max_sequence_tokens);
        let mut passed_over = 0;
        for &class in &*order {
            if self.has_room(self.classes[class], lease, found[class].hit_tokens, tokens) {
                return (class, passed_over);
            }
            passed_over |= 1 << class;
        }
        // Nobody has room: what is best is refused by ADMIT, or has room by then.
        (order[0], passed_over & !(1 << order[0]))
    }

    /// Whether so many tokens can be held beside what the row of a lease would hold for its hit.
    fn has_room(&self, groups: Groups, lease: usize, hit_tokens: u64, tokens: u64) -> bool {
        groups.range().all(|group| {
            let (store, found) = (&self.stores[group], self.holders.lease_rows[group].row(lease));
            let new = tokens.div_ceil(store.block_tokens.into()).saturating_sub(found.len() as u64);
            // The block in which a hit ends is copied.
            let copied = u64::from(!hit_tokens.is_multiple_of(store.block_tokens.into()));
            // Of what was found those that nobody holds are taken too: they are counted where that decides.
            let available = u64::from(store.available()).checked_sub(new + copied);
            let is_evictable = |&&block: &&i32| store.is_evictable(block as u32);
            let inactive = || found.iter().filter(is_evictable).count() as u64;
            available.is_some_and(|left| found.len() as u64 <= left || inactive() <= left)
        })
    }

    /// A lookup got a lease: tells the classes that it passed over.
    pub(super) fn note_chosen(&mut self, found: &Found) {
        if let Some(sizes) = &mut self.sizes {
            let counts = sizes.counts.iter_mut().enumerate();
            counts
                .for_each(|(class, counts)| counts.passed_over += u64::from(found.passed_over >> class & 1));
        }
    }

    pub(super) fn class_of(&self, groups: Groups) -> usize {
        class_with(&self.classes, groups.first())
    }

    /// A lease became a sequence.
    pub(super) fn note_begun(&mut self, row: usize) {
        let class = self.class_of(self.holders.sequences[row].holder.groups);
        if let Some(sizes) = &mut self.sizes {
            sizes.counts[class].begun_sequences += 1;
        }
    }

    /// A sequence is about to end, with everything that it holds.
    pub(super) fn note_ended(&mut self, row: usize) {
        let sequence = &self.holders.sequences[row];
        let Some(sizes) = &mut self.sizes else { return };
        // What was forked shows how a branch was cut, not how long a request is; one without blocks has no length.
        if sequence.ask.prompt_tokens == 0 || sequence.length == 0 {
            return;
        }
        let groups = sequence.holder.groups;
        let class = class_with(&self.classes, groups.first());
        let cells = self.holders.rows[groups.first()].count(row) as u64;
        let slots = cells * self.stores[groups.first()].slots();
        let life = Life { ask: sequence.ask, class, tokens: sequence.length, slots, cells };
        sizes.advisor.ended(&life);
        let counts = &mut sizes.counts[class];
        counts.ended_sequences += 1;
        counts.ended_tokens += life.tokens;
        counts.ended_slots += slots;
        counts.ended_cells += cells;
    }

    /// An operation was refused.
    pub(super) fn note_short(&mut self, refusal: &Refusal) {
        if let (Some(sizes), Status::OutOfBlocks) = (&mut self.sizes, refusal.status) {
            sizes.counts[class_with(&self.classes, refusal.group as usize)].refused_ops += 1;
        }
    }

    /// Names the group of the sequence that an operation was about.
    pub(super) fn tell_group(&self, mut result: OpResult) -> OpResult {
        if let (Some(_), Ok(row)) = (&self.sizes, usize::try_from(result.row)) {
            result.group = self.holders.sequences[row].holder.groups.first() as u32;
        }
        result
    }

    /// Rows that a class does not use are empty, for `validate`.
    pub(super) fn validate_classes(&self) -> Result<()> {
        let sequences = self.holders.sequences.iter().enumerate();
        let sequences = sequences.map(|(row, s)| (s.holder, row, &self.holders.rows));
        let leases = self.holders.leases.iter().enumerate();
        let leases = leases.map(|(row, lease)| (lease.holder, row, &self.holders.lease_rows));
        for (holder, row, rows) in sequences.chain(leases).filter(|(holder, ..)| holder.is_live) {
            let foreign = |&group: &usize| !holder.groups.has(group) && rows[group].count(row) > 0;
            let group = (0..self.stores.len()).find(foreign);
            if !self.classes.contains(&holder.groups) || group.is_some() {
                return Err(Error::internal(format!(
                    "row {row} has blocks of groups {group:?} beside its class"
                )));
            }
        }
        Ok(())
    }

    /// Adds what the sequences of some rows hold to the counts of their classes.
    fn add_held(&self, rows: std::ops::Range<usize>, of: &mut [ClassStatistics; CLASSES_MAX]) {
        for row in rows.filter(|&row| self.holders.sequences[row].holder.is_live) {
            let sequence = &self.holders.sequences[row];
            let groups = sequence.holder.groups;
            let counts = &mut of[self.class_of(groups)];
            let cells = self.holders.rows[groups.first()].count(row) as u64;
            counts.sequences += 1;
            counts.tokens += sequence.length;
            counts.cells += cells;
            counts.slots += cells * self.stores[groups.first()].slots();
        }
    }
}

impl KvCache {
    fn without_classes() -> Error {
        Error::new(
            Status::Unsupported,
            "the cache was made without KAVERN_KV_ADAPTIVE_BLOCKS; it has no size classes",
        )
    }

    /// The class that a sequence would get that hits nothing; changes nothing, and looks for no room.
    pub fn advise(&self, namespace_id: u64, prompt_tokens: u64, expected_tokens: u64) -> Result<ClassAdvice> {
        let state = self.state();
        state.check_decides()?;
        let sizes = state.sizes.as_ref().ok_or_else(Self::without_classes)?;
        let most = state.max_sequence_tokens;
        let ask = Ask {
            prompt_tokens: prompt_tokens.clamp(1, most),
            expected_tokens: expected_tokens.min(most),
            namespace_id,
        };
        let Advice { class, tokens } = sizes.advise(&ask);
        let ClassStatistics { size_class, block_tokens, .. } = sizes.counts[class];
        let group = state.classes[class].first() as u32;
        Ok(ClassAdvice { size_class, group, block_tokens, predicted_tokens: tokens })
    }

    /// What the size class of a group holds and did.
    pub fn class_statistics(&self, group: u32) -> Result<ClassStatistics> {
        self.group(group)?;
        let mut held = [ClassStatistics::default(); CLASSES_MAX];
        let mut first = 0;
        loop {
            let state = self.state();
            state.check_decides()?;
            let sizes = state.sizes.as_ref().ok_or_else(Self::without_classes)?;
            let rows = state.holders.sequences.len();
            let end = rows.min(first + STRETCH);
            state.add_held(first..end, &mut held);
            first = end;
            if first == rows {
                let class = class_with(&state.classes, group as usize);
                let ClassStatistics { sequences, tokens, slots, cells, .. } = held[class];
                return Ok(ClassStatistics { sequences, tokens, slots, cells, ..sizes.counts[class] });
            }
        }
    }
}
