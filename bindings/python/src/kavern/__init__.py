"""Kavern's C functions for Python: the low-level layer, and so far the only one.

`load()` gives a ctypes library with every function of include/kavern.h typed; `kavern._ffi` has the structs and
numbers. Statuses are plain integers that you check, and handles are yours to destroy.
"""

from ._ffi import VERSION as __version__
from ._ffi import load

__all__ = ["__version__", "load"]
