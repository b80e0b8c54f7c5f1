//! The driver library: found once, its entry points in a table, its facts about GPUs.
//!
//! What it does: opens `libcuda.so.1`, looks up every entry point that this backend uses, checks the version, asks.
//! What it does not: keep a context or an error; those are `context`'s. `cudarc` gives the types; its functions are not
//! called, because they panic when a symbol is missing and answer an enumeration, which a newer driver's code would
//! not be a value of. Here a code is a number.
//! Invariant: the library that the probe opened stays open for the life of the process.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    self, CUdeviceptr, CUhostFn, CUmemAccessDesc, CUmemAllocationProp, CUmemGenericAllocationHandle,
};
use libloading::Library;

use super::codes::{self, Code};
use crate::error::{Error, Result, Status};
use crate::sys::numa;

/// The real driver first: a toolkit's stub carries only the second name.
const LIBRARIES: &[&str] = &["libcuda.so.1", "libcuda.so"];

/// CUDA 12.0: the first driver with all entry points of the table.
const LEAST_VERSION: i32 = 12_000;

/// A context, stream, event, module or function of the driver, as a number that may cross threads.
pub(super) type Raw = usize;

macro_rules! entry_points {
    ($($name:ident($($argument:ty),*);)*) => {
        /// The entry points that every supported driver has, by the names that its library exports.
        #[expect(non_snake_case, reason = "the driver's own names")]
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl Api {
            fn load(name: &str, library: &Library) -> Result<Self> {
                Ok(Self { $($name: symbol(name, library, stringify!($name))?,)* })
            }
        }
    };
}

entry_points! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuGetProcAddress_v2(*const c_char, *mut *mut c_void, c_int, u64, *mut c_uint);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetName(*mut c_char, c_int, c_int);
    cuDeviceTotalMem_v2(*mut usize, c_int);
    cuDeviceGetAttribute(*mut c_int, c_uint, c_int);
    cuDevicePrimaryCtxRetain(*mut Raw, c_int);
    cuDeviceCanAccessPeer(*mut c_int, c_int, c_int);
    cuCtxGetCurrent(*mut Raw);
    cuCtxSetCurrent(Raw);
    cuCtxEnablePeerAccess(Raw, c_uint);
    cuThreadExchangeStreamCaptureMode(*mut c_uint);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemFree_v2(CUdeviceptr);
    cuMemAllocAsync(*mut CUdeviceptr, usize, Raw);
    cuMemFreeAsync(CUdeviceptr, Raw);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostUnregister(*mut c_void);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, Raw);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, Raw);
    cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, Raw);
    cuMemcpyAsync(CUdeviceptr, CUdeviceptr, usize, Raw);
    cuMemcpyPeerAsync(CUdeviceptr, Raw, CUdeviceptr, Raw, usize, Raw);
    cuMemsetD8Async(CUdeviceptr, u8, usize, Raw);
    cuStreamCreate(*mut Raw, c_uint);
    cuStreamDestroy_v2(Raw);
    cuStreamSynchronize(Raw);
    cuStreamQuery(Raw);
    cuStreamWaitEvent(Raw, Raw, c_uint);
    cuStreamIsCapturing(Raw, *mut c_uint);
    cuStreamGetCtx(Raw, *mut Raw);
    cuLaunchHostFunc(Raw, CUhostFn, *mut c_void);
    cuEventCreate(*mut Raw, c_uint);
    cuEventRecord(Raw, Raw);
    cuEventQuery(Raw);
    cuEventSynchronize(Raw);
    cuEventDestroy_v2(Raw);
    cuMemAddressReserve(*mut CUdeviceptr, usize, usize, CUdeviceptr, u64);
    cuMemAddressFree(CUdeviceptr, usize);
    cuMemCreate(*mut CUmemGenericAllocationHandle, usize, *const CUmemAllocationProp, u64);
    cuMemRelease(CUmemGenericAllocationHandle);
    cuMemMap(CUdeviceptr, usize, usize, CUmemGenericAllocationHandle, u64);
    cuMemUnmap(CUdeviceptr, usize);
    cuMemSetAccess(CUdeviceptr, usize, *const CUmemAccessDesc, usize);
    cuMemGetAllocationGranularity(*mut usize, *const CUmemAllocationProp, c_uint);
    cuModuleLoadData(*mut Raw, *const c_void);
    cuModuleUnload(Raw);
    cuModuleGetFunction(*mut Raw, Raw, *const c_char);
    cuFuncGetAttribute(*mut c_int, c_uint, Raw);
    cuLaunchKernel(
        Raw, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Raw, *mut *mut c_void, *mut *mut c_void
    );
}

