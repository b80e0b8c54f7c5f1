//! The names that a record holds as a number: tags here, streams in `streams`.
//!
//! What it does: an id for a tag, the number of an id. What it does not: forget a tag; they are few.
//! Invariant: a tag keeps its number as long as the heap lives. Lock order: `names` alone.

use std::sync::atomic::Ordering;

use super::Heap;
use super::streams::StreamNumbers;
use crate::error::{Error, Result, Status};
use crate::types::{Id, IdKind};

/// Most tags and most streams: they are 16 bits of a record.
pub(super) const NAMES_MAX: usize = 1 << 16;

/// Names that a record holds as a number.
#[derive(Default)]
pub(super) struct Names {
    pub(super) tags: Vec<Box<str>>,
    pub(super) streams: StreamNumbers,
}

impl Names {
    fn tag_of(&self, name: &str) -> Option<usize> {
        self.tags.iter().position(|tag| **tag == *name)
    }
}

impl Heap {
    /// The id of a tag; the same name has the same id.
    pub fn tag(&self, name: &str) -> Result<Id> {
        // Whoever allocates reads the names: a name that is known stops nobody.
        if let Some(number) = self.names.read().tag_of(name) {
            return Ok(Id::new(IdKind::Tag, 1, number as u32));
        }
        let mut names = self.names.write();
        let number = match names.tag_of(name) {
            Some(number) => number,
            None if names.tags.len() < NAMES_MAX => {
                names.tags.push(name.into());
                self.tag_count.store(names.tags.len() as u32, Ordering::Release);
                names.tags.len() - 1
            }
            None => {
                return Err(Error::new(
                    Status::LimitReached,
                    format!("{NAMES_MAX} tags are known; reuse some"),
                ));
            }
        };
        Ok(Id::new(IdKind::Tag, 1, number as u32))
    }

    /// The number of a tag's id; 0 stands for none.
    #[inline(always)]
    pub(in crate::memory) fn tag_number(&self, tag: u64) -> Option<u16> {
        if tag == 0 {
            return Some(0);
        }
        let index = Id(tag).index(IdKind::Tag)?;
        let is_known = Id(tag).generation() == 1 && index < self.tag_count.load(Ordering::Acquire) as usize;
        is_known.then_some(index as u16)
    }

    pub(super) fn known_tag(&self, tag: u64) -> Result<u16> {
        self.tag_number(tag).ok_or_else(|| {
            Error::new(Status::StaleId, format!("{tag:#x} is no tag of this manager; make one with its name"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::super::tests::heap;

    #[test]
    fn a_tag_that_is_known_is_found_beside_whoever_reads_the_names() {
        let heap = heap("host", 0);
        let tag = heap.tag("weights").unwrap();
        assert_ne!(heap.tag("scratch").unwrap(), tag);
        let (tell, told) = channel();
        std::thread::scope(|scope| {
            let reading = heap.names.read();
            let heap = &heap;
            scope.spawn(move || tell.send(heap.tag("weights").unwrap()).unwrap());
            let seen = told.recv_timeout(Duration::from_secs(20));
            drop(reading);
            assert_eq!(seen, Ok(tag));
        });
    }
}
