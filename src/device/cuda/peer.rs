//! What the open CUDA devices of a process know of each other, and which of them may reach which.
//!
//! What it does not: keep a device open; they are noted weakly. Two instances of one GPU share its context and reach
//! each other without a word to the driver. Lock order: `DEVICES` alone; a device's own table alone; neither is held
//! across a call of the driver.

use std::sync::{Arc, Weak};

use super::codes;
use super::{Cuda, vmm::VirtualMemory};
use crate::device::DeviceKey;
use crate::error::{Error, Result};
use crate::sync::{Mutex, RwLock};

static DEVICES: Mutex<Vec<(DeviceKey, Weak<Cuda>)>> = Mutex::new(Vec::new());

/// Notes an open device.
pub(super) fn add(device: &Arc<Cuda>) {
    DEVICES.lock().push((device.key, Arc::downgrade(device)));
}

/// Forgets a device that is about to close.
pub(super) fn forget(key: DeviceKey) {
    DEVICES.lock().retain(|(other, _)| *other != key);
}

fn find(key: DeviceKey) -> Option<Arc<Cuda>> {
    let found = DEVICES.lock().iter().find(|(other, _)| *other == key).map(|(_, device)| device.clone());
    found.and_then(|device| device.upgrade())
}

/// A device whose memory may be reached: its key and its context.
#[derive(Clone, Copy)]
struct Peer {
    key: DeviceKey,
    context: usize,
}

/// The devices that one instance may reach.
#[derive(Default)]
pub(super) struct Peers {
    table: RwLock<Vec<Peer>>,
}

impl Peers {
    /// The context of a device that was made reachable.
    pub(super) fn context(&self, key: DeviceKey) -> Option<usize> {
        self.table.read().iter().find(|peer| peer.key == key).map(|peer| peer.context)
    }
}

impl Cuda {
    /// Whether this GPU can reach memory of the other.
    pub(super) fn can_reach(&self, other: DeviceKey) -> Result<bool> {
        let entered = self.context.enter()?;
        if other == self.key {
            return Ok(true);
        }
        let Some(other) = find(other) else { return Ok(false) };
        if other.context.device == self.context.device {
            return Ok(true);
        }
        let mut can = 0;
        let api = &self.context.driver.api;
        // SAFETY: the result is writable; both devices were given by the driver.
        let code =
            unsafe { (api.cuDeviceCanAccessPeer)(&mut can, self.context.device, other.context.device) };
        entered.done("cuDeviceCanAccessPeer", code).map(|()| can != 0)
    }

    /// Lets this GPU reach memory of the other, also what that one maps later.
    pub(super) fn enable(&self, other: DeviceKey) -> Result<()> {
        let is_self = other == self.key;
        let Some(other) = find(other) else {
            drop(self.context.enter()?);
            return Err(Error::argument("the other device is closed or not of this backend"));
        };
        let entered = self.context.enter_relaxed()?;
        if is_self || self.peers.context(other.key).is_some() {
            return Ok(());
        }
        if other.context.raw != self.context.raw {
            // SAFETY: the other context is retained for the life of the process.
            let code = unsafe { (self.context.driver.api.cuCtxEnablePeerAccess)(other.context.raw, 0) };
            if code != codes::PEER_ACCESS_ALREADY_ENABLED {
                entered.done("cuCtxEnablePeerAccess", code)?;
            }
            let theirs = other.context.enter_relaxed()?;
            let mut memory = other.virtual_memory.lock();
            VirtualMemory::admit(&mut memory, &theirs, self.context.device)?;
        }
        let mut peers = self.peers.table.write();
        if !peers.iter().any(|peer| peer.key == other.key) {
            peers.push(Peer { key: other.key, context: other.context.raw });
        }
        Ok(())
    }
}
