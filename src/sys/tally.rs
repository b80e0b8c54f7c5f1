//! A count of bytes that the processes of one user share, under one limit, by name.
//!
//! What it does: a segment of shared memory with a row for each process; bytes are added under the segment's lock if
//! the sum of all living rows stays within the limit, and taken off without it. What it does not: know what the bytes
//! are.
//!
//! The lock and the life of a row are record locks on bytes of the segment's file, which the system takes back when a
//! process ends, however it ends. So a killed owner of the lock stops nobody, a dead row is known for sure in any
//! process namespace, and no number of a process is ever taken for another's. A row is changed by one store, so that
//! there is nothing to repair after a death in the middle.
//!
//! Record locks belong to a process and go when it closes any descriptor of the file, so a segment that was opened
//! stays open until the process ends; threads are kept apart by a lock of their own. Invariants: the sum of the living
//! rows is at most the limit; only its own process adds to a row. Other processes of the same user are trusted not to
//! write anything else there. Lock order: the table of segments, then a segment's threads, then the record lock.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::fork;
use crate::error::{Error, Result, Status};
use crate::sync::{Mutex, MutexGuard};

/// Processes that share one segment at most.
pub const ROWS: usize = 256;
/// Segments that one process opens at most.
const SEGMENTS_MAX: usize = 64;
/// "kvnTALY" and the version of the layout.
const MAGIC: u64 = 0x6b76_6e54_414c_5901;
/// A row has a cache line to itself, so that processes do not slow each other down.
const ROW_WORDS: usize = 8;
const HEAD_WORDS: usize = 8;
const WORDS: usize = HEAD_WORDS + ROWS * ROW_WORDS;
const BYTES: usize = WORDS * size_of::<u64>();
/// Record locks may lie behind the end of a file; these bytes are never written.
const LOCK_AT: i64 = 1 << 32;
const ROWS_AT: i64 = LOCK_AT + 1;

// Places of the head.
const AT_MAGIC: usize = 0;
const AT_LIMIT: usize = 1;
// Places of a row.
const ROW_PID: usize = 0;
const ROW_BYTES: usize = 1;

struct Segment {
    name: String,
    file: OwnedFd,
    words: Words,
    row: usize,
    /// Holds the record lock for this process's threads.
    threads: Mutex<()>,
}

static SEGMENTS: Mutex<Vec<Arc<Segment>>> = Mutex::new(Vec::new());

/// A part in a segment; what it has added goes back when it is dropped.
pub struct Tally {
    segment: Arc<Segment>,
    added_bytes: AtomicU64,
}

/// The lock of a segment; nobody adds bytes while it is held.
pub struct Locked<'a> {
    segment: &'a Segment,
    _threads: MutexGuard<'a, ()>,
}

fn record(file: &OwnedFd, command: libc::c_int, kind: libc::c_int, at: i64) -> Result<libc::flock> {
    let mut wish = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    };
    loop {
        // SAFETY: the descriptor is open, the structure is complete and lives across the call.
        let code = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut wish) };
        if code == 0 {
            return Ok(wish);
        }
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            // The system's search for deadlocks takes all threads of a process for one; nobody here waits in a ring.
            Some(libc::EINTR | libc::EDEADLK) => std::thread::yield_now(),
            _ => return Err(Error::from_io("a record lock of the shared budget", &error)),
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(is_plain) {
        return Err(Error::argument(format!(
            "\"{name}\" as the name of a shared budget; take 1 to 128 letters, digits, '-', '_' and '.'"
        )));
    }
    Ok(())
}

