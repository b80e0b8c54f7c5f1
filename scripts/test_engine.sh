#!/usr/bin/env bash
# The engine's command as a user meets it: what it prints, and the exit code and sentence for input that is no good.
# With the path of the model as argument also what needs one.
set -uo pipefail
cd "$(dirname "$0")/.."

engine=.cache/engine/engine
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
bad=0

expect() { # expect CODE WORDS ARGUMENTS...: exit code, and words that are printed
    local code=$1 words=$2 said status
    shift 2
    said=$("$engine" "$@" 2>&1)
    status=$?
    if [ "$status" -ne "$code" ] || ! grep -qF -- "$words" <<<"$said"; then
        echo "engine $*: exit code $status instead of $code, or it does not say \"$words\":" >&2
        echo "$said" >&2
        bad=1
    fi
}

expect 0 "engine ask [options]" help
expect 2 "unknown verb" sing
expect 2 "not a GGUF file" ask --model README.md hello
expect 2 "cannot be opened" ask --model "$place/none.gguf" hello
if [ "$#" -gt 0 ]; then
    head -c 1000000 "$1" >"$place/short.gguf"
    expect 2 "truncated" ask --model "$place/short.gguf" hello
    for cache in paged contiguous; do
        expect 0 " Paris." continue --model "$1" --new 2 --cache "$cache" "The capital of France is"
    done
    expect 2 "longer than the cache, which holds 64" ask --model "$1" --cache-tokens 64 --new 90 hello
    expect 0 "prefix hit rate" ask --model "$1" --new 3 --kv bf16 "Who are you?" "Who am I?"
fi
exit "$bad"
