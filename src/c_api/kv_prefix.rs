//! Named prefixes: system prompts that stay, whoever uses them.

use std::ffi::c_char;

use super::config::{Out, OutArray};
use super::guard::guard_on;
use super::kv_types::kavern_kv_prefix;
use super::text;
use super::types::{kavern_kv_cache, kavern_status};
use crate::error::{Error, Result, Status};
use crate::types::Id;

/// Longest name, without its end.
const NAME_BYTES: usize = 63;

/// # Safety
/// `name` must be null or point to a text that ends with 0.
unsafe fn read_name<'a>(name: *const c_char) -> Result<&'a str> {
    // SAFETY: the caller's promise.
    let name = unsafe { text::read(name, "name") }?;
    match name.len() {
        1..=NAME_BYTES => Ok(name),
        length => Err(Error::argument(format!("a name of {length} bytes; it must have 1 to {NAME_BYTES}"))),
    }
}

/// Pins what a lease holds under a name: these blocks are not evicted, whoever uses them or nobody.
///
/// They stay until kavern_kv_prefix_unpin or a kavern_kv_reset that takes in their namespace. At most half of a group's
/// blocks are pinned at a time, and 256 names.
/// Shapes: `name` has 1 to 63 bytes. The lease stays yours, for ADMIT or RELEASE.
/// Errors: KAVERN_ERR_LIMIT_REACHED, KAVERN_ERR_IN_USE (the name), KAVERN_ERR_STALE_ID (the lease),
/// KAVERN_ERR_INVALID_ARGUMENT (the name's length, or no UTF-8), KAVERN_ERR_UNSUPPORTED (a worker's cache),
/// KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or point to a text that ends with 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_prefix_pin(
    cache: *mut kavern_kv_cache,
    name: *const c_char,
    lease: u64,
) -> kavern_status {
    guard_on("kavern_kv_prefix_pin", cache, |object| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { read_name(name) }?;
        object.cache.pin_prefix(name, Id(lease))?;
        Ok(Status::Ok)
    })
}

/// Gives a named prefix up: its blocks are evictable again when nobody holds or pins them.
///
/// Errors: KAVERN_ERR_NOT_FOUND (no such name), KAVERN_ERR_INVALID_ARGUMENT (the name's length, or no UTF-8),
/// KAVERN_ERR_UNSUPPORTED (a worker's cache), KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `name` must be null or point to a text that ends with 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_prefix_unpin(
    cache: *mut kavern_kv_cache,
    name: *const c_char,
) -> kavern_status {
    guard_on("kavern_kv_prefix_unpin", cache, |object| {
        // SAFETY: the header asks for a text or null.
        let name = unsafe { read_name(name) }?;
        object.cache.unpin_prefix(name)?;
        Ok(Status::Ok)
    })
}

/// Lists the named prefixes.
///
/// Shapes: `prefixes` [max]; `count` receives how many there are.
/// Errors: KAVERN_PARTIAL if there are more than `max`: the first of them are given; KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; takes the cache's lock for the list.
/// Since: 0.1
///
/// # Safety
/// `prefixes` must point to `max` writable elements, `count` be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_prefix_list(
    cache: *mut kavern_kv_cache,
    max: usize,
    prefixes: *mut kavern_kv_prefix,
    count: *mut usize,
) -> kavern_status {
    guard_on("kavern_kv_prefix_list", cache, |object| {
        // SAFETY: the header asks for `max` writable elements.
        let mut prefixes = unsafe { OutArray::new(prefixes, max, "prefixes") }?;
        // SAFETY: the header asks for a writable value or null.
        let count = unsafe { Out::new(count, "count") }?;
        let there = object.cache.prefixes(|at, info, name| {
            if at < max {
                prefixes.write(
                    at,
                    kavern_kv_prefix {
                        name: text::fixed(name),
                        namespace_id: info.namespace_id,
                        tokens: info.tokens,
                        blocks: info.blocks,
                    },
                );
            }
        });
        count.write(there);
        Ok(if there > max { Status::Partial } else { Status::Ok })
    })
}
