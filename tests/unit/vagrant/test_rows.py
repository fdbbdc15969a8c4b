"""Which rows are played, and the small decisions in them."""

from __future__ import annotations

import pytest

from agent import __version__
from vagrant.smoke import rows
from vagrant.smoke.children import VagrantError


def test_every_way_of_forwarding_is_tried_over_both_families() -> None:
    names = [row.name for row in rows.ROWS]
    for forward in ("dsr", "ipip", "nat", "fullnat"):
        assert f"{forward}-ipv4" in names
        assert f"{forward}-ipv6" in names
    assert len(set(names)) == len(names)


def test_rows_come_in_the_order_of_the_table() -> None:
    assert rows.chosen([]) == rows.ROWS
    assert [row.name for row in rows.chosen(["drain", "kill-server"])] == ["kill-server", "drain"]
    assert len(rows.chosen(["modes", "dsr-ipv4"])) == 8
    with pytest.raises(VagrantError, match="no row reboot"):
        rows.chosen(["reboot", "drain"])


def test_the_backend_with_the_most_open_connections_is_drained() -> None:
    assert rows.busiest(["be1", "be2", "be2"]) == "be2"
    with pytest.raises(VagrantError):
        rows.busiest([])


def test_an_upgrade_is_another_version_each_time() -> None:
    source = f'"""Agent."""\n\n__version__ = "{__version__}"\n'
    text, version = rows.next_version(source, "1")
    assert version == f"{__version__}+smoke.1"
    assert f'"{version}"' in text
    again, later = rows.next_version(text, "2")
    assert later == f"{__version__}+smoke.2"
    assert again.count("smoke") == 1
    with pytest.raises(VagrantError):
        rows.next_version("", "1")
