//! Operations of a step that change a sequence otherwise than at its end, on their way from the header to the room, and
//! which fields an operation uses.

use super::config;
use super::kv_config;
use super::kv_enums::kavern_kv_op_kind;
use super::kv_types::kavern_kv_op;
use crate::cache::{Change, Naming, Op, OpResult, PreemptMode, StepSession, Target};
use crate::error::{Error, Result, Status};
use crate::types::Id;

/// A run of tokens that a step copies from slots to slots before its work. All of a block's tokens are the whole block.
///
/// A slot is block x block_tokens + offset, also in opaque groups. A run lies in one block on either side.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_token_copy {
    /// The group.
    pub group: u32,
    /// Row of the sequence that it is for; -1 for a pinned block that nobody holds.
    pub row: i32,
    /// First slot that is read.
    pub source_slot: i64,
    /// First slot that is written.
    pub target_slot: i64,
    /// Tokens.
    pub tokens: u32,
    /// What is added to the positions of these tokens, 0 or negative: where keys carry their position (RoPE), rotate
    /// those in the target slots by it when all copies of the list are made, and before attention or the next
    /// kavern_kv_tables reads them. A run that reads what another one of the list wrote is told with the shifts of
    /// both.
    pub shift: i32,
}

/// A block that the engine fills with zeros before a step's work, because the cache has no memory of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_zero_block {
    /// The group.
    pub group: u32,
    /// The block.
    pub block: i32,
}

const _: () = assert!(size_of::<kavern_kv_zero_block>() == size_of::<crate::cache::ZeroBlock>());
const _: () = assert!(size_of::<kavern_kv_token_copy>() == size_of::<crate::cache::TokenCopy>());

/// # Safety
/// The pointers of `op` are as its fields say.
#[inline]
pub(super) unsafe fn commit_naming<'a>(op: &kavern_kv_op) -> Result<Naming<'a>> {
    if op.key_bytes == 0 {
        if op.key_count != 0 {
            return Err(Error::new(Status::InvalidArgument, "keys without key_bytes"));
        }
        // SAFETY: the caller's promise.
        let ids = unsafe { config::array_u64(op.token_ids, op.tokens, "token_ids") }?;
        // SAFETY: the caller's promise.
        return Ok(Naming::Tokens(ids, unsafe { kv_config::extras(op.extras, op.extra_count) }?));
    }
    if !op.token_ids.is_null() || op.extra_count != 0 {
        return Err(Error::new(
            Status::InvalidArgument,
            "token ids or extras beside keys; give one of the two",
        ));
    }
    if op.key_bytes > 32 {
        return Err(Error::new(Status::InvalidArgument, "a key has at most 32 bytes"));
    }
    let total = op.key_count.checked_mul(op.key_bytes.into());
    let total = total.ok_or(Error::new(Status::InvalidArgument, "key_count overflows"))?;
    // SAFETY: the caller's promise.
    let bytes = unsafe { config::array_u64(op.keys, total, "keys") }?;
    Ok(Naming::Keys { bytes, key_bytes: op.key_bytes })
}

fn unused(name: &str) -> Error {
    Error::argument(format!("this kind of operation does not use {name}; leave it 0"))
}

/// 0 if no field is set that only later kinds than the first five have, but for that of ADMIT.
#[inline]
fn later_fields(op: &kavern_kv_op) -> u64 {
    op.offset | op.ttl_ms | op.expected_tokens | op.lease | u64::from(op.priority | op.mode)
}

/// 0 if nothing names tokens.
#[inline]
fn naming_fields(op: &kavern_kv_op) -> u64 {
    let places = op.token_ids.addr() | op.keys.addr() | op.extras.addr();
    places as u64 | op.key_count | op.extra_count | u64::from(op.key_bytes)
}

/// Whether an operation that chooses no row names one.
#[inline]
fn names_row(op: &kavern_kv_op) -> bool {
    !matches!(op.row, -1 | 0)
}

/// Refuses fields of the operation that its kind does not use, so that a wish is not ignored silently.
pub(super) fn check_unused(op: &kavern_kv_op) -> Result<()> {
    // Most are one of the first five kinds and have nothing that could be wrong.
    let is_plain = later_fields(op) == 0
        && match op.kind {
            1 => naming_fields(op) == 0 && op.row >= -1,
            2 => naming_fields(op) == 0 && !names_row(op),
            3 => op.lookahead == 0 && !names_row(op),
            4 | 5 => naming_fields(op) | op.tokens | u64::from(op.lookahead) == 0 && !names_row(op),
            _ => false,
        };
    match is_plain {
        true => Ok(()),
        false => check_each_unused(op),
    }
}

