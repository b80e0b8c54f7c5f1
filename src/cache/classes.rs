//! Size classes: which groups the blocks of a sequence come from.
//!
//! In an ordinary cache there is one class, and every sequence has blocks of all groups. In one with adaptive blocks
//! each group is a class of its own: the same layers in blocks of another size. A sequence or lease lives in exactly
//! one class; its rows of the other groups are empty. What follows from a class alone is here; `sizes` chooses one.
//! Invariant: the classes stand in rising order of their blocks, and each block is a multiple of those before it.

use std::ops::Range;

use super::config::{CacheConfig, Content, GroupGeometry};
use super::group::Reach;
use crate::error::{Error, Result};

/// Most classes of a cache.
pub(super) const CLASSES_MAX: usize = 3;

/// The groups of a class: those that a sequence has blocks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Groups {
    first: u8,
    end: u8,
}

impl Groups {
    pub(super) fn all(count: usize) -> Self {
        Self { first: 0, end: count as u8 }
    }

    fn only(group: usize) -> Self {
        Self { first: group as u8, end: group as u8 + 1 }
    }

    pub(super) fn range(self) -> Range<usize> {
        self.first.into()..self.end.into()
    }

    pub(super) fn first(self) -> usize {
        self.first.into()
    }

    pub(super) fn has(self, group: usize) -> bool {
        self.range().contains(&group)
    }
}

/// How a cache chooses the block size of each sequence.
#[derive(Clone, Debug)]
pub struct AdaptiveBlocks {
    /// Class of each group: 1 small, 2 primary, 3 large; two or three groups, no class twice.
    pub classes: Vec<u32>,
    /// Name of the advisor.
    pub advisor: String,
    /// Of a thousand slots held, those that may be without a token.
    pub waste_permille: u32,
    /// Cells of block tables for a thousand tokens above which a larger class is wanted.
    pub table_permille: u32,
}

/// What a block holds, but for how many tokens.
fn is_same_content(a: &Content, b: &Content) -> bool {
    match (*a, *b) {
        (Content::Attention(a), Content::Attention(mut b)) => {
            b.block_tokens = a.block_tokens;
            a == b
        }
        (Content::Latent(a), Content::Latent(mut b)) => {
            b.block_tokens = a.block_tokens;
            a == b
        }
        (Content::Opaque { .. }, Content::Opaque { .. }) => true,
        _ => false,
    }
}

/// The classes of a cache, smallest blocks first.
pub(super) fn classes(config: &CacheConfig, groups: &[GroupGeometry]) -> Result<Vec<Groups>> {
    let Some(adaptive) = &config.adaptive else { return Ok(vec![Groups::all(groups.len())]) };
    let refuse = |text: String| Err(Error::argument(text));
    let asked = &adaptive.classes;
    if !(2..=CLASSES_MAX).contains(&groups.len()) || asked.len() != groups.len() {
        return refuse(format!(
            "adaptive blocks with {} groups of which {} have a class; give 2 or 3 groups, each with its own",
            groups.len(),
            asked.len()
        ));
    }
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_key(|&group| asked[group]);
    for &group in &order {
        if !(1..=CLASSES_MAX as u32).contains(&asked[group]) {
            return refuse(format!("group {group} has size class {}; it must be 1, 2 or 3", asked[group]));
        }
        if groups[group].reach != Reach::All {
            return refuse(format!(
                "group {group} is not of full attention that nothing trims; adaptive blocks need that"
            ));
        }
    }
    for pair in order.windows(2) {
        let (small, large) = (pair[0], pair[1]);
        let (a, b) = (&groups[small], &groups[large]);
        if asked[small] == asked[large] {
            return refuse(format!(
                "groups {small} and {large} both have size class {}; one group for each",
                asked[small]
            ));
        }
        if b.block_tokens <= a.block_tokens || b.block_tokens % a.block_tokens != 0 {
            return refuse(format!(
                "blocks of {} tokens in size class {} and of {} in class {}; each must be a multiple of the one before",
                a.block_tokens, asked[small], b.block_tokens, asked[large]
            ));
        }
        let is_even = u128::from(a.block_bytes) * u128::from(b.block_tokens)
            == u128::from(b.block_bytes) * u128::from(a.block_tokens);
        if !is_even || !is_same_content(&a.content, &b.content) {
            return refuse(format!(
                "groups {small} and {large} have blocks of {} bytes for {} tokens and of {} for {}; size classes hold \
                 the same layers in the same layout",
                a.block_bytes, a.block_tokens, b.block_bytes, b.block_tokens
            ));
        }
    }
    let (waste, table) = (adaptive.waste_permille, adaptive.table_permille);
    if !(1..=999).contains(&waste) || !(1..=1000).contains(&table) {
        return refuse(format!(
            "bounds of {waste} ‰ waste and {table} cells for a thousand tokens; give 1 to 999 and 1 to 1000"
        ));
    }
    Ok(order.into_iter().map(Groups::only).collect())
}
