"""Owns reading BPF ring buffers, through libbpf. Every failure is an OSError."""

from __future__ import annotations

import ctypes
import functools
import os

_Sample = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_STOP = -1  # what a callback returns to end a run; the sample it was called with is consumed


@functools.cache
def _lib() -> ctypes.CDLL:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    lib.libbpf_set_print(None)  # otherwise it prints to stderr what we raise
    lib.ring_buffer__new.restype = ctypes.c_void_p
    lib.ring_buffer__new.argtypes = (ctypes.c_int, _Sample, ctypes.c_void_p, ctypes.c_void_p)
    for function in (lib.ring_buffer__epoll_fd, lib.ring_buffer__consume, lib.ring_buffer__free):
        function.argtypes = (ctypes.c_void_p,)
    lib.ring_buffer__free.restype = None
    return lib


class Ring:
    """The reading end of one ring buffer, which can have only one.

    ``fd`` is readable while there is something to take.
    """

    def __init__(self, map_fd: int) -> None:
        self._samples: list[bytes] = []
        self._limit = 0
        self._callback = _Sample(self._take_one)  # must live as long as the ring
        # A descriptor of our own, so that the map stays when its program goes.
        self._map_fd = os.dup(map_fd)
        self._ring: int | None = _lib().ring_buffer__new(self._map_fd, self._callback, None, None)
        if self._ring is None:
            error = ctypes.get_errno()
            os.close(self._map_fd)
            raise OSError(error, os.strerror(error), "ring buffer")
        self.fd: int = _lib().ring_buffer__epoll_fd(self._ring)

    def take(self, limit: int) -> list[bytes]:
        """Return the oldest samples, at most ``limit``; what is not taken stays."""
        if self._ring is None:
            return []
        self._limit, self._samples = limit, []
        result = _lib().ring_buffer__consume(self._ring)
        if result < 0 and len(self._samples) < limit:
            raise OSError(-result, os.strerror(-result), "ring buffer")
        return self._samples

    def _take_one(self, _context: int | None, data: int, size: int) -> int:
        self._samples.append(ctypes.string_at(data, size))
        return _STOP if len(self._samples) >= self._limit else 0

    def close(self) -> None:
        """Close the ring; what was not taken stays in the map, for the next reader."""
        if self._ring is None:
            return
        _lib().ring_buffer__free(self._ring)
        self._ring = None
        os.close(self._map_fd)
