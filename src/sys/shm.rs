//! Memory mappings with owners: anonymous memory, reserved addresses, and memory that can be mapped many times.
//!
//! What it does: mmap, mprotect, munmap, memfd, hole punching. What it does not: bookkeeping of who may map what where;
//! that is the caller's (see `device::host`). Invariant: an owner touches only addresses inside its own range, so no
//! call here can take memory away from anybody else. Nothing here makes references to the memory.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::error::{Error, Result, Status};

/// What may be done to a mapped range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Any access faults.
    None,
    /// Reads only.
    Read,
    /// Reads and writes.
    ReadWrite,
}

impl Protection {
    fn bits(self) -> libc::c_int {
        match self {
            Self::None => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

fn system_number(name: libc::c_int) -> u64 {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).unwrap_or(0)
}

/// Size of the smallest mapping of the operating system.
pub fn os_page_bytes() -> u64 {
    system_number(libc::_SC_PAGESIZE).max(4096)
}

/// Physical memory of the machine.
pub fn physical_bytes() -> u64 {
    system_number(libc::_SC_PHYS_PAGES).saturating_mul(os_page_bytes())
}

fn map_anonymous(bytes: usize, protection: Protection, flags: libc::c_int) -> Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: no address is asked for, so the system picks one that nobody uses.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection.bits(), flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(Error::os("mmap").context(&format!("mapping {bytes} bytes")));
    }
    Ok(address as usize)
}

fn unmap(address: usize, bytes: usize) {
    if bytes == 0 {
        return;
    }
    // SAFETY: callers are owners of exactly this range and give it up. A failure leaves the range mapped, which wastes
    // addresses and harms nobody.
    let _ = unsafe { libc::munmap(address as *mut libc::c_void, bytes) };
}

/// Owner of zeroed readable and writable memory; unmapped on drop.
#[derive(Debug)]
pub struct Anonymous {
    address: usize,
    bytes: usize,
}

impl Anonymous {
    /// Maps at least this many bytes, rounded up to pages of the operating system.
    pub fn new(bytes: u64) -> Result<Self> {
        let rounded = bytes.checked_next_multiple_of(os_page_bytes()).filter(|&rounded| rounded > 0);
        let Some(rounded) = rounded.and_then(|rounded| usize::try_from(rounded).ok()) else {
            return Err(Error::argument(format!("{bytes} bytes cannot be mapped")));
        };
        Ok(Self { address: map_anonymous(rounded, Protection::ReadWrite, 0)?, bytes: rounded })
    }

    /// First byte.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Length, a multiple of the operating system's page.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        unmap(self.address, self.bytes);
    }
}

/// Owner of memory without an address, a file that lives only in memory; given back when the last mapping has gone.
#[derive(Debug)]
pub struct Pages {
    file: OwnedFd,
    bytes: u64,
}

impl Pages {
    /// An empty one.
    pub fn new() -> Result<Self> {
        // SAFETY: the name is a constant string with its zero.
        let file = unsafe { libc::memfd_create(c"kavern-pages".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(Error::os("memfd_create"));
        }
        // SAFETY: the system has just made this descriptor for us; nobody else knows it.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        Ok(Self { file, bytes: 0 })
    }

    /// Makes offsets below `bytes` valid. They take no memory before they are written.
    pub fn grow(&mut self, bytes: u64) -> Result<()> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let length =
            libc::off_t::try_from(bytes).map_err(|_| Error::argument("more pages than a file can hold"))?;
        // SAFETY: the descriptor is open and ours; growing touches no mapped memory.
        if unsafe { libc::ftruncate(self.file.as_raw_fd(), length) } != 0 {
            return Err(Error::os("ftruncate of the page memory"));
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Gives the memory behind the offsets back to the system; they read as zero afterwards.
    pub fn punch(&self, offset: u64, bytes: u64) -> Result<()> {
        let (Ok(offset), Ok(bytes)) = (libc::off_t::try_from(offset), libc::off_t::try_from(bytes)) else {
            return Err(Error::argument("a hole beyond what a file can hold"));
        };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open and ours; the call takes numbers only.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, bytes) } != 0 {
            return Err(Error::os("fallocate of a hole in the page memory"));
        }
        Ok(())
    }
}

