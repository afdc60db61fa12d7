"""Memory settings of the C library for a server that reads images."""

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 1_000_000  # bytes: requests with images, and images


def return_large_buffers():
    """Makes glibc map each large buffer separately and return it to the system when it is freed; elsewhere, a no-op.

    By default, glibc does this only for buffers larger than the largest one freed so far, up to 32 MB (mallopt(3)). Smaller
    ones come from its heaps, which grow because of the gaps that such buffers leave behind.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _LARGE)
