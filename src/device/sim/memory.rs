//! Memory of the simulated devices: addresses that no machine has, real bytes aside, and what was freed.
//!
//! What it does: finds the piece of memory around an address, hands out addresses, keeps what is needed to name a late
//! access. What it does not: judge accesses; `world` does. Invariants: pieces do not overlap; an address is not handed
//! out again before all addresses of its device have been; between two pieces lies a gap.
//!
//! Pinned memory of the host is noted here too, under its real address, so that copies into it are watched as well; and
//! managed memory, which is a block at a real address.

use std::collections::{BTreeMap, VecDeque};

use super::shadow::{Access, Shadow};
use crate::error::{Error, Result, Status};
use crate::sys::shm::Anonymous;

/// First address of the first device: above what any processor gives to programs.
const BASE: u64 = 1 << 52;
/// Addresses of one device.
pub(super) const WINDOW_BYTES: u64 = 1 << 44;
/// Alignment of every allocation, that of CUDA.
pub(super) const ALIGNMENT: u64 = 256;
/// Freed pieces that are remembered with the name of who freed them.
const TOMBS_MAX: usize = 4096;
/// Unmapped parts of one reservation that are remembered.
const UNMAPPED_MAX: usize = 256;
/// Blocks below this size come from the heap, larger ones are mapped.
const HEAP_BYTES: u64 = 64 << 10;
/// Pinned and managed memory that is kept after its free, so that its addresses do not come back at once.
const PINNED_QUARANTINE_BYTES: u64 = 16 << 20;

/// What fills a late read, and memory that a late operation would have written.
pub(super) const POISON: u8 = 0xdb;

/// A piece of heap memory with the alignment of an allocation.
#[derive(Clone, Copy)]
#[repr(C, align(256))]
pub(super) struct Line([u8; ALIGNMENT as usize]);

/// The real bytes of a block.
pub(super) enum Bytes {
    Heap(Vec<Line>),
    Mapped(Anonymous),
}

impl Bytes {
    /// Zeroed bytes.
    pub(super) fn new(bytes: u64) -> Result<Self> {
        if bytes >= HEAP_BYTES {
            return Anonymous::new(bytes).map(Self::Mapped);
        }
        Ok(Self::Heap(vec![Line([0; ALIGNMENT as usize]); bytes.div_ceil(ALIGNMENT) as usize]))
    }

    fn address(&mut self) -> u64 {
        match self {
            Self::Heap(lines) => lines.as_mut_ptr() as u64,
            Self::Mapped(memory) => memory.address() as u64,
        }
    }
}

/// What a piece of memory is.
pub(super) enum Content {
    /// An allocation.
    Block { bytes: Bytes, is_async: bool },
    /// Reserved addresses; the real ones begin here.
    Window(u64),
    /// Host memory; None for the caller's.
    Pinned(Option<Anonymous>),
    /// Freed.
    Gone,
}

/// A piece of memory.
pub(super) struct Region {
    /// Length.
    pub(super) bytes: u64,
    /// Index of the device that made it.
    pub(super) gpu: usize,
    /// What it is.
    pub(super) content: Content,
    /// Its free waits in a stream.
    pub(super) is_leaving: bool,
    /// The allocation, if a stream ordered it.
    pub(super) born: Option<Access>,
    /// The free, once it happened.
    pub(super) freed: Option<Access>,
    /// Other devices that have registered the same host memory.
    pub(super) sharers: Vec<usize>,
    /// Parts of reserved addresses that were unmapped, latest last.
    unmapped: VecDeque<(u64, u64, Access)>,
    /// Accesses so far.
    pub(super) shadow: Shadow,
}

impl Region {
    /// An untouched piece.
    pub(super) fn new(gpu: usize, bytes: u64, content: Content, born: Option<Access>) -> Self {
        Self {
            bytes,
            gpu,
            content,
            is_leaving: false,
            born,
            freed: None,
            sharers: Vec::new(),
            unmapped: VecDeque::new(),
            shadow: Shadow::default(),
        }
    }

    /// Remembers who unmapped a part.
    pub(super) fn note_unmap(&mut self, start: u64, end: u64, access: Access) {
        self.shadow.clear(start, end);
        if self.unmapped.len() >= UNMAPPED_MAX {
            self.unmapped.pop_front();
        }
        self.unmapped.push_back((start, end, access));
    }

