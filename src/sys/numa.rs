//! Host memory that is about to be pinned: large pages, near the device, and touched by many threads at once.
//!
//! What it does: maps memory, says where it should lie, lets threads fault it in. What it does not: pin; a device does.
//! Pinning touched memory costs a driver a small part of what it costs to pin and fault in: 18 ms a GiB against 450 on
//! an H200 host with large pages. Writing to pages scales there with threads (140 ms a GiB with 1, 42 with 4, 22 with
//! 16); MADV_POPULATE_WRITE does not (119 ms with any number), so it serves only where nothing may be written.
//! All of it but the mapping is advice: a system that refuses it gives plain memory.
//! Invariant: an owner touches only its own range, and writes to it only before anybody else knows it.

use super::shm::{Anonymous, os_page_bytes};
use crate::error::Result;

/// MPOL_PREFERRED: another node serves when this one is full.
const PREFERRED: libc::c_ulong = 1;
/// Fewer bytes than this are not worth a thread.
const BYTES_PER_THREAD: u64 = 32 << 20;
/// Size of a large page; chunks of that size and more begin at a multiple of it.
const LARGE_PAGE: u64 = 2 << 20;

/// Owner of zeroed host memory; unmapped on drop.
#[derive(Debug)]
pub struct HostMemory {
    mapping: Anonymous,
    address: usize,
    bytes: u64,
}

impl HostMemory {
    /// Maps so many bytes, on a NUMA node if one is given, and has so many threads touch them.
    pub fn new(bytes: u64, node: Option<u32>, threads: usize) -> Result<Self> {
        // The system aligns to its own page, so that a large page needs room before it.
        let room = if bytes >= LARGE_PAGE { LARGE_PAGE } else { 0 };
        let mapping = Anonymous::new(bytes.saturating_add(room))?;
        let alignment = if room > 0 { LARGE_PAGE } else { os_page_bytes() };
        let address = mapping.address().next_multiple_of(alignment as usize);
        let memory = Self { mapping, address, bytes };
        if room > 0 {
            advise(address, bytes, libc::MADV_HUGEPAGE);
        }
        if let Some(node) = node {
            memory.prefer(node);
        }
        memory.touch(threads);
        Ok(memory)
    }

    /// First byte.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Length, as it was asked for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn prefer(&self, node: u32) {
        let mut mask = [0 as libc::c_ulong; 16];
        let bits = libc::c_ulong::BITS;
        let Some(word) = mask.get_mut((node / bits) as usize) else { return };
        *word = 1 << (node % bits);
        let (start, length) = (self.mapping.address(), self.mapping.bytes());
        let nodes = mask.len() as libc::c_ulong * libc::c_ulong::from(bits);
        // SAFETY: the range is a mapping of ours, the mask is as long as told; the call moves no page and takes none.
        let _ = unsafe { libc::syscall(libc::SYS_mbind, start, length, PREFERRED, mask.as_ptr(), nodes, 0) };
    }

    fn touch(&self, threads: usize) {
        let threads = (self.bytes / BYTES_PER_THREAD).clamp(1, threads.max(1) as u64);
        let share = self.bytes.div_ceil(threads).next_multiple_of(LARGE_PAGE);
        let part = |index: u64| self.touch_part(index * share, share);
        std::thread::scope(|scope| {
            for index in 1..threads {
                // A thread that cannot be had leaves its part to this one.
                let worker = std::thread::Builder::new().name("kavern-touch".to_owned());
                if worker.spawn_scoped(scope, move || part(index)).is_err() {
                    part(index);
                }
            }
            part(0);
        });
    }

    fn touch_part(&self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes).min(self.bytes);
        for offset in (offset..end).step_by(os_page_bytes() as usize) {
            let page = (self.address + offset as usize) as *mut u8;
            // SAFETY: inside the mapping, which is writable, zero, and known to nobody else while it is being made.
            unsafe { page.write_volatile(0) };
        }
    }

    /// Gives up ownership without unmapping: for memory that a device did not let go of.
    pub fn leak(self) {
        std::mem::forget(self.mapping);
    }
}

/// Answers whether the system has taken the advice.
fn advise(address: usize, bytes: u64, advice: libc::c_int) -> bool {
    let page = os_page_bytes() as usize;
    let start = address / page * page;
    let length = (address + bytes as usize).next_multiple_of(page) - start;
    // SAFETY: the advice given here changes no byte and takes no page away; addresses without memory are refused.
    unsafe { libc::madvise(start as *mut libc::c_void, length, advice) == 0 }
}

/// Has the system put pages behind a range of somebody else's without changing a byte of it. What the system refuses
/// stays as it is: whoever writes there or pins it puts the pages there one by one.
pub fn populate(address: usize, bytes: u64) {
    let page = os_page_bytes();
    if (address as u64).checked_add(bytes).is_some_and(|end| end.checked_next_multiple_of(page).is_some()) {
        advise(address, bytes, libc::MADV_POPULATE_WRITE);
    }
}

/// Whether the system puts pages behind a range when it is asked to: one that is older than the advice does not.
#[cfg(test)]
pub(crate) fn can_populate() -> bool {
    let some = [0_u8; 1];
    advise(some.as_ptr().addr(), 1, libc::MADV_POPULATE_WRITE)
}

/// Whether all pages of a range have memory.
#[cfg(test)]
pub(crate) fn is_populated(address: usize, bytes: u64) -> bool {
    let page = os_page_bytes() as usize;
    let start = address / page * page;
    let mut pages = vec![0; (address + bytes as usize - start).div_ceil(page)];
    let length = address + bytes as usize - start;
    // SAFETY: the result has a byte for each page, and the call reads no memory of the range.
    let code = unsafe { libc::mincore(start as *mut libc::c_void, length, pages.as_mut_ptr()) };
    code == 0 && pages.iter().all(|is_there: &u8| is_there & 1 == 1)
}

/// The NUMA node of a place on the PCI bus, if the system knows one.
pub fn node_of_pci(domain: u32, bus: u32, device: u32) -> Option<u32> {
    let path = format!("/sys/bus/pci/devices/{domain:04x}:{bus:02x}:{device:02x}.0/numa_node");
    // A machine with one node says -1.
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_writable_and_aligned_whatever_its_size_node_and_threads() {
        for (bytes, node, threads) in
            [(1, None, 1), (4096, Some(0), 4), (5 << 20, Some(0), 3), (200 << 20, Some(4000), 9)]
        {
            let memory = HostMemory::new(bytes, node, threads).unwrap();
            assert_eq!(memory.bytes(), bytes);
            let alignment = if bytes >= LARGE_PAGE { LARGE_PAGE } else { 4096 };
            assert!((memory.address() as u64).is_multiple_of(alignment));
            let offsets = std::collections::BTreeSet::from([0, bytes / 2, bytes - 1]);
            for offset in offsets {
                let byte = (memory.address() as u64 + offset) as *mut u8;
                // SAFETY: inside the memory, which nobody else knows.
                assert_eq!(unsafe { byte.read() }, 0);
                // SAFETY: as above.
                unsafe { byte.write(7) };
            }
        }
    }

    #[test]
    fn sizes_that_cannot_be_are_errors_and_foreign_addresses_are_left_alone() {
        assert!(HostMemory::new(u64::MAX, None, 1).is_err());
        populate(0, 1 << 20);
        populate(usize::MAX - 5000, 4096);
        populate(usize::MAX, 4096);
        assert_eq!(node_of_pci(0xffff, 0xff, 0x1f), None);
    }
}
