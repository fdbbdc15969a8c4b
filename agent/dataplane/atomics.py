"""Owns compare-and-exchange on words of tables that the packet path writes at the same time.

Python has no such operation. libatomic is a part of GCC that distributions package separately
(`libatomic1`). The function used here is the one that a C compiler calls for C11's
``atomic_compare_exchange_strong`` where it does not emit the processor's instruction itself.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from itertools import repeat

import numpy as np
import numpy.typing as npt

from agent.logs import get_logger

log = get_logger()

type Words = npt.NDArray[np.uint64]
type Mask = npt.NDArray[np.bool_]
type _Exchange = Callable[[int, int, int, int, int], bool]

LIBRARY = "libatomic.so.1"
_SEQ_CST = 5  # __ATOMIC_SEQ_CST


def exchange(
    words: Words, at: npt.NDArray[np.integer], expected: Words | int, wanted: Words | int
) -> Mask:
    """Write each ``wanted`` at its place if the word there is ``expected``; return which were
    written.

    ``words`` lie in memory that others write too, aligned to 8 bytes; they may be a field of a
    table. ``at`` must not name a place twice. IndexError: a place is outside the table.
    """
    places = np.asarray(at, dtype=np.int64)
    if not len(places):
        return np.zeros(0, dtype=bool)
    before = np.ascontiguousarray(np.broadcast_to(np.uint64(expected), places.shape))
    after = np.broadcast_to(np.uint64(wanted), places.shape)
    if places.min() < 0 or places.max() >= len(words):
        raise IndexError(f"a place is not in the table of {len(words)} words")
    compare_exchange = _compare_exchange()
    if compare_exchange is None:
        same: Mask = words[places] == before
        words[places[same]] = after[same]
        return same
    # Expected values are passed by reference; the function overwrites them with what it found.
    found = before.copy()
    targets = (words.ctypes.data + places * words.strides[0]).tolist()
    references = range(found.ctypes.data, found.ctypes.data + 8 * len(found), 8)
    order = repeat(_SEQ_CST)
    done = map(compare_exchange, targets, references, after.tolist(), order, order)
    return np.fromiter(done, dtype=bool, count=len(places))


@functools.cache
def _compare_exchange() -> _Exchange | None:
    """Return libatomic's 8-byte compare-and-exchange; None if there is no libatomic.

    Without it, what a packet writes in the same microseconds can be lost.
    """
    try:
        # PyDLL keeps the interpreter's lock: releasing it would take longer than the call.
        function = getattr(ctypes.PyDLL(LIBRARY), "__atomic_compare_exchange_8")
    except (OSError, AttributeError) as error:
        log.warning(
            "flows of other balancers can take a client's place for an instant",
            why=f"{LIBRARY} cannot be used: {error}",
            remedy="apt-get install libatomic1",
        )
        return None
    function.restype = ctypes.c_bool
    function.argtypes = (
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_int,
    )
    found: _Exchange = function
    return found
