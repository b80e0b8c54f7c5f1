//! Elastic ranges: memory that comes and goes behind addresses that stay.
//!
//! What it does not: hand out parts of a range. Invariant: a range keeps its manager, and so its device and streams.

use std::ffi::c_void;
use std::sync::Arc;

use super::config::{self, CStruct, CValue, Out, OutStruct};
use super::guard::{guard, guard_on};
use super::handle::{self, Handle, Kind};
use super::stream;
use super::types::{kavern_manager, kavern_status};
use crate::error::{Result, Status};
use crate::manager::{Manager, StreamRef};
use crate::memory::{Elastic, ElasticConfig, ElasticStatistics, Extent};

/// Addresses for as much as there may ever be, with memory behind the parts in use. Thread-safe; keeps its manager
/// alive.
pub struct kavern_elastic {
    _opaque: [u8; 0],
}

/// A range and the manager that it lives in.
pub(super) struct Ranged {
    /// Goes before its manager.
    elastic: Arc<Elastic>,
    manager: Arc<Manager>,
}

impl Drop for Ranged {
    fn drop(&mut self) {
        // A report that still looks at the range must not decide when its memory goes back.
        self.elastic.end();
    }
}

impl Handle for kavern_elastic {
    const KIND: Kind = Kind::Elastic;
    type Object = Ranged;
}

/// Bits of kavern_elastic_config.flags and kavern_shared_pool_config.flags.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_elastic_flags {
    /// Take memory in single pages of the device: a decommit of any page gives its memory back, and changes of large
    /// parts take up to 30 times as long.
    KAVERN_ELASTIC_SINGLE_PAGES = 1,
}

