//! The one home of reading and writing through a caller's raw pointers.
//!
//! What it does: structs that carry their size, arrays, outputs; each refuses null, misalignment and sizes that
//! overflow before it touches anything. What it does not: texts, which are in `text`; know whether a non-null pointer
//! points to memory, which is the caller's promise, and the safety condition of every unsafe function here.
//!
//! Invariant: an output is written only through [`Out`], [`OutArray`], [`OutStruct`] or `text::write`, after all
//! checks.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::handle::{self, Handle};
use crate::error::{Error, Result, Status};

/// A larger struct_size than this is a mistake and not a newer header.
const STRUCT_LIMIT: usize = 65_536;

/// Types that C may fill with any bytes.
///
/// # Safety
/// Implement only for `repr(C)` types and numbers for which every bit pattern is a value.
pub(super) unsafe trait CValue: Copy {}
// SAFETY: every bit pattern is a number.
unsafe impl CValue for u8 {}
// SAFETY: as above.
unsafe impl CValue for i32 {}
// SAFETY: as above.
unsafe impl CValue for u32 {}
// SAFETY: as above.
unsafe impl CValue for i64 {}
// SAFETY: as above.
unsafe impl CValue for u64 {}
// SAFETY: as above.
unsafe impl CValue for usize {}
// SAFETY: every byte is a number.
unsafe impl CValue for [u8; 32] {}
// SAFETY: any bits are a pointer, as long as nobody follows it.
unsafe impl<T> CValue for *mut T {}

/// Structs of the header that begin with `uint32_t struct_size` and grow at the end only.
///
/// # Safety
/// As [`CValue`], and the first field is that `u32`.
pub(super) unsafe trait CStruct: CValue {
    /// For error texts.
    const NAME: &'static str;
    /// Size in version 0.1 of the library, the smallest that is accepted.
    const FIRST_BYTES: usize;
    /// Values of the fields that an older caller does not know; `struct_size` is ignored.
    fn defaults() -> Self;
}

pub(super) fn null(what: &str) -> Error {
    Error::new(Status::NullPointer, format!("{what} is null"))
}

fn check_pointer<T>(pointer: *const T, what: &str) -> Result<()> {
    if pointer.is_null() {
        return Err(null(what));
    }
    if !pointer.is_aligned() {
        let alignment = align_of::<T>();
        return Err(Error::argument(format!("{what} at {pointer:p} is not aligned to {alignment} bytes")));
    }
    Ok(())
}

#[inline]
fn check_array<T>(pointer: *const T, count: usize, stride: usize, what: &str) -> Result<()> {
    let bytes = count.checked_mul(stride).filter(|&bytes| bytes <= isize::MAX as usize);
    let fits = bytes.and_then(|bytes| pointer.addr().checked_add(bytes)).is_some();
    match count == 0 || (fits && !pointer.is_null() && pointer.is_aligned()) {
        true => Ok(()),
        false => Err(bad_array(pointer, count, stride, what)),
    }
}

#[cold]
fn bad_array<T>(pointer: *const T, count: usize, stride: usize, what: &str) -> Error {
    check_pointer(pointer, what).err().unwrap_or_else(|| {
        Error::argument(format!("{what}: {count} elements of {stride} bytes do not fit into memory"))
    })
}

fn check_size<T: CStruct>(size: usize) -> Result<()> {
    if size < T::FIRST_BYTES || size > STRUCT_LIMIT {
        let (name, first) = (T::NAME, T::FIRST_BYTES);
        let text =
            format!("{name}.struct_size is {size}, at least {first} is needed; set it to sizeof({name})");
        return Err(Error::new(Status::StructSize, text));
    }
    Ok(())
}

/// Reads the size that a struct says it has, and checks it.
///
/// # Safety
/// `pointer` is null or points to at least four bytes.
unsafe fn read_size<T: CStruct>(pointer: *const T, what: &str) -> Result<usize> {
    check_pointer(pointer, what)?;
    // SAFETY: aligned and not null; the first field of a CStruct is a u32.
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    check_size::<T>(size)?;
    Ok(size)
}

