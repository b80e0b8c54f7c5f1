//! A decoding engine as the cache sees it: many running sequences, one token each a step, through the C functions.
//!
//! Shared by the bench that records the figure and the test that gates it.

use std::ffi::c_void;
use std::ptr;

use kavern::c_api::cache::{kavern_kv_cache_config_init, kavern_kv_cache_create, kavern_kv_cache_destroy};
use kavern::c_api::kv_types::*;
use kavern::c_api::manager::{
    kavern_manager_config, kavern_manager_config_init, kavern_manager_create, kavern_manager_destroy,
};
use kavern::c_api::step::{
    kavern_kv_match, kavern_kv_poll, kavern_kv_step, kavern_kv_step_done, kavern_kv_tables,
};
use kavern::c_api::types::{kavern_kv_cache, kavern_manager};

pub(crate) const SEQUENCES: usize = 1024;
pub(crate) const BLOCK_TOKENS: u64 = 16;
/// Tokens at which a sequence ends and another takes its place.
const LONGEST: u64 = 1024;
const KEY_BYTES: u32 = 32;
/// KAVERN_STREAM_DEFAULT of the header.
const STREAM_DEFAULT: *mut c_void = ptr::without_provenance_mut(1);

/// The calls of a step, in their order.
#[allow(dead_code, reason = "the bench asks for it, the test does not")]
pub(crate) const CALLS: [&str; 5] = ["match", "step", "tables", "poll", "step_done"];

/// How blocks are named.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Naming {
    Keys,
    Blake3,
    Xxh3,
}

struct Running {
    id: u64,
    tokens: u64,
}

pub(crate) struct Engine {
    manager: *mut kavern_manager,
    cache: *mut kavern_kv_cache,
    naming: Naming,
    step: u64,
    running: Vec<Running>,
    ops: Vec<kavern_kv_op>,
    results: Vec<kavern_kv_op_result>,
    keys: Vec<[u8; 32]>,
    ids: Vec<i32>,
    next_key: u64,
    groups: [kavern_kv_group_tables; 1],
}

pub(crate) fn zeroed<T: Copy>() -> T {
    // SAFETY: used for the header's structs only, in which all zeros are values.
    unsafe { std::mem::zeroed() }
}

fn ok(status: i32) {
    assert_eq!(status, 0, "a call of the load was refused");
}

impl Engine {
    pub(crate) fn new(naming: Naming, device: &std::ffi::CStr) -> Self {
        let mut settings: kavern_manager_config = zeroed();
        // SAFETY: a struct of the size that is given.
        ok(unsafe { kavern_manager_config_init(&raw mut settings, size_of::<kavern_manager_config>()) });
        settings.device = device.as_ptr();
        let mut manager = ptr::null_mut();
        // SAFETY: filled above; the device's name lives.
        ok(unsafe { kavern_manager_create(&raw const settings, &raw mut manager) });
        let group = kavern_kv_group {
            struct_size: size_of::<kavern_kv_group>() as u32,
            kind: 1,
            layers: 1,
            kv_heads: 1,
            head_dim: 16,
            dtype: 2,
            block_tokens: BLOCK_TOKENS as u32,
            layout: 1,
            ..zeroed()
        };
        let mut config: kavern_kv_cache_config = zeroed();
        // SAFETY: a struct of the size that is given.
        ok(unsafe { kavern_kv_cache_config_init(&raw mut config, size_of::<kavern_kv_cache_config>()) });
        config.groups = &raw const group;
        config.group_count = 1;
        config.capacity_blocks = 2 * SEQUENCES as u64 * LONGEST / BLOCK_TOKENS;
        config.max_sequences = SEQUENCES as u32;
        config.max_sequence_tokens = LONGEST;
        config.max_batch_tokens = SEQUENCES as u32 * BLOCK_TOKENS as u32;
        config.hash = if naming == Naming::Xxh3 { 2 } else { 1 };
        let mut cache = ptr::null_mut();
        // SAFETY: filled above; group lives.
        ok(unsafe { kavern_kv_cache_create(manager, &raw const config, &raw mut cache) });
        let mut engine = Self {
            manager,
            cache,
            naming,
            step: 0,
            running: Vec::with_capacity(SEQUENCES),
            ops: Vec::with_capacity(3 * SEQUENCES),
            results: vec![kavern_kv_op_result::default(); 3 * SEQUENCES],
            keys: Vec::with_capacity(SEQUENCES),
            ids: vec![0; BLOCK_TOKENS as usize * SEQUENCES],
            next_key: 0,
            groups: [zeroed()],
        };
        (0..SEQUENCES).for_each(|_| engine.running.push(Running { id: 0, tokens: 0 }));
        // Each sequence starts at another place in its block, so that every step one in 16 crosses a block.
        for index in 0..SEQUENCES {
            engine.admit(index, 1 + index as u64 % BLOCK_TOKENS);
        }
        engine
    }

