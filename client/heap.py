"""Keep freed memory for the next step."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**30


def keep_freed_memory() -> bool:
    """Ask the C library not to hand freed memory back to the system between training steps.

    A step frees hundreds of mebibytes that the next one takes again. By default glibc returns them and the
    kernel fills fresh pages with zeros, a few per cent of a step's time. Peak memory does not change.

    Returns:
        Whether the C library took the settings; only glibc has them.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(bool(mallopt(name, _LARGEST)) for name in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD))