/// # Safety
/// `pointer` points to `size` bytes.
#[inline]
unsafe fn check_tail<T: CStruct>(pointer: *const T, size: usize) -> Result<()> {
    let known = size_of::<T>();
    if size <= known {
        return Ok(());
    }
    let tail = pointer.cast::<u8>().wrapping_add(known);
    // SAFETY: the struct says that it has `size` bytes, and its caller vouches for that.
    let tail = unsafe { std::slice::from_raw_parts(tail, size - known) };
    if tail.iter().any(|&byte| byte != 0) {
        let text = format!("{} uses fields that this library ({known} bytes) does not know", T::NAME);
        return Err(Error::new(Status::StructSize, text));
    }
    Ok(())
}

/// Copies a checked struct, with defaults for the fields that its caller does not know.
///
/// # Safety
/// `pointer` points to `size` bytes.
unsafe fn copy_struct<T: CStruct>(pointer: *const T, size: usize) -> T {
    if size >= size_of::<T>() {
        // SAFETY: the struct is whole; callers have checked its alignment.
        return unsafe { pointer.read() };
    }
    let mut value = T::defaults();
    let bytes = size.min(size_of::<T>());
    // SAFETY: both ranges hold `bytes` bytes, and the target is a local value.
    unsafe { std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), (&raw mut value).cast::<u8>(), bytes) };
    value
}

/// Reads a struct that carries its size.
///
/// # Safety
/// `pointer` is null or points to as many bytes as its first field says.
pub(super) unsafe fn read_struct<T: CStruct>(pointer: *const T, what: &str) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = unsafe { read_size(pointer, what) }?;
    // SAFETY: the caller's promise.
    unsafe { check_tail(pointer, size) }?;
    // SAFETY: the caller's promise.
    Ok(unsafe { copy_struct(pointer, size) })
}

/// Fills a struct with its defaults, as `kavern_x_config_init` does.
///
/// # Safety
/// `target` is null or points to `size` writable bytes.
pub(super) unsafe fn init_struct<T: CStruct>(target: *mut T, size: usize, what: &str) -> Result<Status> {
    check_pointer(target, what)?;
    check_size::<T>(size)?;
    let value = T::defaults();
    let known = size.min(size_of::<T>());
    // SAFETY: the target holds `size` bytes.
    unsafe { std::ptr::write_bytes(target.cast::<u8>(), 0, size) };
    // SAFETY: `known` is at most the size of either.
    unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), target.cast::<u8>(), known) };
    // SAFETY: the first field of a CStruct is a u32; check_size keeps the size small.
    unsafe { target.cast::<u32>().write(size as u32) };
    Ok(Status::Ok)
}

/// A struct of results that the caller has sized.
pub(super) struct OutStruct<T> {
    target: *mut T,
    size: usize,
}

impl<T: CStruct> OutStruct<T> {
    /// Checks the target; nothing is written yet.
    ///
    /// # Safety
    /// `target` is null or points to as many writable bytes as its first field says, until [`OutStruct::write`].
    pub(super) unsafe fn new(target: *mut T, what: &str) -> Result<Self> {
        // SAFETY: the caller's promise.
        let size = unsafe { read_size(target.cast_const(), what) }?;
        Ok(Self { target, size })
    }

    /// What the caller has put there.
    pub(super) fn read(&self) -> T {
        // SAFETY: promised at `new`, where the size was checked.
        unsafe { copy_struct(self.target.cast_const(), self.size) }
    }

    /// Writes as much as the caller has room for, and leaves `struct_size` as it is.
    pub(super) fn write(self, value: &T) {
        let bytes = self.size.min(size_of::<T>()) - size_of::<u32>();
        let source = std::ptr::from_ref(value).cast::<u8>().wrapping_add(size_of::<u32>());
        let target = self.target.cast::<u8>().wrapping_add(size_of::<u32>());
        // SAFETY: promised at `new`; both ranges lie inside their structs, after the first field.
        unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) };
    }
}

