//! Managers: open a device, look at it, tell it of foreign streams, close it.
//!
//! What it does not: streams and tickets of its own (`stream`). Invariant: a manager lives until its handle and all
//! that was made from it have been destroyed, in any order.

use std::ffi::{c_char, c_void};

use super::config::{self, CStruct, CValue, Out, OutStruct};
use super::guard::{guard, guard_on};
use super::handle::{self, Handle, Kind};
use super::log::LogSink;
use super::stream;
use super::text;
use super::types::{kavern_manager, kavern_status};
use crate::error::{Error, Status};
use crate::manager::{Manager, Settings, Totals};
use crate::memory::{Limits, Ready};

impl Handle for kavern_manager {
    const KIND: Kind = Kind::Manager;
    type Object = Manager;
}

/// Bits of kavern_manager_config.flags.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_manager_flag {
    /// Before kavern_alloc refuses a request it does what kavern_manager_defragment does, without a limit, and tries
    /// once more. With this flag the program promises that, while an allocation runs, no other thread enqueues work on
    /// the device, launches a graph or captures one. Not done while a stream that has allocated is being captured.
    KAVERN_MANAGER_MESH_ON_SHORTAGE = 1,
}

/// How a manager is made; fill with kavern_manager_config_init.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_manager_config {
    /// sizeof(kavern_manager_config).
    pub struct_size: u32,
    /// KAVERN_MANAGER_ bits.
    pub flags: u32,
    /// The device: "host", "cuda:0", with parameters "host?memory_bytes=1048576"; null takes "host".
    pub device: *const c_char,
    /// Most device memory of this manager; 0 for no limit but the device's own. Another manager has its own limit, in
    /// the same process too; what bounds several is a budget of the machine.
    pub device_limit_bytes: u64,
    /// Most pinned host memory; 0 for no limit.
    pub pinned_limit_bytes: u64,
    /// Zero.
    pub reserved: [u64; 4],
    /// Device memory above which nothing is kept that nobody uses, and pools, idle models and the callback of
    /// kavern_manager_on_reclaim are asked to give; allocations succeed all the same. 0 for none.
    pub device_soft_limit_bytes: u64,
    /// Name of a budget that managers share, of one process or of several of this user: 1 to 128 letters, digits, '-',
    /// '_' and '.'; null for none. All device memory of the manager is charged to it before the device is asked, that
    /// of its shared pools too, which need no name of their own then. A process that ends, however it ends, gives its
    /// part back.
    pub machine_budget_name: *const c_char,
    /// Limit of that budget: the first process sets it, the others name the same; 0 takes the one that is there.
    pub machine_budget_bytes: u64,
    /// Physical pages are made ahead by a thread, so that a commit or an allocation finds them there: once less than
    /// this waits for use in pages of all sizes, up to `ready_high_bytes`, most of it in the largest pages. They count
    /// as held, within all limits, the soft one too. Whoever needs the bytes otherwise gets them, also by
    /// kavern_manager_trim; they are made again when pages are next asked for, at least a second later. 0 for none.
    /// Nothing on a simulated device.
    pub ready_low_bytes: u64,
    /// Up to so much. What lies above the low mark and nobody has wanted for ten seconds goes. 0 takes the low mark.
    pub ready_high_bytes: u64,
}

// SAFETY: numbers and pointers that are read with checks.
unsafe impl CValue for kavern_manager_config {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_manager_config {
    const NAME: &'static str = "kavern_manager_config";
    const FIRST_BYTES: usize = 64;

