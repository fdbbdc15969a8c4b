"""Tracks the frames that the peer has not acknowledged yet, for the credit to send and the lag."""

from __future__ import annotations

from collections import deque

CREDIT_BYTES = 4 * 2**20  # most bytes that are sent and not yet installed by the peer


class Window:
    """The frames that are not acknowledged, and the time up to which the peer has everything.

    A *look* is one reading of the flow table; its flows go out in frames. Once all of them are
    acknowledged, the peer has everything that was in the table when the look began.
    """

    def __init__(self) -> None:
        self.held_s: float | None = None  # the peer has everything up to then; None: nothing yet
        self.unacknowledged_bytes = 0
        self._frames: deque[tuple[int, int]] = deque()  # sequence, bytes
        self._looks: deque[tuple[int, float]] = deque()  # last frame's sequence, when it began
        self.acknowledged_to = 0  # the number of a frame

    @property
    def newest(self) -> int:
        """The number of the newest frame, acknowledged or not."""
        return self._frames[-1][0] if self._frames else self.acknowledged_to

    @property
    def has_credit(self) -> bool:
        return self.unacknowledged_bytes < CREDIT_BYTES

    def sent(self, sequence: int, size: int) -> None:
        """Note that a data frame was sent."""
        self._frames.append((sequence, size))
        self.unacknowledged_bytes += size

    def looked(self, began_s: float) -> None:
        """Note that all frames of the look that began then are sent; there may have been none."""
        if self._frames:
            self._looks.append((self._frames[-1][0], began_s))
        else:
            self.held_s = began_s

    def acknowledged(self, sequence: int) -> bool:
        """Note that the peer has installed all data up to this frame.

        Return False if it cannot have: the frame was not sent yet, or a later one was acknowledged
        before.
        """
        if not self.acknowledged_to <= sequence <= self.newest:
            return False
        self.acknowledged_to = sequence
        while self._frames and self._frames[0][0] <= sequence:
            self.unacknowledged_bytes -= self._frames.popleft()[1]
        while self._looks and self._looks[0][0] <= sequence:
            self.held_s = self._looks.popleft()[1]
        return True

    def lag_s(self, now_s: float) -> float | None:
        """Return the age of the newest state that the peer has completely; None: it has none."""
        return None if self.held_s is None else max(0.0, now_s - self.held_s)
