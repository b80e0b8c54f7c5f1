//! Texts that a caller passes in, and texts that go out to one.
//!
//! What it does: checks that a text is no longer than a limit and UTF-8; fills buffers and fields of fixed size. What
//! it does not: know whether a pointer that is not null points to a text; that is the caller's promise.

use std::ffi::c_char;

use super::config::{Out, null};
use crate::error::{Error, Result, Status};

/// Longest text that a caller may pass, without its zero.
pub(super) const TEXT_LIMIT: usize = 4096;

/// A text of the caller's.
///
/// # Safety
/// `pointer` is null or points to a text that ends with a zero and that nobody writes during the call.
pub(super) unsafe fn read<'a>(pointer: *const c_char, what: &str) -> Result<&'a str> {
    if pointer.is_null() {
        return Err(null(what));
    }
    // SAFETY: reads up to the zero, which the caller promises, and no further than the limit.
    let length = unsafe { libc::strnlen(pointer, TEXT_LIMIT + 1) };
    if length > TEXT_LIMIT {
        return Err(Error::argument(format!("{what} is longer than {TEXT_LIMIT} bytes")));
    }
    // SAFETY: `length` bytes before the zero have just been read.
    let bytes = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>(), length) };
    str::from_utf8(bytes).map_err(|error| Error::argument(format!("{what} is not UTF-8: {error}")))
}

/// A text that may be left out.
///
/// # Safety
/// As [`read`].
pub(super) unsafe fn read_optional<'a>(pointer: *const c_char, what: &str) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { read(pointer, what) }.map(Some)
}

/// Hands a text out into a buffer of the caller's; the needed size counts the terminating zero.
///
/// A null buffer of capacity 0 asks for the size alone. A buffer that is too small stays as it is, and the answer is
/// `BufferTooSmall`, which is the one failure that writes an output: `needed`.
///
/// # Safety
/// `buffer` is null or points to `capacity` writable bytes; `needed` is null or points to a writable value.
pub(super) unsafe fn write(
    text: &str,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Result<Status> {
    let bytes = text.len() + 1;
    // SAFETY: the caller's promise.
    let needed = unsafe { Out::optional(needed, "needed") }?;
    let asks_size = buffer.is_null() && capacity == 0;
    if buffer.is_null() && (capacity > 0 || needed.is_none()) {
        return Err(null(if capacity > 0 { "buf" } else { "needed, as is buf," }));
    }
    if let Some(needed) = needed {
        needed.write(bytes);
    }
    if asks_size {
        return Ok(Status::Ok);
    }
    if capacity < bytes {
        let text = format!("{capacity} bytes of room, {bytes} needed");
        return Err(Error::new(Status::BufferTooSmall, text));
    }
    // SAFETY: the buffer holds at least `bytes` bytes; the text is ours and elsewhere.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast::<u8>(), text.len()) };
    let end = buffer.wrapping_add(text.len());
    // SAFETY: the last of those bytes.
    unsafe { end.write(0) };
    Ok(Status::Ok)
}

/// Copies a text into a field of fixed size, cut at a character's end, padded with zeros.
pub(super) fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    let length = text.floor_char_boundary_at(N - 1);
    for (target, byte) in field.iter_mut().zip(&text.as_bytes()[..length]) {
        *target = *byte as c_char;
    }
    field
}

trait FloorBoundary {
    fn floor_char_boundary_at(&self, limit: usize) -> usize;
}

impl FloorBoundary for str {
    fn floor_char_boundary_at(&self, limit: usize) -> usize {
        (0..=limit.min(self.len())).rev().find(|&at| self.is_char_boundary(at)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of<T>(result: Result<T>) -> Status {
        result.err().map_or(Status::Ok, |error| error.status)
    }

    #[test]
    fn texts_are_bounded_and_utf8() {
        let long = vec![b'x'; TEXT_LIMIT + 2];
        // SAFETY: the limit ends the scan before the bytes do.
        assert_eq!(status_of(unsafe { read(long.as_ptr().cast(), "text") }), Status::InvalidArgument);
        // SAFETY: a text with its zero.
        assert_eq!(unsafe { read(c"ok".as_ptr(), "text") }.unwrap(), "ok");
        // SAFETY: as above.
        assert_eq!(status_of(unsafe { read(c"\xff".as_ptr(), "text") }), Status::InvalidArgument);
        // SAFETY: null is refused before it is read.
        assert_eq!(status_of(unsafe { read(std::ptr::null(), "text") }), Status::NullPointer);
        assert_eq!(fixed::<4>("abé").map(|byte| byte as u8), *b"ab\0\0");
    }
}