    fn defaults() -> Self {
        config::zeroed()
    }
}

/// What a manager has and did. You set struct_size; the call fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_manager_statistics {
    /// sizeof(kavern_manager_statistics).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Device memory that is asked for and not given up, by every way, to the byte: allocations straight from the
    /// device (KV caches that cannot grow, batches of pools), `allocator_bytes`, `elastic_bytes`, `shared_bytes`. 0
    /// when all was given up.
    pub device_bytes: u64,
    /// Most device memory that was held at one time, in use or kept for use, as `device_held_bytes` counts it; with
    /// what other threads were asking for at that moment.
    pub device_peak_bytes: u64,
    /// Live allocations of device memory: straight from the device, and of kavern_alloc. Ranges are not counted.
    pub device_allocations: u64,
    /// As device_allocations, ever made.
    pub device_total_allocations: u64,
    /// Limit of device memory, 0 for none.
    pub device_limit_bytes: u64,
    /// Pinned host memory allocated now.
    pub pinned_bytes: u64,
    /// Most that was allocated at one time.
    pub pinned_peak_bytes: u64,
    /// Live allocations of pinned host memory.
    pub pinned_allocations: u64,
    /// Allocations of pinned host memory ever made.
    pub pinned_total_allocations: u64,
    /// Limit of pinned host memory, 0 for none.
    pub pinned_limit_bytes: u64,
    /// Streams made by the manager.
    pub own_streams: u64,
    /// Streams registered with it.
    pub registered_streams: u64,
    /// Tickets not known to be done.
    pub pending_tickets: u64,
    /// KV caches.
    pub caches: u64,
    /// Calls of the device that a fault parameter of the device's name has counted; 0 without one.
    pub device_calls: u64,
    /// Races between streams that the device has found; 0 where it does not look.
    pub races: u64,
    /// Asked of kavern_alloc and not freed.
    pub allocator_bytes: u64,
    /// Committed in elastic ranges, those of KV caches with max_blocks too.
    pub elastic_bytes: u64,
    /// Committed by the models of shared pools.
    pub shared_bytes: u64,
    /// Device memory held now, as limits count it: whole pages, with what is kept for use.
    pub device_held_bytes: u64,
    /// Soft limit of device memory, 0 for none.
    pub device_soft_limit_bytes: u64,
    /// Copies to the host that are running, as kavern_copies_begin and kavern_copies_end tell.
    pub running_copies: u64,
    /// Calls of the device that changed page tables.
    pub table_changes: u64,
    /// Those of them that could not wait for the end of a copy to the host.
    pub loud_table_changes: u64,
    /// Physical pages that wait for use, those made ahead too; they count as held.
    pub pooled_page_bytes: u64,
    /// Pages that a commit or an allocation found waiting.
    pub page_hits: u64,
    /// Pages that it had to have made by the device.
    pub page_misses: u64,
    /// Pages that were made before anybody asked for them.
    pub pages_made_ahead: u64,
    /// Mappings whose pages went to somebody else before they were unmapped.
    pub passed_on_mappings: u64,
    /// Those of them that are still to be unmapped; nobody's memory.
    pub stale_mappings: u64,
    /// Calls by which the device was to remove mappings and did not. They are tried again, before their addresses get
    /// memory at the latest; until then their pages are nobody's and count as held, and then go to the device.
    pub failed_unmaps: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_manager_statistics {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_manager_statistics {
    const NAME: &'static str = "kavern_manager_statistics";
    const FIRST_BYTES: usize = 136;

    fn defaults() -> Self {
        config::zeroed()
    }
}

impl From<Totals> for kavern_manager_statistics {
    fn from(totals: Totals) -> Self {
        let (device, pinned) = (totals.memory.device, totals.memory.pinned);
        let pages = &totals.pages;
        let (page_hits, page_misses) = pages.hits_and_misses();
        Self {
            struct_size: 0,
            reserved: 0,
            device_bytes: totals.device_bytes(),
            device_peak_bytes: totals.held_peak_bytes,
            device_allocations: device.count.saturating_sub(totals.plain_counts.0) + totals.heap_count,
            device_total_allocations: device.total_count.saturating_sub(totals.plain_counts.1)
                + totals.heap_allocations,
            device_limit_bytes: totals.limits.device_limit_bytes,
            pinned_bytes: pinned.bytes,
            pinned_peak_bytes: pinned.peak_bytes,
            pinned_allocations: pinned.count,
            pinned_total_allocations: pinned.total_count,
            pinned_limit_bytes: totals.limits.pinned_limit_bytes,
            own_streams: totals.own_streams,
            registered_streams: totals.foreign_streams,
            pending_tickets: totals.pending_tickets,
            caches: totals.caches,
            device_calls: totals.device_calls,
            races: totals.races,
            allocator_bytes: totals.heap_bytes,
            elastic_bytes: totals.elastic_bytes,
            shared_bytes: totals.shared_bytes,
            device_held_bytes: totals.held_bytes,
            device_soft_limit_bytes: totals.limits.device_soft_limit_bytes,
            running_copies: totals.running_copies,
            table_changes: pages.table_changes,
            loud_table_changes: pages.loud_changes,
            pooled_page_bytes: pages.pooled_bytes,
            page_hits,
            page_misses,
            pages_made_ahead: pages.made_ahead(),
            passed_on_mappings: pages.passed_on,
            stale_mappings: pages.stale_mappings,
            failed_unmaps: pages.failed_unmaps,
        }
    }
}

/// Fills a configuration with its defaults: device "host", no limits, no budget of the machine.
///
/// `size` is sizeof(kavern_manager_config) in the caller's header, which may be older or newer than the library.
/// Errors: KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE if `size` is below that of version 0.1 or above 65,536.
/// Since: 0.1
///
/// # Safety
/// `config` must be null or point to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_config_init(
    config: *mut kavern_manager_config,
    size: usize,
) -> kavern_status {
    guard("kavern_manager_config_init", || {
        // SAFETY: the header asks for `size` bytes or null.
        unsafe { config::init_struct(config, size, "config") }
    })
}

/// Opens a device.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (unknown name or parameter of a device, a soft limit or more pages ahead above
/// the limit, a low mark above the high one, a bad name or another limit of the machine's budget),
/// KAVERN_ERR_NO_DEVICE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_UNSUPPORTED (pages ahead on a
/// device that cannot map memory), KAVERN_ERR_LIMIT_REACHED (256 processes share the budget), KAVERN_ERR_DEVICE,
/// KAVERN_ERR_OS.
/// Threads: any; blocks while the device opens. After a fork the child gets KAVERN_ERR_FORKED from every call.
/// Owner: destroy with kavern_manager_destroy.
/// Since: 0.1
///
/// # Safety
/// `config` must be null or point to as many bytes as its struct_size says, `out` be null or point to a writable
/// handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_create(
    config: *const kavern_manager_config,
    out: *mut *mut kavern_manager,
) -> kavern_status {
    guard("kavern_manager_create", || {
        // SAFETY: the header asks for a struct that says its size, or null.
        let settings = unsafe { config::read_struct(config, "config") }?;
        // SAFETY: the header asks for a writable handle or null.
        let out = unsafe { Out::new(out, "out") }?;
        let mesh = kavern_manager_flag::KAVERN_MANAGER_MESH_ON_SHORTAGE as u32;
        config::check_flags(settings.flags, mesh, "kavern_manager_config")?;
        config::check_reserved(&settings.reserved, "kavern_manager_config")?;
        // SAFETY: the header asks for a text or null.
        let device = unsafe { text::read_optional(settings.device, "config.device") }?;
        let limits = Limits {
            device_limit_bytes: settings.device_limit_bytes,
            pinned_limit_bytes: settings.pinned_limit_bytes,
            device_soft_limit_bytes: settings.device_soft_limit_bytes,
        };
        let (soft, hard) = (limits.device_soft_limit_bytes, limits.device_limit_bytes);
        if hard > 0 && soft > hard {
            return Err(Error::argument(format!(
                "config.device_soft_limit_bytes is {soft}, above device_limit_bytes, which is {hard}"
            )));
        }
        let budget = settings.machine_budget_bytes;
        // SAFETY: the header asks for a text or null.
        let name =
            unsafe { text::read_optional(settings.machine_budget_name, "config.machine_budget_name") }?;
        if name.is_none() && budget > 0 {
            return Err(Error::argument(
                "config.machine_budget_bytes without a machine_budget_name; give both",
            ));
        }
        let machine = name.map(|name| (name, budget));
        let device = device.unwrap_or("host");
        let ready = Ready::new(settings.ready_low_bytes, settings.ready_high_bytes)?;
        if hard > 0 && ready.high_bytes > hard {
            return Err(Error::argument(format!(
                "config.ready_high_bytes is {}, above device_limit_bytes, which is {hard}",
                ready.high_bytes
            )));
        }
        let meshes_when_short = settings.flags & mesh != 0;
        let settings = Settings { limits, machine, meshes_when_short, ready };
        let manager = Manager::open_with(device, settings, std::sync::Arc::new(LogSink))?;
        out.write(handle::insert(manager)?);
        Ok(Status::Ok)
    })
}