/// One value of results.
pub(super) struct Out<T>(*mut T);

impl<T: CValue> Out<T> {
    /// Checks the target; nothing is written yet.
    ///
    /// # Safety
    /// `target` is null or points to a writable value, until [`Out::write`].
    pub(super) unsafe fn new(target: *mut T, what: &str) -> Result<Self> {
        check_pointer(target.cast_const(), what)?;
        Ok(Self(target))
    }

    /// As [`Out::new`], for results that the caller may not want.
    ///
    /// # Safety
    /// As [`Out::new`].
    pub(super) unsafe fn optional(target: *mut T, what: &str) -> Result<Option<Self>> {
        if target.is_null() {
            return Ok(None);
        }
        // SAFETY: the caller's promise.
        unsafe { Self::new(target, what) }.map(Some)
    }

    /// What the caller has put there, for values that go both ways.
    pub(super) fn read(&self) -> T {
        // SAFETY: promised at `new`, which checked null and alignment.
        unsafe { self.0.read() }
    }

    /// Writes the result.
    pub(super) fn write(self, value: T) {
        // SAFETY: promised at `new`, which checked null and alignment.
        unsafe { self.0.write(value) };
    }
}

/// An array of results.
pub(super) struct OutArray<T> {
    target: *mut T,
    count: usize,
}

impl<T: CValue> OutArray<T> {
    /// Checks the target; nothing is written yet. Null is fine for no elements.
    ///
    /// # Safety
    /// `target` is null or points to `count` writable elements for as long as the value is used.
    pub(super) unsafe fn new(target: *mut T, count: usize, what: &str) -> Result<Self> {
        check_array(target.cast_const(), count, size_of::<T>(), what)?;
        Ok(Self { target, count })
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Writes one element.
    #[inline(always)]
    pub(super) fn write(&mut self, index: usize, value: T) {
        assert!(index < self.count, "element {index} of {} results", self.count);
        // SAFETY: promised at `new`; the index was checked.
        unsafe { self.target.wrapping_add(index).write(value) };
    }

    /// Elements to be written.
    #[inline(always)]
    pub(super) fn part(&mut self, range: Range<usize>) -> &mut [MaybeUninit<T>] {
        assert!(range.start <= range.end && range.end <= self.count, "{range:?} of {} results", self.count);
        if range.is_empty() {
            return &mut [];
        }
        let first = self.target.wrapping_add(range.start).cast();
        // SAFETY: promised at `new`, the range was checked, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(first, range.len()) }
    }

    /// Reads back an element that was written before.
    pub(super) fn read_back(&self, index: usize) -> T {
        assert!(index < self.count, "element {index} of {} results", self.count);
        // SAFETY: promised at `new`; the index was checked.
        unsafe { self.target.wrapping_add(index).read() }
    }
}

/// An array that the caller passes in; null is fine for no elements.
///
/// # Safety
/// `pointer` is null or points to `count` elements that nobody writes during the call.
#[inline]
pub(super) unsafe fn array<'a, T: CValue>(pointer: *const T, count: usize, what: &str) -> Result<&'a [T]> {
    check_array(pointer, count, size_of::<T>(), what)?;
    if count == 0 {
        return Ok(&[]);
    }
    // SAFETY: not null, aligned and of a possible size, as checked; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// As [`array`], for counts that are 64 bits wide in the header.
///
/// # Safety
/// As [`array`].
#[inline]
pub(super) unsafe fn array_u64<'a, T: CValue>(pointer: *const T, count: u64, what: &str) -> Result<&'a [T]> {
    // SAFETY: the caller's promise; on 64-bit machines the cast loses nothing.
    unsafe { array(pointer, count as usize, what) }
}

/// An array of structs that carry their size: steps by the size of the first, and all have the same.
pub(super) struct StructArray<'a, T> {
    first: *const u8,
    count: usize,
    stride: usize,
    borrowed: PhantomData<&'a T>,
}

impl<T: CStruct> StructArray<'_, T> {
    /// Checks all elements' sizes; null is fine for no elements.
    ///
    /// # Safety
    /// `pointer` is null or points to `count` structs of the size that the first one says, which nobody writes during
    /// the life of the value.
    pub(super) unsafe fn new(pointer: *const T, count: usize, what: &str) -> Result<Self> {
        let first = pointer.cast::<u8>();
        if count == 0 {
            return Ok(Self { first, count, stride: 0, borrowed: PhantomData });
        }
        // SAFETY: the caller's promise.
        let stride = unsafe { read_size(pointer, what) }?;
        if stride % align_of::<T>() != 0 {
            let text = format!("{}.struct_size {stride} is no multiple of its alignment", T::NAME);
            return Err(Error::new(Status::StructSize, text));
        }
        check_array(pointer, count, stride, what)?;
        for index in 0..count {
            let element = first.wrapping_add(index * stride).cast::<T>();
            // SAFETY: inside the array, whose size was checked.
            let size = unsafe { element.cast::<u32>().read() } as usize;
            if size != stride {
                let text =
                    format!("{what}[{index}].struct_size is {size}, but {stride} in the first element");
                return Err(Error::new(Status::StructSize, text));
            }
            // SAFETY: as above.
            unsafe { check_tail(element, size) }?;
        }
        Ok(Self { first, count, stride, borrowed: PhantomData })
    }

