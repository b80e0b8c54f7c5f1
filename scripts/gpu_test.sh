#!/usr/bin/env bash
# Gathers in .gpu, which git ignores, what a machine with a GPU and nothing but a driver needs to test and measure
# this tree: stripped test programs, the command, the library with its header, traces, and run.sh, which runs them.
# All of it is linked against glibc 2.28 with zig's linker (zig and cargo-zigbuild come from PyPI into .cache/zig) and
# is at most 16 MiB.
set -euo pipefail
cd "$(dirname "$0")/.."

glibc=2.28
target=x86_64-unknown-linux-gnu
limit_bytes=$((16 << 20))
tools=$PWD/.cache/zig/bin
built=${CARGO_TARGET_DIR:-target}/$target/release
shared=${KAVERN_SHARED:-../shared}
out=.gpu

test -x "$tools/python" || python3 -m venv .cache/zig
"$tools/python" -m pip install -q --disable-pip-version-check ziglang==0.13.0 cargo-zigbuild==0.20.1
export PATH=$tools:$PATH

# The names of the test programs carry a hash, so cargo is asked for them.
programs=$(cargo zigbuild --release --locked --target "$target.$glibc" --lib --bin kavern \
    --example gpu_figures --example pinned_figures --example memory_figures --example alloc_figures --example index_figures \
    --test contracts --test steady_state --test pool --test pinned --test elastic --message-format json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')

rm -rf "$out"
mkdir -p "$out/lib" "$out/include" "$out/traces"
for program in $programs; do
    name=$(basename "$program" | sed 's/-[0-9a-f]\{16\}$//')
    # Where a C program has the name too, the name is its.
    [ -e "tests/c_abi/$name.c" ] && name=${name}_test
    cp "$program" "$out/$name"
done
cp "$built/libkavern.so" "$out/lib/libkavern.so.0"
ln -s libkavern.so.0 "$out/lib/libkavern.so"
cp include/kavern.h "$out/include/"
for program in smoke lookups classes memory pool pinned elastic faults threads many_threads fork panic graph graph_memory captures sweep; do
    sources=("tests/c_abi/$program.c")
    [ "$program" = sweep ] && sources+=(tests/c_abi/sweep_*.c)
    "$tools/python" -m ziglang cc -target "x86_64-linux-gnu.$glibc" -std=c11 -O1 -pthread \
        -Wno-deprecated-non-prototype -Iinclude "${sources[@]}" -o "$out/$program" \
        -L"$out/lib" -lkavern -ldl -Wl,-rpath,'$ORIGIN/lib'
done
strip --strip-unneeded "$out"/lib/libkavern.so.0
for program in contracts steady_state pool_test pinned_test elastic_test gpu_figures pinned_figures memory_figures \
    alloc_figures index_figures kavern smoke lookups classes memory pool pinned elastic faults threads many_threads fork panic graph graph_memory captures \
    sweep; do
    strip "$out/$program"
done
rm "$out/lib/libkavern.so"
cp "$shared/traces/mooncake_conversation.jsonl.zst" "$out/traces/"
cp scripts/gpu_run.sh "$out/run.sh"
git describe --always --dirty >"$out/revision"

# What the programs want from glibc, newest first; they start where ldd --version says at least this.
wanted=$(for program in "$out"/* "$out"/lib/*; do
    if [ -f "$program" ]; then objdump -T "$program" 2>/dev/null || true; fi
done | grep -o 'GLIBC_[0-9.]*' | sort -Vru | head -n 1)

# The programs have most of their code in common.
tar -cJf "$out/programs.tar.xz" -C "$out" --remove-files $(cd "$out" && find . -maxdepth 1 -type f -perm -100 -not -name run.sh)
bytes=$(du -sb "$out" | cut -f 1)
echo "gpu-test: $out holds $bytes bytes, needs $wanted; there: bash $out/run.sh"
[ "$(printf '%s\n' "GLIBC_$glibc" "$wanted" | sort -V | tail -n 1)" = "GLIBC_$glibc" ] || {
    echo "gpu-test: $wanted is newer than glibc $glibc" >&2
    exit 1
}
[ "$bytes" -le "$limit_bytes" ] || {
    echo "gpu-test: more than $limit_bytes bytes" >&2
    exit 1
}
