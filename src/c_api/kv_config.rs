//! From the structs of the KV cache's header to the room's own types: every number checked, nothing silently dropped.

use std::ffi::c_char;

use super::config::{self, CStruct, CValue, StructArray};
use super::kv_class::{self, kavern_kv_class_statistics};
use super::kv_enums::{kavern_kv_cache_flag, kavern_kv_hash, kavern_kv_request_flag, kavern_kv_scrub};
use super::kv_group;
use super::kv_types::*;
use super::lookup_types::kavern_kv_lookup_args;
use super::namespace::kavern_kv_namespace_statistics;
use super::plan::kavern_kv_plan_info;
use super::text;
use crate::cache::{
    CacheConfig, DEFAULT_POLICY, Extra, GROUPS_MAX, HashKind, IndexOptions, Naming, Request, SMALL_BYTES,
    Scrub, Sizing,
};
use crate::device::Device;
use crate::error::{Error, Result, Status};

/// Longest salt.
const SALT_LIMIT: u32 = 64;
/// Most tokens of a prompt of which keys are given: twice the longest sequence, so that sums stay far from 2^64.
const TOKENS_MAX: u64 = 1 << 32;

// Name, bytes of its first form, which callers may still pass, bytes now.
macro_rules! c_struct {
    ($($name:ident, $first:literal, $now:literal;)*) => {$(
        // SAFETY: numbers and pointers that are read with checks.
        unsafe impl CValue for $name {}
        // SAFETY: begins with struct_size.
        unsafe impl CStruct for $name {
            const NAME: &'static str = stringify!($name);
            const FIRST_BYTES: usize = $first;

            fn defaults() -> Self {
                config::zeroed()
            }
        }
        const _: () = assert!(size_of::<$name>() == $now, "a struct grows only at its end; its first size stays");
    )*};
}

