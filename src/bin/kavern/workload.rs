//! What is replayed: requests as paths through a prefix tree, in flat arrays.
//!
//! Where the requests come from (a trace, the generator) is not known here. A node of the tree is one block together
//! with all that comes before it, so equal nodes mean equal content and equal keys.
//!
//! Invariant: starts.len() == tenants.len() + 1, starts rises, its last element is nodes.len(); a node belongs to one
//! tenant.

use std::ops::Range;

/// Blocks that a workload may hold: it lies in memory as a whole, with its keys.
pub(crate) const MAX_BLOCKS: usize = 1 << 28;

/// When a request arrives and how long it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Arrival {
    /// Since the start of the trace.
    pub(crate) ms: f64,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
}

impl Arrival {
    /// Tokens at its end.
    pub(crate) fn total_tokens(&self) -> u64 {
        self.input_tokens + self.output_tokens
    }
}

/// Requests in the order in which they arrive.
pub(crate) struct Workload {
    /// File name, or what was generated.
    pub(crate) name: String,
    starts: Vec<usize>,
    nodes: Vec<u32>,
    tenants: Vec<u64>,
    /// Of every request, or empty where nobody knows.
    arrivals: Vec<Arrival>,
}

impl Workload {
    /// No requests yet.
    pub(crate) fn new(name: String) -> Workload {
        Workload { name, starts: vec![0], nodes: Vec::new(), tenants: Vec::new(), arrivals: Vec::new() }
    }

    /// Adds one block to the request that `finish_request` will close.
    pub(crate) fn push_block(&mut self, node: u32) {
        self.nodes.push(node);
    }

    /// Closes the request that the blocks since the last call make up.
    pub(crate) fn finish_request(&mut self, tenant: u64) {
        self.starts.push(self.nodes.len());
        self.tenants.push(tenant);
    }

    /// Says when the request that was closed last arrives.
    pub(crate) fn push_arrival(&mut self, arrival: Arrival) {
        self.arrivals.push(arrival);
    }

    /// When each request arrives; empty where nobody knows.
    pub(crate) fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.tenants.len()
    }

    /// Blocks of all requests, each counted as often as it is asked for.
    pub(crate) fn blocks(&self) -> usize {
        self.nodes.len()
    }

    /// Where the blocks of a request lie in `nodes()`.
    pub(crate) fn range(&self, request: usize) -> Range<usize> {
        self.starts[request]..self.starts[request + 1]
    }

    /// Whose request it is.
    pub(crate) fn tenant(&self, request: usize) -> u64 {
        self.tenants[request]
    }

    /// The blocks of all requests, one after the other.
    pub(crate) fn nodes(&self) -> &[u32] {
        &self.nodes
    }

    /// Blocks of the longest request.
    pub(crate) fn longest(&self) -> usize {
        self.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    /// Different blocks.
    pub(crate) fn unique_blocks(&self) -> usize {
        let mut seen = vec![false; self.nodes.iter().max().map_or(0, |&node| node as usize + 1)];
        self.nodes.iter().filter(|&&node| !std::mem::replace(&mut seen[node as usize], true)).count()
    }

    /// Different tenants.
    pub(crate) fn tenant_count(&self) -> usize {
        let mut tenants = self.tenants.clone();
        tenants.sort_unstable();
        tenants.dedup();
        tenants.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_from_the_paths() {
        let mut workload = Workload::new("test".into());
        for (tenant, path) in [(7, &[0, 1, 2][..]), (7, &[0, 1, 3]), (9, &[])] {
            path.iter().for_each(|&node| workload.push_block(node));
            workload.finish_request(tenant);
        }
        assert_eq!((workload.requests(), workload.blocks(), workload.unique_blocks()), (3, 6, 4));
        assert_eq!((workload.longest(), workload.tenant_count()), (3, 2));
        assert_eq!((workload.range(1), workload.range(2)), (3..6, 6..6));
    }
}
