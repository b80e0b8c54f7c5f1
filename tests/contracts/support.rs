//! Who is tested: every backend that opens here, once bare and once behind the counting wrapper.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use kavern::device::{Device, DeviceSlice, MemoryInfo, Stream, registry};
use kavern::error::{Result, Status};

/// One backend, bare or wrapped.
pub(super) struct Subject {
    pub(super) backend: &'static str,
    pub(super) is_counting: bool,
}

impl Subject {
    /// The spec of one of its devices.
    pub(super) fn spec(&self, ordinal: u32, params: &str) -> String {
        let counting = if self.is_counting { "fail_nth=0" } else { "" };
        let joint = if self.is_counting && !params.is_empty() { "&" } else { "" };
        let mark = if self.is_counting || !params.is_empty() { "?" } else { "" };
        format!("{}:{ordinal}{mark}{params}{joint}{counting}", self.backend)
    }

    pub(super) fn open(&self) -> Arc<dyn Device> {
        registry::open(&self.spec(0, "")).unwrap()
    }
}

#[expect(clippy::disallowed_macros, reason = "a skip is told to whoever runs the suite")]
fn tell(text: &str) {
    eprintln!("{text}");
}

/// Runs a sentence for every subject.
pub(super) fn each(sentence: impl Fn(&Subject)) {
    let required = std::env::var("KAVERN_REQUIRE").unwrap_or_default();
    for backend in registry::BACKENDS {
        if let Err(error) = registry::open(&format!("{}:0", backend.name)) {
            assert!(
                !required.split(',').any(|name| name == backend.name),
                "KAVERN_REQUIRE names {}, but: {error}",
                backend.name
            );
            assert!(matches!(error.status, Status::NoDevice | Status::Unsupported), "{error}");
            tell(&format!("skipped {}: {error}", backend.name));
            continue;
        }
        for is_counting in [false, true] {
            sentence(&Subject { backend: backend.name, is_counting });
        }
    }
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

/// What a driver takes for itself or gives back late; its pools grow by 32 MiB at a time.
const DRIVER_BYTES: u64 = 72 << 20;

/// Compares the memory of a device with what it should be: exactly where all of it is ours, else about.
#[track_caller]
pub(super) fn assert_memory(device: &dyn Device, expected: MemoryInfo) {
    let seen = device.memory_info().unwrap();
    let slack = if device.description().capabilities.host_addressable { 0 } else { DRIVER_BYTES };
    assert_eq!(seen.total_bytes, expected.total_bytes);
    let difference = seen.free_bytes.abs_diff(expected.free_bytes);
    assert!(difference <= slack, "{} bytes free, expected {}", seen.free_bytes, expected.free_bytes);
}

/// The same for the free bytes alone.
#[track_caller]
pub(super) fn assert_free(device: &dyn Device, free_bytes: u64) {
    let total_bytes = device.memory_info().unwrap().total_bytes;
    assert_memory(device, MemoryInfo { free_bytes, total_bytes });
}

pub(super) fn bytes_of(device: &dyn Device, slice: DeviceSlice) -> Vec<u8> {
    let mut bytes = vec![0; slice.bytes() as usize];
    device.read(slice, &mut bytes).unwrap();
    bytes
}

/// Bytes that differ from their neighbours.
pub(super) fn pattern(seed: u8, count: usize) -> Vec<u8> {
    (0..count).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}

/// Holds a stream until it is opened or dropped.
pub(super) struct Gate {
    _open: Sender<()>,
}

impl Gate {
    /// Enqueues work that waits; `then` runs on the worker afterwards.
    pub(super) fn close(device: &dyn Device, stream: Stream, then: impl FnOnce() + Send + 'static) -> Self {
        let (open, wait): (Sender<()>, Receiver<()>) = channel();
        let callback = move || {
            let _ = wait.recv();
            then();
        };
        device.stream_callback(stream, Box::new(callback)).unwrap();
        Self { _open: open }
    }

    pub(super) fn open(self) {}
}