c_struct! {
    kavern_kv_group, 88, 104;
    kavern_kv_request, 120, 120;
    kavern_kv_op, 80, 120;
    kavern_kv_step_tables, 80, 120;
    kavern_kv_statistics, 200, 296;
    kavern_kv_namespace_statistics, 112, 120;
    kavern_kv_plan_info, 56, 56;
    kavern_kv_description, 104, 120;
    kavern_kv_append_args, 48, 48;
    kavern_kv_class_statistics, 120, 120;
    kavern_kv_lookup_args, 48, 48;
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_kv_match_result {}
// SAFETY: numbers only.
unsafe impl CValue for kavern_kv_op_result {}
// SAFETY: numbers and pointers that nobody follows.
unsafe impl CValue for kavern_kv_group_tables {}
// SAFETY: numbers only.
unsafe impl CValue for kavern_kv_completion {}
// SAFETY: numbers only.
unsafe impl CValue for kavern_kv_event {}
// SAFETY: numbers and characters.
unsafe impl CValue for kavern_kv_prefix {}
// SAFETY: numbers only.
unsafe impl CValue for kavern_kv_check_result {}
// SAFETY: numbers only.
unsafe impl CValue for Extra {}
// SAFETY: numbers and pointers that are read with checks.
unsafe impl CValue for kavern_kv_cache_config {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_kv_cache_config {
    const NAME: &'static str = "kavern_kv_cache_config";
    const FIRST_BYTES: usize = 176;

    fn defaults() -> Self {
        Self {
            max_sequences: 256,
            max_batch_tokens: 8192,
            max_leases: 64,
            max_namespaces: 4096,
            steps_in_flight: 4,
            hash: kavern_kv_hash::KAVERN_HASH_BLAKE3 as u32,
            scrub: kavern_kv_scrub::KAVERN_SCRUB_TENANT_CHANGE as u32,
            ..config::zeroed()
        }
    }
}
const _: () = assert!(size_of::<kavern_kv_cache_config>() == 184, "a struct grows only at its end");
const _: () =
    assert!(size_of::<kavern_kv_extra>() == size_of::<Extra>(), "the header's struct is the room's");

pub(super) fn unsupported(text: &'static str) -> Error {
    Error::new(Status::Unsupported, text)
}

pub(super) fn unknown(what: &str, value: u32) -> Error {
    Error::argument(format!("{what} {value} is unknown; use a value of the header"))
}

fn hash_kind(value: u32) -> Result<HashKind> {
    match value {
        1 => Ok(HashKind::Blake3),
        2 => Ok(HashKind::Xxh3),
        _ => Err(unknown("hash", value)),
    }
}

fn scrub(value: u32) -> Result<Scrub> {
    match value {
        1 => Ok(Scrub::None),
        2 => Ok(Scrub::TenantChange),
        3 => Ok(Scrub::Always),
        _ => Err(unknown("scrub", value)),
    }
}

/// Reads everything that a configuration points to.
///
/// # Safety
/// The pointers in `settings` are null or point to what the header says.
pub(super) unsafe fn cache_config(
    settings: &kavern_kv_cache_config,
    device: &dyn Device,
) -> Result<CacheConfig> {
    let metadata_only = kavern_kv_cache_flag::KAVERN_KV_METADATA_ONLY as u32;
    let ragged = kavern_kv_cache_flag::KAVERN_KV_RAGGED_TABLES as u32;
    let require_salt = kavern_kv_cache_flag::KAVERN_KV_REQUIRE_SALT as u32;
    let device_index = kavern_kv_cache_flag::KAVERN_KV_DEVICE_INDEX as u32;
    let chunk_index = kavern_kv_cache_flag::KAVERN_KV_CHUNK_INDEX as u32;
    let partial_hits = kavern_kv_cache_flag::KAVERN_KV_PARTIAL_HITS as u32;
    let worker = kavern_kv_cache_flag::KAVERN_KV_WORKER as u32;
    let exact_order = kavern_kv_cache_flag::KAVERN_KV_EXACT_ORDER as u32;
    let adaptive = kavern_kv_cache_flag::KAVERN_KV_ADAPTIVE_BLOCKS as u32;
    let known = metadata_only
        | adaptive
        | ragged
        | require_salt
        | device_index
        | chunk_index
        | partial_hits
        | worker
        | exact_order;
    config::check_flags(settings.flags, known, "kavern_kv_cache_config")?;
    config::check_reserved(&settings.reserved, "kavern_kv_cache_config")?;
    let later: [*const c_char; 5] = [
        settings.fingerprint,
        settings.codec_vram,
        settings.codec_ram,
        settings.codec_disk,
        settings.codec_remote,
    ];
    if later.iter().any(|text| !text.is_null()) {
        return Err(unsupported("fingerprint and codecs are for later versions; leave them null"));
    }
    if settings.group_count > GROUPS_MAX as u32 {
        let text = format!("group_count is {}; it must be 1 to {GROUPS_MAX}", settings.group_count);
        return Err(Error::argument(text));
    }
    // SAFETY: the caller's promise.
    let groups =
        unsafe { StructArray::new(settings.groups, settings.group_count as usize, "config.groups") }?;
    let classes = groups.iter().map(|group| group.size_class).collect();
    // SAFETY: the caller's promise.
    let adaptive = unsafe { kv_class::adaptive(settings, settings.flags & adaptive != 0, classes) }?;
    let groups = groups.iter().map(|group| kv_group::read(&group, device)).collect::<Result<Vec<_>>>()?;
    // SAFETY: the caller's promise.
    let policy = unsafe { text::read_optional(settings.policy, "config.policy") }?;
    // SAFETY: the caller's promise.
    let name = unsafe { text::read_optional(settings.name, "config.name") }?;
    let mut hash_secret = [0u8; 32];
    if settings.hash_secret.is_null() {
        crate::sys::random::fill(&mut hash_secret)?;
    } else {
        // SAFETY: the caller's promise: 32 bytes.
        hash_secret
            .copy_from_slice(unsafe { config::array(settings.hash_secret, 32, "config.hash_secret") }?);
    }
    Ok(CacheConfig {
        name: name.unwrap_or("kv").to_owned(),
        groups,
        capacity_blocks: settings.capacity_blocks,
        capacity_bytes: settings.capacity_bytes,
        max_sequences: settings.max_sequences,
        max_sequence_tokens: settings.max_sequence_tokens,
        max_batch_tokens: settings.max_batch_tokens,
        max_leases: settings.max_leases,
        max_namespaces: settings.max_namespaces,
        steps_in_flight: settings.steps_in_flight,
        hash_block_tokens: settings.hash_block_tokens,
        hash: hash_kind(settings.hash)?,
        scrub: scrub(settings.scrub)?,
        event_capacity: settings.event_capacity,
        policy: policy.unwrap_or(DEFAULT_POLICY).to_owned(),
        hash_secret,
        metadata_only: settings.flags & metadata_only != 0,
        ragged: settings.flags & ragged != 0,
        require_salt: settings.flags & require_salt != 0,
        index: IndexOptions {
            device: settings.flags & device_index != 0,
            chunks: settings.flags & chunk_index != 0,
        },
        partial_hits: settings.flags & partial_hits != 0,
        worker: settings.flags & worker != 0,
        exact_order: settings.flags & exact_order != 0,
        adaptive,
        max_blocks: settings.max_blocks,
        small_bytes: SMALL_BYTES,
    })
}

/// Extras that the caller passes in.
///
/// # Safety
/// `pointer` is null or points to `count` extras that nobody writes during the call.
#[inline]
pub(super) unsafe fn extras<'a>(pointer: *const kavern_kv_extra, count: u64) -> Result<&'a [Extra]> {
    // SAFETY: the caller's promise; the two structs are the same.
    unsafe { config::array_u64(pointer.cast::<Extra>(), count, "extras") }
}

/// Reads one request.
///
/// # Safety
/// Its pointers are null or point to what the header says.
pub(super) unsafe fn request<'a>(request: &kavern_kv_request, link_tokens: u32) -> Result<Request<'a>> {
    use kavern_kv_request_flag::*;
    let known = [
        KAVERN_REQUEST_NO_READ,
        KAVERN_REQUEST_NO_STORE,
        KAVERN_REQUEST_DROP_LAST,
        KAVERN_REQUEST_KEEP_ONE_TOKEN,
        KAVERN_REQUEST_CHUNKS,
    ];
    let has = |flag: kavern_kv_request_flag| request.flags & flag as u32 != 0;
    let known_bits = known.iter().fold(0, |bits, &flag| bits | flag as u32);
    if request.flags & !known_bits != 0 || request.reserved != 0 {
        return Err(Error::new(Status::InvalidArgument, "a flag or reserved word of the request is unknown"));
    }
    if request.salt_bytes > SALT_LIMIT || request.key_bytes > 32 {
        return Err(Error::new(Status::InvalidArgument, "a salt has at most 64 bytes, a key at most 32"));
    }
    // SAFETY: the caller's promise.
    let salt = unsafe { config::array_u64(request.salt, request.salt_bytes.into(), "salt") }?;
    let (naming, token_count) = if request.key_bytes == 0 {
        if request.key_count != 0 {
            return Err(Error::new(Status::InvalidArgument, "keys without key_bytes"));
        }
        if has(KAVERN_REQUEST_CHUNKS) {
            return Err(Error::new(Status::InvalidArgument, "KAVERN_REQUEST_CHUNKS goes with keys"));
        }
        // SAFETY: the caller's promise.
        let tokens = unsafe { config::array_u64(request.tokens, request.token_count, "tokens") }?;
        // SAFETY: the caller's promise.
        let extras = unsafe { extras(request.extras, request.extra_count) }?;
        (Naming::Tokens(tokens, extras), request.token_count)
    } else {
        if !request.tokens.is_null() || request.extra_count != 0 {
            return Err(Error::new(
                Status::InvalidArgument,
                "tokens or extras beside keys; give one of the two",
            ));
        }
        let total = request.key_count.checked_mul(request.key_bytes.into());
        let total = total.ok_or(Error::new(Status::InvalidArgument, "key_count overflows"))?;
        // SAFETY: the caller's promise.
        let bytes = unsafe { config::array_u64(request.keys, total, "keys") }?;
        // No overflow: total is at most isize::MAX, and link_tokens at most 2^16; saturate all the same.
        let in_keys = request.key_count.saturating_mul(link_tokens.into());
        let token_count = if request.token_count == 0 { in_keys } else { request.token_count };
        if token_count < in_keys {
            return Err(Error::new(Status::InvalidArgument, "token_count is less than the keys stand for"));
        }
        if token_count > TOKENS_MAX {
            return Err(Error::new(Status::InvalidArgument, "token_count is more than any prompt has"));
        }
        let key_bytes = request.key_bytes;
        match has(KAVERN_REQUEST_CHUNKS) {
            true => (Naming::Chunks { bytes, key_bytes }, token_count),
            false => (Naming::Keys { bytes, key_bytes }, token_count),
        }
    };
    Ok(Request {
        namespace_id: request.namespace_id,
        adapter_id: request.adapter_id,
        salt,
        naming,
        token_count,
        no_read: has(KAVERN_REQUEST_NO_READ),
        no_store: has(KAVERN_REQUEST_NO_STORE),
        drop_last: has(KAVERN_REQUEST_DROP_LAST),
        keep_one_token: has(KAVERN_REQUEST_KEEP_ONE_TOKEN),
        sizing: Sizing { expected_tokens: request.expected_tokens, class: request.size_class },
    })
}
