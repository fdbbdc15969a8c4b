"""docs/times.md has the times that there are."""

from __future__ import annotations

import re

from agent.failover import reference, times


def test_page_has_every_time_once_with_its_unit():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", reference.page(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(n for n in vars(times) if n.isupper())
    assert dict(rows)["SILENCE_S"] == "4 s"
    assert dict(rows)["MASTER_DOWN_INTERVALS"] == "3 intervals"
    assert dict(rows)["HANDED_OVER_DOWNS"] == "2 master-down times"
