//! An event that is destroyed with its owner.

use std::sync::Arc;

use super::{Device, Event};
use crate::error::Result;

/// Owner of an event.
pub struct OwnedEvent {
    device: Arc<dyn Device>,
    event: Event,
}

impl OwnedEvent {
    /// Makes an event that was never recorded.
    pub fn new(device: &Arc<dyn Device>) -> Result<Self> {
        let event = device.event_create()?;
        Ok(Self { device: Arc::clone(device), event })
    }

    /// The event, to record and to wait for.
    pub fn event(&self) -> Event {
        self.event
    }
}

impl Drop for OwnedEvent {
    fn drop(&mut self) {
        // A device that keeps an event is lost; there is nobody to tell in a drop.
        let _ = self.device.event_destroy(self.event);
    }
}
