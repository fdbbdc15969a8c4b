"""What an agent does with tables of another ABI that hold what nobody foresaw."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from agent.flowsync import carry


def test_tables_that_cannot_be_read_do_not_keep_the_agent_from_balancing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    around = object()
    old = SimpleNamespace(ident="abi1", flows=(), items=lambda _: iter([(b"short", b"too")]))
    dataplane = SimpleNamespace(old=old, tables=None, now_jiffies=None, around_attach=around)
    carry.prepare(dataplane)
    assert dataplane.around_attach is around
    assert "flows are not carried over" in capsys.readouterr().out
