"""Freed memory is kept for the next step, unless the user or another C library decides."""

import os
import platform
import subprocess
import sys

import pytest

from osr_lightning.models import allocator

FAULTS = """
import ctypes, resource, torch
from osr_lightning.models.allocator import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        activations = [torch.ones(2 * 2**20) for _ in range(4)]  # 8 MiB each
        del activations
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for setting in (-3, -1):  # glibc starts with 128 KiB, and raises them or not by what the process does
    ctypes.CDLL(None).mallopt(setting, 128 * 2**10)
print(faults())
keep_freed_memory()
faults()
print(faults())
"""
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept():
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    by_default, kept = map(int, done.stdout.split())
    assert by_default > 100_000  # 20 times 8,192 pages
    assert kept < 1000


def called(name: str | None) -> None:
    pytest.fail("called the C library")


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_allocator_set_by_the_user_is_left_alone(setting, monkeypatch):
    monkeypatch.setenv(setting, "1")
    monkeypatch.setattr(allocator.ctypes, "CDLL", called)
    allocator.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    for setting in SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", called)
    allocator.keep_freed_memory()