/// Destroys a manager and nulls the handle; null is fine.
///
/// The device closes when its streams and caches have been destroyed too, before or after. Tickets stay good.
/// Stream: closing waits for all work on the device. A capture of a graph that is under way there stays whole; what it
/// was given of this manager's memory is gone.
/// Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
/// Threads: any, also while others are inside a call on it; may block until the device's work is done.
/// Since: 0.1
///
/// # Safety
/// `manager` must be null or point to a writable handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_destroy(manager: *mut *mut kavern_manager) -> kavern_status {
    guard("kavern_manager_destroy", || {
        // SAFETY: the header asks for a writable handle or null.
        unsafe { config::destroy(manager, "manager") }
    })
}

/// Reads what a manager has and did.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; those that allocate at this moment wait for a few microseconds.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_stats(
    manager: *const kavern_manager,
    out: *mut kavern_manager_statistics,
) -> kavern_status {
    guard_on("kavern_manager_stats", manager, |manager| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&manager.totals().into());
        Ok(Status::Ok)
    })
}

/// Writes a report for people as JSON: device, live allocations with address, tag, size, stream and age, totals, pools
/// with their blocks in use, elastic ranges, shared pools with their models, pinned memory, streams, tickets, caches.
///
/// What any stream may use from the beginning has no stream: memory straight from the device unless it was made in a
/// stream's order, pinned memory, elastic ranges, models, and blocks of pools, which are any stream's after the wait
/// of kavern_pool_acquire. A block of a pool goes by the pool's tag, a range by its address and a model by its name.
/// `needed` (may be null) receives the size with the terminating zero; `buf` null with `cap` 0 asks for that size
/// alone. The report may have grown by the next call.
/// Errors: KAVERN_ERR_BUFFER_TOO_SMALL with `needed` set and `buf` untouched; KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER.
/// Threads: any; may block on the device.
/// Since: 0.1
///
/// # Safety
/// `buf` must be null or point to `cap` writable bytes, `needed` be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_report_json(
    manager: *const kavern_manager,
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> kavern_status {
    guard_on("kavern_manager_report_json", manager, |manager| {
        // SAFETY: the header asks for what the doc above says.
        unsafe { text::write(&manager.report_json(), buf, cap, needed) }
    })
}