/// What every copy of a batch has in common (`CUmemcpyAttributes`, which the bindings have from 12.8 only).
#[repr(C)]
pub(super) struct BatchAttributes {
    /// 1: sources are read in stream order.
    pub(super) source_order: c_uint,
    /// Kind and number of a place; 0 for none, addresses tell it.
    pub(super) source_hint: [c_int; 2],
    /// As for the source.
    pub(super) target_hint: [c_int; 2],
    /// None.
    pub(super) flags: c_uint,
}

type BatchV1 = unsafe extern "C" fn(
    *mut CUdeviceptr,
    *mut CUdeviceptr,
    *mut usize,
    usize,
    *mut BatchAttributes,
    *mut usize,
    usize,
    *mut usize,
    Raw,
) -> Code;
type BatchV2 = unsafe extern "C" fn(
    *const CUdeviceptr,
    *const CUdeviceptr,
    *const usize,
    usize,
    *mut BatchAttributes,
    *mut usize,
    usize,
    Raw,
) -> Code;

/// `cuMemAllocManaged`.
pub(super) type Managed = unsafe extern "C" fn(*mut CUdeviceptr, usize, c_uint) -> Code;

/// The batch copy of this driver.
#[derive(Clone, Copy)]
pub(super) enum Batch {
    /// From 12.8; also tells which copy failed.
    V1(BatchV1),
    /// From 13.0.
    V2(BatchV2),
}

/// A driver that is there and has what is needed.
pub(super) struct Driver {
    /// The entry points.
    pub(super) api: Api,
    /// Copies many ranges at once, where the driver can.
    pub(super) batch: Option<Batch>,
    /// Loads a function that the driver would load at its first launch; from 12.4.
    pub(super) function_load: Option<unsafe extern "C" fn(Raw) -> Code>,
    /// Allocates managed memory, where the driver can: address, bytes, who may touch it.
    pub(super) managed: Option<Managed>,
    _library: Library,
}

/// What a GPU tells of itself.
pub(super) struct Facts {
    pub(super) device: c_int,
    pub(super) name: String,
    pub(super) total_bytes: u64,
    pub(super) compute: (i32, i32),
    /// The NUMA node that is nearest.
    pub(super) host_node: Option<u32>,
    pub(super) multiprocessors: i32,
    pub(super) has_virtual_memory: bool,
    pub(super) has_pools: bool,
    /// Managed memory that the host may touch while the GPU works.
    pub(super) has_managed: bool,
}

/// The driver, or the reason why there is none; looked for once per process.
pub(super) fn probe() -> Result<&'static Driver> {
    static DRIVER: OnceLock<std::result::Result<Driver, Error>> = OnceLock::new();
    DRIVER.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<Driver> {
    let mut tried = Vec::new();
    for name in LIBRARIES {
        // SAFETY: opening the driver runs its initialisers, which is what any CUDA program does at its start.
        match unsafe { Library::new(*name) } {
            Ok(library) => return start(name, library),
            Err(error) => tried.push(format!("{name} ({error})")),
        }
    }
    let tried = tried.join(", ");
    Err(Error::new(Status::NoDevice, format!("no CUDA driver: tried {tried}; install the NVIDIA driver")))
}

fn symbol<T: Copy>(name: &str, library: &Library, symbol: &str) -> Result<T> {
    // SAFETY: the table above gives each name the type that the driver's header gives it.
    let found = unsafe { library.get::<T>(symbol.as_bytes()) };
    found.map(|found| *found).map_err(|_| {
        Error::new(Status::NoDevice, format!("{name} has no {symbol}; update the NVIDIA driver"))
    })
}

fn start(name: &str, library: Library) -> Result<Driver> {
    let api = Api::load(name, &library)?;
    let mut version = 0;
    // SAFETY: the number is writable; this call is allowed before cuInit.
    let code = unsafe { (api.cuDriverGetVersion)(&mut version) };
    expect_done("cuDriverGetVersion", code)?;
    if version < LEAST_VERSION {
        let text = format!(
            "{name} supports CUDA {}.{}, needed is 12.0; update the NVIDIA driver",
            version / 1000,
            version % 1000 / 10
        );
        return Err(Error::new(Status::NoDevice, text));
    }
    // SAFETY: takes a number only.
    match unsafe { (api.cuInit)(0) } {
        codes::SUCCESS => {}
        codes::NO_DEVICE => {
            return Err(Error::new(Status::NoDevice, format!("{name} is there, but it shows no GPU")));
        }
        code => return Err(codes::error("cuInit", code).context(name)),
    }
    let batch = find_batch(&api, version);
    // SAFETY: the driver's header gives cuFuncLoad this type.
    let function_load = find(&api, c"cuFuncLoad", 12_040)
        .map(|found| unsafe { std::mem::transmute::<*mut c_void, _>(found) });
    // SAFETY: the driver's header gives cuMemAllocManaged this type.
    let managed = find(&api, c"cuMemAllocManaged", LEAST_VERSION)
        .map(|found| unsafe { std::mem::transmute::<*mut c_void, Managed>(found) });
    Ok(Driver { api, batch, function_load, managed, _library: library })
}

