//! Questions of routers: how much of a prompt is here, and under which keys, without a lease and without a change.
//!
//! An answer is exactly that of a match at the same moment: the same walk over every link, over keys that were chained
//! before the lock was taken, with as much left to promises.

use super::hash::{self, Key};
use super::kv_cache::KvCache;
use super::lookup::Request;
use super::mirror::BlockHash;
use super::namespace::Home;
use super::prefix::{self, LinkKeys, Scratch};
use crate::error::{Error, Result, Status};

impl KvCache {
    /// Keys of a request as far as a match can need them: it ends behind the first window whose last link is not there.
    pub(super) fn prefix_keys<'a>(
        &self,
        request: &Request<'a>,
        home: &Home<'_>,
        scratch: &'a mut Scratch,
    ) -> Result<LinkKeys<'a>> {
        let may_reach = |links: usize, key: &Key| self.state().may_reach(home, links, key);
        self.chain.keys(request, scratch, self.chain.longest(request), may_reach)
    }

    /// Tokens that a match of the request would find now. Holds nothing, changes nothing, counts as no lookup.
    pub fn probe(&self, request: &Request<'_>) -> Result<u64> {
        prefix::with_scratch(|scratch| {
            let home = self.chain.home(request)?;
            let keys = self.prefix_keys(request, &home, scratch)?;
            let mut state = self.state();
            state.check_decides()?;
            state.probe_one(request, &home, &keys)
        })
    }

    /// Keys of all full links of a request, each given to `take`; answers how many there are.
    pub fn keys(&self, request: &Request<'_>, mut take: impl FnMut(usize, Key)) -> Result<u64> {
        let home = self.chain.home(request)?;
        self.state().check_namespace(request, &home)?;
        prefix::with_scratch(|scratch| {
            let keys = self.chain.keys(request, scratch, usize::MAX, |_, _| true)?;
            (0..keys.count()).for_each(|link| take(link, keys.key(link)));
            Ok(keys.count() as u64)
        })
    }
}

impl KvCache {
    /// The hashes under which the full blocks of a group are found on the device, each given to `take`; answers how
    /// many there are. A block's hash names it with its namespace.
    pub fn block_hashes(
        &self,
        request: &Request<'_>,
        group: u32,
        mut take: impl FnMut(usize, [u64; 2]),
    ) -> Result<u64> {
        let (block_tokens, link) = (self.group(group)?.block_tokens, self.chain.link_tokens);
        if !block_tokens.is_multiple_of(link) {
            let text = "blocks of this group are not named by the links of the prompt";
            return Err(Error::new(Status::Unsupported, text));
        }
        let links_each = (block_tokens / link) as usize;
        let home = self.chain.home(request)?;
        self.state().check_namespace(request, &home)?;
        let root = hash::root_key(&self.chain.secret, request.namespace_id, request.adapter_id, request.salt);
        let mode = prefix::key_mode(request)?;
        prefix::with_scratch(|scratch| {
            let keys = self.chain.keys(request, scratch, usize::MAX, |_, _| true)?;
            let blocks = keys.count() / links_each;
            for block in 0..blocks {
                let key = keys.key((block + 1) * links_each - 1);
                take(block, BlockHash::new(&root, mode, &key).words());
            }
            Ok(blocks as u64)
        })
    }
}