    fn admit(&mut self, index: usize, tokens: u64) {
        let request = kavern_kv_request {
            struct_size: size_of::<kavern_kv_request>() as u32,
            flags: 1,
            key_bytes: if self.naming == Naming::Keys { KEY_BYTES } else { 0 },
            ..zeroed()
        };
        let mut found = kavern_kv_match_result::default();
        // SAFETY: one request without pointers, one result.
        ok(unsafe { kavern_kv_match(self.cache, 1, &raw const request, &raw mut found) });
        self.step += 1;
        let admit = kavern_kv_op {
            struct_size: size_of::<kavern_kv_op>() as u32,
            kind: 1,
            target: found.lease,
            tokens,
            row: -1,
            ..zeroed()
        };
        // SAFETY: one operation without pointers, room for its result.
        ok(unsafe { kavern_kv_step(self.cache, self.step, 1, &raw const admit, self.results.as_mut_ptr()) });
        self.running[index] = Running { id: self.results[0].sequence, tokens };
        // SAFETY: a live cache; the work of the step is nothing.
        ok(unsafe { kavern_kv_step_done(self.cache, self.step, ptr::null_mut()) });
    }

    /// Replaces sequences that have reached their end; not part of the measured step.
    pub(crate) fn turn_over(&mut self) {
        for index in 0..SEQUENCES {
            if self.running[index].tokens < LONGEST {
                continue;
            }
            let id = self.running[index].id;
            self.step += 1;
            let free = kavern_kv_op {
                struct_size: size_of::<kavern_kv_op>() as u32,
                kind: 4,
                target: id,
                ..zeroed()
            };
            // SAFETY: one operation without pointers, room for its result.
            ok(unsafe {
                kavern_kv_step(self.cache, self.step, 1, &raw const free, self.results.as_mut_ptr())
            });
            // SAFETY: a live cache; the work of the step is nothing.
            ok(unsafe { kavern_kv_step_done(self.cache, self.step, ptr::null_mut()) });
            self.admit(index, 1);
        }
    }

    /// Lists the operations of the next step: what an engine's scheduler would do, not part of the measured step.
    pub(crate) fn plan(&mut self) {
        self.turn_over();
        self.ops.clear();
        self.keys.clear();
        let op = kavern_kv_op { struct_size: size_of::<kavern_kv_op>() as u32, row: -1, ..zeroed() };
        for running in &mut self.running {
            self.ops.push(kavern_kv_op { kind: 2, target: running.id, tokens: 1, ..op });
            running.tokens += 1;
            if running.tokens % BLOCK_TOKENS != 0 {
                continue;
            }
            self.next_key += 1;
            let mut key = [0u8; 32];
            key[..8].copy_from_slice(&self.next_key.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            let at = self.keys.len();
            self.keys.push(key);
            let mut commit = kavern_kv_op { kind: 3, target: running.id, tokens: BLOCK_TOKENS, ..op };
            if self.naming == Naming::Keys {
                commit.keys = self.keys[at].as_ptr();
                commit.key_count = 1;
                commit.key_bytes = KEY_BYTES;
            } else {
                let ids = &mut self.ids[at * BLOCK_TOKENS as usize..][..BLOCK_TOKENS as usize];
                ids.iter_mut().for_each(|id| *id = self.next_key as i32);
                commit.token_ids = ids.as_ptr();
            }
            self.ops.push(commit);
        }
    }

    /// The five calls of a step; all of its work is over when the next one is planned.
    pub(crate) fn run(&mut self) {
        self.run_in_parts(|_| ());
    }

    /// The same; says after each call which of the [`CALLS`] is over.
    pub(crate) fn run_in_parts(&mut self, mut is_over: impl FnMut(usize)) {
        self.step += 1;
        // SAFETY: no requests.
        ok(unsafe { kavern_kv_match(self.cache, 0, ptr::null(), ptr::null_mut()) });
        is_over(0);
        let (count, ops, results) = (self.ops.len(), self.ops.as_ptr(), self.results.as_mut_ptr());
        // SAFETY: `count` operations whose keys and ids live in this struct, room for as many results.
        ok(unsafe { kavern_kv_step(self.cache, self.step, count, ops, results) });
        is_over(1);
        let mut tables = kavern_kv_step_tables {
            struct_size: size_of::<kavern_kv_step_tables>() as u32,
            group_capacity: 1,
            groups: self.groups.as_mut_ptr(),
            ..zeroed()
        };
        // SAFETY: a struct of its size, with room for one group.
        ok(unsafe { kavern_kv_tables(self.cache, self.step, STREAM_DEFAULT, &raw mut tables) });
        assert_eq!(tables.batch_count as usize, SEQUENCES);
        is_over(2);
        let mut done = 0;
        // SAFETY: no room for completions, one count.
        ok(unsafe { kavern_kv_poll(self.cache, 0, ptr::null_mut(), &raw mut done) });
        is_over(3);
        // SAFETY: a live cache.
        ok(unsafe { kavern_kv_step_done(self.cache, self.step, STREAM_DEFAULT) });
        is_over(4);
    }

    /// The cheapest call: guard, lookup of the handle, nothing to do.
    #[allow(dead_code, reason = "the bench asks for it, the test does not")]
    pub(crate) fn empty_call(&self) {
        // SAFETY: no requests.
        ok(unsafe { kavern_kv_match(self.cache, 0, ptr::null(), ptr::null_mut()) });
    }

    /// Waits for the device, as an engine does before it samples.
    pub(crate) fn settle(&mut self) {
        // SAFETY: a live manager.
        ok(unsafe { kavern::c_api::stream::kavern_stream_synchronize(self.manager, STREAM_DEFAULT) });
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: handles that this struct made.
        ok(unsafe { kavern_kv_cache_destroy(&raw mut self.cache) });
        // SAFETY: as above.
        ok(unsafe { kavern_manager_destroy(&raw mut self.manager) });
    }
}
