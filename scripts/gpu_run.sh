#!/usr/bin/env bash
# Tests and measures on a machine with an NVIDIA GPU; everything it needs lies beside it (`make gpu-test`).
# usage: run.sh [PART ...], with parts from: machine contracts c replay figures steady sanitizer; all without one.
# A part is a group of steps. Goes on after a failure and ends with one line, "N passed, N failed". What each step printed
# is kept in logs/ beside this file, and all of it in $OUT/gpu.log if OUT names a folder. KAVERN_GPU_SECONDS limits one
# step (default 240); KAVERN_GPU_DEVICE names another GPU than cuda:0.
set -uo pipefail
cd "$(dirname "$0")"

[ -x contracts ] || tar -xJf programs.tar.xz

logs=$PWD/logs
mkdir -p "$logs"
seconds=${KAVERN_GPU_SECONDS:-240}
device=${KAVERN_GPU_DEVICE:-cuda:0}
parts=${*:-machine contracts c replay figures steady sanitizer}
passed=0
failed=0
failures=

step() { # step NAME COMMAND...
    local name=$1 started=$SECONDS status
    shift
    timeout "$seconds" "$@" >"$logs/$name.log" 2>&1
    status=$?
    if [ -n "${OUT:-}" ]; then
        { echo "==== $name: $*" && cat "$logs/$name.log"; } >>"$OUT/gpu.log"
    fi
    if [ "$status" -eq 0 ]; then
        passed=$((passed + 1))
        echo "ok      $name ($((SECONDS - started)) s)"
    else
        failed=$((failed + 1))
        failures="$failures $name"
        echo "FAILED  $name: exit $status ($((SECONDS - started)) s), last lines:"
        tail -n 25 "$logs/$name.log" | cut -c 1-400 | sed 's/^/        /'
    fi
}

machine() {
    echo "revision $(cat revision)"
    ldd --version | head -n 1
    uname -r
    nvidia-smi --query-gpu=name,driver_version,memory.total,ecc.mode.current,clocks.sm,clocks.mem --format=csv,noheader
}

contracts() {
    # One thread, because free memory is compared and because a held callback holds up those of other streams.
    step contracts env KAVERN_REQUIRE=cuda ./contracts --test-threads=1
    step pool env KAVERN_TEST_DEVICE="$device" ./pool_test --test-threads=1 --nocapture
    step pinned env KAVERN_TEST_DEVICE="$device" ./pinned_test --test-threads=1
    grep -hE '^test .*FAILED|^test result' "$logs/contracts.log"
    step elastic env KAVERN_TEST_DEVICE="$device" ./elastic_test --test-threads=1
    grep -hE '^test .*FAILED|^test result' "$logs/elastic.log"
}

# The sweep gives the driver no forged CUstream: it would follow the address, and nobody can tell it from a real one.
c() {
    step c-smoke env KAVERN_TEST_DEVICE="$device" ./smoke
    step c-lookups env KAVERN_TEST_DEVICE="$device" ./lookups
    step c-pool env KAVERN_TEST_DEVICE="$device" ./pool
    step c-pinned env KAVERN_TEST_DEVICE="$device" ./pinned
    step c-elastic env KAVERN_TEST_DEVICE="$device" ./elastic
    step c-memory env KAVERN_TEST_DEVICE="$device" ./memory
    step c-classes env KAVERN_TEST_DEVICE="$device" ./classes
    step c-threads env KAVERN_TEST_DEVICE="$device" ./threads 1000
    step c-many-threads env KAVERN_TEST_DEVICE="$device" ./many_threads 20
    step c-fork env KAVERN_TEST_DEVICE="$device" ./fork
    step c-panic env KAVERN_TEST_DEVICE="$device" KAVERN_FAULT_PANIC=kavern_kv_step ./panic kavern_kv_step
    step c-sweep env KAVERN_TEST_DEVICE="$device" ./sweep 20000 7
    step c-graph env KAVERN_TEST_DEVICE="$device" ./graph
    step c-graph-memory env KAVERN_TEST_DEVICE="$device" ./graph_memory
    step c-captures env KAVERN_TEST_DEVICE="$device" ./captures
    for how in oom device panic; do
        step "c-faults-$how" env KAVERN_TEST_DEVICE="$device" ./faults "$how"
    done
}

# A cache that fits nothing, one that fits little, one that fits most of the trace; each block is written and read back.
replay() {
    local trace=traces/mooncake_conversation.jsonl.zst blocks
    for blocks in 2000 20000 100000; do
        step "replay-$blocks" ./kavern replay "$trace" --blocks "$blocks" --device "$device" --json
        tail -n 1 "$logs/replay-$blocks.log" | cut -c 1-600
    done
    step replay-64KiB ./kavern replay "$trace" --blocks 20000 --block-bytes 65536 --device "$device" --json
    step replay-odd ./kavern replay "$trace" --blocks 5000 --block-bytes 4112 --device "$device" --json --limit 3000
    step replay-tokens ./kavern replay "$trace" --blocks 20000 --tokens --device "$device" --json --limit 3000
}

figures() {
    step figures ./gpu_figures "$device"
    step figures-pinned ./pinned_figures "$device" 64
    step figures-memory ./memory_figures "$device"
    step figures-alloc ./alloc_figures "$device"
    step figures-index ./index_figures "$device"
    cat "$logs/figures.log" "$logs/figures-pinned.log" "$logs/figures-memory.log" "$logs/figures-alloc.log" \
        "$logs/figures-index.log"
}

steady() {
    step steady-state env KAVERN_TEST_DEVICE="$device" ./steady_state --test-threads=1
}

sanitizer() {
    local tool sanitizer
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
    if [ -z "$sanitizer" ]; then
        echo "left out: there is no compute-sanitizer"
        return
    fi
    # The contract suite provokes errors of the driver's interface on purpose; only errors of kernels count.
    for tool in memcheck racecheck initcheck synccheck; do
        # initcheck waits for the device at a free, which that sentence makes while it holds a stream by a callback.
        local skip=()
        [ "$tool" = initcheck ] && skip=(--skip memory_freed_in_stream_order)
        step "$tool-contracts" env KAVERN_REQUIRE=cuda "$sanitizer" --tool "$tool" --error-exitcode 9 \
            --report-api-errors no ./contracts --test-threads=1 "${skip[@]}" cache_kernels kernels:: copies memory::
        grep -h 'ERROR SUMMARY' "$logs/$tool-contracts.log"
        step "$tool-replay" "$sanitizer" --tool "$tool" --error-exitcode 9 --report-api-errors no \
            ./kavern replay --generate mixed --requests 300 --blocks 500 --device "$device" --json
        grep -h 'ERROR SUMMARY' "$logs/$tool-replay.log"
    done
}

for part in $parts; do
    echo "== $part"
    "$part"
done
echo "$passed passed, $failed failed${failures:+:$failures}"
[ "$failed" -eq 0 ]
