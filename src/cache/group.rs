//! What of the past a token of a group reaches, and the rules that follow: which blocks a sequence must hold, which a
//! hit needs, what a row of the block table shows.
//!
//! Pure: numbers in, numbers out; one line for each kind in each rule. `at` is always the next token, counted from the
//! start of the sequence. Invariant: `first_needed` never falls as `at` rises, so what was let go is not missed later.

/// What of the past a token of a group reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Everything.
    #[default]
    All,
    /// Everything that TRIM has not let go.
    Untrimmed,
    /// Itself and the tokens before it, as many as the window holds.
    Sliding {
        /// Tokens of the window, the token itself among them.
        window_tokens: u32,
    },
    /// The tokens of its chunk.
    Chunked {
        /// Tokens of a chunk.
        chunk_tokens: u32,
    },
    /// One state that takes in every token.
    State {
        /// A snapshot every so many blocks; 0: wherever a hit of the other groups can end.
        snapshot_blocks: u32,
    },
    /// The tokens of another input, as many for each sequence.
    Cross {
        /// Tokens of that input.
        tokens: u32,
    },
}

/// Cells of a row of states: the current one and the one that it starts from.
pub(super) const STATE_CELLS: u32 = 2;

impl Reach {
    /// Whether a hit needs every block before it.
    pub(super) fn is_prefix(self) -> bool {
        matches!(self, Self::All | Self::Untrimmed)
    }

    /// Whether a token attends only to the latest ones.
    pub(super) fn is_window(self) -> bool {
        matches!(self, Self::Sliding { .. } | Self::Chunked { .. })
    }

    /// Whether each token of the sequence has a place of its own.
    pub(super) fn is_by_token(self) -> bool {
        self.is_prefix() || self.is_window()
    }

    /// Whether a row may have let go of its first blocks.
    pub(super) fn has_holes(self) -> bool {
        self == Self::Untrimmed || self.is_window()
    }

    /// First token that the one at `at` reaches.
    pub(super) fn first_needed(self, at: u64) -> u64 {
        match self {
            Self::All | Self::Untrimmed | Self::State { .. } | Self::Cross { .. } => 0,
            Self::Sliding { window_tokens } => (at + 1).saturating_sub(window_tokens.into()),
            Self::Chunked { chunk_tokens } => at - at % u64::from(chunk_tokens),
        }
    }

    /// Tokens behind the scheduled ones for which blocks are held, of `lookahead` that are asked for: what a window
    /// lets go comes back for later ones.
    pub(super) fn reserve(self, lookahead: u64) -> u64 {
        match self {
            Self::Sliding { window_tokens: tokens } | Self::Chunked { chunk_tokens: tokens } => {
                lookahead.min(tokens.into())
            }
            _ => lookahead,
        }
    }

    /// Cells of a row for sequences of so many tokens.
    pub(super) fn row_cells(self, block_tokens: u32, sequence_tokens: u64) -> u32 {
        match self {
            Self::State { .. } => STATE_CELLS,
            Self::Cross { tokens } => tokens.div_ceil(block_tokens),
            _ => sequence_tokens.div_ceil(block_tokens.into()) as u32,
        }
    }

    /// Blocks that a lookup of so many tokens could use.
    pub(super) fn wanted_blocks(self, block_tokens: u32, prompt_tokens: u64) -> u64 {
        let blocks = prompt_tokens / u64::from(block_tokens);
        match self {
            Self::All | Self::Untrimmed => blocks,
            Self::Sliding { .. } | Self::Chunked { .. } => {
                let end = blocks * u64::from(block_tokens);
                blocks - self.first_needed(end) / u64::from(block_tokens)
            }
            Self::State { .. } => blocks.min(1),
            Self::Cross { tokens } => tokens.div_ceil(block_tokens).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_one_reaches_itself_and_a_chunk_reaches_its_start() {
        let reach = |reach: Reach| [0, 1, 7, 8, 9, 100].map(|at| reach.first_needed(at));
        assert_eq!(reach(Reach::Sliding { window_tokens: 1 }), [0, 1, 7, 8, 9, 100]);
        assert_eq!(reach(Reach::Sliding { window_tokens: 8 }), [0, 0, 0, 1, 2, 93]);
        assert_eq!(reach(Reach::Chunked { chunk_tokens: 8 }), [0, 0, 0, 8, 8, 96]);
        assert_eq!(reach(Reach::Untrimmed), [0; 6]);
    }

    #[test]
    fn a_lookup_wants_the_blocks_of_the_last_window() {
        let wanted = |reach: Reach| [0, 3, 4, 16, 18, 400].map(|tokens| reach.wanted_blocks(4, tokens));
        assert_eq!(wanted(Reach::All), [0, 0, 1, 4, 4, 100]);
        assert_eq!(wanted(Reach::Sliding { window_tokens: 8 }), [0, 0, 1, 2, 2, 2]);
        assert_eq!(wanted(Reach::Sliding { window_tokens: 10 }), [0, 0, 1, 3, 3, 3]);
        assert_eq!(wanted(Reach::Chunked { chunk_tokens: 12 }), [0, 0, 1, 1, 1, 1]);
        assert_eq!(wanted(Reach::State { snapshot_blocks: 0 }), [0, 0, 1, 1, 1, 1]);
        assert_eq!(wanted(Reach::Cross { tokens: 9 }), [3; 6]);
    }
}
