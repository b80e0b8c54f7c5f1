//! What a reader of events knows of a cache: which block holds what. Gaps are mended with snapshots.

use std::collections::HashMap;

use kavern::c_api::kv_types::{kavern_kv_event, kavern_kv_event_kind, kavern_kv_remove_reason};

use super::boundary::Cache;

const STORED: u32 = kavern_kv_event_kind::KAVERN_EVENT_STORED as u32;
const REMOVED: u32 = kavern_kv_event_kind::KAVERN_EVENT_REMOVED as u32;
const NO_REASON: u32 = kavern_kv_remove_reason::KAVERN_REMOVE_NONE as u32;

/// Namespace, first token, key.
pub(crate) type Entry = (u64, u64, [u8; 32]);

#[derive(Default)]
pub(crate) struct Picture {
    cursor: u64,
    /// By group and block.
    pub(crate) blocks: HashMap<(u32, i32), Entry>,
    /// By group, namespace and key.
    places: HashMap<(u32, u64, [u8; 32]), i32>,
    pub(crate) gaps: u64,
    pub(crate) events: u64,
}

fn entry(event: &kavern_kv_event) -> Entry {
    (event.namespace_id, event.token_offset, event.key)
}

impl Picture {
    fn store(&mut self, event: &kavern_kv_event) {
        let was = self.blocks.insert((event.group, event.block), entry(event));
        assert_eq!(was, None, "{event:?} was there");
        let place = (event.group, event.namespace_id, event.key);
        let other = self.places.insert(place, event.block);
        assert_eq!(other, None, "{event:?} is in two blocks");
    }

    fn take(&mut self, event: &kavern_kv_event) {
        self.events += 1;
        assert_eq!(event.number, self.cursor + 1, "numbers rise by one");
        self.cursor = event.number;
        if event.kind == STORED {
            assert_eq!(event.reason, NO_REASON);
            self.store(event);
        } else if event.kind == REMOVED {
            assert_ne!(event.reason, NO_REASON);
            assert_eq!(self.blocks.remove(&(event.group, event.block)), Some(entry(event)), "{event:?}");
            self.places.remove(&(event.group, event.namespace_id, event.key));
        } else {
            assert_eq!(event.block, -1);
        }
    }

    /// Reads what is new. Where some was lost, or if asked to, the picture is made anew.
    pub(crate) fn read(&mut self, cache: &mut Cache, anew: bool) {
        let mut cursor = self.cursor;
        let is_whole = cache.events(&mut cursor, |event| self.take(event));
        if is_whole {
            assert_eq!(cursor, self.cursor);
        }
        if is_whole && !anew {
            return;
        }
        let former = std::mem::take(&mut self.blocks);
        self.places.clear();
        cache.snapshot(|event| self.store(event));
        if is_whole {
            let same = |(place, entry): (&(u32, i32), &Entry)| self.blocks.get(place) == Some(entry);
            assert!(
                former.len() == self.blocks.len() && former.iter().all(same),
                "the snapshot is the picture"
            );
        } else {
            self.gaps += 1;
        }
        self.cursor = cache.statistics().last_event;
    }

    pub(crate) fn place(&self, group: usize, namespace: u64, key: [u8; 32]) -> Option<i32> {
        self.places.get(&(group as u32, namespace, key)).copied()
    }
}
