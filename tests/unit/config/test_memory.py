"""How much memory the tables take, and that nobody is let in for more than there is."""

from __future__ import annotations

import pytest

from agent.config.memory import MemoryLimit, parts, refuse_too_much, shown
from agent.dataplane.constants import sizes
from agent.dataplane.libbpf import MAP_TYPE_ARRAY
from agent.dataplane.tables import shapes
from agent.errors import ConfigError
from agent.model import Nat, Tables

GB = 1_000_000_000


@pytest.mark.parametrize(
    "tables",
    [
        Tables(),
        Tables(flows=2**28),
        Tables(flows=1024, services=65_535, ring_slots=251),
        Tables(flows=1024, backends=65_535),
        Tables(flows=1024, zone_rings=4096),
    ],
)
def test_the_estimate_is_what_the_tables_are_made_for(tables: Tables) -> None:
    """But for what is there once."""
    made = shapes(sizes(tables, 8, Nat())).values()
    arrays = sum(each.value * each.entries for each in made if each.kind == MAP_TYPE_ARRAY)
    needed = sum(part.size for part in parts(tables, Nat(), 8))
    assert needed == pytest.approx(arrays, rel=0.005)


def test_more_than_there_is_is_refused_with_the_sizes_and_the_keys_to_lower() -> None:
    needed = parts(Tables(flows=2**28), Nat(), 8)
    refuse_too_much(needed, MemoryLimit(40 * GB, "all memory of this host"))
    with pytest.raises(ConfigError) as caught:
        refuse_too_much(needed, MemoryLimit(16 * GB, "all memory of this host"))
    assert "all memory of this host is 16 GB: tables.flows 36.5 GB" in caught.value.message
    assert (caught.value.where, caught.value.remedy) == ("tables", "lower tables.flows")


def test_every_large_part_is_named() -> None:
    needed = parts(Tables(services=65_535, ring_slots=1_048_573, flows=2**28), Nat(), 8)
    with pytest.raises(ConfigError) as caught:
        refuse_too_much(needed, MemoryLimit(GB, "the limit of the cgroup /x"))
    assert "138 GB" in caught.value.message
    assert caught.value.remedy == "lower tables.ring_slots, tables.flows"


def test_sizes_are_told_in_few_digits() -> None:
    assert [shown(size) for size in (12, 1500, 36_507_222_016)] == ["12 bytes", "1.5 kB", "36.5 GB"]
