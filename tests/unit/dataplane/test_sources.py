"""The one text that BCC compiles."""

import re
from pathlib import Path

import pytest

from agent.dataplane import sources
from agent.dataplane.constants import ALL_FEATURES, Clock, HashKeys, definitions, sizes
from agent.model import Tables


@pytest.mark.parametrize("name", ["balancer.c", "decap.c"])
def test_our_headers_are_in_place_once_each(name: str):
    text = sources.joined(name)
    assert not re.search(r'^#include "', text, re.MULTILINE)
    guards = re.findall(r"^#define (STEELYARD_\w+_H)$", text, re.MULTILINE)
    assert len(guards) == len(set(guards)) > 0


def test_line_numbers_lead_back_to_the_files():
    place = {}
    path, number = "", 0
    for line in sources.joined("balancer.c").splitlines():
        if match := re.match(r'#line (\d+) "(.*)"', line):
            number, path = int(match[1]), match[2]
            continue
        place[path, number] = line
        number += 1
    assert len({path for path, _ in place}) > 10
    for (path, number), line in place.items():
        assert Path(path).read_text().splitlines()[number - 1] == line, f"{path}:{number}"


def test_every_constant_that_the_sources_use_is_given():
    used = set(re.findall(r"\bLB_[A-Z0-9_]+\b", sources.joined("balancer.c"))) - {"LB_PINNED"}
    size = sizes(Tables(), 2)
    given = definitions(
        sources.source_folder(), size, ALL_FEATURES, HashKeys(1, 1, 1), Clock(250, 10), 6080
    )
    assert used == set(given)


def test_the_header_tree_is_shipped():
    assert (sources.header_tree() / "include" / "linux" / "kconfig.h").exists()
