//! Copies in every direction, batches, fills, peers.

use kavern::device::{Copy, PinnedBuffer, Place, Stream, registry};
use kavern::error::Status;

use super::support::{bytes_of, each, pattern, refused};

const SIZES: [usize; 9] = [0, 1, 3, 7, 64, 4095, 4097, 65_536, (1 << 20) + 13];

#[test]
fn copies_of_all_directions_and_odd_sizes_move_the_bytes() {
    each(|subject| {
        let device = subject.open();
        let room = (1 << 20) + 64;
        let (a, b) = (device.memory_allocate(room).unwrap(), device.memory_allocate(room).unwrap());
        let mut from = PinnedBuffer::new(device.clone(), room).unwrap();
        let (middle, to) = (
            PinnedBuffer::new(device.clone(), room).unwrap(),
            PinnedBuffer::new(device.clone(), room).unwrap(),
        );
        let stream = device.stream_create().unwrap();
        for (index, bytes) in SIZES.into_iter().enumerate() {
            let content = pattern(index as u8, bytes);
            from.values_mut::<u8>(5, bytes).unwrap().copy_from_slice(&content);
            let count = bytes as u64;
            let host =
                |buffer: &PinnedBuffer, offset| Place::Pinned(buffer.slice().part(offset, count).unwrap());
            let (a, b) =
                (Place::Device(a.part(3, count).unwrap()), Place::Device(b.part(17, count).unwrap()));
            for (target, source) in
                [(host(&middle, 1), host(&from, 5)), (a, host(&middle, 1)), (b, a), (host(&to, 11), b)]
            {
                device.copy(stream, Copy { target, source }).unwrap();
            }
            device.stream_synchronize(stream).unwrap();
            assert_eq!(to.values::<u8>(11, bytes).unwrap(), content);
            assert_eq!(to.values::<u8>(11 + count, 1).unwrap(), [0], "nothing beyond the end was written");
            device.memset(stream, device.memory_allocate(1).unwrap(), 0).unwrap();
        }
    });
}

#[test]
fn copies_of_unequal_lengths_are_refused() {
    each(|subject| {
        let device = subject.open();
        let memory = device.memory_allocate(128).unwrap();
        let (long, short) = (memory.part(0, 64).unwrap(), memory.part(64, 63).unwrap());
        let copy = Copy { target: Place::Device(long), source: Place::Device(short) };
        assert_eq!(refused(device.copy(Stream::DEFAULT, copy)), Status::InvalidArgument);
        assert_eq!(refused(device.write(long, &[0; 63])), Status::InvalidArgument);
        assert_eq!(refused(device.read(long, &mut [0; 65])), Status::InvalidArgument);
        assert_eq!(refused(memory.part(64, 65)), Status::InvalidArgument);
        assert_eq!(refused(memory.part(u64::MAX, 2)), Status::InvalidArgument);
    });
}

#[test]
fn a_batch_is_all_or_nothing() {
    each(|subject| {
        let device = subject.open();
        let (a, b) = (device.memory_allocate(4096).unwrap(), device.memory_allocate(4096).unwrap());
        let content = pattern(3, 4096);
        device.write(a, &content).unwrap();
        device.memset(Stream::DEFAULT, b, 0).unwrap();
        let part = |index: u64| Copy {
            target: Place::Device(b.part(index * 64, 64).unwrap()),
            source: Place::Device(a.part(4032 - index * 64, 64).unwrap()),
        };
        let mut copies: Vec<Copy> = (0..64).map(part).collect();
        copies[63].source = Place::Device(a.part(0, 63).unwrap());
        refused(device.copy_batch(Stream::DEFAULT, &copies));
        copies[63] = Copy { target: Place::Device(b.part(100, 64).unwrap()), ..part(63) };
        refused(device.copy_batch(Stream::DEFAULT, &copies));
        assert_eq!(bytes_of(&*device, b), vec![0; 4096], "a refused batch has copied nothing");
        copies[63] = part(63);
        copies.reverse();
        device.copy_batch(Stream::DEFAULT, &copies).unwrap();
        let expected: Vec<u8> = content.chunks(64).rev().flatten().copied().collect();
        assert_eq!(bytes_of(&*device, b), expected);
        device.copy_batch(Stream::DEFAULT, &[]).unwrap();
    });
}

#[test]
fn a_fill_stays_inside_its_range() {
    each(|subject| {
        let device = subject.open();
        let memory = device.memory_allocate(300).unwrap();
        device.memset(Stream::DEFAULT, memory, 1).unwrap();
        device.memset(Stream::DEFAULT, memory.part(1, 298).unwrap(), 2).unwrap();
        device.memset(Stream::DEFAULT, memory.part(7, 0).unwrap(), 3).unwrap();
        let mut expected = vec![2; 300];
        (expected[0], expected[299]) = (1, 1);
        assert_eq!(bytes_of(&*device, memory), expected);
    });
}

#[test]
fn memory_of_another_device_needs_a_peer() {
    each(|subject| {
        if registry::count(subject.backend).unwrap() < 2 {
            return;
        }
        let device = subject.open();
        let other = registry::open(&subject.spec(1, "")).unwrap();
        assert_ne!(device.key(), other.key());
        let (here, there) = (device.memory_allocate(100).unwrap(), other.memory_allocate(100).unwrap());
        let content = pattern(9, 100);
        other.write(there, &content).unwrap();
        let copy = Copy { target: Place::Device(here), source: Place::Device(there) };
        refused(device.copy(Stream::DEFAULT, copy));
        refused(device.memset(Stream::DEFAULT, there, 0));
        refused(device.write(there, &content));
        assert!(device.peer_is_reachable(other.key()).unwrap());
        device.peer_enable(other.key()).unwrap();
        device.peer_enable(other.key()).unwrap();
        device.copy(Stream::DEFAULT, copy).unwrap();
        assert_eq!(bytes_of(&*device, here), content);
        refused(other.copy(Stream::DEFAULT, copy));
        refused(device.memory_free(there));
        refused(device.virtual_unmap(there));

        let closed = registry::open(&subject.spec(1, "")).unwrap().key();
        assert!(!device.peer_is_reachable(closed).unwrap());
        refused(device.peer_enable(closed));
    });
}
