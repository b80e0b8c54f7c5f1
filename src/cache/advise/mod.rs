//! Advisors: which size of block a new sequence should get.
//!
//! Large blocks waste slots behind a sequence's last token, small ones cost cells of block tables; an advisor weighs
//! the two by what is known of a sequence when it is looked up and by what sequences turned out to be when they ended.
//! Pure: it knows no blocks, and classes only as numbers, 0 the smallest. The cache asks it under its lock: every call
//! is O(1) and allocates nothing. What it does not: look for room or for hits, which is `sizes`.
//!
//! The bounds: of a thousand slots held at most so many without a token, for a thousand tokens at most so many cells.
//! Waste is the one that rules: memory that holds nothing cannot be had back while the sequence runs.

mod predictive;
mod reactive;

use super::classes::CLASSES_MAX;
use crate::error::{Error, Result};

/// The advisor of a cache that names none.
pub const DEFAULT_ADVISOR: &str = "predictive";
/// Lengths are told apart by their power of two.
const BUCKETS: usize = 32;

/// What is known of a sequence before it runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ask {
    pub(super) prompt_tokens: u64,
    /// Tokens that it is expected to reach; 0: nobody knows.
    pub(super) expected_tokens: u64,
    pub(super) namespace_id: u64,
}

impl Ask {
    /// Tokens that it will have at least, or is said to.
    fn known_tokens(&self) -> u64 {
        self.prompt_tokens.max(self.expected_tokens).max(1)
    }
}

/// What a sequence turned out to be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Life {
    pub(super) ask: Ask,
    pub(super) class: usize,
    pub(super) tokens: u64,
    pub(super) slots: u64,
    pub(super) cells: u64,
}

/// What an advisor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) class: usize,
    /// Tokens that it takes the sequence to reach.
    pub(super) tokens: u64,
}

/// The classes and the bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Tokens of a block, by class in rising order; 0 where there is no class.
    pub(super) block_tokens: [u64; CLASSES_MAX],
    pub(super) waste_permille: u64,
    pub(super) table_permille: u64,
}

impl Terms {
    pub(super) fn classes(&self) -> usize {
        self.block_tokens.iter().take_while(|&&tokens| tokens > 0).count()
    }

    /// Slots without a token to be expected behind a sequence of so many tokens, give or take `spread`.
    fn tail(&self, class: usize, tokens: f64, spread: f64) -> f64 {
        let block = self.block_tokens[class] as f64;
        if 4.0 * spread < block {
            // The end is known to a part of a block: the worse of where it may fall.
            let behind = |tokens: f64| (tokens / block).ceil() * block - tokens;
            return behind((tokens - spread).max(1.0)).max(behind(tokens + spread));
        }
        // It may fall anywhere in a block, but the first one is there whole.
        (block / 2.0).max(block - tokens)
    }

    /// The largest class that wastes no more than it may; the smallest if none does.
    fn largest_within(&self, tokens: f64, spread: f64) -> usize {
        let is_within = |class: &usize| {
            let tail = self.tail(*class, tokens, spread);
            1000.0 * tail <= self.waste_permille as f64 * (tokens + tail)
        };
        (0..self.classes()).rev().find(is_within).unwrap_or(0)
    }

    /// What a sequence of so many tokens costs in a class beyond what it costs in another: slots and cells, which count
    /// alike and like a token.
    pub(super) fn excess(&self, class: usize, over: usize, tokens: u64) -> u64 {
        let more = |a: f64, b: f64| (a - b).max(0.0);
        let length = tokens.max(1) as f64;
        let tail = |class: usize| self.tail(class, length, length);
        let cells = |class: usize| length / self.block_tokens[class] as f64;
        (more(tail(class), tail(over)) + more(cells(class), cells(over))) as u64
    }
}

/// The bucket of a length.
fn bucket(tokens: u64) -> usize {
    (tokens.max(1).ilog2() as usize).min(BUCKETS - 1)
}

/// What an advisor answers to.
pub(super) trait Advisor: Send {
    /// The class that suits a new sequence.
    fn advise(&self, ask: &Ask) -> Advice;
    /// A sequence ended.
    fn ended(&mut self, life: &Life);
    /// Bytes of what it remembers.
    fn bytes(&self) -> u64;
}

/// An advisor by name.
struct Registration {
    name: &'static str,
    make: fn(&Terms) -> Result<Box<dyn Advisor>>,
}

/// One line each.
static ADVISORS: &[Registration] = &[
    Registration { name: DEFAULT_ADVISOR, make: predictive::make },
    Registration { name: "reactive", make: reactive::make },
];

/// Names of all advisors.
pub fn advisor_names() -> impl Iterator<Item = &'static str> {
    ADVISORS.iter().map(|advisor| advisor.name)
}