fn find_batch(api: &Api, version: i32) -> Option<Batch> {
    // Asked for 13.0, the driver gives the later form; asked for 12.8, the earlier one.
    if version >= 13_000
        && let Some(found) = find(api, c"cuMemcpyBatchAsync", 13_000)
    {
        // SAFETY: this is the type of the entry point as of 13.0.
        return Some(Batch::V2(unsafe { std::mem::transmute::<*mut c_void, BatchV2>(found) }));
    }
    let found = find(api, c"cuMemcpyBatchAsync", 12_080)?;
    // SAFETY: this is the type of the entry point as of 12.8.
    Some(Batch::V1(unsafe { std::mem::transmute::<*mut c_void, BatchV1>(found) }))
}

/// An entry point as it was in one version, if the driver has it.
fn find(api: &Api, name: &std::ffi::CStr, version: i32) -> Option<*mut c_void> {
    let (mut found, mut status) = (std::ptr::null_mut(), 0);
    // SAFETY: the name ends with a zero, both results are writable.
    let code = unsafe { (api.cuGetProcAddress_v2)(name.as_ptr(), &mut found, version, 0, &mut status) };
    (code == codes::SUCCESS && status == 0 && !found.is_null()).then_some(found)
}

fn expect_done(call: &str, code: Code) -> Result<()> {
    if code == codes::SUCCESS { Ok(()) } else { Err(codes::error(call, code)) }
}

impl Driver {
    /// How many GPUs it shows.
    pub(super) fn count(&self) -> Result<u32> {
        let mut count = 0;
        // SAFETY: the number is writable.
        let code = unsafe { (self.api.cuDeviceGetCount)(&mut count) };
        expect_done("cuDeviceGetCount", code)?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    fn ask(&self, device: c_int, attribute: sys::CUdevice_attribute) -> Result<i32> {
        let mut value = 0;
        // SAFETY: the number is writable; a wrong device or attribute is refused.
        let code = unsafe { (self.api.cuDeviceGetAttribute)(&mut value, attribute as c_uint, device) };
        expect_done("cuDeviceGetAttribute", code).map(|()| value)
    }

    /// What one of them is.
    pub(super) fn facts(&self, ordinal: u32) -> Result<Facts> {
        use sys::CUdevice_attribute as Attribute;
        let ordinal = c_int::try_from(ordinal).map_err(|_| Error::argument("the ordinal is too large"))?;
        let mut device = 0;
        // SAFETY: the number is writable.
        let code = unsafe { (self.api.cuDeviceGet)(&mut device, ordinal) };
        expect_done("cuDeviceGet", code)?;
        let mut name = [0u8; 256];
        // SAFETY: the buffer is as long as told.
        let code = unsafe { (self.api.cuDeviceGetName)(name.as_mut_ptr().cast(), 255, device) };
        expect_done("cuDeviceGetName", code)?;
        let mut total = 0;
        // SAFETY: the number is writable.
        let code = unsafe { (self.api.cuDeviceTotalMem_v2)(&mut total, device) };
        expect_done("cuDeviceTotalMem", code)?;
        let ask = |attribute| self.ask(device, attribute);
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(0);
        Ok(Facts {
            device,
            name: String::from_utf8_lossy(&name[..end]).into_owned(),
            total_bytes: total as u64,
            compute: (
                ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            host_node: {
                let [domain, bus, place] = [
                    ask(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
                    ask(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
                    ask(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
                ];
                numa::node_of_pci(domain as u32, bus as u32, place as u32)
            },
            multiprocessors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            has_virtual_memory: ask(Attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)? != 0,
            has_pools: ask(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
            // Without the second the host may not touch any of it while a kernel runs, be it of another block.
            has_managed: ask(Attribute::CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY)? != 0
                && ask(Attribute::CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS)? != 0,
        })
    }
}
