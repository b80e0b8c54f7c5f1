//! What a program is told that it could have, and what it gets then.

use super::*;

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
