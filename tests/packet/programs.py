"""Programs of a few instructions that belong to an instance, as the balancer does."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from agent.dataplane import libbpf, pins
from agent.dataplane.libbpf import ProgramType

PASS = {ProgramType.XDP: 2, ProgramType.SCHED_CLS: -1}
DROP = {ProgramType.XDP: 1, ProgramType.SCHED_CLS: 2}


def instruction(code: int, registers: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, registers, 0, immediate)


class Maker:
    """Makes programs that use the instance's table and return one verdict."""

    def __init__(self, table: int, verdicts: dict[ProgramType, int]) -> None:
        self.table = table
        self.verdicts = verdicts
        self.made: list[int] = []
        self.asked: list[ProgramType] = []

    def __call__(self, kind: ProgramType) -> int:
        """The descriptor of a new program each time."""
        self.asked.append(kind)
        text = instruction(0x18, 0x11, self.table) + bytes(8)  # r1 = the table
        text += instruction(0xB7, 0, self.verdicts[kind]) + instruction(0x95)  # return
        self.made.append(libbpf.program_load("ours", text, kind))
        return self.made[-1]

    def close(self) -> None:
        for fd in (*self.made, self.table):
            os.close(fd)

    @property
    def last(self) -> int:
        """The id of the newest program."""
        return libbpf.program_info(self.made[-1]).id


@contextmanager
def maker(of: pins.Pins, verdicts: dict[ProgramType, int] = PASS) -> Iterator[Maker]:
    """With the pinned table of an instance that has no other one."""
    pins.ensure_bpffs()
    of.folder.mkdir(parents=True, exist_ok=True)
    made = Maker(libbpf.array_create("flows", 64, 1, libbpf.BPF_F_MMAPABLE), verdicts)
    try:
        libbpf.object_pin(made.table, of.table("flows"))
        yield made
    finally:
        made.close()
