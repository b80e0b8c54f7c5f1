//! What clears memory that goes from one model to another.
//!
//! What it does: zeroes pages on a stream of its own and waits for that. Invariant: nothing is under way on pages whose
//! clearing was refused, unless the device counts as lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{Device, DeviceSlice, Stream};
use crate::error::{Error, Result, Status};

/// The stream on which memory is cleared.
pub(super) struct Scrubber {
    device: Arc<dyn Device>,
    stream: Stream,
    scrubbed_bytes: AtomicU64,
}

/// A stream that refuses to be waited for is asked so often before it counts as lost.
const WAITS_MAX: u32 = 16;

/// Waits for what was enqueued, also when a panic of the device ends the clearing: its pages are about to be unmapped.
struct Settled<'a>(&'a Scrubber);

impl Settled<'_> {
    /// Whether the stream is done with the pages for certain.
    fn wait(&self) -> bool {
        let Scrubber { device, stream, .. } = self.0;
        let wait =
            || matches!(catch_unwind(AssertUnwindSafe(|| device.stream_synchronize(*stream))), Ok(Ok(())));
        (0..WAITS_MAX).any(|_| wait())
    }
}

impl Drop for Settled<'_> {
    fn drop(&mut self) {
        self.wait();
    }
}

impl Scrubber {
    pub(super) fn new(device: &Arc<dyn Device>) -> Result<Self> {
        let stream = device.stream_create()?;
        Ok(Self { device: Arc::clone(device), stream, scrubbed_bytes: AtomicU64::new(0) })
    }

    /// Bytes that it ever cleared.
    pub(super) fn scrubbed_bytes(&self) -> u64 {
        self.scrubbed_bytes.load(Ordering::Relaxed)
    }

    /// Clears pages. After a refusal nothing is under way on them, unless the device counts as lost.
    pub(super) fn clear(&self, foreign: &[DeviceSlice]) -> Result<()> {
        let settled = Settled(self);
        let cleared = self.enqueue(foreign).and_then(|()| self.device.stream_synchronize(self.stream));
        let is_over = cleared.is_ok() || settled.wait();
        std::mem::forget(settled);
        match cleared {
            Err(error) if !is_over => {
                let text = format!("{error}; the stream that clears memory cannot be waited for");
                Err(Error::new(Status::DeviceLost, text))
            }
            other => other,
        }
    }

    fn enqueue(&self, foreign: &[DeviceSlice]) -> Result<()> {
        for run in foreign {
            self.device.memset(self.stream, *run, 0)?;
            self.scrubbed_bytes.fetch_add(run.bytes(), Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        // A device that keeps a stream is lost; there is nobody to tell in a drop.
        let _ = self.device.stream_destroy(self.stream);
    }
}