/// How an elastic range is made; fill with kavern_elastic_config_init.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_elastic_config {
    /// sizeof(kavern_elastic_config).
    pub struct_size: u32,
    /// KAVERN_ELASTIC_ bits.
    pub flags: u32,
    /// Bytes of addresses, rounded up to whole pages; tens of TiB are fine, they cost no memory.
    pub capacity_bytes: u64,
    /// What is committed and decommitted at least, a multiple of the device's page; 0 takes that page.
    pub page_bytes: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_elastic_config {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_elastic_config {
    const NAME: &'static str = "kavern_elastic_config";
    const FIRST_BYTES: usize = 56;

    fn defaults() -> Self {
        config::zeroed()
    }
}

/// A part of a range, widened to whole pages, and what a call has changed there. It will never grow, so it carries no
/// size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_elastic_extent {
    /// First byte, from the base.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
    /// Bytes of it that were not as the call has left them; 0 where all of it was.
    pub changed_bytes: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_elastic_extent {}

impl From<Extent> for kavern_elastic_extent {
    fn from(extent: Extent) -> Self {
        Self { offset: extent.offset, bytes: extent.bytes, changed_bytes: extent.changed_bytes }
    }
}

/// What an elastic range has. You set struct_size; the call fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_elastic_statistics {
    /// sizeof(kavern_elastic_statistics).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Addresses.
    pub capacity_bytes: u64,
    /// What is committed and decommitted at least.
    pub page_bytes: u64,
    /// Committed.
    pub committed_bytes: u64,
    /// Memory behind the range: committed, retained or leaving.
    pub physical_bytes: u64,
    /// Decommitted, but part of a slab that is still in use.
    pub retained_bytes: u64,
    /// Decommitted, and on its way back once its stream is past.
    pub leaving_bytes: u64,
    /// Committed pages.
    pub mapped_pages: u64,
    /// Pieces of memory; changes take time in proportion to them.
    pub handles: u64,
    /// Pins that keep parts committed.
    pub pins: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_elastic_statistics {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_elastic_statistics {
    const NAME: &'static str = "kavern_elastic_statistics";
    const FIRST_BYTES: usize = 80;

    fn defaults() -> Self {
        config::zeroed()
    }
}

impl From<ElasticStatistics> for kavern_elastic_statistics {
    fn from(found: ElasticStatistics) -> Self {
        Self {
            struct_size: 0,
            reserved: 0,
            capacity_bytes: found.capacity_bytes,
            page_bytes: found.page_bytes,
            committed_bytes: found.committed_bytes,
            physical_bytes: found.physical_bytes,
            retained_bytes: found.retained_bytes,
            leaving_bytes: found.leaving_bytes,
            mapped_pages: found.mapped_pages,
            handles: found.handles,
            pins: found.pins,
        }
    }
}

/// The stream of a decommit; none where no work is left that uses the part.
pub(super) fn past(manager: &Arc<Manager>, stream: *mut c_void) -> Result<Option<StreamRef>> {
    if stream.is_null() { Ok(None) } else { stream::resolve(manager, stream).map(Some) }
}

/// Fills a configuration with its defaults: pages of the device, in slabs where they fit; capacity_bytes is yours.
///
/// `size` is sizeof(kavern_elastic_config) in the caller's header, which may be older or newer than the library.
/// Errors: KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE if `size` is below that of version 0.1 or above 65,536.
/// Since: 0.1
///
/// # Safety
/// `config` must be null or point to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_elastic_config_init(
    config: *mut kavern_elastic_config,
    size: usize,
) -> kavern_status {
    guard("kavern_elastic_config_init", || {
        // SAFETY: the header asks for `size` bytes or null.
        unsafe { config::init_struct(config, size, "config") }
    })
}

/// Reserves addresses on the manager's device; nothing is committed yet, and access faults.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (no capacity, or more than there are addresses; page_bytes is no multiple of the
/// device's page), KAVERN_ERR_UNSUPPORTED (the device cannot map memory), KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_OUT_OF_MEMORY, KAVERN_ERR_OUT_OF_HOST_MEMORY (the system
/// gives the device "host" no such range), KAVERN_ERR_DEVICE.
/// Threads: any.
/// Owner: destroy with kavern_elastic_destroy; it keeps its manager alive.
/// Since: 0.1
///
/// # Safety
/// `config` must be null or point to as many bytes as its struct_size says, `out` be null or point to a writable
/// handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_elastic_create(
    manager: *mut kavern_manager,
    config: *const kavern_elastic_config,
    out: *mut *mut kavern_elastic,
) -> kavern_status {
    guard_on("kavern_elastic_create", manager, |manager| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let settings = unsafe { config::read_struct(config, "config") }?;
        // SAFETY: the header asks for a writable handle or null.
        let out = unsafe { Out::new(out, "out") }?;
        let single = kavern_elastic_flags::KAVERN_ELASTIC_SINGLE_PAGES as u32;
        config::check_flags(settings.flags, single, "kavern_elastic_config")?;
        config::check_reserved(&settings.reserved, "kavern_elastic_config")?;
        let config = ElasticConfig {
            capacity_bytes: settings.capacity_bytes,
            page_bytes: settings.page_bytes,
            has_slabs: settings.flags & single == 0,
        };
        let elastic = Elastic::new(manager.memory(), config)?;
        out.write(handle::insert(Arc::new(Ranged { elastic, manager: Arc::clone(manager) }))?);
        Ok(Status::Ok)
    })
}

/// Gives memory and addresses back and nulls the handle; null is fine.
///
/// Waits for the streams of decommits. What is still committed is taken at once: no work may use it any more.
/// Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
/// Threads: any, also while others are inside a call on it; blocks.
/// Since: 0.1
///
/// # Safety
/// `elastic` must be null or point to a writable handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_elastic_destroy(elastic: *mut *mut kavern_elastic) -> kavern_status {
    guard("kavern_elastic_destroy", || {
        // SAFETY: the header asks for a writable handle or null.
        unsafe { config::destroy(elastic, "elastic") }
    })
}

/// Puts memory behind a part, widened to whole pages, all or nothing.
///
/// What is committed already stays as it is and counts as 0 changed bytes. The content of what is committed anew is
/// anything. `out` may be null.
/// Errors: KAVERN_ERR_OUT_OF_MEMORY with the bytes requested and available in the text, KAVERN_ERR_INVALID_ARGUMENT
/// (0 bytes, outside of the capacity), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_DEVICE (also while it keeps a mapping that
/// it was to remove there), KAVERN_ERR_DEVICE_LOST.
/// Threads: any; blocks, and where a part was decommitted behind a stream, until that is past.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_elastic_commit(
    elastic: *mut kavern_elastic,
    offset: u64,
    bytes: u64,
    out: *mut kavern_elastic_extent,
) -> kavern_status {
    guard_on("kavern_elastic_commit", elastic, |ranged| {
        // SAFETY: the header asks for a writable struct or null.
        let out = unsafe { Out::optional(out, "out") }?;
        write_extent(out, ranged.elastic.commit(offset, bytes)?);
        Ok(Status::Ok)
    })
}

