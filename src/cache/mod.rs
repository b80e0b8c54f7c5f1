//! The paged, prefix-sharing KV cache.
//!
//! [`KvCache`] is the front. A scheduler step is five calls: match, step, tables, poll, step_done; the rules stand in
//! docs/abi.md. Glossary: a *group* is a set of layers that share block size and pool; a *block* holds the keys and
//! values of `block_tokens` tokens; a block is *findable* from its commit until its eviction; a *lease* keeps the hits
//! of a lookup alive; a *row* is a sequence's place in the tables.
//!
//! One lock guards all bookkeeping. It is never held across a call into the device, and nothing is allocated under it.

mod batch;
mod block;
mod config;
mod events;
mod evict;
mod free;
mod hash;
mod index;
mod kernels;
mod kv_cache;
mod list;
mod lists;
mod lookup;
mod namespace;
mod pattern;
mod prefixes;
mod retain;
mod retention;
mod sequence;
mod session;
mod state;
mod step;
mod steps;
mod store;
mod table;
mod upload;
mod write;

pub use config::{CacheConfig, Content, DEFAULT_ROW_CELLS, GroupConfig, HashKind, Scrub};
pub use events::{CacheEvent, CacheEventKind, RemoveReason};
pub use evict::{DEFAULT_POLICY, policy_names};
pub use hash::Key;
pub use kernels::kernels;
pub use kv_cache::{GroupDescription, KvCache};
pub use lookup::{Extra, Match, Naming, Request};
pub use pattern::CheckResult;
pub use prefixes::{MAX_PREFIXES, PrefixInfo};
pub use session::{MatchSession, StepSession, StepTables};
pub use state::{CacheStatistics, ResetScope};
pub use step::{Op, OpResult, Stretch, Target};
pub use table::{GroupAddresses, GroupView};
pub use write::Append;