fn check_each_unused(op: &kavern_kv_op) -> Result<()> {
    let is_used = |kinds: &[u32]| kinds.contains(&op.kind);
    let fields = [
        ("offset", op.offset != 0, is_used(&[8, 9, 13, 14, 15])),
        ("ttl_ms", op.ttl_ms != 0, is_used(&[15])),
        ("expected_tokens", op.expected_tokens != 0, is_used(&[1])),
        ("lease", op.lease != 0, is_used(&[11])),
        ("priority", op.priority != 0, is_used(&[15])),
        ("mode", op.mode != 0, is_used(&[10])),
        ("tokens", op.tokens != 0, is_used(&[1, 2, 3, 6, 7, 9, 11, 13, 14, 15])),
        ("lookahead", op.lookahead != 0, is_used(&[1, 2, 6, 11])),
        ("row", names_row(op), is_used(&[1, 7])),
        ("token_ids", !op.token_ids.is_null(), is_used(&[3, 6])),
        ("keys", !op.keys.is_null(), is_used(&[3])),
        ("key_count", op.key_count != 0, is_used(&[3])),
        ("extras", !op.extras.is_null(), is_used(&[3, 6])),
        ("extra_count", op.extra_count != 0, is_used(&[3, 6])),
        ("key_bytes", op.key_bytes != 0, is_used(&[3])),
    ];
    // Of a kind that there is not, the kind is what is wrong.
    let is_known = matches!(op.kind, 1..=15 | 18);
    if let Some((name, ..)) = fields.iter().find(|(_, is_set, used)| is_known && *is_set && !used) {
        return Err(unused(name));
    }
    match op.row < -1 && is_known {
        true => Err(Error::argument("row is that of the tables, or -1 for any")),
        false => Ok(()),
    }
}

/// Whether later operations of a list on the same target depend on one of this kind.
pub(super) fn has_dependants(kind: u32) -> bool {
    matches!(kind, 2 | 3 | 6 | 8..=11 | 18)
}

/// The change that an operation of one of these kinds asks for.
///
/// # Safety
/// The pointers of `op` are as its fields say.
pub(super) unsafe fn change<'a>(op: &kavern_kv_op, link_tokens: u32) -> Result<Change<'a>> {
    Ok(match op.kind {
        6 => {
            let open = op.tokens % u64::from(link_tokens);
            let count = if op.token_ids.is_null() { 0 } else { open };
            // SAFETY: the caller's promise.
            let open_tokens = unsafe { config::array_u64(op.token_ids, count, "token_ids") }?;
            // SAFETY: the caller's promise.
            let extras = unsafe { kv_config::extras(op.extras, op.extra_count) }?;
            Change::Rollback { tokens: op.tokens, lookahead: op.lookahead, open_tokens, extras }
        }
        7 => Change::Fork { tokens: op.tokens, row: op.row },
        9 => Change::Edit { offset: op.offset, tokens: op.tokens },
        10 => Change::Preempt {
            mode: match op.mode {
                1 => PreemptMode::Keep,
                2 => PreemptMode::Drop,
                3 => {
                    let text = "KAVERN_PREEMPT_SWAP comes with a later version";
                    return Err(Error::new(Status::Unsupported, text));
                }
                mode => return Err(Error::argument(format!("mode {mode} is no KAVERN_PREEMPT_ value"))),
            },
        },
        11 => Change::Resume {
            lease: Some(Id(op.lease)).filter(|lease| lease.0 != 0),
            tokens: op.tokens,
            lookahead: op.lookahead,
        },
        12 => Change::Cancel,
        _ => Change::Accept,
    })
}

/// APPENDs at the head of a list to sequences that are ready for them: nearly all operations of a step that decodes are
/// such. Answers how many there were, and tells their results at these places; all others are still to be done.
#[inline]
pub(super) fn append_ready<P>(
    step: &mut StepSession<'_>,
    ops: &[kavern_kv_op],
    results: impl Iterator<Item = P>,
    tell: impl FnMut(P, OpResult),
) -> usize {
    let read = |op: &kavern_kv_op| {
        let is_append = op.kind == kavern_kv_op_kind::KAVERN_OP_APPEND as u32;
        let set = u64::from(op.reserved) | later_fields(op) | naming_fields(op);
        let is_simple = is_append && set == 0 && !names_row(op);
        is_simple.then_some((Id(op.target), op.tokens, op.lookahead))
    };
    step.append_ready(ops.iter().map(read).zip(results), tell)
}

/// Has memory fetched for operations that come in a while.
#[inline]
pub(super) fn expect(step: &StepSession<'_>, ops: &[kavern_kv_op]) {
    let is_commit = |op: &kavern_kv_op| op.kind == kavern_kv_op_kind::KAVERN_OP_COMMIT as u32;
    step.expect(ops.iter().map(|op| (Id(op.target), is_commit(op))));
}

/// Gets ready for APPENDs and COMMITs that come soon; what is wrong with one is told when it comes.
///
/// # Safety
/// The pointers of `ops` are as their fields say.
#[inline]
pub(super) unsafe fn prepare(step: &mut StepSession<'_>, ops: &[kavern_kv_op]) {
    let read = |op: &kavern_kv_op| {
        let is_append = op.kind == kavern_kv_op_kind::KAVERN_OP_APPEND as u32;
        is_append.then_some((Id(op.target), op.tokens))
    };
    let mut left = ops;
    while let Some(at) = step.find_unready(left.iter().map(read)) {
        // SAFETY: the caller's promise.
        unsafe { prepare_one(step, &left[at]) };
        left = &left[at + 1..];
    }
}

/// # Safety
/// The pointers of `op` are as its fields say.
#[inline(never)]
unsafe fn prepare_one(step: &mut StepSession<'_>, op: &kavern_kv_op) {
    let target = Target::Id(Id(op.target));
    match op.kind {
        2 => step.prepare(&Op::Append { target, tokens: op.tokens, lookahead: op.lookahead }),
        3 => {
            // SAFETY: the caller's promise.
            if let Ok(naming) = unsafe { commit_naming(op) } {
                step.prepare(&Op::Commit { target, tokens: op.tokens, naming });
            }
        }
        _ => {}
    }
}