/// Owner of addresses with no memory behind them at first; unmapped on drop.
#[derive(Debug)]
pub struct Reservation {
    address: usize,
    bytes: usize,
}

impl Reservation {
    /// Reserves addresses; `alignment` is a power of two.
    pub fn new(bytes: u64, alignment: u64) -> Result<Self> {
        let refuse = || Error::argument(format!("{bytes} bytes of addresses cannot be reserved"));
        if !alignment.is_power_of_two() || bytes == 0 {
            return Err(refuse());
        }
        let alignment = usize::try_from(alignment).map_err(|_| refuse())?.max(os_page_bytes() as usize);
        let bytes =
            usize::try_from(bytes).ok().and_then(|b| b.checked_next_multiple_of(os_page_bytes() as usize));
        let bytes = bytes.ok_or_else(refuse)?;
        let padded = bytes.checked_add(alignment).ok_or_else(refuse)?;
        // More than needed, then cut to an aligned middle: mmap itself promises no more than its own page.
        let start = map_anonymous(padded, Protection::None, libc::MAP_NORESERVE)?;
        let address = start.next_multiple_of(alignment);
        unmap(start, address - start);
        unmap(address + bytes, start + padded - address - bytes);
        Ok(Self { address, bytes })
    }

    /// First address.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Length.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    fn place(&self, offset: u64, bytes: u64) -> Result<(usize, usize)> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes as u64 && bytes > 0 => {
                Ok((self.address + offset as usize, bytes as usize))
            }
            _ => Err(Error::argument(format!("{bytes} bytes at {offset} of {} reserved bytes", self.bytes))),
        }
    }

    /// Puts page memory behind addresses, without access. What was there is replaced.
    pub fn map(&self, offset: u64, bytes: u64, pages: &Pages, page_offset: u64) -> Result<()> {
        let (address, length) = self.place(offset, bytes)?;
        if page_offset.checked_add(bytes).is_none_or(|end| end > pages.bytes) {
            return Err(Error::argument("page memory ends before the mapping does"));
        }
        let file = pages.file.as_raw_fd();
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let start = address as *mut libc::c_void;
        // SAFETY: the range lies inside addresses that this reservation owns, so MAP_FIXED replaces only our own.
        let got =
            unsafe { libc::mmap(start, length, libc::PROT_NONE, flags, file, page_offset as libc::off_t) };
        if got == libc::MAP_FAILED { Err(mapping_refused("mmap of a page")) } else { Ok(()) }
    }

    /// Takes the memory away from behind addresses; access faults afterwards.
    pub fn unmap(&self, offset: u64, bytes: u64) -> Result<()> {
        let (address, length) = self.place(offset, bytes)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: as in `map`: only addresses of this reservation are replaced.
        let got = unsafe { libc::mmap(address as *mut libc::c_void, length, libc::PROT_NONE, flags, -1, 0) };
        if got == libc::MAP_FAILED { Err(mapping_refused("mmap of a hole")) } else { Ok(()) }
    }

    /// Sets what may be done to addresses.
    pub fn protect(&self, offset: u64, bytes: u64, protection: Protection) -> Result<()> {
        let (address, length) = self.place(offset, bytes)?;
        // SAFETY: only addresses of this reservation change; nothing here holds a reference into them.
        let code = unsafe { libc::mprotect(address as *mut libc::c_void, length, protection.bits()) };
        if code != 0 { Err(mapping_refused("mprotect")) } else { Ok(()) }
    }
}

/// The system says ENOMEM when the process has too many mappings, which is no lack of memory.
fn mapping_refused(doing: &str) -> Error {
    let error = std::io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOMEM) {
        return Error::from_io(doing, &error);
    }
    Error::new(
        Status::OutOfHostMemory,
        format!("{doing}: {error}; if memory is free, raise vm.max_map_count or use larger pages"),
    )
}

impl Drop for Reservation {
    fn drop(&mut self) {
        unmap(self.address, self.bytes);
    }
}
