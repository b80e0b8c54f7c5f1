#!/usr/bin/env bash
# Installs into a temporary folder and builds a C program against what lies there, shared and static.
set -euo pipefail
cd "$(dirname "$0")/.."

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

# PREFIX is the folder itself, so that the paths in kavern.pc hold.
make --no-print-directory --silent install PREFIX="$place" DESTDIR= CARGO="${CARGO:-cargo} --quiet"

cat >"$place/program.c" <<'PROGRAM'
#include <kavern.h>
#include <stdio.h>
int main(void)
{
    puts(kavern_version_string());
    return kavern_abi_version() != KAVERN_ABI_VERSION;
}
PROGRAM
pc=$place/lib/pkgconfig/kavern.pc
field() { sed -n "s/^$1: *//p" "$pc" | sed -e "s|\${libdir}|$place/lib|g" -e "s|\${includedir}|$place/include|g"; }
version=$(field Version)

# shellcheck disable=SC2046  # flags are words
cc -Wall -Werror $(field Cflags) "$place/program.c" -o "$place/shared" $(field Libs) -Wl,-rpath,"$place/lib"
[ "$("$place/shared")" = "$version" ]
# shellcheck disable=SC2046
cc -Wall -Werror $(field Cflags) "$place/program.c" -o "$place/static" "$place/lib/libkavern.a" $(field Libs.private)
[ "$("$place/static")" = "$version" ]
