#!/usr/bin/env python3
"""Replays a trace of allocations with PyTorch's caching allocator and finds the least memory in which it succeeds.

The trace is what `kavern replay-alloc --write FILE` writes: "a ID BYTES STREAM" allocates, "f ID" frees. The limit is
set with torch.cuda.set_per_process_memory_fraction and bisected to 2 MiB. Each limit is tried in a process of its own,
so that none profits from the one before. It prints one JSON object for each mode, with the field names of the verb.

usage: frag_torch.py TRACE [--device N] [--modes native expandable]
"""

import argparse
import json
import os
import subprocess
import sys
import time

STEP = 2 << 20
MODES = {"native": "expandable_segments:False", "expandable": "expandable_segments:True"}


def read(path):
    """Events as (id, bytes, stream), with 0 bytes for a free; the peak of live bytes; how many streams."""
    events, live, now, peak, streams = [], {}, 0, 0, 0
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            block = int(words[1])
            if words[0] == "a":
                size, stream = int(words[2]), int(words[3])
                events.append((block, size, stream))
                live[block] = size
                now += size
                peak = max(peak, now)
                streams = max(streams, stream + 1)
            else:
                events.append((block, 0, 0))
                now -= live.pop(block)
    return events, peak, streams


def play(path, device, limit):
    """One replay under a limit of so many bytes, 0 for none; ends at the first refusal if there is a limit."""
    import torch

    events, _, count = read(path)
    torch.cuda.set_device(device)
    # The context, before anything is limited or counted.
    torch.cuda.synchronize()
    total = torch.cuda.get_device_properties(device).total_memory
    if limit:
        # The allocator multiplies again and cuts off; half a byte more keeps that from losing one.
        torch.cuda.set_per_process_memory_fraction(min(1.0, (limit + 0.5) / total), device)
    streams = [torch.cuda.Stream(device) for _ in range(count)]
    addresses, refused = {}, 0
    begin = time.perf_counter()
    for block, size, stream in events:
        if size:
            try:
                addresses[block] = torch.cuda.caching_allocator_alloc(size, device, streams[stream])
            except torch.cuda.OutOfMemoryError:
                refused += 1
                if limit:
                    break
        elif block in addresses:
            torch.cuda.caching_allocator_delete(addresses.pop(block))
    seconds = time.perf_counter() - begin
    held = torch.cuda.max_memory_reserved(device)
    for address in addresses.values():
        torch.cuda.caching_allocator_delete(address)
    return {"refused": refused, "peak_backed_bytes": held, "ns_per_operation": seconds * 1e9 / max(1, len(events)),
            "torch": torch.__version__}


def apart(arguments, mode, limit):
    """`play` in a process of its own."""
    # Both names: the newer one is read by newer versions, which warn of the older.
    environment = dict(os.environ, PYTORCH_CUDA_ALLOC_CONF=MODES[mode], PYTORCH_ALLOC_CONF=MODES[mode])
    command = [sys.executable, os.path.abspath(__file__), arguments.trace, "--device", str(arguments.device),
               "--play", str(limit)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{mode}, limit {limit}: the replay failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def smallest_cap(arguments, mode, peak, held):
    """The smallest limit, in steps of 2 MiB, under which nothing is refused."""
    too_few = max(0, peak // STEP - 1)
    enough = max(-(-held // STEP), too_few + 2)
    while apart(arguments, mode, enough * STEP)["refused"]:
        too_few, enough = enough, enough + -(-enough // 4)
        if enough * STEP > 8 * peak:
            sys.exit(f"{mode}: even with {too_few * STEP} bytes requests are refused; is the GPU free?")
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if apart(arguments, mode, middle * STEP)["refused"]:
            too_few = middle
        else:
            enough = middle
    return enough * STEP


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--modes", nargs="+", choices=sorted(MODES), default=["native", "expandable"])
    parser.add_argument("--play", type=int, metavar="LIMIT", help="one replay under a limit in bytes, 0 for none")
    arguments = parser.parse_args()
    if arguments.play is not None:
        print(json.dumps(play(arguments.trace, arguments.device, arguments.play)))
        return
    events, peak, _ = read(arguments.trace)
    for mode in arguments.modes:
        free = apart(arguments, mode, 0)
        cap = smallest_cap(arguments, mode, peak, free["peak_backed_bytes"])
        report = {"trace": arguments.trace, "allocator": f"torch {free.pop('torch')} {mode}", "events": len(events),
                  "peak_live_bytes": peak, **free, "cap_bytes": cap, "fragmentation": cap / max(1, peak) - 1}
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
