"""NumPy's arrays in the C library's memory, which is overwritten when it is freed.

NumPy keeps the buffers of arrays of less than 1 KiB for the next array of their size, and never gives them back: up to
seven of each size, as they were. A few rows of features are such arrays. Its memory handler (NEP 49) is a struct that
programs may replace for a context, but threads begin with contexts of their own; so the default one is told to use
what CPython's own allocator uses: functions of the same shape, which with `PYTHONMALLOC=malloc` are the C library's
(https://numpy.org/neps/nep-0049.html, https://docs.python.org/3/c-api/memory.html#c.PyMemAllocatorEx).

A small array costs 0.15 us more by it.
"""

from __future__ import annotations

import ctypes
import importlib

_DEFAULT_HANDLER = 306
"""Of NumPy's C interface (PyDataMem_DefaultHandler), the same in all of NumPy 2."""
_VERSION = 1
_NAME, _CAPSULE = b"default_allocator", b"mem_handler"
_RAW_DOMAIN = 0  # PYMEM_DOMAIN_RAW


class _Allocator(ctypes.Structure):
    """PyMemAllocatorEx; NumPy's differs in one more argument of `free`, the size, which nobody has to look at."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("ctx", "malloc", "calloc", "realloc", "free")]


class _Handler(ctypes.Structure):
    """PyDataMem_Handler."""

    _fields_ = [("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("allocator", _Allocator)]


def keep_no_small_arrays() -> bool:
    """From now on the buffer of every array is the C library's again when the array is gone. Returns whether it is so:
    False, having done nothing, for a NumPy that is made in another way.

    Safe at any time: NumPy itself gets what it keeps, and lets go of, by the same functions of the C library.
    """
    handler = _default_handler()
    if handler is None:
        return False
    handler.allocator = _raw_allocator()
    return True


def keeps_small_arrays() -> bool:
    """Whether buffers of small arrays may outlive them in this process."""
    handler = _default_handler()
    return handler is None or handler.allocator.malloc != _raw_allocator().malloc


def _raw_allocator() -> _Allocator:
    allocator = _Allocator()
    ctypes.pythonapi.PyMem_GetAllocator(_RAW_DOMAIN, ctypes.byref(allocator))
    return allocator


def _default_handler() -> _Handler | None:
    try:
        interface = importlib.import_module("numpy._core._multiarray_umath")._ARRAY_API  # where its headers find it
        pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
        pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        functions = ctypes.cast(pointer_of(interface, None), ctypes.POINTER(ctypes.c_void_p))
        capsule = ctypes.cast(functions[_DEFAULT_HANDLER] or 0, ctypes.POINTER(ctypes.py_object))[0]
        handler = ctypes.cast(pointer_of(capsule, _CAPSULE), ctypes.POINTER(_Handler))[0]
    except (ImportError, AttributeError, ValueError):  # another NumPy, another Python
        return None
    return handler if (handler.name, handler.version) == (_NAME, _VERSION) else None
