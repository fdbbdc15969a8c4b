"""Decides which GPUs are lost: one that was seen once is remembered until the agent restarts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.node.reading import Fault, Gpu
from agent.telemetry.xid import Blames, blames

MISSES = 3  # a GPU counts as lost once it is absent from this many readings in a row
_MOST_GPUS = 64
_MOST_XIDS = 64  # different XIDs of one GPU


@dataclass(slots=True)
class _Seen:
    gpu: Gpu  # its last answer
    misses: int = 0


class KnownGpus:
    """What is remembered of one driver: its GPUs by uuid, and the XIDs of each."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._xids: dict[str, Counter[int]] = {}
        self._faults: dict[str, tuple[int, float]] = {}

    def has(self, index: str) -> bool:
        """Return whether a GPU with this number was seen."""
        return any(seen.gpu.index == index for seen in self._seen.values())

    def note_xid(self, uuid: str, number: int, now: float) -> None:
        """Record an XID."""
        counts = self._xids.setdefault(uuid, Counter())
        if number in counts or len(counts) < _MOST_XIDS:
            counts[number] += 1
        if blames(number) is Blames.HARDWARE:
            self._faults[uuid] = (number, now)

    def forgive(self) -> None:
        """Forget all faults, because the driver was unloaded, and that resets the GPUs."""
        self._faults.clear()

    def complete(self, gpus: Sequence[Gpu], now: float) -> tuple[Gpu, ...]:
        """Return ``gpus`` with their XIDs, and with the known GPUs that are missing among them.

        One that is reported as lost is lost. One that is merely absent keeps its last answer until
        it has been absent ``MISSES`` times.
        """
        answered = {gpu.uuid: gpu for gpu in gpus if gpu.up and gpu.mig is None}
        refused = {gpu.index for gpu in gpus if not gpu.up}
        for uuid, gpu in answered.items():
            if uuid in self._seen or len(self._seen) < _MOST_GPUS:
                self._seen[uuid] = _Seen(gpu)
        absent = [
            self._absent(seen, refused) for u, seen in self._seen.items() if u not in answered
        ]
        named = {gpu.index for gpu in absent}
        present = [gpu for gpu in gpus if gpu.up or gpu.index not in named]
        return tuple(self._with_xids(gpu, now) for gpu in (*present, *absent))

    def _absent(self, seen: _Seen, refused: set[str]) -> Gpu:
        seen.misses = MISSES if seen.gpu.index in refused else seen.misses + 1
        gpu = seen.gpu
        if seen.misses < MISSES:
            return gpu
        return Gpu(gpu.index, gpu.uuid, up=False, name=gpu.name)

    def _with_xids(self, gpu: Gpu, now: float) -> Gpu:
        fault = self._faults.get(gpu.uuid)
        return replace(
            gpu,
            xids=tuple(sorted(self._xids.get(gpu.uuid, {}).items())),
            fault=None if fault is None else Fault(fault[0], now - fault[1]),
        )