    /// Who unmapped a byte of the range last; what was mapped again meanwhile may be among it.
    pub(super) fn unmapper(&self, start: u64, end: u64) -> Option<Access> {
        let meets = |part: &&(u64, u64, Access)| part.0 < end && start < part.1;
        self.unmapped.iter().rev().find(meets).map(|part| part.2)
    }

    /// Where its first byte really is; None once it is freed.
    pub(super) fn real(&mut self, start: u64) -> Option<u64> {
        match &mut self.content {
            Content::Block { bytes, .. } => Some(bytes.address()),
            Content::Window(real) => Some(*real),
            Content::Pinned(_) => Some(start),
            Content::Gone => None,
        }
    }
}

/// Addresses of one device.
pub(super) struct Space {
    base: u64,
    cursor: u64,
    tombs: VecDeque<u64>,
}

impl Space {
    /// Those of the device at an index.
    pub(super) fn new(index: usize) -> Self {
        let base = BASE + index as u64 * WINDOW_BYTES;
        Self { base, cursor: base, tombs: VecDeque::new() }
    }

    /// Whether an address is one of this device.
    pub(super) fn holds(&self, address: u64, bytes: u64) -> bool {
        address >= self.base && bytes <= WINDOW_BYTES && address - self.base <= WINDOW_BYTES - bytes
    }

    /// Whether an address may have been handed out.
    pub(super) fn was_used(&self, address: u64) -> bool {
        address >= self.base && address < self.cursor
    }

    /// The place of an address among those of the device; 0 for others.
    pub(super) fn offset(&self, address: u64) -> u64 {
        if self.holds(address, 0) { address - self.base } else { 0 }
    }
}

/// All pieces of all devices.
pub(super) struct Regions {
    map: BTreeMap<u64, Region>,
    quarantine: VecDeque<(u64, Anonymous)>,
    quarantine_bytes: u64,
}

impl Regions {
    /// None.
    pub(super) const fn new() -> Self {
        Self { map: BTreeMap::new(), quarantine: VecDeque::new(), quarantine_bytes: 0 }
    }

    /// The piece that holds a whole range, with its first address.
    pub(super) fn around(&mut self, address: u64, bytes: u64) -> Option<(u64, &mut Region)> {
        let (&start, region) = self.map.range_mut(..=address).next_back()?;
        let offset = address - start;
        let is_inside = offset < region.bytes && bytes <= region.bytes - offset;
        is_inside.then_some((start, region))
    }

    /// The piece that begins at an address.
    pub(super) fn get(&mut self, start: u64) -> Option<&mut Region> {
        self.map.get_mut(&start)
    }

    /// Finds addresses for a piece. Freed ones are taken only when no others are left.
    pub(super) fn place(&mut self, space: &mut Space, bytes: u64, alignment: u64) -> Result<u64> {
        let end = space.base + WINDOW_BYTES;
        let full = || {
            Error::new(
                Status::OutOfMemory,
                format!("{bytes} bytes are more than simulated addresses are left"),
            )
        };
        for _ in 0..2 {
            let mut start = space.cursor.max(space.base + alignment).next_multiple_of(alignment);
            while let Some(stop) = start.checked_add(bytes).filter(|&stop| stop <= end) {
                let below = self.map.range(..stop).next_back();
                let blocker = below.filter(|(first, region)| **first + region.bytes + ALIGNMENT > start);
                let Some((&first, region)) = blocker else {
                    // The gap behind it keeps an overrun from reaching a neighbour unseen.
                    space.cursor = stop + ALIGNMENT;
                    return Ok(start);
                };
                start = (first + region.bytes + ALIGNMENT).next_multiple_of(alignment);
            }
            space.cursor = space.base;
            space.tombs.drain(..).for_each(|tomb| drop(self.map.remove(&tomb)));
        }
        Err(full())
    }

    /// Whether memory of a device will come back by itself when its streams have done their work.
    pub(super) fn has_leaving(&self, gpu: usize) -> bool {
        let is_leaving = |region: &Region| region.is_leaving && !matches!(region.content, Content::Gone);
        self.map.values().any(|region| region.gpu == gpu && is_leaving(region))
    }

