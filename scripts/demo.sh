#!/usr/bin/env bash
# Shows the library at work: made-up traffic replayed with real bytes, then a real model that answers three questions
# on a cache of Kavern. Without the model, which needs a network once, and without a C++ compiler there is the replay
# alone, and it says so. TARGET is the folder with the built library and command.
set -euo pipefail
cd "$(dirname "$0")/.."

"$TARGET/kavern" replay --generate mixed --device host

alone() {
    echo
    echo "demo: $1; so the replay above is all of the demo this time"
    exit 0
}
command -v "${CXX:-c++}" >/dev/null || alone "there is no C++ compiler"
scripts/model.sh || alone "the model is not there and cannot be fetched"
make --no-print-directory --silent -j"$(nproc)" -C examples/engine LIBRARY="$TARGET" program ||
    alone "the engine does not build here"
echo
echo "Now a real model, SmolLM2-135M-Instruct, on the CPU. Three questions at a time, with one system prompt:"
.cache/engine/engine ask "Why is the sky blue?" "What do bees make?" "Write one sentence about the sea."
