"""Files of lists, as others publish them."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from agent.config.lists import read
from agent.errors import ConfigError
from agent.model import AddressList
from agent.state.addresstree import prefix_of


def numbers(*prefixes: str) -> list[tuple[int, int]]:
    return [prefix_of(ip_network(prefix)) for prefix in prefixes]


# As Spamhaus, FireHOL and others write theirs.
TEXT = """\
; Spamhaus DROP List 2026/11/28
1.10.16.0/20 ; SBL256894
# a netset
2.56.192.0/22
203.0.113.9

  2001:db8:66::/48   ; indented
198.51.100.77/24
"""
# The heading and the order of GeoLite2's, and one whose first column is the prefix.
COUNTRIES = """\
network,geoname_id,registered_country_geoname_id,is_anonymous_proxy
1.0.0.0/24,2077456,2077456,0
1.0.1.0/24,1814991,1814991,0
2001:250::/32,1814991,1814991,0
1.0.4.0/22,,1814991,0
"""
SYSTEMS = """\
prefix,autonomous_system_number,autonomous_system_organization
1.0.0.0/24,13335,"CLOUDFLARENET, Inc."
5.44.16.0/20,64500,"EXAMPLE"
"""


def test_a_text_has_a_prefix_on_each_line(tmp_path: Path):
    path = tmp_path / "drop.txt"
    path.write_text(TEXT)
    found = read(AddressList("drop", (ip_network("10.0.0.0/8"),), (path,)))
    assert [*found.of(4)] == numbers(
        "10.0.0.0/8", "1.10.16.0/20", "2.56.192.0/22", "203.0.113.9/32", "198.51.100.0/24"
    )
    assert [*found.of(6)] == numbers("2001:db8:66::/48")
    assert len(found) == 6


def test_of_a_table_the_rows_that_are_named_count(tmp_path: Path):
    countries, systems = tmp_path / "countries.csv", tmp_path / "systems.csv"
    countries.write_text("\ufeff" + COUNTRIES)
    systems.write_text(SYSTEMS)
    found = read(AddressList("cn", (), (countries,), "geoname_id", ("1814991",)))
    assert ([*found.of(4)], [*found.of(6)]) == (numbers("1.0.1.0/24"), numbers("2001:250::/32"))
    column = "autonomous_system_number"
    found = read(AddressList("as", (), (systems,), column, ("64500",)))
    assert [*found.of(4)] == numbers("5.44.16.0/20")


@pytest.mark.parametrize("text", ["x", "1.2.3", "1.2.3.4/33", "1.2.3.4/", "::1/129", "1.2.3.4/-1"])
def test_the_line_that_is_no_prefix_is_named(tmp_path: Path, text: str):
    path = tmp_path / "list"
    path.write_text(f"# first\n10.0.0.0/8\n{text}\n")
    with pytest.raises(ConfigError) as refused:
        read(AddressList("bad", (), (path,)))
    assert refused.value.where == f"{path}:3"
    assert "neither an address nor a prefix" in refused.value.message


def test_a_column_that_is_not_there_is_named(tmp_path: Path):
    path = tmp_path / "list.csv"
    path.write_text(COUNTRIES)
    with pytest.raises(ConfigError) as refused:
        read(AddressList("cn", (), (path,), "country", ("CN",)))
    assert "geoname_id" in refused.value.remedy


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_bytes(b"\xff\xfe\n")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make):
    path = tmp_path / "list"
    make(path)
    with pytest.raises(ConfigError, match="cannot be read") as refused:
        read(AddressList("bad", (), (path,)))
    assert refused.value.where == str(path)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.0/8\n192.0.2.0/2", "#"])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, text: str):
    """Or 192.0.2.0/24 would be a quarter of all addresses."""
    path = tmp_path / "list"
    path.write_text(text)
    with pytest.raises(ConfigError, match="may have been cut off"):
        read(AddressList("bad", (), (path,)))
    path.write_text("")
    assert not read(AddressList("bad", (), (path,)))
