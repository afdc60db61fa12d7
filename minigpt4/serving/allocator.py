"""What a server that reads pictures has to tell the C library about memory."""

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 1_000_000  # bytes: requests with pictures, and pictures


def return_large_buffers():
    """Lets glibc map each large buffer by itself, so that it goes back to the system when it is freed; elsewhere nothing.

    Left alone, glibc takes the largest buffer that was freed so far, up to 32 MB, for the size from which it does so
    (mallopt(3)). What is smaller then comes from its heaps, and they grow by the gaps that such buffers leave behind.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _LARGE)
