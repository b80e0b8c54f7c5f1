#!/usr/bin/env bash
# The gate: format, lints, build, every test suite. Goes on after a failure, so that one run shows all of them, and
# ends with one line, "N passed, N failed"; format, lints, build and installation count as one each.
# KAVERN_REQUIRE=shared,cc,asan,valgrind,python,model turns a test that would be left out for want of that into a failure.
set -uo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}/release
mkdir -p .cache
log=.cache/test.log
passed=0
failed=0

required() { case ",${KAVERN_REQUIRE:-}," in *",$1,"*) true ;; *) false ;; esac; }
begin() { started=$SECONDS; echo "== $1"; }
count() { # count STATUS: one check
    if [ "$1" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "   FAILED"; fi
    echo "   $((SECONDS - started)) s"
}

begin "format"
cargo fmt -- --check -l
count $?

begin "lints"
cargo clippy --release --locked --all-targets --quiet -- -D warnings
count $?

begin "docs"
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps --lib --quiet
count $?

begin "build"
cargo build --release --locked --quiet
built=$?
count $built

begin "cargo test"
# Each passing test by name is in the log; on the screen stand suites, sums, and everything about a failure. Whatever
# hangs ends with the time, so that the rest is still told.
timeout --kill-after=30 "${KAVERN_TEST_SECONDS:-1500}" cargo test --release --locked --no-fail-fast 2>&1 | tee "$log" |
    grep --line-buffered -vE '^test .* \.\.\. (ok|ignored.*)$|^$|^running [0-9]+ test|^   Compiling |^    Finished '
status=${PIPESTATUS[0]}
[ "$status" -ne 124 ] || echo "   cut off after ${KAVERN_TEST_SECONDS:-1500} s; the last suite above did not end"
sums=$(awk '/^test result:/ { p += $4; f += $6; i += $8 } END { print p + 0, f + 0, i + 0 }' "$log")
read -r suite_passed suite_failed suite_ignored <<<"$sums"
# A suite that does not compile or dies has no sum of its own.
if [ "$status" -ne 0 ] && [ "$suite_failed" -eq 0 ]; then suite_failed=1; fi
passed=$((passed + suite_passed))
failed=$((failed + suite_failed))
echo "   $suite_passed passed, $suite_failed failed, $suite_ignored for \`make soak\`; $((SECONDS - started)) s"

begin "Python"
if command -v python3 >/dev/null && [ "$built" -eq 0 ]; then
    KAVERN_LIBRARY=$(realpath "$target")/libkavern.so python3 bindings/python/tests/test_ffi.py >"$log.python" 2>&1
    status=$?
    [ "$status" -eq 0 ] || cat "$log.python"
    ran=$(sed -n 's/^Ran \([0-9]*\) test.*/\1/p' "$log.python")
    number() { sed -n "s/.*[(, ]$1=\([0-9]*\).*/\1/p" "$log.python" | tail -n 1; }
    bad=$(($(number failures || true) + $(number errors || true) + 0))
    skipped=$(($(number skipped) + 0))
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
    good=$((${ran:-0} - bad - skipped))
    [ "$good" -ge 0 ] || good=0
    passed=$((passed + good))
    failed=$((failed + bad))
    echo "   $good passed, $bad failed, $skipped left out; $((SECONDS - started)) s"
elif required python; then
    count 1
else
    echo "   left out"
fi

begin "engine"
# The tests with made models run twice, the second time under the sanitizers; those with the real model once, and only
# if it is there: it is fetched here where KAVERN_REQUIRE names it, otherwise by `make model`.
if command -v c++ >/dev/null && [ "$built" -eq 0 ]; then
    required model && scripts/model.sh
    model=.cache/model/SmolLM2-135M-Instruct.Q4_1.gguf
    samples=${KAVERN_SHARED:-../shared}/kv/smollm2_kv_sample.safetensors
    files=()
    [ -f "$model" ] && files+=(--model "$model")
    [ -f "$samples" ] && files+=(--samples "$samples")
    make --silent -C examples/engine -j"$(nproc)" LIBRARY="$(realpath "$target")" STRICT=-Werror all checked
    count $?
    if [ -f "$model" ]; then scripts/test_engine.sh "$model"; else scripts/test_engine.sh; fi
    count $?
    for program in engine_tests engine_tests_checked; do
        if [ "$program" = engine_tests ]; then arguments=("${files[@]}"); else arguments=(); fi
        .cache/engine/$program "${arguments[@]}" >"$log.$program" 2>&1
        status=$?
        [ "$status" -eq 0 ] || cat "$log.$program"
        sums=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) left out$/\1 \2 \3/p' "$log.$program")
        read -r good bad skipped <<<"${sums:-0 0 0}"
        if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
        # Left out for want of a file that is required.
        if [ "$program" = engine_tests ] && [ "$skipped" -gt 0 ] && { required model || required shared; }; then
            bad=$((bad + skipped))
        fi
        passed=$((passed + good))
        failed=$((failed + bad))
        echo "   $program: $good passed, $bad failed, $skipped left out; $((SECONDS - started)) s"
    done
elif required cc; then
    count 1
else
    echo "   left out"
fi

begin "installation"
if command -v cc >/dev/null && [ "$built" -eq 0 ]; then
    scripts/test_install.sh
    count $?
elif required cc; then
    count 1
else
    echo "   left out"
fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
