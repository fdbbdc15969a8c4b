"""Decides what the peer still owes an acknowledgement for: credit to send, and the lag."""

from __future__ import annotations

from collections import deque

CREDIT_BYTES = 4 * 2**20  # sent and not yet installed by the peer, at most


class Window:
    """The frames that are under way, and the moment of which the peer has everything.

    A *look* is one reading of the flow table; its flows go out in frames. Once all of them
    are acknowledged, the peer holds what was there when the look began.
    """

    def __init__(self) -> None:
        self.held_s: float | None = None  # the peer has all that was there then; None: nothing
        self.unacknowledged_bytes = 0
        self._frames: deque[tuple[int, int]] = deque()  # sequence, bytes
        self._looks: deque[tuple[int, float]] = deque()  # last frame's sequence, when it began
        self.acknowledged_to = 0  # the frame's number

    @property
    def newest(self) -> int:
        """The number of the newest frame, acknowledged or not."""
        return self._frames[-1][0] if self._frames else self.acknowledged_to

    @property
    def has_credit(self) -> bool:
        return self.unacknowledged_bytes < CREDIT_BYTES

    def sent(self, sequence: int, size: int) -> None:
        """A data frame went out."""
        self._frames.append((sequence, size))
        self.unacknowledged_bytes += size

    def looked(self, began_s: float) -> None:
        """All frames of the look that began then are sent; there may have been none."""
        if self._frames:
            self._looks.append((self._frames[-1][0], began_s))
        else:
            self.held_s = began_s

    def acknowledged(self, sequence: int) -> bool:
        """The peer has installed all data up to here. False: it cannot have, nor say it twice."""
        if not self.acknowledged_to <= sequence <= self.newest:
            return False
        self.acknowledged_to = sequence
        while self._frames and self._frames[0][0] <= sequence:
            self.unacknowledged_bytes -= self._frames.popleft()[1]
        while self._looks and self._looks[0][0] <= sequence:
            self.held_s = self._looks.popleft()[1]
        return True

    def lag_s(self, now_s: float) -> float | None:
        """How old the newest state is that the peer has entirely; None: it never had one."""
        return None if self.held_s is None else max(0.0, now_s - self.held_s)