/// Writes an extent if it is wanted.
pub(super) fn write_extent(out: Option<Out<kavern_elastic_extent>>, extent: Extent) {
    if let Some(out) = out {
        out.write(extent.into());
    }
}

/// Gives a part up, widened to whole pages: what shares a page with it goes too, so give whole pages.
///
/// What is not committed stays so and counts as 0 changed bytes. Memory that came in a slab goes back when the whole
/// slab is given up; until then it counts as retained, and a later commit finds it there. Where somebody else needs the
/// memory it is theirs as soon as the stream is past, cleared if it changes its model, and these addresses are unmapped
/// a little later: an access to them is then a fault, and until then one to memory of others. `out` may be null.
/// Stream: the memory goes once the stream is past this point; NULL means that no work uses it any more, and
/// KAVERN_STREAM_DEFAULT is the default stream.
/// Errors: KAVERN_ERR_IN_USE (pinned), KAVERN_ERR_WRONG_STATE (the stream is being captured, or it is the default
/// stream and waits for one that is), KAVERN_ERR_INVALID_ARGUMENT (0 bytes, outside of the capacity),
/// KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; does not wait for the stream.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_elastic_decommit(
    elastic: *mut kavern_elastic,
    offset: u64,
    bytes: u64,
    stream: *mut c_void,
    out: *mut kavern_elastic_extent,
) -> kavern_status {
    guard_on("kavern_elastic_decommit", elastic, |ranged| {
        // SAFETY: the header asks for a writable struct or null.
        let out = unsafe { Out::optional(out, "out") }?;
        let stream = past(&ranged.manager, stream)?;
        write_extent(out, ranged.elastic.decommit(offset, bytes, stream.as_deref().copied())?);
        Ok(Status::Ok)
    })
}

/// Writes 1 if every page that a part touches is committed, else 0.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (0 bytes, outside of the capacity), KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_elastic_is_committed(
    elastic: *const kavern_elastic,
    offset: u64,
    bytes: u64,
    out: *mut u32,
) -> kavern_status {
    guard_on("kavern_elastic_is_committed", elastic, |ranged| {
        // SAFETY: the header asks for a writable value or null.
        let out = unsafe { Out::new(out, "out") }?;
        out.write(u32::from(ranged.elastic.is_committed(offset, bytes)?));
        Ok(Status::Ok)
    })
}

/// Writes the device address of the range's first byte, which never moves.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_elastic_base(elastic: *const kavern_elastic, out: *mut u64) -> kavern_status {
    guard_on("kavern_elastic_base", elastic, |ranged| {
        // SAFETY: the header asks for a writable value or null.
        let out = unsafe { Out::new(out, "out") }?;
        out.write(ranged.elastic.base());
        Ok(Status::Ok)
    })
}

/// Commits the first `bytes`, rounded up to pages, and decommits all that follows; 0 decommits everything.
///
/// The answer's `bytes` is the length in whole pages. `out` may be null.
/// Stream: as for kavern_elastic_decommit, for what is decommitted.
/// Errors: those of kavern_elastic_commit and kavern_elastic_decommit.
/// Threads: any; blocks as a commit does.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_elastic_resize(
    elastic: *mut kavern_elastic,
    bytes: u64,
    stream: *mut c_void,
    out: *mut kavern_elastic_extent,
) -> kavern_status {
    guard_on("kavern_elastic_resize", elastic, |ranged| {
        // SAFETY: the header asks for a writable struct or null.
        let out = unsafe { Out::optional(out, "out") }?;
        let stream = past(&ranged.manager, stream)?;
        write_extent(out, ranged.elastic.resize(bytes, stream.as_deref().copied())?);
        Ok(Status::Ok)
    })
}

/// Reads what a range has.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_elastic_stats(
    elastic: *const kavern_elastic,
    out: *mut kavern_elastic_statistics,
) -> kavern_status {
    guard_on("kavern_elastic_stats", elastic, |ranged| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&ranged.elastic.statistics().into());
        Ok(Status::Ok)
    })
}
