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

impl Heap {
    /// The id of a tag; the same name has the same id.
    pub fn tag(&self, name: &str) -> Result<Id> {
        let mut names = self.names.write();
        let known = names.tags.iter().position(|tag| **tag == *name);
        let number = match known {
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
