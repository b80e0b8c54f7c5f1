//! Kernels and launches: a name for the device's module, a CPU reference, and typed checked arguments.
//!
//! Upper rooms own kernels as statics and pass them down. The CPU reference is safe code: it gets its arguments as
//! byte-checked slices from [`CpuArgs`], which only a backend can make.

use std::cell::RefCell;

use super::DeviceSlice;
use crate::error::{Error, Result};

/// A kernel: its name in the device's modules and the reference that the host backend runs.
pub struct Kernel {
    /// Entry point in the module.
    pub name: &'static str,
    /// The reference with identical results.
    pub cpu: fn(&mut CpuArgs<'_>),
}

/// One argument of a launch. The kind of a slice declares the access that a race detector checks; a reference that uses
/// only parts of a slice names them with [`CpuReads::touch`].
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// Memory that is only read.
    Read(DeviceSlice),
    /// Memory that is written, and may be read.
    Write(DeviceSlice),
    /// A number.
    U64(u64),
}

/// A kernel with its grid and arguments.
pub struct Launch<'a> {
    /// What runs.
    pub kernel: &'static Kernel,
    /// Blocks of threads.
    pub grid: u32,
    /// Threads in a block.
    pub block: u32,
    /// At most [`Launch::ARGS_MAX`]; a written slice overlaps no other.
    pub args: &'a [Arg],
}

impl Launch<'_> {
    /// Most arguments of one launch, so that queues hold them in place.
    pub const ARGS_MAX: usize = 16;

    /// Checks what holds for every backend: count, grid, no written slice overlapping another.
    pub(in crate::device) fn check(&self) -> Result<()> {
        let name = self.kernel.name;
        if self.args.len() > Self::ARGS_MAX {
            return Err(Error::argument(format!("kernel {name}: {} arguments, at most 16", self.args.len())));
        }
        if self.grid == 0 || self.block == 0 {
            return Err(Error::argument(format!("kernel {name}: empty grid {} x {}", self.grid, self.block)));
        }
        for (i, arg) in self.args.iter().enumerate() {
            let Arg::Write(written) = arg else { continue };
            for (j, other) in self.args.iter().enumerate() {
                let (Arg::Read(other) | Arg::Write(other)) = other else { continue };
                if i != j && written.overlaps(other) {
                    return Err(Error::argument(format!(
                        "kernel {name}: argument {i} writes what {j} names"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Types whose every bit pattern is a value, so that memory can be viewed as them.
///
/// # Safety
/// Implement only for types without padding, references and invalid bit patterns.
pub unsafe trait Plain: Copy + Send + 'static {}
// SAFETY: integers of fixed width have no invalid bit pattern and no padding.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i64 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: every bit pattern is a float.
unsafe impl Plain for f32 {}

/// The arguments of one launch as the CPU reference sees them.
pub struct CpuArgs<'a> {
    args: &'a [Arg],
    grid: u32,
    block: u32,
    touches: Option<&'a RefCell<Vec<Touch>>>,
}

/// A part of an argument that a reference has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device) struct Touch {
    /// Which argument.
    pub(in crate::device) index: usize,
    /// First byte in it.
    pub(in crate::device) offset: u64,
    /// Length.
    pub(in crate::device) bytes: u64,
    /// Only read, also in a written argument.
    pub(in crate::device) is_read: bool,
}

impl<'a> CpuArgs<'a> {
    /// Wraps arguments whose slices are addresses of this process.
    ///
    /// # Safety
    /// Every slice must be readable, and writable where the argument says so, until the value is dropped, and
    /// [`Launch::check`] must have passed.
    pub(in crate::device) unsafe fn new(args: &'a [Arg], grid: u32, block: u32) -> Self {
        Self { args, grid, block, touches: None }
    }

    /// The same, and keeps what the reference says it touches.
    ///
    /// # Safety
    /// As for [`CpuArgs::new`].
    pub(in crate::device) unsafe fn watched(
        args: &'a [Arg],
        grid: u32,
        block: u32,
        touches: &'a RefCell<Vec<Touch>>,
    ) -> Self {
        Self { args, grid, block, touches: Some(touches) }
    }

    /// Blocks and threads of the launch.
    pub fn grid(&self) -> (u32, u32) {
        (self.grid, self.block)
    }

    /// A number.
    pub fn number(&self, index: usize) -> u64 {
        match self.args[index] {
            Arg::U64(value) => value,
            _ => panic!("argument {index} is memory, the kernel expects a number"),
        }
    }

    fn range<T: Plain>(&self, index: usize) -> (usize, usize) {
        let (Arg::Read(slice) | Arg::Write(slice)) = self.args[index] else {
            panic!("argument {index} is a number, the kernel expects memory")
        };
        assert!(slice.address() % align_of::<T>() as u64 == 0, "argument {index} is not aligned");
        (slice.address() as usize, slice.bytes() as usize / size_of::<T>())
    }

    /// Memory as values, to read.
    pub fn read<T: Plain>(&self, index: usize) -> &[T] {
        let (address, count) = self.range::<T>(index);
        // SAFETY: the maker vouched for the range; alignment was checked; a written argument overlaps no other, and
        // a view of it for writing needs `&mut self`.
        unsafe { std::slice::from_raw_parts(address as *const T, count) }
    }

    /// Memory declared as written, as values.
    pub fn write<T: Plain>(&mut self, index: usize) -> &mut [T] {
        assert!(matches!(self.args[index], Arg::Write(_)), "argument {index} is not declared as written");
        let (address, count) = self.range::<T>(index);
        // SAFETY: as in `read`, and `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(address as *mut T, count) }
    }

    /// One written argument together with a reader of the others.
    pub fn write_and_read<T: Plain>(&mut self, index: usize) -> (&mut [T], CpuReads<'_>) {
        assert!(matches!(self.args[index], Arg::Write(_)), "argument {index} is not declared as written");
        let (address, count) = self.range::<T>(index);
        // SAFETY: as in `write`; the reader refuses this argument, and `Launch::check` proved that a written slice
        // overlaps no other.
        let written = unsafe { std::slice::from_raw_parts_mut(address as *mut T, count) };
        (written, CpuReads { args: self, except: index })
    }
}

/// Reads the arguments of a launch beside the one that is being written.
pub struct CpuReads<'a> {
    args: &'a CpuArgs<'a>,
    except: usize,
}

impl CpuReads<'_> {
    /// Memory as values.
    pub fn read<T: Plain>(&self, index: usize) -> &[T] {
        assert!(index != self.except, "argument {index} is being written");
        self.args.read(index)
    }

    /// A number.
    pub fn number(&self, index: usize) -> u64 {
        self.args.number(index)
    }

    /// Says that of a large argument only parts are used: a race detector then counts the parts that were named, not
    /// the whole. A reference that calls it for an argument names every part that it uses; 0 bytes name none.
    pub fn touch(&self, index: usize, offset: u64, bytes: u64) {
        if let Some(touches) = self.args.touches {
            touches.borrow_mut().push(Touch { index, offset, bytes, is_read: false });
        }
    }

    /// As `touch`, for a part of a written argument that is only read.
    pub fn touch_read(&self, index: usize, offset: u64, bytes: u64) {
        if let Some(touches) = self.args.touches {
            touches.borrow_mut().push(Touch { index, offset, bytes, is_read: true });
        }
    }
}
