"""The C library as a witness: selabel_open(3) and selabel_lookup(3) of whatever libselinux.so.1 this machine has."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SELABEL_CTX_FILE = 0
SELABEL_OPT_PATH = 3
SELINUX_CB_LOG = 0
LOG_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p)


class SelinuxOpt(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("value", ctypes.c_char_p))


_SILENT = LOG_CALLBACK(lambda _level, _format: 0)


def _library(path: str) -> Any:
    library = ctypes.CDLL(path, use_errno=True)
    library.selabel_open.restype = ctypes.c_void_p
    library.selabel_open.argtypes = (ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint)
    library.selabel_close.argtypes = (ctypes.c_void_p,)
    library.selabel_lookup_raw.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
    library.freecon.argtypes = (ctypes.c_void_p,)
    library.selinux_set_callback(SELINUX_CB_LOG, _SILENT)
    return library


class Handle:
    def __init__(self, library: Any, handle: int) -> None:
        self._library = library
        self._handle = handle

    def label(self, path: bytes, kind: int) -> bytes | None:
        context = ctypes.c_void_p()
        if self._library.selabel_lookup_raw(self._handle, ctypes.byref(context), path, kind) != 0:
            return None
        found = ctypes.string_at(context.value or 0)
        self._library.freecon(context)
        return found


@contextmanager
def selabel(file_contexts: Path, library: str = "libselinux.so.1") -> Iterator[Handle]:
    """Open a policy by the path of its file_contexts; the others lie beside it."""
    loaded = _library(library)
    option = SelinuxOpt(SELABEL_OPT_PATH, os.fsencode(file_contexts))
    handle = loaded.selabel_open(SELABEL_CTX_FILE, ctypes.byref(option), 1)
    assert handle, f"libselinux does not read {file_contexts}: {os.strerror(ctypes.get_errno())}"
    try:
        yield Handle(loaded, handle)
    finally:
        loaded.selabel_close(handle)
