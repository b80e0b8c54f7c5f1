//! A correct program: random operations on three streams, each of which waits for what it has to.

use std::collections::VecDeque;

use fastrand::Rng;
use kavern::device::Stream;

use super::support::{BLOCK, Engine};

/// What a careful engine knows of a block: who must be waited for before it is used.
#[derive(Clone, Copy, Default)]
struct Known {
    writer: Option<Stream>,
    readers: [bool; 3],
}

/// Random launches, copies, offloads and restores on three streams; each waits for what it has to.
pub(super) fn careful(engine: &mut Engine, random: &mut Rng, operations: u64) {
    let streams = [engine.compute, engine.transfer, engine.other];
    let mut known = [Known::default(); 32];
    let mut staged: [Option<Stream>; 8] = [None; 8];
    let mut scratch = VecDeque::new();
    for _ in 0..operations {
        let own = random.usize(..3);
        let stream = streams[own];
        let (from, to) = (random.u64(..32), random.u64(..32));
        let read = |known: &mut [Known; 32], block: u64| {
            let known = &mut known[block as usize];
            known.writer.filter(|&writer| writer != stream).inspect(|&writer| engine.order(writer, stream));
            known.readers[own] = true;
        };
        let write = |known: &mut [Known; 32], block: u64| {
            let known = &mut known[block as usize];
            for (index, &other) in streams.iter().enumerate() {
                if other != stream && (known.readers[index] || known.writer == Some(other)) {
                    engine.order(other, stream);
                }
            }
            *known = Known { writer: Some(stream), readers: [false; 3] };
        };
        let slot = random.usize(..8);
        match random.u8(..16) {
            0..8 => {
                read(&mut known, from);
                write(&mut known, to);
                engine.launch(stream, &[engine.block(from)], &[engine.block(to)]);
            }
            8 | 9 => {
                write(&mut known, to);
                engine.device.memset(stream, engine.block(to), to as u8).unwrap();
            }
            10 | 11 => {
                staged[slot].into_iter().for_each(|last| engine.order(last, stream));
                read(&mut known, from);
                engine.offload(stream, from, slot as u64);
                staged[slot] = Some(stream);
            }
            12 => {
                staged[slot].into_iter().for_each(|last| engine.order(last, stream));
                write(&mut known, to);
                engine.restore(stream, slot as u64, to);
                staged[slot] = Some(stream);
            }
            13 => {
                staged[slot].take().into_iter().for_each(|last| engine.synchronize(last));
                let first = slot as u64 * BLOCK;
                engine.staging.values_mut::<u8>(first, 64).unwrap().fill(to as u8);
            }
            14 => {
                let memory = engine.device.memory_allocate_async(BLOCK, stream).unwrap();
                engine.launch(stream, &[], &[memory]);
                scratch.push_back((memory, stream));
                if scratch.len() > 4
                    && let Some((memory, stream)) = scratch.pop_front()
                {
                    engine.device.memory_free_async(memory, stream).unwrap();
                }
            }
            _ => {
                engine.device.stream_is_idle(stream).unwrap();
            }
        }
    }
    for (memory, stream) in scratch {
        engine.device.memory_free_async(memory, stream).unwrap();
    }
}
