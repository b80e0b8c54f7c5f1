//! Kavern: GPU memory and a KV cache for inference engines, behind one C ABI.
//!
//! This is the map of the house. C programs use `include/kavern.h`, which is made from [`c_api`]; the Rust items are
//! public for the command, the tests and the benches of this repository, and promise nothing between versions.
//!
//! # Rooms, from the ground up
//!
//! A room uses the rooms below it and is used through what its `mod.rs` exports; docs/architecture.md draws it and
//! `tests/tidy.rs` holds it.
//!
//! | room | job |
//! |---|---|
//! | [`error`], [`types`], [`event`], [`sync`], [`mod@format`] | ground: statuses, ids, news, locks, block layouts |
//! | [`sys`] | the doors to the operating system: clock, randomness, mappings, forks |
//! | [`device`] | one trait for devices, checked slices, kernels with a CPU reference; `host`, `sim`, `cuda` |
//! | [`memory`] | owns device memory and counts every byte |
//! | `transfer`, `codec`, `attention`, `tier` | later: what happens to blocks on their way; none sees another |
//! | [`cache`] | blocks, sequences, prefixes, eviction, the operations of a step, the tables |
//! | `monitor` | later: watches, and asks for space back |
//! | [`manager`] | puts the rooms together: one device with its memory, streams, tickets and caches |
//! | [`c_api`] | the C boundary: handles, panics, argument checks; one noun a file |
//!
//! # Glossary
//!
//! - **Allocation**: a piece of device memory and its owner; dropping it gives the memory back.
//! - **Block**: the keys and values of a fixed number of tokens, in all layers of a group; the unit that is shared,
//!   evicted and named in tables. A block is free, open (being filled), committed (full, immutable, findable) or
//!   inactive (committed, held by nobody, evictable).
//! - **Slot**: where a block lies; also one token's place in it, in a *slot mapping*.
//! - **Group**: layers that share block size and layout; each group has its own pool and its own tables.
//! - **Sequence**: a chain of tokens under work; it has a *row* in the tables.
//! - **Prefix, key, link**: a block's key names its content and everything before it; keys are chained link by link.
//! - **Namespace**: the tenant, with salt and adapter; blocks are never shared between two of them.
//! - **Lease**: holds the hits of a lookup until a sequence takes them over.
//! - **Step**: one round of an engine's scheduler; its number rises.
//! - **Deferred**: given up, but a step in flight may still read it.
//! - **Ticket**: stands for work that a stream has been given.
//! - **Stream**: work in order on a device. **Event**, in `device`: a place on a stream; in [`event`]: a piece of news.
//! - **Handle**: what C holds of a long-lived object; a number, not an address. **Id**: the same for things in masses.
//!
//! # Verbs, each with one meaning
//!
//! | verbs | of |
//! |---|---|
//! | allocate / free | memory |
//! | acquire / release | a count: a lease, a hold on a block |
//! | reserve / release, map / unmap | addresses; physical pages behind them |
//! | admit / free | a sequence: it takes over a lease / it ends |
//! | append | schedule tokens of a sequence |
//! | commit | tokens are final; a full block becomes findable |
//! | match | look up which blocks of a prompt are there |
//! | evict | drop cached content to make room |
//! | reset | forget what is findable |
//! | open / close | a device |
//! | create / destroy | a C handle |
//! | record / wait / poll | a place on a stream / until it is reached / whether it is |
//! | register / unregister | a stream that the engine made |
//! | validate | check that the invariants hold |
//!
//! # One step through the rooms
//!
//! 1. `kavern_kv_match`: [`c_api`] checks the request and borrows the cache; `cache` chains the keys of the full
//!    blocks, looks them up and holds the hits by a lease.
//! 2. `kavern_kv_step`: operations in order, each all or nothing. Admitted and appended tokens get blocks, from the
//!    free list or by eviction; committed ones become findable. Nothing here grows memory or calls the device.
//! 3. `kavern_kv_tables`: what changed in the tables goes to addresses that never move, in stream order; slots that
//!    have to be clear are cleared.
//! 4. The engine runs its model on the same stream.
//! 5. `kavern_kv_step_done`: an event marks the stream; blocks that this step gave up are free once it is reached.
//!
//! Decisions live in the caller, loops in the leaves; news goes up as data into an [`event::EventSink`].
#![deny(unsafe_code)]

pub mod error;
pub mod event;
pub mod format;
pub mod sync;
pub mod types;

#[expect(unsafe_code, reason = "the machine's door")]
pub mod sys;

#[expect(unsafe_code, reason = "device memory is raw memory; this room turns it into checked slices")]
pub mod device;

pub mod memory;

pub mod cache;

pub mod manager;

#[expect(unsafe_code, reason = "the C boundary: raw pointers come in here and nowhere else")]
pub mod c_api;
