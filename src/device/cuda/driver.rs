//! The driver library: found once, asked carefully.
//!
//! What it does: probes for the library and for each function used, then asks through `cudarc`. What it does not: call
//! anything whose symbol was not seen first, because `cudarc` panics on a missing library or symbol; for the same
//! reason errors are told by number (formatting its error type asks the driver for the name). Invariant: the library
//! that the probe opened stays open for the life of the process.

use std::sync::OnceLock;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use libloading::Library;

use crate::error::{Error, Result, Status};

/// The real driver first: a toolkit's stub carries only the second name.
const LIBRARIES: &[&str] = &["libcuda.so.1", "libcuda.so"];

/// Everything that this file calls.
const SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
];

/// A driver that is there and has what is needed.
pub(super) struct Driver {
    _library: Library,
}

/// What a GPU tells of itself.
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) total_bytes: u64,
    pub(super) compute: (i32, i32),
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

fn start(name: &str, library: Library) -> Result<Driver> {
    for symbol in SYMBOLS {
        // SAFETY: the symbol is only looked for, as an opaque pointer, and never called through this type.
        let found = unsafe { library.get::<*const ()>(symbol.as_bytes()) };
        if found.is_err() {
            return Err(Error::new(
                Status::NoDevice,
                format!("{name} has no {symbol}; update the NVIDIA driver"),
            ));
        }
    }
    match result::init() {
        Ok(()) => Ok(Driver { _library: library }),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            Err(Error::new(Status::NoDevice, format!("{name} is there, but it shows no GPU")))
        }
        Err(error) => Err(failed("cuInit", error).context(name)),
    }
}

fn failed(call: &str, error: DriverError) -> Error {
    Error::new(Status::Device, format!("{call} answered CUresult {}", error.0 as i32))
}

impl Driver {
    /// How many GPUs it shows.
    pub(super) fn count(&self) -> Result<u32> {
        let count = result::device::get_count().map_err(|error| failed("cuDeviceGetCount", error))?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// What one of them is.
    pub(super) fn facts(&self, ordinal: u32) -> Result<Facts> {
        use sys::CUdevice_attribute as Attribute;
        let ordinal = i32::try_from(ordinal).map_err(|_| Error::argument("the ordinal is too large"))?;
        let device = result::device::get(ordinal).map_err(|error| failed("cuDeviceGet", error))?;
        let name = result::device::get_name(device).map_err(|error| failed("cuDeviceGetName", error))?;
        // SAFETY: the driver has just given out this device.
        let total = unsafe { result::device::total_mem(device) };
        let total = total.map_err(|error| failed("cuDeviceTotalMem", error))?;
        let ask = |attribute| {
            // SAFETY: as above; the attribute is one that every driver knows.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            value.map_err(|error| failed("cuDeviceGetAttribute", error))
        };
        let major = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Facts { name, total_bytes: total as u64, compute: (major, minor) })
    }
}
