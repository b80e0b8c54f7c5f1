//! The most blocks that any policy could hit: Belady's MIN with bypass, which knows the future.
//!
//! Block by block in the order of the requests: a block that is asked for later than every block held is not kept, and
//! what goes is what is asked for last. A hit counts only while all blocks before it in its request hit, as for every
//! policy. Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966.

use std::collections::BinaryHeap;

use crate::workload::Workload;

/// Asked for never again.
const NEVER: u32 = u32::MAX;

/// Blocks that MIN hits with room for `capacity`.
pub(crate) fn hit_blocks(workload: &Workload, capacity: u64) -> u64 {
    let nodes = workload.nodes();
    let count = nodes.iter().max().map_or(0, |&node| node as usize + 1);
    // For each touch, when the same block is touched next.
    let mut next_of = vec![NEVER; nodes.len()];
    let mut latest = vec![NEVER; count];
    for (at, &node) in nodes.iter().enumerate().rev() {
        next_of[at] = std::mem::replace(&mut latest[node as usize], at as u32);
    }
    // By block: its next touch while it is held.
    let mut held = latest;
    held.fill(NEVER);
    let mut held_count = 0;
    // Entries that the block has outlived are passed over when they come up.
    let mut latest_first = BinaryHeap::new();
    let mut hits = 0;
    for request in 0..workload.requests() {
        let mut is_prefix = true;
        for at in workload.range(request) {
            let (node, next) = (nodes[at] as usize, next_of[at]);
            if held[node] == at as u32 {
                hits += u64::from(is_prefix);
                held[node] = next;
                match next {
                    NEVER => held_count -= 1,
                    next => latest_first.push((next, node)),
                }
                continue;
            }
            is_prefix = false;
            if next == NEVER {
                continue;
            }
            if held_count >= capacity {
                while latest_first.peek().is_some_and(|&(when, node)| held[node] != when) {
                    latest_first.pop();
                }
                match latest_first.peek() {
                    Some(&(when, _)) if when > next => {}
                    _ => continue,
                }
                if let Some((_, victim)) = latest_first.pop() {
                    held[victim] = NEVER;
                    held_count -= 1;
                }
            }
            held[node] = next;
            held_count += 1;
            latest_first.push((next, node));
        }
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(paths: &[&[u32]]) -> Workload {
        let mut workload = Workload::new("test".into());
        for path in paths {
            path.iter().for_each(|&node| workload.push_block(node));
            workload.finish_request(0);
        }
        workload
    }

    #[test]
    fn it_keeps_what_is_asked_for_first() {
        let paths: &[&[u32]] = &[&[0], &[1], &[2], &[0], &[1], &[2]];
        assert_eq!([1, 2, 3].map(|capacity| hit_blocks(&workload(paths), capacity)), [1, 2, 3]);
    }

    #[test]
    fn a_block_behind_a_miss_is_no_hit() {
        let paths: &[&[u32]] = &[&[0, 1], &[2], &[2], &[0, 1]];
        // One place: block 2 is needed first; then nothing of the last request is there.
        assert_eq!(hit_blocks(&workload(paths), 1), 1);
        assert_eq!(hit_blocks(&workload(paths), 3), 3);
    }
}
