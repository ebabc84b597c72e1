"""What the C library does with freed memory; a process sets it for itself."""

from __future__ import annotations

import ctypes
import os
import platform

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees, for the next step.

    A step's activations are megabytes. By default glibc may hand them back to the kernel, which must fill
    every page with zeros when the next step asks for it again: thousands of page faults and up to half of
    the step's time, or none, as the layout of the heap will have it. Blocks of up to 32 MiB now come from
    the heap, which keeps up to 256 MiB of free memory at its end.

    Does nothing with another C library, or where the environment sets the allocator itself
    (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` or ``GLIBC_TUNABLES``).
    """
    chosen = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if chosen or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
    libc.mallopt(_TRIM_THRESHOLD, 256 * 2**20)
