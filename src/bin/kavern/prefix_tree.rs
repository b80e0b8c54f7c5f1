//! Block ids of a trace as nodes of a prefix tree.
//!
//! In a prefix-chained trace an id stands for a block and everything before it, so its predecessor is fixed, and an id
//! is a node. A trace in which an id changes its predecessor names contents, not prefixes; replaying it as prefixes
//! would report hits that no engine could use, so it is refused.
//!
//! Invariant: nodes are numbered from 0 in the order of their first appearance; a parent's number is below its child's.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The node of an id, with what is needed to check and to explain it.
struct Seen {
    node: u32,
    parent: Option<u64>,
    line: u64,
}

/// Nodes by id.
#[derive(Default)]
pub(crate) struct PrefixTree {
    seen: HashMap<u64, Seen>,
}

impl PrefixTree {
    /// The node of `id` where it follows `parent` (none: it opens the request); `line` is told in later complaints.
    pub(crate) fn node(&mut self, parent: Option<u64>, id: u64, line: u64) -> Result<u32, String> {
        let next =
            u32::try_from(self.seen.len()).map_err(|_| "more than 2^32 different blocks".to_string())?;
        match self.seen.entry(id) {
            Entry::Vacant(place) => Ok(place.insert(Seen { node: next, parent, line }).node),
            Entry::Occupied(known) if known.get().parent == parent => Ok(known.get().node),
            Entry::Occupied(known) => Err(format!(
                "hash id {id} {} here, but {} on line {}; expected prefix-chained ids, each with one fixed predecessor",
                position(parent),
                position(known.get().parent),
                known.get().line,
            )),
        }
    }
}

fn position(parent: Option<u64>) -> String {
    parent.map_or("opens the request".into(), |id| format!("follows {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prefixes_are_equal_nodes() {
        let mut tree = PrefixTree::default();
        let path: Vec<_> = [(None, 5), (Some(5), 9), (None, 5), (Some(5), 9), (Some(9), 1)]
            .into_iter()
            .map(|(parent, id)| tree.node(parent, id, 1).unwrap())
            .collect();
        assert_eq!(path, [0, 1, 0, 1, 2]);
    }

    #[test]
    fn an_id_that_changes_its_predecessor_is_refused_with_both_places() {
        let mut tree = PrefixTree::default();
        tree.node(None, 5, 1).unwrap();
        tree.node(Some(5), 9, 1).unwrap();
        let text = tree.node(None, 9, 4).unwrap_err();
        assert!(text.contains("hash id 9 opens the request here, but follows 5 on line 1"), "{text}");
        assert!(tree.node(Some(9), 9, 5).is_err(), "an id cannot follow itself");
    }
}
