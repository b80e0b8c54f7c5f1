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
mod branch;
mod change;
mod children;
mod config;
mod copies;
mod edit;
mod events;
mod evict;
mod group;
mod growth;
mod hash;
mod hybrid;
mod index;
mod kernels;
mod kin;
mod kv_cache;
mod list;
mod lookup;
mod namespace;
mod partial;
mod pattern;
mod pool;
mod preempt;
mod promise;
mod publish;
mod resize;
mod rewind;
mod sequence;
mod session;
mod snapshots;
mod state;
mod step;
mod steps;
mod store;
mod table;
mod trunks;
mod upload;
mod write;

pub use change::{Change, PreemptMode};
pub use config::{CacheConfig, Content, DEFAULT_ROW_CELLS, GroupConfig, HashKind, Scrub};
pub use copies::TokenCopy;
pub use events::{CacheEvent, CacheEventKind, RemoveReason};
pub use evict::policy_names;
pub use group::Reach;
pub use hash::Key;
pub use kernels::kernels;
pub use kv_cache::{GroupDescription, KvCache};
pub use lookup::{Extra, Match, Naming, Request};
pub use pattern::CheckResult;
pub use resize::Resized;
pub use session::{MatchSession, StepSession, StepTables};
pub use state::{CacheStatistics, ResetScope};
pub use step::{Op, OpResult, Target};
pub use table::{GroupAddresses, GroupView};
pub use write::Append;
