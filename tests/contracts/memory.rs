//! Device memory, direct and in stream order, and pinned host memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kavern::device::{Attribute, Copy, DeviceSlice, PinnedBuffer, Place, Stream, registry};
use kavern::error::Status;

use super::support::{Gate, assert_free, assert_memory, bytes_of, each, pattern, refused};

#[test]
fn an_allocation_is_aligned_of_the_asked_size_and_holds_its_bytes() {
    each(|subject| {
        let device = subject.open();
        let alignment = device.attribute(Attribute::AllocationAlignment).unwrap();
        for bytes in [1, 3, 4095, 4096, 4097, 1 << 20] {
            let slice = device.memory_allocate(bytes).unwrap();
            assert_eq!((slice.bytes(), slice.address() % alignment), (bytes, 0));
            assert_eq!(slice.device(), device.key());
            let content = pattern(1, bytes as usize);
            device.write(slice, &content).unwrap();
            assert_eq!(bytes_of(&*device, slice), content);
            device.memory_free(slice).unwrap();
        }
    });
}

/// Bytes of managed memory, as the processor finds them.
fn processor_bytes(slice: DeviceSlice) -> &'static mut [u8] {
    // SAFETY: the device says that the processor reaches the address; the sentence frees the memory after its last use
    // of the bytes, and touches them only when the device has nothing to do.
    unsafe { std::slice::from_raw_parts_mut(slice.address() as *mut u8, slice.bytes() as usize) }
}

#[test]
fn managed_memory_is_written_and_read_by_the_processor_and_by_the_device() {
    each(|subject| {
        let device = subject.open();
        if !device.description().capabilities.managed_memory {
            assert_eq!(refused(device.managed_allocate(4096)), Status::Unsupported);
            return;
        }
        assert_eq!(refused(device.managed_allocate(0)), Status::InvalidArgument);
        let before = device.memory_info().unwrap();
        assert_eq!(refused(device.managed_allocate(before.free_bytes + 1)), Status::OutOfMemory);
        let (one, other) = (device.managed_allocate(5000).unwrap(), device.managed_allocate(5000).unwrap());
        assert_eq!((one.address() % 256, one.bytes(), one.device()), (0, 5000, device.key()));
        let stream = device.stream_create().unwrap();
        for round in 0..3 {
            let content = pattern(round, 5000);
            processor_bytes(one).copy_from_slice(&content);
            let copy = Copy { target: Place::Device(other), source: Place::Device(one) };
            device.copy(stream, copy).unwrap();
            device.memset(stream, one.part(8, 16).unwrap(), 7).unwrap();
            device.stream_synchronize(stream).unwrap();
            assert_eq!(processor_bytes(other), content);
            let (start, rest) = processor_bytes(one).split_at(8);
            assert!(start == &content[..8] && rest[..16] == [7; 16] && rest[16..] == content[24..]);
            assert_eq!(bytes_of(&*device, other), content);
        }
        device.stream_destroy(stream).unwrap();
        device.memory_free(one).unwrap();
        assert_eq!(refused(device.memory_free(one)), Status::InvalidArgument);
        device.memory_free(other).unwrap();
        assert_eq!(device.race_count(), 0);
        assert_memory(&*device, before);
    });
}

#[test]
fn attributes_agree_with_the_description() {
    each(|subject| {
        let device = subject.open();
        let description = device.description();
        assert_eq!(description.backend, subject.backend);
        assert_eq!(description.ordinal, 0);
        assert_eq!(device.attribute(Attribute::PageBytes).unwrap(), description.page_bytes);
        assert!(device.attribute(Attribute::MultiprocessorCount).unwrap() > 0);
        device.attribute(Attribute::ComputeMajor).unwrap();
        device.attribute(Attribute::ComputeMinor).unwrap();
        match device.attribute(Attribute::HostNode) {
            Ok(node) => assert!(node < 1024),
            Err(error) => assert_eq!(error.status, Status::Unsupported),
        }
        let total_bytes = device.memory_info().unwrap().total_bytes;
        // A driver may keep a little of it.
        assert!(total_bytes <= description.total_bytes && total_bytes >= description.total_bytes / 100 * 99);
        if description.capabilities.host_addressable {
            assert_eq!(total_bytes, description.total_bytes);
        }
        assert_eq!(device.race_count(), 0);
        let again = registry::open(&description.name).unwrap();
        assert_eq!(again.description().ordinal, description.ordinal);
    });
}

