"""Builds kernels/prebuilt from kernels/*.cu with NVRTC alone: PTX for any GPU from sm_80 on, machine code for the rest.

Run by `make kernels`, which puts the pinned NVRTC packages into this interpreter's environment. Each compilation runs
in a process of its own, because two versions of NVRTC do not share one. The same sources and versions give the same
bytes.
"""
import ctypes
import glob
import hashlib
import json
import os
import sys

# The oldest version that knows the target, so that older drivers take the result.
OLD, NEW = "12.4.127", "13.0.88"
TARGETS = {
    "compute_80": OLD,
    "sm_80": OLD,
    "sm_86": OLD,
    "sm_89": OLD,
    "sm_90a": OLD,
    "sm_100a": NEW,
    "sm_120a": NEW,
}
FOLDERS = {OLD: "cuda_nvrtc/lib", NEW: "cu13/lib"}
OPTIONS = ["-std=c++17", "--device-as-default-execution-space"]
LIMIT_BYTES = 1 << 20

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KERNELS = os.path.join(ROOT, "kernels")
PREBUILT = os.path.join(KERNELS, "prebuilt")


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def load(version):
    pattern = os.path.join(sys.prefix, "lib", "python3*", "site-packages", "nvidia", FOLDERS[version])
    folder = glob.glob(pattern)[0]
    # NVRTC finds its builtins only if they are there before it.
    builtins = [path for path in glob.glob(folder + "/libnvrtc-builtins.so.*")]
    ctypes.CDLL(builtins[0], mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(glob.glob(folder + "/libnvrtc.so.*")[0])


def compile_one(source, target):
    nvrtc = load(TARGETS[target])

    def check(call, program=None):
        if call == 0:
            return
        if program is not None:
            size = ctypes.c_size_t()
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            print(log.value.decode(), file=sys.stderr)
        raise SystemExit(f"{source} for {target}: NVRTC answered {call}")

    with open(os.path.join(KERNELS, source), "rb") as file:
        text = file.read()
    with open(os.path.join(KERNELS, "types.cuh"), "rb") as file:
        header = file.read()
    program = ctypes.c_void_p()
    headers, names = (ctypes.c_char_p * 1)(header), (ctypes.c_char_p * 1)(b"types.cuh")
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 1, headers, names))
    options = [f"--gpu-architecture={target}"] + OPTIONS
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    check(nvrtc.nvrtcCompileProgram(program, len(options), array), program)
    kind = "PTX" if target.startswith("compute") else "CUBIN"
    size = ctypes.c_size_t()
    check(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
    blob = ctypes.create_string_buffer(size.value)
    check(getattr(nvrtc, f"nvrtcGet{kind}")(program, blob))
    data = blob.raw.rstrip(b"\0") + b"\n" if kind == "PTX" else blob.raw
    name = f"{source[:-3]}.{target}.{'ptx' if kind == 'PTX' else 'cubin'}"
    with open(os.path.join(PREBUILT, name), "wb") as file:
        file.write(data)


def in_own_process(source, target):
    child = os.fork()
    if child == 0:
        compile_one(source, target)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit(f"{source} for {target} failed")


def main():
    os.makedirs(PREBUILT, exist_ok=True)
    for old in glob.glob(PREBUILT + "/*"):
        os.remove(old)
    sources = sorted(os.path.basename(path) for path in glob.glob(KERNELS + "/*.cu"))
    for source in sources:
        for target in TARGETS:
            in_own_process(source, target)
    blobs = {
        name: {"sha256": digest(os.path.join(PREBUILT, name)), "nvrtc": TARGETS[name.split(".")[1]]}
        for name in sorted(os.listdir(PREBUILT))
    }
    total = sum(os.path.getsize(os.path.join(PREBUILT, name)) for name in blobs)
    manifest = {
        "sources": {name: digest(os.path.join(KERNELS, name)) for name in sources + ["types.cuh"]},
        "options": OPTIONS,
        "blobs": blobs,
    }
    with open(os.path.join(PREBUILT, "manifest.json"), "w") as file:
        json.dump(manifest, file, indent=1)
        file.write("\n")
    print(f"{len(blobs)} blobs, {total} bytes")
    if total > LIMIT_BYTES:
        raise SystemExit(f"more than {LIMIT_BYTES} bytes")


if __name__ == "__main__":
    main()
