//! Size classes of a KV cache with adaptive blocks: what a sequence would get, and what each class costs.

use super::config::{CValue, Out, OutStruct};
use super::guard::guard_on;
use super::kv_types::kavern_kv_cache_config;
use super::text;
use super::types::{kavern_kv_cache, kavern_status};
use crate::cache::{AdaptiveBlocks, ClassAdvice, ClassStatistics, DEFAULT_ADVISOR};
use crate::error::{Error, Result, Status};

/// Of a thousand slots held, those that may be without a token, where the caller says nothing.
const WASTE_PERMILLE: u32 = 50;
/// Cells for a thousand tokens, the same: as many as blocks of 50 tokens have.
const TABLE_PERMILLE: u32 = 20;

/// The size class that suits a sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kavern_kv_advice {
    /// 1 small, 2 primary, 3 large.
    pub size_class: u32,
    /// Its group.
    pub group: u32,
    /// Tokens of a block there.
    pub block_tokens: u32,
    /// Zero.
    pub reserved: u32,
    /// Tokens that the sequence is taken to reach; no more than max_sequence_tokens of the cache.
    pub predicted_tokens: u64,
}

/// What a size class holds and did. 1 - tokens / slots is its waste, cells / tokens the cost of its tables.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_class_statistics {
    /// sizeof(kavern_kv_class_statistics).
    pub struct_size: u32,
    /// 1 small, 2 primary, 3 large.
    pub size_class: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Zero.
    pub reserved: u32,
    /// Sequences now.
    pub sequences: u64,
    /// Tokens that they have.
    pub tokens: u64,
    /// Slots that they hold, a shared block counted for each.
    pub slots: u64,
    /// Cells of their rows.
    pub cells: u64,
    /// Sequences that began here by ADMIT.
    pub begun_sequences: u64,
    /// Of those, how many ended with blocks; what they had then follows.
    pub ended_sequences: u64,
    /// Tokens.
    pub ended_tokens: u64,
    /// Slots.
    pub ended_slots: u64,
    /// Cells.
    pub ended_cells: u64,
    /// Lookups that would have begun here, but there was no room.
    pub passed_over: u64,
    /// Operations refused for want of blocks here.
    pub refused_ops: u64,
    /// Bytes of blocks that came from other classes.
    pub gained_bytes: u64,
    /// Bytes of blocks that went to other classes, or are on their way.
    pub given_bytes: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_kv_advice {}

impl From<ClassAdvice> for kavern_kv_advice {
    fn from(advice: ClassAdvice) -> Self {
        let ClassAdvice { size_class, group, block_tokens, predicted_tokens } = advice;
        Self { size_class, group, block_tokens, reserved: 0, predicted_tokens }
    }
}

impl From<ClassStatistics> for kavern_kv_class_statistics {
    fn from(s: ClassStatistics) -> Self {
        Self {
            struct_size: 0,
            size_class: s.size_class,
            block_tokens: s.block_tokens,
            reserved: 0,
            sequences: s.sequences,
            tokens: s.tokens,
            slots: s.slots,
            cells: s.cells,
            begun_sequences: s.begun_sequences,
            ended_sequences: s.ended_sequences,
            ended_tokens: s.ended_tokens,
            ended_slots: s.ended_slots,
            ended_cells: s.ended_cells,
            passed_over: s.passed_over,
            refused_ops: s.refused_ops,
            gained_bytes: s.gained_bytes,
            given_bytes: s.given_bytes,
        }
    }
}

/// Reads what a configuration says of size classes.
///
/// # Safety
/// `settings.block_advisor` is null or points to a text that ends with 0.
pub(super) unsafe fn adaptive(
    settings: &kavern_kv_cache_config,
    is_adaptive: bool,
    classes: Vec<u32>,
) -> Result<Option<AdaptiveBlocks>> {
    let kavern_kv_cache_config { block_advisor, waste_permille, table_permille, .. } = *settings;
    if !is_adaptive {
        let has_words = !block_advisor.is_null() || waste_permille != 0 || table_permille != 0;
        if has_words || classes.iter().any(|&class| class != 0) {
            return Err(Error::argument(
                "size_class, block_advisor, waste_permille and table_permille go with KAVERN_KV_ADAPTIVE_BLOCKS; set \
                 the flag or leave them 0",
            ));
        }
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let advisor = unsafe { text::read_optional(block_advisor, "config.block_advisor") }?;
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    Ok(Some(AdaptiveBlocks {
        classes,
        advisor: advisor.unwrap_or(DEFAULT_ADVISOR).to_owned(),
        waste_permille: or(waste_permille, WASTE_PERMILLE),
        table_permille: or(table_permille, TABLE_PERMILLE),
    }))
}

/// Tells which size class a sequence would get that hits nothing, by its length alone; changes nothing.
///
/// `expected_tokens` is what the sequence is expected to reach, 0 if nobody knows.
/// Errors: KAVERN_ERR_UNSUPPORTED (no KAVERN_KV_ADAPTIVE_BLOCKS, or a worker's cache), KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER.
/// Threads: any; takes the cache's lock for a moment.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_advise(
    cache: *const kavern_kv_cache,
    namespace_id: u64,
    prompt_tokens: u64,
    expected_tokens: u64,
    out: *mut kavern_kv_advice,
) -> kavern_status {
    guard_on("kavern_kv_advise", cache, |object| {
        // SAFETY: the header asks for a writable value or null.
        let out = unsafe { Out::new(out, "out") }?;
        out.write(object.cache.advise(namespace_id, prompt_tokens, expected_tokens)?.into());
        Ok(Status::Ok)
    })
}

/// Reads what the size class of a group holds and did.
///
/// Errors: KAVERN_ERR_UNSUPPORTED (no KAVERN_KV_ADAPTIVE_BLOCKS, or a worker's cache), KAVERN_ERR_INVALID_ARGUMENT (no
/// such group), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; takes the cache's lock for 1,024 rows at a time.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_class_stats(
    cache: *const kavern_kv_cache,
    group: u32,
    out: *mut kavern_kv_class_statistics,
) -> kavern_status {
    guard_on("kavern_kv_class_stats", cache, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&object.cache.class_statistics(group)?.into());
        Ok(Status::Ok)
    })
}
