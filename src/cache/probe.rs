//! Questions of routers: how much of a prompt is here, and under which keys, without a lease and without a change.
//!
//! An answer is exactly that of a match at the same moment: the same walk over every link, over keys that were chained
//! before the lock was taken.

use super::hash::Key;
use super::kv_cache::KvCache;
use super::lookup::Request;
use super::prefix::{self, LinkKeys, Scratch};
use crate::error::Result;

impl KvCache {
    /// Keys of a request as far as a match can need them: it ends behind the first window whose last link is not there.
    pub(super) fn prefix_keys<'a>(
        &self,
        request: &Request<'a>,
        scratch: &'a mut Scratch,
    ) -> Result<LinkKeys<'a>> {
        let mode = prefix::key_mode(request)?;
        let may_reach = |links: usize, key: &Key| self.state().may_reach(request, mode, links, key);
        self.chain.keys(request, scratch, self.chain.longest(request), may_reach)
    }

    /// Tokens that a match of the request would find now. Holds nothing, changes nothing, counts as no lookup.
    pub fn probe(&self, request: &Request<'_>) -> Result<u64> {
        prefix::with_scratch(|scratch| {
            let keys = self.prefix_keys(request, scratch)?;
            self.state().probe_one(request, &keys)
        })
    }

    /// Keys of all full links of a request, each given to `take`; answers how many there are.
    pub fn keys(&self, request: &Request<'_>, mut take: impl FnMut(usize, Key)) -> Result<u64> {
        self.state().check_namespace(request)?;
        prefix::with_scratch(|scratch| {
            let keys = self.chain.keys(request, scratch, usize::MAX, |_, _| true)?;
            (0..keys.count()).for_each(|link| take(link, keys.key(link)));
            Ok(keys.count() as u64)
        })
    }
}