/// Makes the advisor of that name.
pub(super) fn make(name: &str, terms: &Terms) -> Result<Box<dyn Advisor>> {
    match ADVISORS.iter().find(|advisor| advisor.name == name) {
        Some(advisor) => (advisor.make)(terms),
        None => {
            let known: Vec<_> = advisor_names().collect();
            Err(Error::argument(format!(
                "block advisor '{name}' is unknown; use one of {}",
                known.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { block_tokens: [16, 64, 256], waste_permille: 50, table_permille: 30 };

    fn life(ask: Ask, class: usize, tokens: u64) -> Life {
        let cells = tokens.div_ceil(TERMS.block_tokens[class]);
        Life { ask, class, tokens, slots: cells * TERMS.block_tokens[class], cells }
    }

    /// Runs so many sequences; answers waste in permille and cells for a thousand tokens of those after `first`.
    fn run(
        advisor: &mut dyn Advisor,
        first: usize,
        count: usize,
        mut next: impl FnMut() -> (Ask, u64),
    ) -> (u64, u64) {
        let (mut tokens, mut slots, mut cells) = (0, 0, 0);
        for turn in 0..count {
            let (ask, length) = next();
            let advice = advisor.advise(&ask);
            assert!(advice.class < 3 && advice.tokens >= 1);
            let life = life(ask, advice.class, length);
            advisor.ended(&life);
            if turn >= first {
                (tokens, slots, cells) = (tokens + life.tokens, slots + life.slots, cells + life.cells);
            }
        }
        (1000 * (slots - tokens) / slots, 1000 * cells / tokens)
    }

    /// Chats whose answers are as long as their prompts, and documents with short answers.
    fn mixed(random: &mut fastrand::Rng) -> (Ask, u64) {
        let (prompt, answer) = match random.u8(0..=200) {
            0 => (random.u64(20_000..100_000), random.u64(10..400)),
            _ => (random.u64(25..150), random.u64(25..150)),
        };
        let ask = Ask { prompt_tokens: prompt, namespace_id: random.u64(0..4), ..Ask::default() };
        (ask, prompt + answer)
    }

    #[test]
    fn every_advisor_keeps_both_bounds_where_no_single_size_does() {
        for class in 0..3 {
            let mut random = fastrand::Rng::with_seed(4);
            let (mut tokens, mut slots, mut cells) = (0, 0, 0);
            for _ in 0..4000 {
                let (ask, length) = mixed(&mut random);
                let life = life(ask, class, length);
                (tokens, slots, cells) = (tokens + life.tokens, slots + life.slots, cells + life.cells);
            }
            let (waste, table) = (1000 * (slots - tokens) / slots, 1000 * cells / tokens);
            assert!(waste > 50 || table > 30, "class {class}: {waste} ‰, {table} cells");
        }
        for name in advisor_names() {
            let mut advisor = make(name, &TERMS).unwrap();
            let mut random = fastrand::Rng::with_seed(4);
            let (waste, table) = run(advisor.as_mut(), 200, 4000, || mixed(&mut random));
            assert!(waste <= 50 && table <= 30, "{name}: {waste} ‰, {table} cells");
        }
    }

    #[test]
    fn every_advisor_follows_a_workload_that_changes() {
        for name in advisor_names() {
            let mut advisor = make(name, &TERMS).unwrap();
            let mut random = fastrand::Rng::with_seed(9);
            let ask = Ask { prompt_tokens: 100, ..Ask::default() };
            // The same prompts get answers of a hundred tokens, then of ten thousand, then of a hundred again.
            let (waste, _) = run(advisor.as_mut(), 50, 400, || (ask, random.u64(150..260)));
            assert!(waste <= 60, "{name}: {waste} ‰");
            let (_, table) = run(advisor.as_mut(), 100, 400, || (ask, random.u64(8_000..12_000)));
            assert!(table <= 30, "{name}: {table} cells");
            let (waste, _) = run(advisor.as_mut(), 200, 600, || (ask, random.u64(150..260)));
            assert!(waste <= 60, "{name}: {waste} ‰");
        }
    }

    #[test]
    fn an_expected_length_is_taken_at_its_word_before_anything_was_learned() {
        let advisor = make("predictive", &TERMS).unwrap();
        let class = |prompt_tokens: u64, expected_tokens: u64| {
            advisor.advise(&Ask { prompt_tokens, expected_tokens, namespace_id: 0 }).class
        };
        assert_eq!([class(100, 0), class(100, 1000), class(100, 30_000), class(30_000, 0)], [0, 1, 2, 2]);
    }

    #[test]
    fn lengths_that_are_known_exactly_may_fill_large_blocks() {
        let mut advisor = make("predictive", &TERMS).unwrap();
        let ask = Ask { prompt_tokens: 200, ..Ask::default() };
        for _ in 0..40 {
            advisor.ended(&life(ask, 0, 512));
        }
        assert_eq!(advisor.advise(&ask), Advice { class: 2, tokens: 512 });
        for _ in 0..40 {
            advisor.ended(&life(ask, 0, 520));
        }
        assert_eq!(
            advisor.advise(&ask).class,
            0,
            "eight tokens more take another block of 256, and one of 64"
        );
    }

    #[test]
    fn a_namespace_is_judged_by_its_own_lengths_when_it_has_some() {
        let mut advisor = make("predictive", &TERMS).unwrap();
        let ask = |namespace_id: u64| Ask { prompt_tokens: 100, namespace_id, ..Ask::default() };
        for turn in 0..200 {
            advisor.ended(&life(ask(1), 0, 150 + turn % 40));
            advisor.ended(&life(ask(2), 0, 20_000 + 300 * (turn % 10)));
        }
        assert_eq!([advisor.advise(&ask(1)).class, advisor.advise(&ask(2)).class], [0, 2]);
    }

    #[test]
    fn an_unknown_advisor_names_the_known_ones() {
        let error = make("clairvoyant", &TERMS).err().unwrap();
        assert!(error.text.contains("predictive, reactive"), "{error}");
    }
}
