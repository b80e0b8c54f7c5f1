//! A trace of allocations: who asked for how many bytes on which stream, and when it was freed.
//!
//! What it does: holds events in order, reads and writes them as lines, knows the most bytes that were ever live. What
//! it does not: allocate. Invariant: a block is allocated once, and freed at most once and later; blocks are numbered
//! in the order of their allocations.
//!
//! The lines: `a ID BYTES STREAM` allocates, `f ID` frees, `#` begins a remark. Streams are small numbers.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

use crate::failure::Failure;

/// Streams of a trace have numbers below this.
pub(crate) const STREAMS_MAX: u32 = 64;

/// What every file begins with; its name follows.
const HEAD: &str = "# kavern allocations 1: ";
const EXPECTED: &str = "expected \"a ID BYTES STREAM\", \"f ID\" or \"# remark\"";

/// One step of a trace; blocks by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Allocate { block: u32 },
    Free { block: u32 },
}

/// One allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) bytes: u64,
    /// It is allocated and freed in the order of this stream.
    pub(crate) stream: u32,
}

/// A whole trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AllocationTrace {
    pub(crate) name: String,
    pub(crate) events: Vec<Event>,
    pub(crate) blocks: Vec<Block>,
}

impl AllocationTrace {
    /// Nothing yet.
    pub(crate) fn new(name: String) -> Self {
        Self { name, events: Vec::new(), blocks: Vec::new() }
    }

    /// Adds an allocation; its number.
    pub(crate) fn allocate(&mut self, bytes: u64, stream: u32) -> u32 {
        let block = self.blocks.len() as u32;
        self.blocks.push(Block { bytes, stream });
        self.events.push(Event::Allocate { block });
        block
    }

    /// Adds the free of a block that is live.
    pub(crate) fn free(&mut self, block: u32) {
        self.events.push(Event::Free { block });
    }

    /// The most bytes that are live at one time, as they were asked for.
    pub(crate) fn peak_live_bytes(&self) -> u64 {
        let (mut live, mut peak) = (0, 0);
        for event in &self.events {
            match *event {
                Event::Allocate { block } => live += self.blocks[block as usize].bytes,
                Event::Free { block } => live -= self.blocks[block as usize].bytes,
            }
            peak = peak.max(live);
        }
        peak
    }

    /// Streams that it uses.
    pub(crate) fn stream_count(&self) -> u32 {
        self.blocks.iter().map(|block| block.stream + 1).max().unwrap_or(0)
    }

    /// The trace as lines.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{HEAD}{}\n", self.name);
        for event in &self.events {
            let _ = match *event {
                Event::Free { block } => writeln!(text, "f {block}"),
                Event::Allocate { block } => {
                    let Block { bytes, stream } = self.blocks[block as usize];
                    writeln!(text, "a {block} {bytes} {stream}")
                }
            };
        }
        text
    }

    /// Reads a file of such lines.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let bytes =
            std::fs::read(path).map_err(|error| Failure::Input(format!("{shown}: {error}; {EXPECTED}")))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::Input(format!("{shown}: this is no text; {EXPECTED}")))?;
        let trace = Self::parse(&text, &shown.to_string())?;
        if trace.events.is_empty() {
            return Err(Failure::Input(format!("{shown}: no allocation in it; {EXPECTED}")));
        }
        Ok(trace)
    }

    fn parse(text: &str, shown: &str) -> Result<Self, Failure> {
        let name = text.strip_prefix(HEAD).and_then(|rest| rest.lines().next()).unwrap_or(shown);
        let mut trace = Self::new(name.into());
        let mut live: HashMap<u64, u32> = HashMap::new();
        let mut live_bytes = 0u64;
        for (at, line) in text.lines().enumerate() {
            let wrong = |what: String| Failure::Input(format!("{shown}:{}: {what}", at + 1));
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let number = |word: &str| {
                word.parse::<u64>().map_err(|_| wrong(format!("{word:?} is no whole number; {EXPECTED}")))
            };
            match words[..] {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                ["a", id, bytes, stream] => {
                    let (id, bytes, stream) = (number(id)?, number(bytes)?, number(stream)?);
                    if bytes == 0 || bytes >> 47 != 0 {
                        return Err(wrong(format!("{bytes} bytes; expected 1 to 2^47 - 1")));
                    }
                    if stream >= STREAMS_MAX.into() {
                        return Err(wrong(format!("stream {stream}; expected less than {STREAMS_MAX}")));
                    }
                    if trace.blocks.len() == u32::MAX as usize {
                        return Err(wrong("more allocations than a replay can number".into()));
                    }
                    if live.contains_key(&id) {
                        return Err(wrong(format!("block {id} is live already; expected a new one")));
                    }
                    live_bytes = live_bytes
                        .checked_add(bytes)
                        .ok_or_else(|| wrong("more than 2^64 live bytes".into()))?;
                    live.insert(id, trace.allocate(bytes, stream as u32));
                }
                ["f", id] => {
                    let id = number(id)?;
                    let block = live.remove(&id).ok_or_else(|| {
                        wrong(format!("block {id} is not live; expected one that was allocated before"))
                    })?;
                    live_bytes -= trace.blocks[block as usize].bytes;
                    trace.free(block);
                }
                _ => return Err(wrong(EXPECTED.into())),
            }
        }
        Ok(trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let mut trace = AllocationTrace::new("two streams".into());
        let first = trace.allocate(700, 0);
        let second = trace.allocate(300, 3);
        trace.free(first);
        let third = trace.allocate(600, 0);
        trace.free(third);
        trace.free(second);
        assert_eq!((trace.peak_live_bytes(), trace.stream_count()), (1000, 4));
        assert_eq!(AllocationTrace::parse(&trace.text(), "file").unwrap(), trace);
    }

    #[test]
    fn an_id_may_come_again_once_it_is_free() {
        let trace = AllocationTrace::parse("a 9 10 0\nf 9\n\n# remark\na 9 20 1\n", "file").unwrap();
        assert_eq!(trace.blocks, [Block { bytes: 10, stream: 0 }, Block { bytes: 20, stream: 1 }]);
        assert_eq!((trace.name.as_str(), trace.events.len(), trace.peak_live_bytes()), ("file", 3, 20));
    }

    #[test]
    fn what_cannot_be_is_named_with_its_line() {
        let cases = [
            ("a 1 0 0", "0 bytes"),
            ("a 1 8 64", "stream 64"),
            ("a 1 8", "expected"),
            ("a one 8 0", "\"one\""),
            ("a 1 -8 0", "\"-8\""),
            ("f 7", "block 7 is not live"),
            ("a 2 8 0", "block 2 is live already"),
            ("allocate", "expected"),
        ];
        for (line, reason) in cases {
            let failure = AllocationTrace::parse(&format!("a 2 8 0\n{line}\n"), "file").unwrap_err();
            let text = failure.to_string();
            assert!(text.starts_with("file:2: ") && text.contains(reason), "{line}: {text}");
        }
    }
}
