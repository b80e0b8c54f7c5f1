//! Cost-aware: keeps what is dear to compute again, weighed by how often it came back, above a floor that rises.
//!
//! A token costs its share of the projections, and attention over all tokens before it: the two are equal at some
//! [`EVEN_TOKENS`] tokens. What is lost with a block is everything after it too, so a path, which is released leaf
//! first, gives each block at least the rank of the one behind it.

use super::ranks::{RANKS, Ranks};
use super::{Facts, Policy};
use crate::error::Result;
use crate::sys::reserve::filled;

/// Attention costs as much as the rest at six times the width of the model, here that of an 8 B model (4,096).
const EVEN_TOKENS: u64 = 6 * 4096;
/// Merit of a block at the start of a prompt that came back never; costs are counted in quarters of it.
const UNIT: u64 = 4;
/// Costs and returns count up to this.
const MOST_COST: u64 = 16 * UNIT;
const MOST_RETURNS: u8 = 7;

#[derive(Clone, Copy, Default)]
struct Worth {
    cost: u8,
    returns: u8,
    position: u32,
}

struct Cost {
    ranks: Ranks,
    worth: Vec<Worth>,
    /// Position and rank of the block that was released last.
    behind: Option<(u32, u64)>,
}

pub(super) fn make(blocks: u32) -> Result<Box<dyn Policy>> {
    const { assert!(MOST_COST * (1 + MOST_RETURNS as u64) <= RANKS && MOST_COST <= u8::MAX as u64) };
    let worth = filled(blocks as usize, Worth::default())?;
    Ok(Box::new(Cost { ranks: Ranks::new(blocks)?, worth, behind: None }))
}

impl Policy for Cost {
    fn committed(&mut self, block: u32, facts: &Facts) {
        let before = facts.position.saturating_mul(facts.tokens.into());
        let cost = (UNIT + UNIT.saturating_mul(before) / EVEN_TOKENS).min(MOST_COST);
        let position = u32::try_from(facts.position).unwrap_or(u32::MAX);
        self.worth[block as usize] = Worth { cost: cost as u8, returns: 0, position };
    }

    fn acquired(&mut self, block: u32) {
        self.ranks.unlink(block);
        let returns = &mut self.worth[block as usize].returns;
        *returns = (*returns + 1).min(MOST_RETURNS);
    }

    fn released(&mut self, block: u32) {
        let Worth { cost, returns, position } = self.worth[block as usize];
        let merit = u64::from(cost) * (1 + u64::from(returns));
        let rank = match self.behind {
            Some((behind, rank)) if behind == position.wrapping_add(1) => {
                self.ranks.push_above(block, merit, rank)
            }
            _ => self.ranks.push(block, merit),
        };
        self.behind = Some((position, rank));
    }

    fn moved(&mut self, from: u32, to: u32) {
        self.worth[to as usize] = self.worth[from as usize];
    }

    fn removed(&mut self, block: u32, was_released: bool) {
        if was_released {
            self.ranks.unlink(block);
        }
    }

    fn victim(&mut self) -> Option<u32> {
        self.ranks.pop()
    }

    fn bytes(&self) -> u64 {
        self.ranks.bytes() + (self.worth.len() * size_of::<Worth>()) as u64
    }

    fn validate(&self, is_released: &dyn Fn(u32) -> bool, _is_findable: &dyn Fn(u32) -> bool) -> Result<()> {
        self.ranks.validate(is_released)
    }
}
