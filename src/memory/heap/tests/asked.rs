//! What a program is told that it could have, and what it gets then.

use super::*;

/// The number behind a piece of text.
fn number_after(text: &str, before: &str) -> u64 {
    let rest = &text[text.find(before).expect(before) + before.len()..];
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().unwrap()
}

/// Blocks of all sizes that come and go until what is held lies in holes; those that stay.
fn churn(
    heap: &Arc<Heap>,
    key: (Key, &'static AtomicU64),
    random: &mut fastrand::Rng,
    high: u32,
) -> Vec<u64> {
    let mut blocks: Vec<Option<u64>> = vec![None; 400];
    for _ in 0..2_000 {
        let place = random.usize(..blocks.len());
        match blocks[place].take() {
            Some(address) => free(heap, key, Stream::DEFAULT, address),
            None => {
                let bytes = some_bytes(random, 8, high);
                let found = match front_cache::allocate(key.0, bytes, 256, 0, |address| address) {
                    Answer::Done(address) => Some(address),
                    other => {
                        let address = heap.allocate(Stream::DEFAULT, bytes, 256, 0).ok();
                        if matches!(other, Answer::NoLease) {
                            heap.adopt(key.0, key.1, Stream::DEFAULT).unwrap();
                        }
                        address
                    }
                };
                blocks[place] = found;
            }
        }
    }
    blocks.into_iter().flatten().collect()
}

/// Nothing that was freed waits for work in flight after this.
fn settle(heap: &Heap) {
    heap.flush(None);
    heap.close_lanes().unwrap();
    heap.device.synchronize().unwrap();
    while heap.collect().unwrap() {}
}

#[test]
fn what_is_said_to_fit_is_given() {
    let seed = seed();
    for (device, limit_bytes, high) in [
        ("host?page_bytes=2097152", 512 * MIB, 26),
        ("host?page_bytes=2097152&memory_bytes=268435456", 0, 25),
        ("host", 128 * MIB, 24),
        ("host?virtual=0", 128 * MIB, 24),
    ] {
        let (mut questions, mut needless) = (0, 0);
        for turn in 0..6 * soak() as u64 {
            let mut random = fastrand::Rng::with_seed(seed.wrapping_add(turn));
            let heap = heap(device, limit_bytes);
            let key = key(Stream::DEFAULT);
            let blocks = churn(&heap, key, &mut random, high);
            for question in 0..40 {
                let bytes = some_bytes(&mut random, 10, 31);
                let is_settled = question % 2 == 0;
                if is_settled {
                    settle(&heap);
                }
                let can = heap.can_allocate(bytes, 0).unwrap();
                let got = heap.allocate(Stream::DEFAULT, bytes, 0, 0);
                if can {
                    let refusal = got.as_ref().err().map(|error| error.text.clone());
                    assert_eq!(refusal, None, "{bytes} bytes, {device}, seed {seed}, turn {turn}");
                } else if is_settled {
                    questions += 1;
                    needless += u32::from(got.is_ok());
                }
                if let Ok(address) = got {
                    heap.free(Stream::DEFAULT, address).unwrap();
                }
            }
            heap.validate().unwrap();
            blocks.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
            heap.close();
        }
        assert!(questions > 0, "{device}: everything fits, nothing was asked");
        assert!(needless * 10 <= questions, "{needless} of {questions} refusals in advance, {device}");
    }
}

#[test]
fn a_refusal_names_the_limit_its_peak_and_the_largest_request_that_is_served() {
    let seed = seed();
    for turn in 0..4 {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(turn));
        let heap = heap("host?page_bytes=2097152", 256 * MIB);
        let key = key(Stream::DEFAULT);
        churn(&heap, key, &mut random, 25);
        settle(&heap);
        let refusal = heap.allocate(Stream::DEFAULT, 250 * MIB, 0, 0).unwrap_err();
        assert_eq!(refusal.status, Status::OutOfMemory);
        let limit = "the limit is 268435456 bytes, this manager's own; it holds ";
        let held = number_after(&refusal.text, limit);
        let peak = number_after(&refusal.text, &format!("{held}, at most "));
        assert!(held > 0 && peak >= held && peak <= 256 * MIB, "{}", refusal.text);
        let largest = number_after(&refusal.text, "the largest request that would be served now ");
        assert!(heap.can_allocate(largest, 0).unwrap() && !heap.can_allocate(largest + 2 * MIB, 0).unwrap());
        let served = heap.allocate(Stream::DEFAULT, largest, 0, 0);
        assert!(served.is_ok(), "{largest} of seed {seed}, turn {turn}: {}", refusal.text);
        heap.close();
    }
}

