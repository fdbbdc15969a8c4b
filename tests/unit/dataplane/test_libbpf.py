"""A table is read whole, or not at all."""

from __future__ import annotations

import errno

import pytest

from agent.dataplane import libbpf


class Map:
    """A hash map of one-byte keys as libbpf shows it.

    ``steps`` is done to it, one whenever a key was told; ``after``, whenever a value was.
    """

    def __init__(self, items, steps=(), after=()):
        self.items, self.steps, self.after = dict(items), list(steps), list(after)
        self.error = 0

    def bpf_map_get_next_key(self, _fd, key, following):
        if self.error:
            return -self.error
        keys = list(self.items)
        # The kernel's rule: a key that is gone leads to the first one.
        at = keys.index(key) + 1 if key in keys else 0
        if at == len(keys):
            return -errno.ENOENT
        following.raw = keys[at]
        if self.steps:
            self.steps.pop(0)(self)
        return 0

    def bpf_map_lookup_elem(self, _fd, key, value):
        if key not in self.items:
            return -errno.ENOENT
        value.raw = self.items[key]
        if self.after:
            self.after.pop(0)(self)
        return 0


ALL = {b"a": b"1", b"b": b"2", b"c": b"3"}


@pytest.fixture
def read(monkeypatch):
    def items(table):
        monkeypatch.setattr(libbpf, "_lib", lambda: table)
        return libbpf.map_items(7, 1, 1)

    return items


def drop(key):
    return lambda table: table.items.pop(key)


def nothing(_table):
    pass


def test_a_table_that_stands_still_is_read_once(read):
    assert read(Map(ALL)) == list(ALL.items())
    assert read(Map({})) == []


def test_a_key_that_goes_before_its_value_is_read_costs_another_reading(read):
    assert read(Map(ALL, [nothing, drop(b"b")])) == [(b"a", b"1"), (b"c", b"3")]


def test_a_key_that_goes_after_its_value_was_read_begins_the_reading_anew(read):
    found = read(Map(ALL, after=[nothing, drop(b"b")]))
    assert sorted(found) == [(b"a", b"1"), (b"c", b"3")]


def test_what_never_stands_still_is_an_error_and_no_short_answer(read):
    def churn(table):
        table.items = {bytes([key[0] ^ 32]): value for key, value in table.items.items()}

    with pytest.raises(OSError, match="changes faster"):
        read(Map(ALL, [churn] * 1000))


def test_what_the_kernel_refuses_is_an_error_and_no_short_answer(read):
    table = Map(ALL, [nothing, lambda t: setattr(t, "error", errno.ENOMEM)])
    with pytest.raises(OSError, match="memory"):
        read(table)