/// Checks the invariants of all books of the manager: limits, allocator, elastic ranges, pools, pinned memory.
///
/// Errors: KAVERN_ERR_INTERNAL with the broken invariant in the text: a bug of the library. KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; takes time in proportion to all that is allocated or free, and allocations wait for it.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_validate(manager: *const kavern_manager) -> kavern_status {
    guard_on("kavern_manager_validate", manager, |manager| manager.validate().map(|()| Status::Ok))
}

/// Loads every kernel of the library on the manager's device, so that no later call loads one.
///
/// Call it once before you capture a graph: a kernel that is first used inside a capture would be loaded there, which
/// the driver refuses. A cache with blocks in memory loads its own kernels when it is created. Done twice it does
/// nothing.
/// Errors: KAVERN_ERR_DEVICE, KAVERN_ERR_DEVICE_LOST, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_UNSUPPORTED (no kernel of
/// this library runs on the device).
/// Threads: any; blocks while the kernels are loaded, for seconds where the driver has to compile them.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_warmup(manager: *const kavern_manager) -> kavern_status {
    guard_on("kavern_warmup", manager, |manager| manager.warm_up().map(|()| Status::Ok))
}

/// Lets a stream that the manager did not make be used with it.
///
/// Stream: a CUstream value of the same device and context, or a kavern_stream of another manager of the same device.
/// Register it before its first use, unregister it before you destroy it. 0 and KAVERN_STREAM_DEFAULT need no
/// registration.
/// Errors: KAVERN_ERR_ALREADY_EXISTS, KAVERN_ERR_INVALID_ARGUMENT (not a stream of that device),
/// KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_LIMIT_REACHED.
/// Threads: any.
/// Owner: the stream stays yours; a kavern_stream keeps its own manager alive until it is unregistered here.
/// Since: 0.1
///
/// # Safety
/// `stream` must be a live stream of the device if it is a CUstream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_stream_register(
    manager: *mut kavern_manager,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_manager_stream_register", manager, |manager| {
        manager.register_stream(config::stream_value(stream), stream::origin(stream)?)?;
        Ok(Status::Ok)
    })
}

/// Forgets a registered stream; do it before you destroy the stream.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE if it is not registered, KAVERN_ERR_IN_USE while another thread uses it in a call.
/// Threads: any; waits for the stream's work if memory was freed on it that is not known to be past it.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null; `stream` is compared and not used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_manager_stream_unregister(
    manager: *mut kavern_manager,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_manager_stream_unregister", manager, |manager| {
        manager.unregister_stream(config::stream_value(stream))?;
        Ok(Status::Ok)
    })
}