#[test]
fn memory_that_does_not_fit_is_refused_and_changes_nothing() {
    each(|subject| {
        let device = subject.open();
        let before = device.memory_info().unwrap();
        let error = device.memory_allocate(before.total_bytes + 1).unwrap_err();
        assert_eq!(error.status, Status::OutOfMemory);
        assert!(error.text.contains("available"), "{error}");
        refused(device.memory_allocate(u64::MAX));
        assert_eq!(refused(device.memory_allocate(0)), Status::InvalidArgument);
        assert_eq!(refused(device.memory_allocate_async(0, Stream::DEFAULT)), Status::InvalidArgument);
        assert_memory(&*device, before);
    });
}

#[test]
fn the_third_allocation_over_the_limit_fails_and_fits_after_a_free() {
    each(|subject| {
        if subject.backend != "host" {
            return;
        }
        let device = registry::open(&subject.spec(0, "memory_bytes=1048576")).unwrap();
        assert_eq!(device.memory_info().unwrap().total_bytes, 1 << 20);
        let first = device.memory_allocate(512 << 10).unwrap();
        let second = device.memory_allocate(300 << 10).unwrap();
        let error = device.memory_allocate(300 << 10).unwrap_err();
        assert_eq!(error.status, Status::OutOfMemory);
        assert!(error.text.contains("307200") && error.text.contains("217088"), "{error}");
        assert_eq!(refused(device.page_create(256 << 10)), Status::OutOfMemory);
        device.memory_free(first).unwrap();
        let third = device.memory_allocate(300 << 10).unwrap();
        let page = device.page_create(256 << 10).unwrap();
        device.page_release(page).unwrap();
        device.memory_free(second).unwrap();
        device.memory_free(third).unwrap();
        assert_eq!(device.memory_info().unwrap().free_bytes, 1 << 20);
    });
}

#[test]
fn memory_on_its_way_back_is_waited_for_before_an_allocation_fails() {
    each(|subject| {
        if subject.backend != "host" {
            return;
        }
        let device = registry::open(&subject.spec(0, "memory_bytes=65536")).unwrap();
        let stream = device.stream_create().unwrap();
        for _ in 0..100 {
            let slice = device.memory_allocate_async(65536, stream).unwrap();
            device.memset(stream, slice, 3).unwrap();
            device.memory_free_async(slice, stream).unwrap();
        }
        device.stream_synchronize(stream).unwrap();
        assert_eq!(device.memory_info().unwrap().free_bytes, 65536);
    });
}

#[test]
fn only_what_is_live_can_be_freed() {
    each(|subject| {
        let device = subject.open();
        let slice = device.memory_allocate(8192).unwrap();
        let free = device.memory_info().unwrap().free_bytes;
        refused(device.memory_free(slice.part(0, 4096).unwrap()));
        refused(device.memory_free(slice.part(4096, 4096).unwrap()));
        refused(device.memory_free_async(slice, Stream::DEFAULT));
        // SAFETY: the range is memory of the device while `slice` lives.
        let foreign = unsafe { DeviceSlice::from_foreign(device.key(), slice.address() + 64, 64) }.unwrap();
        refused(device.memory_free(foreign));
        refused(subject.open().memory_free(slice));
        assert_free(&*device, free);
        device.memory_free(slice).unwrap();
        refused(device.memory_free(slice));
        let ordered = device.memory_allocate_async(64, Stream::DEFAULT).unwrap();
        device.memory_free_async(ordered, Stream::DEFAULT).unwrap();
        refused(device.memory_free_async(ordered, Stream::DEFAULT));
        refused(device.memory_free(ordered));
        let ordered = device.memory_allocate_async(64, Stream::DEFAULT).unwrap();
        device.memory_free(ordered).unwrap();
    });
}