/// Opens or makes the file and checks that it is private to this user.
fn open_file(name: &str) -> Result<OwnedFd> {
    // SAFETY: takes nothing, cannot fail.
    let user = unsafe { libc::geteuid() };
    let path = CString::new(format!("/kavern-{user}-{name}"))
        .map_err(|_| Error::argument("a zero in the name of a shared budget"))?;
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: the path ends with a zero.
    let file = unsafe { libc::shm_open(path.as_ptr(), flags, 0o600 as libc::mode_t) };
    if file < 0 {
        return Err(Error::os(&format!("opening the shared budget \"{name}\"")));
    }
    // SAFETY: the system has just made this descriptor for us; nobody else knows it.
    let file = unsafe { OwnedFd::from_raw_fd(file) };
    // SAFETY: numbers only, for which zeros are values.
    let mut about: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the structure is writable.
    if unsafe { libc::fstat(file.as_raw_fd(), &raw mut about) } != 0 {
        return Err(Error::os("fstat of a shared budget"));
    }
    if about.st_uid != user || about.st_mode & 0o077 != 0 || about.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Error::new(
            Status::Os,
            format!(
                "the shared budget \"{name}\" belongs to user {} with mode {:o}; it must be ours alone: remove it or \
                 choose another name",
                about.st_uid,
                about.st_mode & 0o777
            ),
        ));
    }
    Ok(file)
}

/// Owner of the mapped segment.
struct Words(*mut libc::c_void);

// SAFETY: nothing is reached through the pointer but atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    fn map(file: &OwnedFd) -> Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (nowhere, file) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: no address is asked for, so the system picks one that nobody uses.
        let address = unsafe { libc::mmap(nowhere, BYTES, access, libc::MAP_SHARED, file, 0) };
        if address == libc::MAP_FAILED {
            return Err(Error::os("mmap of a shared budget"));
        }
        Ok(Self(address))
    }

    fn get(&self, at: usize) -> &AtomicU64 {
        let words = self.0.cast_const().cast::<AtomicU64>();
        // SAFETY: page-aligned, as long as told, mapped until the owner goes; every process uses atomics alone.
        let words = unsafe { std::slice::from_raw_parts(words, WORDS) };
        &words[at]
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and its owner gives it up.
        let _ = unsafe { libc::munmap(self.0, BYTES) };
    }
}

impl Segment {
    fn open(name: &str, limit_bytes: u64) -> Result<Self> {
        let file = open_file(name)?;
        record(&file, libc::F_SETLKW, libc::F_WRLCK, LOCK_AT)?;
        let made = Self::enter(name, file, limit_bytes)?;
        record(&made.file, libc::F_SETLK, libc::F_UNLCK, LOCK_AT)?;
        Ok(made)
    }

    /// Takes a row; the record lock is held. On failure the file is closed, which gives the locks back.
    fn enter(name: &str, file: OwnedFd, limit_bytes: u64) -> Result<Self> {
        // SAFETY: the descriptor is open and ours; the file is as long as every process needs it, so that nobody
        // shortens it.
        if unsafe { libc::ftruncate(file.as_raw_fd(), BYTES as libc::off_t) } != 0 {
            return Err(Error::os("ftruncate of a shared budget"));
        }
        let words = Words::map(&file)?;
        let mut segment = Self { name: name.to_owned(), file, words, row: ROWS, threads: Mutex::new(()) };
        match segment.words.get(AT_MAGIC).load(Ordering::Acquire) {
            0 => segment.words.get(AT_MAGIC).store(MAGIC, Ordering::Release),
            MAGIC => {}
            other => {
                let text = format!("the shared budget \"{name}\" is of another version ({other:#x})");
                return Err(Error::new(Status::Unsupported, text));
            }
        }
        segment.bury_dead()?;
        segment.agree(limit_bytes)?;
        let free = (0..ROWS).find(|&row| segment.word(row, ROW_PID).load(Ordering::Acquire) == 0);
        let Some(row) = free else {
            let text = format!("{ROWS} processes share the budget \"{name}\" already");
            return Err(Error::new(Status::LimitReached, text));
        };
        record(&segment.file, libc::F_SETLK, libc::F_WRLCK, ROWS_AT + row as i64)?;
        segment.row = row;
        segment.word(row, ROW_BYTES).store(0, Ordering::Release);
        segment.word(row, ROW_PID).store(u64::from(std::process::id()), Ordering::Release);
        Ok(segment)
    }

