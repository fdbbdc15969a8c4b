"""Log lines delay nobody."""

from __future__ import annotations

import io
import threading

from agent.failover.process import logwriter
from agent.failover.process.logwriter import LogWriter


class Stuck(io.StringIO):
    """Takes nothing before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        self.go.wait(60)
        return super().write(text)


def test_lines_come_in_their_order_and_all_before_the_end() -> None:
    target = io.StringIO()
    with LogWriter(target) as writer:
        for number in range(100):
            print(number, file=writer)
    assert target.getvalue().split() == [str(number) for number in range(100)]


def test_a_reader_that_is_stuck_costs_lines_and_no_time() -> None:
    target = Stuck()
    with LogWriter(target) as writer:
        for number in range(logwriter.MAX_LINES + 50):
            writer.write(f"{number}\n")
        target.go.set()
    lines = target.getvalue().splitlines()
    assert "0" in lines
    assert len(lines) <= logwriter.MAX_LINES + 2
    (lost,) = [line for line in lines if "more lines were lost" in line]
    assert int(lost.split()[0]) >= 49


def test_a_target_that_is_closed_is_no_failure() -> None:
    target = io.StringIO()
    target.close()
    with LogWriter(target) as writer:
        writer.write("nobody reads this\n")