#[test]
fn a_free_waits_for_work_in_flight() {
    each(|subject| {
        let device = subject.open();
        let stream = device.stream_create().unwrap();
        let before = device.memory_info().unwrap();
        let memory = device.memory_allocate(4096).unwrap();
        let pinned = device.pinned_allocate(4096).unwrap();
        for step in 0..2 {
            let is_done = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&is_done);
            let gate = Gate::close(&*device, stream, || {});
            if step == 0 {
                device
                    .copy(stream, Copy { target: Place::Device(memory), source: Place::Pinned(pinned) })
                    .unwrap();
            } else {
                device.memset(stream, memory, 1).unwrap();
            }
            device.stream_callback(stream, Box::new(move || flag.store(true, Ordering::SeqCst))).unwrap();
            std::thread::scope(|scope| {
                let freeing = scope.spawn(|| {
                    if step == 0 { device.pinned_free(pinned) } else { device.memory_free(memory) }.unwrap();
                    assert!(is_done.load(Ordering::SeqCst), "the free came before the work");
                });
                gate.open();
                freeing.join().unwrap();
            });
        }
        assert_memory(&*device, before);
    });
}

#[test]
fn memory_freed_in_stream_order_serves_the_work_before() {
    each(|subject| {
        let device = subject.open();
        let stream = device.stream_create().unwrap();
        let result = device.memory_allocate(4096).unwrap();
        let before = device.memory_info().unwrap();
        let gate = Gate::close(&*device, stream, || {});
        let scratch = device.memory_allocate_async(4096, stream).unwrap();
        device.memset(stream, scratch, 8).unwrap();
        device.copy(stream, Copy { target: Place::Device(result), source: Place::Device(scratch) }).unwrap();
        device.memory_free_async(scratch, stream).unwrap();
        gate.open();
        device.stream_synchronize(stream).unwrap();
        assert_eq!(bytes_of(&*device, result), vec![8; 4096]);
        assert_memory(&*device, before);
        device.memory_free(result).unwrap();
    });
}

#[test]
fn pinned_memory_is_zeroed_typed_and_checked() {
    each(|subject| {
        let device = subject.open();
        refused(device.pinned_allocate(0));
        let mut pinned = PinnedBuffer::new(Arc::clone(&device), 100).unwrap();
        assert_eq!(pinned.values::<u8>(0, 100).unwrap(), &[0; 100]);
        pinned.values_mut::<u32>(8, 2).unwrap().copy_from_slice(&[1, u32::MAX]);
        assert_eq!(pinned.values::<u8>(8, 8).unwrap(), &[1, 0, 0, 0, 255, 255, 255, 255]);
        refused(pinned.values::<u32>(2, 1));
        refused(pinned.values::<u8>(0, 101));
        refused(pinned.values::<u64>(8, usize::MAX));
        refused(pinned.values::<u8>(u64::MAX, 2));
        refused(device.pinned_free(pinned.slice().part(0, 50).unwrap()));
        let slice = pinned.slice();
        pinned.free().unwrap();
        refused(device.pinned_free(slice));
    });
}

#[test]
fn memory_of_the_callers_can_be_registered_once() {
    each(|subject| {
        let device = subject.open();
        // Whole pages of the system, because that is what is locked.
        let mut room = vec![0u8; 5 * 4096];
        let first = room.as_ptr().align_offset(4096);
        let buffer = &mut room[first..first + 16384];
        let address = buffer.as_mut_ptr() as usize;
        // SAFETY: the buffer lives and stays where it is until the end of this sentence, for all the calls below.
        let register = |start: usize, bytes: u64| unsafe { device.pinned_register(address + start, bytes) };
        let slice = register(4096, 4096).unwrap();
        for (start, bytes) in [(4096, 4096), (0, 4097), (8191, 10), (5000, 10), (0, 16384)] {
            refused(register(start, bytes));
        }
        let (before, after) = (register(0, 4096).unwrap(), register(8192, 4096).unwrap());
        refused(register(12288, 0));
        // SAFETY: an empty address is refused before anything is touched.
        refused(unsafe { device.pinned_register(0, 64) });

        let memory = device.memory_allocate(4096).unwrap();
        device.memset(Stream::DEFAULT, memory, 6).unwrap();
        let copy = Copy { target: Place::Pinned(slice), source: Place::Device(memory) };
        device.copy(Stream::DEFAULT, copy).unwrap();
        refused(device.pinned_free(slice));
        refused(device.pinned_unregister(slice.part(0, 64).unwrap()));
        device.pinned_unregister(slice).unwrap();
        refused(device.pinned_unregister(slice));
        device.pinned_unregister(before).unwrap();
        device.pinned_unregister(after).unwrap();
        assert_eq!(buffer[4095..8193].iter().map(|&byte| u32::from(byte)).sum::<u32>(), 6 * 4096);
        device.memory_free(memory).unwrap();
    });
}