    /// Whoever comes first sets the limit; 0 takes the one that is there.
    fn agree(&self, limit_bytes: u64) -> Result<()> {
        let has_others = (0..ROWS).any(|row| self.word(row, ROW_PID).load(Ordering::Acquire) != 0);
        let there = self.limit_bytes();
        if !has_others && limit_bytes > 0 {
            self.words.get(AT_LIMIT).store(limit_bytes, Ordering::Release);
            return Ok(());
        }
        if there == 0 || (limit_bytes != 0 && limit_bytes != there) {
            return Err(Error::argument(format!(
                "the shared budget \"{}\" has a limit of {there} bytes, {limit_bytes} asked for; agree on one",
                self.name
            )));
        }
        Ok(())
    }

    fn word(&self, row: usize, at: usize) -> &AtomicU64 {
        self.words.get(HEAD_WORDS + row * ROW_WORDS + at)
    }

    fn limit_bytes(&self) -> u64 {
        self.words.get(AT_LIMIT).load(Ordering::Acquire)
    }

    /// Clears the rows whose processes have ended.
    fn bury_dead(&self) -> Result<()> {
        for row in (0..ROWS).filter(|&row| row != self.row) {
            if self.word(row, ROW_PID).load(Ordering::Acquire) == 0 {
                continue;
            }
            // Locks of this process do not show, but it has none on a row that is not its own.
            let held = record(&self.file, libc::F_GETLK, libc::F_WRLCK, ROWS_AT + row as i64)?;
            if held.l_type == libc::F_UNLCK as libc::c_short {
                self.word(row, ROW_BYTES).store(0, Ordering::Release);
                self.word(row, ROW_PID).store(0, Ordering::Release);
            }
        }
        Ok(())
    }

    fn sum_bytes(&self) -> u64 {
        let bytes = |row| self.word(row, ROW_BYTES).load(Ordering::Acquire);
        (0..ROWS).map(bytes).fold(0, u64::saturating_add)
    }

    fn lock(&self) -> Result<Locked<'_>> {
        fork::check()?;
        let threads = self.threads.lock();
        record(&self.file, libc::F_SETLKW, libc::F_WRLCK, LOCK_AT)?;
        Ok(Locked { segment: self, _threads: threads })
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Unlocking a byte of an open file does not fail; were it to, the end of the process would unlock it.
        let _ = record(&self.segment.file, libc::F_SETLK, libc::F_UNLCK, LOCK_AT);
    }
}

impl Locked<'_> {
    /// Bytes of all living processes.
    pub fn sum_bytes(&self) -> Result<u64> {
        self.segment.bury_dead()?;
        Ok(self.segment.sum_bytes())
    }
}

impl Tally {
    /// Takes part in a segment, which the first process makes. A limit of 0 takes the one that is there; another limit
    /// than the one that is there is refused while another process takes part.
    pub fn open(name: &str, limit_bytes: u64) -> Result<Self> {
        fork::install()?;
        fork::check()?;
        check_name(name)?;
        let mut segments = SEGMENTS.lock();
        let known = segments.iter().find(|segment| segment.name == name).cloned();
        let segment = match known {
            Some(segment) => {
                let there = segment.limit_bytes();
                if limit_bytes != 0 && limit_bytes != there {
                    return Err(Error::argument(format!(
                        "this process uses the shared budget \"{name}\" with a limit of {there} bytes, {limit_bytes} \
                         asked for; agree on one"
                    )));
                }
                segment
            }
            None if segments.len() >= SEGMENTS_MAX => {
                let text = format!("{SEGMENTS_MAX} shared budgets are open in this process");
                return Err(Error::new(Status::LimitReached, text));
            }
            None => {
                let made = Arc::new(Segment::open(name, limit_bytes)?);
                segments.push(Arc::clone(&made));
                made
            }
        };
        Ok(Self { segment, added_bytes: AtomicU64::new(0) })
    }

    /// Most bytes of all processes together.
    pub fn limit_bytes(&self) -> u64 {
        self.segment.limit_bytes()
    }

