//! The tables of a step as the caller gets them, whether from the step itself or from a plan.
//!
//! What it does: checks the caller's room, and writes what the cache's tables are. What it does not: make tables.
//! Invariant: nothing is written of groups that the caller has no room for.

use super::cache::CacheObject;
use super::config::{self, OutArray, OutStruct};
use super::kv_types::{kavern_kv_group_tables, kavern_kv_step_tables};
use crate::cache::{GroupAddresses, GroupView, StepTables};
use crate::error::{Error, Result, Status};

/// What reads the tables of a step for a caller.
type ReadTables<'a> = dyn FnMut(&StepTables<'_>) -> Result<kavern_kv_step_tables> + 'a;

/// Checks the room of the caller, runs what gives the tables and writes them.
///
/// # Safety
/// `out` is as kavern_kv_tables says.
pub(super) unsafe fn fill_tables(
    object: &CacheObject,
    out: *mut kavern_kv_step_tables,
    run: impl FnOnce(&mut ReadTables<'_>) -> Result<kavern_kv_step_tables>,
) -> Result<Status> {
    // SAFETY: the caller's promise.
    let out = unsafe { OutStruct::new(out, "out") }?;
    let asked = out.read();
    let group_count = object.cache.group_count();
    let wanted = if asked.groups.is_null() { 0 } else { group_count };
    if asked.group_capacity < wanted {
        out.write(&kavern_kv_step_tables { group_count, ..asked });
        let text = format!("room for {} groups, the cache has {group_count}", asked.group_capacity);
        return Err(Error::new(Status::BufferTooSmall, text));
    }
    // SAFETY: the caller's promise.
    let mut groups = unsafe { OutArray::new(asked.groups, wanted as usize, "out->groups") }?;
    let written = run(&mut |tables| write_tables(tables, group_count, &mut groups))?;
    out.write(&kavern_kv_step_tables {
        group_capacity: asked.group_capacity,
        groups: asked.groups,
        ..written
    });
    Ok(Status::Ok)
}

fn pointer<T>(values: &[T]) -> *const T {
    if values.is_empty() { std::ptr::null() } else { values.as_ptr() }
}

fn group_tables(addresses: GroupAddresses, view: &GroupView<'_>) -> kavern_kv_group_tables {
    kavern_kv_group_tables {
        block_table: addresses.block_table,
        slot_mapping: addresses.slot_mapping,
        page_indptr: addresses.page_indptr,
        page_indices: addresses.page_indices,
        last_page_tokens: addresses.last_page_tokens,
        block_table_host: view.block_table.as_ptr(),
        slot_mapping_host: pointer(view.slot_mapping),
        page_indptr_host: pointer(view.page_indptr),
        page_indices_host: pointer(view.page_indices),
        last_page_tokens_host: pointer(view.last_page_tokens),
        row_cells: view.row_cells,
        cells_uploaded: view.cells_uploaded,
        blocks_zeroed: view.blocks_zeroed,
    }
}

fn write_tables(
    tables: &StepTables<'_>,
    group_count: u32,
    groups: &mut OutArray<kavern_kv_group_tables>,
) -> Result<kavern_kv_step_tables> {
    for group in 0..groups.len() {
        groups.write(group, group_tables(tables.group_addresses(group), &tables.group(group)?));
    }
    let [batch_rows, batch_starts, sequence_lengths] = tables.addresses();
    Ok(kavern_kv_step_tables {
        group_count,
        batch_count: tables.batch_rows()?.len() as u32,
        token_count: tables.token_count() as u32,
        batch_rows,
        batch_starts,
        sequence_lengths,
        batch_rows_host: tables.batch_rows()?.as_ptr(),
        batch_starts_host: tables.batch_starts()?.as_ptr(),
        sequence_lengths_host: tables.sequence_lengths().as_ptr(),
        copies: tables.copies_address(),
        copies_host: tables.copies().as_ptr().cast(),
        copy_count: tables.copies().len() as u32,
        zeros_host: pointer(tables.zeros()).cast(),
        zero_count: tables.zeros().len() as u64,
        ..config::zeroed()
    })
}
