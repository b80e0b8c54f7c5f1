#!/usr/bin/env bash
# Installs the Debian packages that building and testing need and that are missing. Says nothing if nothing is.
# A C compiler and cargo are needed for everything; the rest only for the tests that use it.
set -euo pipefail

declare -A package=([cc]=gcc [c++]=g++ [nm]=binutils [readelf]=binutils [valgrind]=valgrind [python3]=python3 [zstd]=zstd)

missing_packages() {
    local command
    {
        for command in "${!package[@]}"; do
            command -v "$command" >/dev/null || echo "${package[$command]}"
        done
        # Fetches the model of examples/engine.
        python3 -m pip --version >/dev/null 2>&1 || echo python3-pip
    } | sort -u
}

if ! command -v cargo >/dev/null; then
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    echo "setup: cargo is missing; install Rust $wanted or newer with rustup (https://rustup.rs)" >&2
    exit 1
fi
for part in clippy fmt; do
    if ! cargo "$part" --version >/dev/null 2>&1; then
        echo "setup: cargo $part is missing; rustup component add clippy rustfmt" >&2
        exit 1
    fi
done

mapfile -t missing < <(missing_packages)
[ "${#missing[@]}" -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
fi
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    echo "setup: installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq || true
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || true
    mapfile -t missing < <(missing_packages)
fi
[ "${#missing[@]}" -eq 0 ] && exit 0

echo "setup: missing and not installed: ${missing[*]}" >&2
echo "setup: on Debian or Ubuntu: sudo apt-get install ${missing[*]}" >&2
case " ${missing[*]} " in
    *" gcc "*) exit 1 ;;
esac
echo "setup: tests that need them are left out, unless KAVERN_REQUIRE names them" >&2