    /// Adds a piece.
    pub(super) fn insert(&mut self, start: u64, region: Region) {
        if let Some(old) = self.map.insert(start, region) {
            debug_assert!(matches!(old.content, Content::Gone), "pieces do not overlap");
        }
    }

    /// Turns a piece of device memory into one that is known to be freed.
    pub(super) fn bury(&mut self, space: &mut Space, start: u64, freed: Access) {
        let Some(region) = self.map.get_mut(&start) else { return };
        region.content = Content::Gone;
        region.freed = Some(freed);
        region.shadow = Shadow::default();
        space.tombs.push_back(start);
        if space.tombs.len() > TOMBS_MAX
            && let Some(oldest) = space.tombs.pop_front()
        {
            self.map.remove(&oldest);
        }
    }

    /// Gives memory of ours back that lies at a real address, pinned or managed: poisoned and late.
    pub(super) fn bury_real(&mut self, start: u64, freed: Access) {
        let Some(region) = self.map.get_mut(&start) else { return };
        let memory = match std::mem::replace(&mut region.content, Content::Gone) {
            Content::Pinned(Some(memory)) | Content::Block { bytes: Bytes::Mapped(memory), .. } => memory,
            _ => {
                self.map.remove(&start);
                return;
            }
        };
        region.freed = Some(freed);
        region.shadow = Shadow::default();
        if memory.bytes() > PINNED_QUARANTINE_BYTES {
            self.map.remove(&start);
            return;
        }
        // SAFETY: the mapping is ours, of this length, writable, and nobody else may use it any more.
        unsafe { std::ptr::write_bytes(memory.address() as *mut u8, POISON, memory.bytes() as usize) };
        self.quarantine_bytes += memory.bytes();
        self.quarantine.push_back((start, memory));
        while self.quarantine_bytes > PINNED_QUARANTINE_BYTES {
            let Some((oldest, memory)) = self.quarantine.pop_front() else { break };
            self.quarantine_bytes -= memory.bytes();
            self.map.remove(&oldest);
        }
    }

    /// Notes memory of the caller's for a device.
    pub(super) fn register(&mut self, gpu: usize, start: u64, bytes: u64) -> Result<()> {
        let met = self.map.range_mut(..start + bytes).next_back();
        match met.filter(|(first, region)| **first + region.bytes > start) {
            None => {}
            Some((&first, region)) => {
                let is_same = first == start && region.bytes == bytes;
                let is_foreign = region.gpu != gpu && !region.sharers.contains(&gpu);
                if is_same && is_foreign && matches!(region.content, Content::Pinned(None)) {
                    region.sharers.push(gpu);
                    return Ok(());
                }
                return Err(Error::new(
                    Status::AlreadyExists,
                    format!(
                        "{bytes} bytes at {start:#x} overlap pinned memory at {first:#x}; unregister it first"
                    ),
                ));
            }
        }
        self.insert(start, Region::new(gpu, bytes, Content::Pinned(None), None));
        Ok(())
    }

    /// Forgets memory of the caller's; true when no device knows it any more.
    pub(super) fn unregister(&mut self, gpu: usize, start: u64) -> bool {
        let Some(region) = self.map.get_mut(&start) else { return true };
        if region.gpu != gpu {
            region.sharers.retain(|&sharer| sharer != gpu);
            return false;
        }
        match region.sharers.pop() {
            Some(heir) => region.gpu = heir,
            None => drop(self.map.remove(&start)),
        }
        !self.map.contains_key(&start)
    }

    /// Forgets all memory of a device that closes; answers the ranges of its pinned memory.
    pub(super) fn close(&mut self, gpu: usize) -> Vec<(u64, u64)> {
        let mut gone = Vec::new();
        self.map.retain(|&start, region| {
            region.sharers.retain(|&sharer| sharer != gpu);
            if region.gpu != gpu {
                return true;
            }
            if let Some(heir) = region.sharers.pop() {
                region.gpu = heir;
                return true;
            }
            gone.push((start, start + region.bytes));
            false
        });
        let map = &self.map;
        self.quarantine.retain(|(start, _)| map.contains_key(start));
        self.quarantine_bytes = self.quarantine.iter().map(|(_, memory)| memory.bytes()).sum();
        gone
    }
}
