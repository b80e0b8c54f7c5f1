//! Who is tested, and small things that several files need.

use std::sync::{Arc, OnceLock};

use kavern::device::{Device, DeviceSlice, registry};
use kavern::error::{Result, Status};
use kavern::event::NoSink;
use kavern::memory::{Elastic, ElasticConfig, Limits, Memory};

/// The devices that the sentences are played on.
pub(super) fn devices() -> Vec<String> {
    match std::env::var("KAVERN_TEST_DEVICE") {
        Ok(device) => {
            // Held open, so that opening it again and again is cheap.
            static OPEN: OnceLock<Arc<dyn Device>> = OnceLock::new();
            OPEN.get_or_init(|| registry::open(&device).unwrap());
            vec![device]
        }
        Err(_) => ["host", "sim?seed=1", "sim?seed=2"].map(String::from).to_vec(),
    }
}

/// The same device with one more parameter.
pub(super) fn with(device: &str, params: &str) -> String {
    let joint = if device.contains('?') { '&' } else { '?' };
    format!("{device}{joint}{params}")
}

pub(super) fn memory_of(device: &str) -> Arc<Memory> {
    Memory::new(registry::open(device).unwrap(), Limits::default(), Arc::new(NoSink))
}

/// Runs a sentence on each device that can map pages.
pub(super) fn each(sentence: impl Fn(&Arc<Memory>, u64)) {
    for device in devices() {
        let memory = memory_of(&device);
        let description = memory.device().description();
        if description.capabilities.virtual_memory {
            sentence(&memory, description.page_bytes);
        }
    }
}

/// A range of so many pages, with slabs or without.
pub(super) fn range(memory: &Arc<Memory>, pages: u64, has_slabs: bool) -> Arc<Elastic> {
    let unit = memory.device().description().page_bytes;
    Elastic::new(memory, ElasticConfig { capacity_bytes: pages * unit, page_bytes: 0, has_slabs }).unwrap()
}

/// The status of a call that must fail.
#[track_caller]
pub(super) fn refused<T>(result: Result<T>) -> Status {
    match result {
        Ok(_) => panic!("the call must be refused"),
        Err(error) => {
            assert!(!error.text.is_empty());
            error.status
        }
    }
}

/// Writes a number to the first and the last bytes of a part.
pub(super) fn mark(device: &dyn Device, part: DeviceSlice, number: u64) {
    for at in [0, part.bytes() - 8] {
        device.write(part.part(at, 8).unwrap(), &number.to_le_bytes()).unwrap();
    }
}

/// Reads them back.
pub(super) fn marks(device: &dyn Device, part: DeviceSlice) -> [u64; 2] {
    [0, part.bytes() - 8].map(|at| {
        let mut bytes = [0; 8];
        device.read(part.part(at, 8).unwrap(), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    })
}

/// Bytes of the device that are in use, where it tells them exactly.
pub(super) fn device_bytes(device: &dyn Device) -> Option<u64> {
    let is_exact = device.description().backend != "cuda";
    let info = device.memory_info().unwrap();
    is_exact.then_some(info.total_bytes - info.free_bytes)
}

/// A seed for random steps; printed by whoever fails.
pub(super) fn seed() -> u64 {
    std::env::var("KAVERN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Steps of a random test; `KAVERN_SOAK` asks for the long count.
pub(super) fn steps(usual: u64, long: u64) -> u64 {
    if std::env::var_os("KAVERN_SOAK").is_some() { long } else { usual }
}
