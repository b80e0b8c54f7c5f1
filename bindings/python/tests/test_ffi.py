"""The ctypes declarations against the built library and the header: `python3 test_ffi.py -v`.

Needs KAVERN_LIBRARY (the Makefile sets it). The comparison with C needs `cc`; it is left out where there is none,
unless KAVERN_REQUIRE names it.
"""

import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bindings/python/src"))

import kavern  # noqa: E402
from kavern import _ffi as ffi  # noqa: E402

STRUCTS = [
    item
    for item in vars(ffi).values()
    if isinstance(item, type) and issubclass(item, ctypes.Structure) and item.__name__.startswith("kavern_")
]


def layout_in_c():
    """What a C compiler says of each struct: {name: (size, {field: (offset, size)})}."""
    lines = ["#include <kavern.h>", "#include <stdio.h>", "int main(void) {"]
    for struct in STRUCTS:
        name = struct.__name__
        lines.append(f'printf("{name} - 0 %zu\\n", sizeof({name}));')
        for field in struct._fields_:
            place = f"offsetof({name}, {field[0]}), sizeof((({name} *)0)->{field[0]})"
            lines.append(f'printf("{name} {field[0]} %zu %zu\\n", {place});')
    lines.append("return 0; }")
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "layout.c"), Path(folder, "layout")
        source.write_text("\n".join(lines))
        subprocess.run(["cc", "-std=c99", f"-I{ROOT / 'include'}", source, "-o", program], check=True)
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    found = {}
    for line in output.splitlines():
        struct, field, offset, size = line.split()
        found.setdefault(struct, {})[field] = (int(offset), int(size))
    return found


class Declarations(unittest.TestCase):
    def test_every_struct_lies_in_memory_as_a_c_compiler_lays_it(self):
        if not shutil.which("cc") and "cc" not in os.environ.get("KAVERN_REQUIRE", "").split(","):
            self.skipTest("no C compiler")
        found = layout_in_c()
        self.assertGreater(len(found), 10)
        for struct in STRUCTS:
            here = {"-": (0, ctypes.sizeof(struct))}
            for field in struct._fields_:
                descriptor = getattr(struct, field[0])
                here[field[0]] = (descriptor.offset, descriptor.size)
            self.assertEqual(here, found[struct.__name__], struct.__name__)

    def test_a_library_that_is_not_there_is_an_error_that_names_it(self):
        with self.assertRaisesRegex(OSError, "nowhere/libkavern.so.*KAVERN_LIBRARY|KAVERN_LIBRARY.*nowhere"):
            kavern.load("nowhere/libkavern.so")

    def test_a_library_that_is_not_kavern_is_an_error(self):
        with self.assertRaisesRegex(OSError, "not this version of libkavern"):
            kavern.load(ctypes.util.find_library("c") or "libc.so.6")


class Library(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.lib = kavern.load()

    def text(self, call):
        """A text that the library writes into a buffer of ours."""
        needed = ctypes.c_size_t()
        call(None, 0, ctypes.byref(needed))
        buffer = ctypes.create_string_buffer(max(needed.value, 1))
        call(buffer, len(buffer), ctypes.byref(needed))
        return buffer.value.decode()

    def test_it_says_its_version(self):
        self.assertEqual(self.lib.kavern_abi_version(), ffi.KAVERN_ABI_VERSION)
        self.assertEqual(self.lib.kavern_version_string().decode(), kavern.__version__)

    def test_each_config_is_accepted_with_its_size_and_refused_without(self):
        inits = [name for name in ffi.FUNCTIONS if name.endswith("_config_init")]
        self.assertTrue(inits)
        for name in inits:
            config = getattr(ffi, name.removesuffix("_init"))()
            size = ctypes.sizeof(config)
            init = getattr(self.lib, name)
            self.assertEqual(init(ctypes.byref(config), size), ffi.KAVERN_OK, name)
            self.assertEqual(config.struct_size, size, name)
            self.assertEqual(init(ctypes.byref(config), 0), ffi.KAVERN_ERR_STRUCT_SIZE, name)
            self.assertEqual(init(None, size), ffi.KAVERN_ERR_NULL_POINTER, name)

    def test_a_manager_on_the_host_is_made_and_destroyed(self):
        config = ffi.kavern_manager_config()
        self.assertEqual(self.lib.kavern_manager_config_init(ctypes.byref(config), ctypes.sizeof(config)), 0)
        config.device = b"host"
        manager = ffi.kavern_manager()
        status = self.lib.kavern_manager_create(ctypes.byref(config), ctypes.byref(manager))
        self.assertEqual(status, 0, self.text(self.lib.kavern_last_error))
        self.assertTrue(manager.value)
        stale = ffi.kavern_manager(manager.value)
        self.assertEqual(self.lib.kavern_manager_validate(manager), 0)
        self.assertEqual(self.lib.kavern_manager_destroy(ctypes.byref(manager)), 0)
        self.assertFalse(manager.value)
        self.assertEqual(self.lib.kavern_manager_destroy(ctypes.byref(manager)), 0, "destroying nothing is fine")
        self.assertEqual(self.lib.kavern_manager_validate(stale), ffi.KAVERN_ERR_INVALID_HANDLE)
        self.assertIn("kavern_manager_validate", self.text(self.lib.kavern_last_error))


if __name__ == "__main__":
    unittest.main()
