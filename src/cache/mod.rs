//! The paged, prefix-sharing KV cache.
//!
//! [`KvCache`] is the front. A scheduler step is five calls: match, step, tables, poll, step_done; the rules stand in
//! docs/abi.md. Glossary: a *group* is a set of layers that share block size and pool; a *block* holds the keys and
//! values of `block_tokens` tokens; a block is *findable* from its commit until its eviction; a *lease* keeps the hits
//! of a lookup alive; a *row* is a sequence's place in the tables.
//!
//! One lock guards all bookkeeping. It is never held across a call into the device, and nothing is allocated under it.

mod advise;
mod ages;
mod ahead;
mod balance;
mod batch;
mod bits;
mod block;
mod branch;
mod change;
mod children;
mod chunks;
mod classes;
mod config;
mod copies;
mod device_index;
mod edit;
mod events;
mod evict;
mod free;
mod group;
mod growth;
mod hash;
mod held;
mod holder;
mod hybrid;
mod identity;
mod index;
mod index_kernels;
mod kernels;
mod kin;
mod kv_cache;
mod lanes;
mod list;
mod lists;
mod lookup;
mod mirror;
mod moves;
mod namespace;
mod news;
mod op;
mod op_result;
mod outcomes;
mod owner_lists;
mod owners;
mod partial;
mod pattern;
mod plan;
mod plan_steps;
mod pool;
mod preempt;
mod prefix;
mod prefixes;
mod probe;
mod promise;
mod publish;
mod quota;
mod resize;
mod retain;
mod retention;
mod rewind;
mod sequence;
mod session;
mod sizes;
mod snapshots;
mod state;
mod step;
mod steps;
mod store;
mod store_owned;
mod store_retained;
mod table;
mod tally;
mod trunks;
mod upload;
mod vacate;
mod walk;
mod write;
mod zeros;

pub use advise::{DEFAULT_ADVISOR, advisor_names};
pub use change::{Change, PreemptMode};
pub use chunks::ChunkHit;
pub use classes::AdaptiveBlocks;
pub use config::{
    CacheConfig, Content, DEFAULT_ROW_CELLS, GROUPS_MAX, GroupConfig, HashKind, IndexOptions, SMALL_BYTES,
    Scrub,
};
pub use copies::TokenCopy;
pub use device_index::{DeviceLookup, LookupMode};
pub use events::{CacheEvent, CacheEventKind, RemoveReason};
pub use evict::{DEFAULT_POLICY, policy_names};
pub use group::Reach;
pub use hash::Key;
pub use kernels::kernels;
pub use kv_cache::{GroupDescription, KvCache};
pub use lookup::{Extra, Match, Naming, Request};
pub use owners::{NO_LIMIT, NamespaceStatistics};
pub use pattern::CheckResult;
pub use plan::PlanInfo;
pub use prefixes::{MAX_PREFIXES, PrefixInfo};
pub use resize::Resized;
pub use retain::Stretch;
pub use session::{MatchSession, StepSession, StepTables};
pub use sizes::{ClassAdvice, ClassStatistics, Sizing};
pub use state::{CacheStatistics, ResetScope};
pub use step::{Op, OpResult, Target};
pub use table::{GroupAddresses, GroupView};
pub use write::Append;
pub use zeros::ZeroBlock;
