//! What the open host devices of a process know of each other: their keys, and their streams by raw value.
//!
//! What it does not: keep anything alive; streams are noted weakly and leave with their device. Invariant: a raw value
//! is never used twice in a process. Lock order: its locks come last and are never held across anything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use super::stream::{Loss, Stream};
use crate::device::DeviceKey;
use crate::sync::Mutex;

/// Below it lie the values with a meaning of their own in CUDA (0 legacy, 1 and 2 per thread).
const FIRST_STREAM: u64 = 16;

static NEXT_STREAM: AtomicU64 = AtomicU64::new(FIRST_STREAM);
static STREAMS: Mutex<BTreeMap<u64, (u32, Weak<Stream>)>> = Mutex::new(BTreeMap::new());
static DEVICES: Mutex<Vec<DeviceKey>> = Mutex::new(Vec::new());

/// A new stream that other instances of the same device can find.
pub(super) fn make_stream(ordinal: u32, loss: Arc<Loss>) -> Arc<Stream> {
    let value = NEXT_STREAM.fetch_add(1, Ordering::Relaxed);
    let stream = Arc::new(Stream::new(value, loss));
    STREAMS.lock().insert(value, (ordinal, Arc::downgrade(&stream)));
    stream
}

/// A live stream of any instance of this device.
pub(super) fn find_stream(ordinal: u32, value: u64) -> Option<Arc<Stream>> {
    let streams = STREAMS.lock();
    let (found_ordinal, stream) = streams.get(&value)?;
    if *found_ordinal == ordinal { stream.upgrade() } else { None }
}

/// Forgets a stream that is about to end.
pub(super) fn forget_stream(value: u64) {
    STREAMS.lock().remove(&value);
}

/// Notes an open device.
pub(super) fn add_device(key: DeviceKey) {
    DEVICES.lock().push(key);
}

/// Forgets a device that is about to close.
pub(super) fn forget_device(key: DeviceKey) {
    DEVICES.lock().retain(|&other| other != key);
}

/// Whether a host device with this key is open.
pub(super) fn has_device(key: DeviceKey) -> bool {
    DEVICES.lock().contains(&key)
}
