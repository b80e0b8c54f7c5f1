#!/usr/bin/env python3
"""What a pair of malloc and free of CuPy's memory pool costs: one size, mixed sizes, and with 65,536 live blocks.

The pool is a cupy.cuda.MemoryPool of its own on a stream of its own; malloc is its method, a free is the drop of what
malloc returned. The interpreter is part of every such pair, so the same loop over the same events is also timed with
float(size) in place of malloc, which makes and drops one small object; both are printed, and their difference. One
thread: the interpreter's lock leaves no second. Nothing is launched and nothing waits. Before the pool is emptied, live
blocks are checked for overlap, and 512 of them for content. Prints one JSON object a loop and ends within a minute.

usage: cupy_alloc.py [--device N] [--no-gpu]
"""

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time

LOOPS = 5
SAME_BYTES = 64 << 10
SAME_PAIRS = 200_000
CHECKED = 512
# Events that are timed at once are made before, in so many pieces.
MIXED = {"slots": 1024, "low": 9, "high": 23, "events": 100_000, "churn": 100_000}
LIVE = {"slots": 131_072, "low": 9, "high": 17, "events": 100_000, "churn": 400_000}
CHURN_SECONDS = 2.0


class Events:
    """Random slots that are filled and emptied in turn; a size of 0 empties."""

    def __init__(self, slots, low, high):
        self.state = 88172645463325252
        self.low, self.span = low, high - low + 1
        self.filled = [False] * slots

    def next(self):
        """xorshift64."""
        state = self.state
        state ^= (state << 13) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 7
        state ^= (state << 17) & 0xFFFFFFFFFFFFFFFF
        self.state = state
        return state

    def size(self):
        """2^s and a random number below it, each s equally likely."""
        floor = 1 << (self.low + self.next() % self.span)
        return floor + self.next() % floor

    def half(self):
        """Fills every other slot."""
        events = [(slot, self.size()) for slot in range(0, len(self.filled), 2)]
        for slot, _ in events:
            self.filled[slot] = True
        return events

    def some(self, count):
        """So many events at random slots."""
        events = []
        for _ in range(count):
            slot = self.next() % len(self.filled)
            self.filled[slot] = not self.filled[slot]
            events.append((slot, self.size() if self.filled[slot] else 0))
        return events


def play(malloc, slots, events):
    """Nanoseconds that the events take."""
    begin = time.perf_counter_ns()
    for slot, size in events:
        if size:
            slots[slot] = malloc(size)
        else:
            slots[slot] = None
    return time.perf_counter_ns() - begin


def play_same(malloc, pairs):
    """Nanoseconds of pairs of one size with one live block."""
    begin = time.perf_counter_ns()
    for _ in range(pairs):
        block = malloc(SAME_BYTES)
        del block
    return time.perf_counter_ns() - begin


def same(malloc):
    """ns a pair, for each loop."""
    play_same(malloc, SAME_PAIRS // 10)
    return [play_same(malloc, SAME_PAIRS) / SAME_PAIRS for _ in range(LOOPS)]


def mixed(malloc, shape, check):
    """ns a pair, for each loop, at a steady number of live blocks."""
    events = Events(shape["slots"], shape["low"], shape["high"])
    slots = [None] * shape["slots"]
    sizes = {}
    # What is timed as one piece is made before, and noted after.
    def turn(batch):
        spent = play(malloc, slots, batch)
        sizes.update(batch)
        return spent

    turn(events.half())
    begin, churned = time.monotonic(), 0
    while churned < shape["churn"] and time.monotonic() - begin < CHURN_SECONDS:
        turn(events.some(20_000))
        churned += 20_000
    spent = [turn(events.some(shape["events"])) for _ in range(LOOPS)]
    live = [(block, sizes[slot]) for slot, block in enumerate(slots) if block is not None]
    if check is not None:
        check(live)
    # Two events are a pair.
    return [2 * ns / shape["events"] for ns in spent], len(live)


def check_blocks(live):
    """Ends the program if blocks overlap or do not hold what is written to them."""
    ranges = sorted((block.ptr, size) for block, size in live)
    for (start, size), (following, _) in zip(ranges, ranges[1:]):
        if start + size > following:
            sys.exit(f"blocks overlap: {size} bytes at {start:#x}, and another at {following:#x}")
    step = max(1, len(live) // CHECKED)
    sample = live[::step][:CHECKED]
    for index, (block, size) in enumerate(sample):
        block.memset(index % 251 + 1, size)
    for index, (block, size) in enumerate(sample):
        seen = ctypes.create_string_buffer(size)
        block.copy_to_host(ctypes.c_void_p(ctypes.addressof(seen)), size)
        if seen.raw != bytes([index % 251 + 1]) * size:
            sys.exit(f"a block of {size} bytes at {block.ptr:#x} does not hold what was written to it")
    return len(sample)


def report(name, facts, ours, empty, **more):
    """One line; `ours` is None without a GPU."""
    loop = statistics.median(empty)
    line = {"loop": name, **facts, **more, "interpreter_ns": round(loop, 1)}
    if ours is not None:
        pair = statistics.median(ours)
        line.update(pair_ns=round(pair, 1), difference_ns=round(pair - loop, 1),
                    pair_ns_min=round(min(ours), 1), pair_ns_max=round(max(ours), 1))
    print(json.dumps(line), flush=True)


def measure(facts, make_pool):
    """All three loops. `make_pool` gives malloc, a check of live blocks and an end; None measures the interpreter."""
    for name, shape in [("same_64_kib", None), ("mixed_512_b_16_mib", MIXED), ("live_65536", LIVE)]:
        gc.collect()
        gc.disable()
        pool = make_pool() if make_pool else None
        if shape is None:
            empty, count = same(float), 1
            ours = same(pool["malloc"]) if pool else None
        else:
            empty, count = mixed(float, shape, None)
            ours = None
            if pool:
                ours, count = mixed(pool["malloc"], shape, pool["check"])
        more = pool["end"]() if pool else {}
        gc.enable()
        report(name, facts, ours, empty, live_blocks=count, **more)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--no-gpu", action="store_true", help="time the loops of the interpreter alone")
    arguments = parser.parse_args()
    if arguments.no_gpu:
        measure({"allocator": "none"}, None)
        return
    try:
        import cupy
    except ImportError as error:
        sys.exit(f"CuPy cannot be imported ({error}); install the wheel for your CUDA, or try --no-gpu")
    try:
        cupy.cuda.Device(arguments.device).use()
        cupy.cuda.runtime.free(0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        sys.exit(f"GPU {arguments.device} cannot be used: {error}")
    stream = cupy.cuda.Stream(non_blocking=True)

    def make_pool():
        pool = cupy.cuda.MemoryPool()

        def check(live):
            check_blocks(live)
            stream.synchronize()

        def end():
            held = pool.total_bytes()
            stream.synchronize()
            pool.free_all_blocks(stream=stream)
            return {"held_bytes": held}

        return {"malloc": pool.malloc, "check": check, "end": end}

    with stream:
        measure({"allocator": f"cupy {cupy.__version__} MemoryPool"}, make_pool)


if __name__ == "__main__":
    main()
