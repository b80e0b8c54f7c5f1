//! Size classes: every size against what their head promises.

use kavern::memory::size_class::{
    CLASS_COUNT, Class, LARGEST_BYTES, MOST_ALIGNED_BYTES, SMALL_BYTES, SMALL_CLASS_COUNT, UNIT_BYTES,
    bytes_of, class_of,
};

fn sizes() -> Vec<u64> {
    (0..CLASS_COUNT).map(|index| bytes_of(Class::at(index).unwrap())).collect()
}

#[test]
fn classes_rise_from_256_bytes_to_32_mib_with_8_steps_for_each_doubling() {
    let sizes = sizes();
    assert_eq!((sizes[0], sizes[CLASS_COUNT - 1], CLASS_COUNT), (256, 32 << 20, 120));
    assert_eq!(sizes[..9], [256, 512, 768, 1_024, 1_280, 1_536, 1_792, 2_048, 2_304]);
    assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]), "{sizes:?}");
    for doubling in (11..25).map(|power| 1u64 << power) {
        let steps = sizes.iter().filter(|size| (doubling + 1..=2 * doubling).contains(size));
        assert_eq!(steps.count(), 8, "above {doubling}");
    }
    let small = sizes.iter().filter(|size| **size <= SMALL_BYTES).count();
    assert_eq!((small, SMALL_CLASS_COUNT), (64, 64));
    assert!(Class::at(63).unwrap().is_small() && !Class::at(64).unwrap().is_small());
    assert_eq!(Class::at(CLASS_COUNT), None);
}

#[test]
fn the_class_is_the_smallest_that_holds_the_size_and_keeps_the_alignment() {
    let sizes = sizes();
    for alignment in (0..22).map(|power| 1u64 << power) {
        let fitting: Vec<_> = sizes.iter().enumerate().filter(|(_, size)| **size % alignment == 0).collect();
        let mut at = 0;
        for unit in 1..=LARGEST_BYTES / UNIT_BYTES {
            for bytes in [unit * UNIT_BYTES - 255, unit * UNIT_BYTES] {
                at += fitting[at..].iter().take_while(|(_, size)| **size < bytes).count();
                let class = class_of(bytes, alignment).map(Class::index);
                assert_eq!(class, Some(fitting[at].0), "{bytes} bytes aligned to {alignment}");
            }
        }
    }
}

#[test]
fn above_2_kib_at_most_an_eighth_is_wasted() {
    for unit in 1..=LARGEST_BYTES / UNIT_BYTES {
        for bytes in [unit * UNIT_BYTES - 255, unit * UNIT_BYTES - 1, unit * UNIT_BYTES] {
            let waste = bytes_of(class_of(bytes, 1).unwrap()) - bytes;
            // 255 bytes more where a size is not a multiple of 256.
            assert!(
                waste <= bytes.next_multiple_of(UNIT_BYTES) / 8 || waste < UNIT_BYTES,
                "{waste} of {bytes}"
            );
            assert!(bytes <= 2_048 || waste * 8 <= bytes, "{waste} of {bytes}");
        }
    }
}

#[test]
fn sizes_and_alignments_that_no_class_has_are_refused() {
    for bytes in [0, LARGEST_BYTES + 1, u64::MAX] {
        assert_eq!(class_of(bytes, 1), None, "{bytes} bytes");
    }
    for alignment in [0, 3, 384, MOST_ALIGNED_BYTES * 2, 1 << 63, u64::MAX] {
        assert_eq!(class_of(4_096, alignment), None, "aligned to {alignment}");
    }
    assert!(class_of(LARGEST_BYTES, MOST_ALIGNED_BYTES).is_some());
    assert_eq!(class_of(1, MOST_ALIGNED_BYTES).map(bytes_of), Some(2 << 20));
}