    /// Waits for the segment's lock and holds it.
    pub fn lock(&self) -> Result<Locked<'_>> {
        self.segment.lock()
    }

    /// Bytes of all rows, those of dead processes perhaps among them. Takes no lock.
    pub fn sum_bytes(&self) -> u64 {
        self.segment.sum_bytes()
    }

    /// Adds bytes, or says how many were left.
    pub fn add(&self, bytes: u64) -> Result<std::result::Result<(), u64>> {
        let segment = &*self.segment;
        let _locked = segment.lock()?;
        let limit_bytes = segment.limit_bytes();
        let fits = |sum: u64| sum.checked_add(bytes).is_some_and(|sum| sum <= limit_bytes);
        if !fits(segment.sum_bytes()) {
            segment.bury_dead()?;
            let sum = segment.sum_bytes();
            if !fits(sum) {
                return Ok(Err(limit_bytes.saturating_sub(sum)));
            }
        }
        segment.word(segment.row, ROW_BYTES).fetch_add(bytes, Ordering::AcqRel);
        self.added_bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(Ok(()))
    }

    /// Takes bytes off that this part has added.
    pub fn remove(&self, bytes: u64) {
        // In the child of a fork the row is the parent's.
        if fork::is_forked_child() {
            return;
        }
        let before = self.added_bytes.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "more taken off than was added");
        self.segment.word(self.segment.row, ROW_BYTES).fetch_sub(bytes, Ordering::AcqRel);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.remove(self.added_bytes.load(Ordering::Acquire));
    }
}

/// Removes the name of a segment; who takes part goes on with the others who do, and the name can be made anew.
pub fn unlink(name: &str) -> Result<()> {
    check_name(name)?;
    let mut segments = SEGMENTS.lock();
    // SAFETY: takes nothing, cannot fail.
    let user = unsafe { libc::geteuid() };
    let path = CString::new(format!("/kavern-{user}-{name}"))
        .map_err(|_| Error::argument("a zero in the name of a shared budget"))?;
    // SAFETY: the path ends with a zero.
    if unsafe { libc::shm_unlink(path.as_ptr()) } != 0 {
        return Err(Error::os(&format!("removing the shared budget \"{name}\"")));
    }
    // Another file is behind the name from here on, so closing this one takes no lock of that.
    segments.retain(|segment| segment.name != name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(test: &str) -> String {
        format!("test-{test}-{}", std::process::id())
    }

    #[test]
    fn bytes_are_added_up_to_the_limit_and_go_back_with_their_owner() {
        let name = name_of("limit");
        let (one, two) = (Tally::open(&name, 100).unwrap(), Tally::open(&name, 0).unwrap());
        assert_eq!(one.add(60).unwrap(), Ok(()));
        assert_eq!(two.add(50).unwrap(), Err(40));
        assert_eq!(two.add(40).unwrap(), Ok(()));
        assert_eq!(one.lock().unwrap().sum_bytes().unwrap(), 100);
        one.remove(10);
        assert_eq!(two.add(u64::MAX).unwrap(), Err(10));
        drop(one);
        assert_eq!((two.sum_bytes(), two.limit_bytes()), (40, 100));
        assert!(Tally::open(&name, 99).is_err());
        unlink(&name).unwrap();
        assert!(unlink(&name).is_err());
    }

    #[test]
    fn names_that_are_paths_and_files_of_others_are_refused() {
        for name in ["", "a/b", "../x", "ü", &"x".repeat(129)] {
            assert_eq!(Tally::open(name, 1).err().unwrap().status, Status::InvalidArgument);
        }
        let name = name_of("mode");
        let file = open_file(&name).unwrap();
        // SAFETY: the descriptor is open; the mode is a number.
        assert_eq!(unsafe { libc::fchmod(file.as_raw_fd(), 0o644) }, 0);
        assert_eq!(Tally::open(&name, 1).err().unwrap().status, Status::Os);
        unlink(&name).unwrap();
    }
}