    /// One element, with defaults for the fields that its caller does not know.
    pub(super) fn get(&self, index: usize) -> T {
        assert!(index < self.count, "element {index} of {}", self.count);
        let element = self.first.wrapping_add(index * self.stride).cast::<T>();
        // SAFETY: inside the array, whose sizes were checked at `new`.
        unsafe { copy_struct(element, self.stride) }
    }

    /// All elements where they lie, if their caller knows just the fields that there are.
    pub(super) fn whole(&self) -> Option<&[T]> {
        let is_whole = self.count > 0 && self.stride == size_of::<T>();
        // SAFETY: sizes and alignment were checked at `new`; nobody writes the array meanwhile.
        is_whole.then(|| unsafe { std::slice::from_raw_parts(self.first.cast(), self.count) })
    }

    /// All elements in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        (0..self.count).map(|index| self.get(index))
    }
}

/// Destroys what a handle stands for, and nulls the handle. Null at either level is fine.
///
/// # Safety
/// `slot` is null or points to a writable pointer.
pub(super) unsafe fn destroy<H: Handle>(slot: *mut *mut H, what: &str) -> Result<Status> {
    if slot.is_null() {
        return Ok(Status::Ok);
    }
    // SAFETY: the caller's promise.
    let slot = unsafe { Out::new(slot, what) }?;
    let handle = slot.read();
    if !handle.is_null() {
        let object = handle::remove(handle.cast_const())?;
        // Nulled first, so that a panic in the object's drop does not leave a dead handle behind.
        slot.write(std::ptr::null_mut());
        H::end(object);
    }
    Ok(Status::Ok)
}

/// A stream argument as a number.
pub(super) fn stream_value(stream: *mut c_void) -> u64 {
    stream.addr() as u64
}

/// Refuses words that must be zero until they have a meaning.
pub(super) fn check_reserved(words: &[u64], what: &str) -> Result<()> {
    match words.iter().position(|&word| word != 0) {
        Some(at) => Err(Error::argument(format!("{what}.reserved[{at}] is {:#x}, must be 0", words[at]))),
        None => Ok(()),
    }
}

/// Refuses bits that have no meaning.
pub(super) fn check_flags(value: u32, known: u32, what: &str) -> Result<()> {
    match value & !known {
        0 => Ok(()),
        unknown => Err(Error::argument(format!("{what}.flags has unknown bits {unknown:#x}"))),
    }
}

/// A struct of zeros, for types whose every bit pattern is a value.
pub(super) fn zeroed<T: CValue>() -> T {
    let value = MaybeUninit::<T>::zeroed();
    // SAFETY: `CValue` says that any bytes are a value.
    unsafe { value.assume_init() }
}

#[cfg(test)]
mod tests;
