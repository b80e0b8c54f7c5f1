//! Structs older and newer than the library, arrays of them, outputs: what is read, written and refused.

use super::*;

/// As this version of the library knows it; the first one ended after `old`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grown {
    struct_size: u32,
    old: u32,
    new: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for Grown {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for Grown {
    const NAME: &'static str = "grown";
    const FIRST_BYTES: usize = 8;

    fn defaults() -> Self {
        Self { struct_size: 0, old: 1, new: 7 }
    }
}

/// A struct of a later version.
#[repr(C)]
#[derive(Clone, Copy)]
struct Later {
    known: Grown,
    tail: u64,
}

fn later(size: u32, tail: u64) -> Later {
    Later { known: Grown { struct_size: size, old: 5, new: 6 }, tail }
}

fn read(value: &Later) -> Result<Grown> {
    // SAFETY: the struct holds at least as many bytes as the tests say.
    unsafe { read_struct(&raw const value.known, "value") }
}

fn status_of<T>(result: Result<T>) -> Status {
    result.err().map_or(Status::Ok, |error| error.status)
}

#[test]
fn an_older_struct_gets_defaults_for_what_it_does_not_have() {
    let found = read(&later(8, 0)).unwrap();
    assert_eq!((found.old, found.new), (5, 7));
    let found = read(&later(16, 0)).unwrap();
    assert_eq!((found.old, found.new), (5, 6));
}

#[test]
fn a_newer_struct_is_read_if_it_uses_nothing_unknown() {
    assert_eq!(read(&later(24, 0)).unwrap().new, 6);
    for byte in 0..8 {
        assert_eq!(status_of(read(&later(24, 1 << (8 * byte)))), Status::StructSize);
    }
    for size in [0, 1, 4, 7, 65_537, u32::MAX] {
        assert_eq!(status_of(read(&later(size, 0))), Status::StructSize);
    }
}

#[test]
fn a_result_is_written_as_far_as_the_caller_has_room() {
    for (size, new, tail) in [(8, 6, 99), (16, 42, 99), (24, 42, 99)] {
        let mut target = later(size, 99);
        // SAFETY: the struct holds as many bytes as it says.
        let out = unsafe { OutStruct::new(&raw mut target.known, "out") }.unwrap();
        out.write(&Grown { struct_size: 0, old: 41, new: 42 });
        let known = Grown { struct_size: size, old: 41, new };
        assert_eq!((target.known, target.tail), (known, tail), "size {size}");
    }
}

#[test]
fn initialising_writes_defaults_and_zeros_up_to_the_size_and_no_further() {
    let mut target = later(0, 99);
    // SAFETY: the struct holds at least these many bytes.
    unsafe { init_struct(&raw mut target.known, 16, "config") }.unwrap();
    assert_eq!((target.known, target.tail), (Grown { struct_size: 16, old: 1, new: 7 }, 99));
    // SAFETY: as above.
    unsafe { init_struct(&raw mut target.known, 24, "config") }.unwrap();
    assert_eq!((target.known.struct_size, target.tail), (24, 0));
    // SAFETY: refused before anything is written.
    let refused = unsafe { init_struct(&raw mut target.known, 7, "config") };
    assert_eq!(status_of(refused), Status::StructSize);
}

#[test]
fn an_array_steps_by_the_size_of_its_first_struct() {
    let newer = [later(24, 0); 3];
    // SAFETY: three structs of 24 bytes.
    let read = unsafe { StructArray::<Grown>::new(newer.as_ptr().cast(), 3, "array") }.unwrap();
    assert!(read.iter().all(|one| one.new == 6) && read.iter().count() == 3);
    let mixed = [later(24, 0), later(16, 0)];
    // SAFETY: as above; refused at the second.
    let refused = unsafe { StructArray::<Grown>::new(mixed.as_ptr().cast(), 2, "array") };
    assert_eq!(status_of(refused), Status::StructSize);
    let odd = [later(12, 0), later(12, 0)];
    // SAFETY: refused at the first, because the second would not be aligned.
    let refused = unsafe { StructArray::<Grown>::new(odd.as_ptr().cast(), 2, "array") };
    assert_eq!(status_of(refused), Status::StructSize);
    // SAFETY: refused before the first is read beyond its size.
    let refused = unsafe { StructArray::<Grown>::new(newer.as_ptr().cast(), usize::MAX / 8, "array") };
    assert_eq!(status_of(refused), Status::InvalidArgument);
    // SAFETY: nothing is read for no elements.
    let none = unsafe { StructArray::<Grown>::new(std::ptr::null(), 0, "array") }.unwrap();
    assert_eq!(none.iter().count(), 0);
}