#[test]
fn without_a_limit_a_refusal_says_so_and_names_the_device() {
    let heap = heap("host?memory_bytes=67108864", 0);
    let refusal = heap.allocate(Stream::DEFAULT, 100 * MIB, 0, 0).unwrap_err();
    let parts = ["no limit is set; this manager holds ", "of 67108864 free"];
    assert!(parts.iter().all(|part| refusal.text.contains(part)), "{}", refusal.text);
    assert_eq!(number_after(&refusal.text, "would be served now "), 64 * MIB);
}

#[test]
fn under_a_limit_a_long_request_fits_that_its_class_would_not() {
    let heap = heap("host?page_bytes=2097152", 58 * MIB);
    let blocks = [(); 3].map(|()| heap.allocate(Stream::DEFAULT, 9 * MIB, 0, 0).unwrap());
    assert!(!heap.weigh(), "28 MiB held, 30 to be had, of which the class of 32 MiB would need 32");
    assert!(heap.can_allocate(31 * MIB, 0).unwrap());
    let last = heap.allocate(Stream::DEFAULT, 31 * MIB, 0, 0).unwrap();
    heap.validate().unwrap();
    blocks.into_iter().chain([last]).for_each(|block| heap.free(Stream::DEFAULT, block).unwrap());
    heap.close();
}

#[test]
fn memory_beside_something_in_the_same_mapping_is_nobodys_block() {
    let heap = heap("host?page_bytes=2097152&memory_bytes=8589934592", 0);
    let mut blocks: Vec<u64> = (0..64).map(|_| heap.allocate(Stream::DEFAULT, MIB, 0, 0).unwrap()).collect();
    let kept = blocks.pop().unwrap();
    blocks.into_iter().for_each(|address| heap.free(Stream::DEFAULT, address).unwrap());
    settle(&heap);
    heap.trim().unwrap();
    let seen = heap.statistics();
    assert_eq!((seen.live_bytes, seen.live_block_bytes), (MIB, MIB), "{seen:?}");
    heap.free(Stream::DEFAULT, kept).unwrap();
}

#[test]
fn the_free_rest_of_a_large_block_counts_as_what_would_be_served() {
    let heap = heap("host?page_bytes=2097152&memory_bytes=536870912", 0);
    let large = heap.allocate(Stream::DEFAULT, 64 * MIB, 0, 0).unwrap();
    heap.free(Stream::DEFAULT, large).unwrap();
    heap.device.synchronize().unwrap();
    heap.allocate(Stream::DEFAULT, 36 * MIB, 0, 0).unwrap();
    let full = |heap: &Heap| heap.statistics().backed_bytes == 512 * MIB;
    for count in 0.. {
        if full(&heap) && count % 2 == 0 {
            break;
        }
        heap.allocate(Stream::DEFAULT, MIB, 0, 0).unwrap();
    }
    let refusal = heap.allocate(Stream::DEFAULT, 29 * MIB, 0, 0).unwrap_err();
    assert_eq!(number_after(&refusal.text, "would be served now "), 28 * MIB);
    for (mib, fits) in [(6, true), (20, true), (28, true), (29, false)] {
        assert_eq!(heap.can_allocate(mib * MIB, 0).unwrap(), fits, "{mib} MiB");
        let served = heap.allocate(Stream::DEFAULT, mib * MIB, 0, 0);
        assert_eq!(served.is_ok(), fits, "{mib} MiB");
        if let Ok(address) = served {
            heap.free(Stream::DEFAULT, address).unwrap();
            settle(&heap);
        }
    }
    heap.validate().unwrap();
}
