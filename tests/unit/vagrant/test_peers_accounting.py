"""What a machine cost, from what the guest and the host say of it."""

from __future__ import annotations

import pytest

from vagrant.peers import accounting
from vagrant.peers.accounting import Moment, Spent

STAT = """\
cpu  1000 50 300 90000 700 20 130 7 40 2
cpu0 500 25 150 45000 350 10 65 3 20 1
cpu1 500 25 150 45000 350 10 65 4 20 1
intr 12345
"""
THREADS = [
    ("qemu-system-x86\n", "5000000000 1 1\n"),
    ("CPU 0/TCG\n", "2000000000 300000000 9\n"),
    ("CPU 1/TCG\n", "1000000000 200000000 9\n"),
    ("IO mon_iothread\n", "500000000 1 1\n"),
]


def moment(**seconds: float) -> Moment:
    names = Moment.__dataclass_fields__
    return Moment(**{name: seconds.get(name, 0.0) for name in names})


def spent(**seconds: float) -> Spent:
    names = Spent.__dataclass_fields__
    return Spent(**{name: seconds.get(name, 0.0) for name in names})


def test_what_is_not_idle_or_waiting_is_busy() -> None:
    # Two CPUs, which slept 900 and waited 7 seconds together: what they did else is not asked.
    assert accounting.busy_s(STAT, 812.5) == pytest.approx(2 * 812.5 - 907)


def test_a_stat_without_its_first_line_is_refused() -> None:
    for text in ("cpu0 1 2 3 4 5 6 7 8\n", ""):
        with pytest.raises(ValueError, match="all CPUs"):
            accounting.busy_s(text, 1.0)


def test_the_guest_tells_its_clock_and_its_busy_time() -> None:
    clock_s, busy_s = accounting.guest(f"812.50 1500.11\n{STAT}")
    assert clock_s == pytest.approx(812.5)
    assert busy_s == pytest.approx(2 * 812.5 - 907)


def test_processors_are_told_from_devices() -> None:
    assert accounting.split(THREADS) == (3.0, 0.5, 5.5)
    assert accounting.split([("CPU 0/KVM", "7000000000 0 1")]) == (7.0, 0.0, 0.0)


def test_a_machine_is_found_by_its_identity() -> None:
    words = ["/usr/bin/qemu-system-x86_64", "-name", "guest=lb1", "-uuid", "26c8", "-smp", "2"]
    assert accounting.runs(words, "26c8")
    assert not accounting.runs(words, "26c9")
    assert not accounting.runs(["grep", "-uuid", "26c8"], "26c8")
    assert not accounting.runs([""], "26c8")


def test_what_passed_is_the_difference_of_two_moments() -> None:
    first = moment(wall_s=10, vcpu_s=5, guest_busy_s=1)
    second = moment(wall_s=30, vcpu_s=9, guest_busy_s=2.5)
    passed = accounting.between(first, second)
    assert (passed.wall_s, passed.vcpu_s, passed.guest_busy_s) == (20, 4, 1.5)


def test_a_cost_is_above_idling_for_as_long_and_of_10000_connections() -> None:
    idle = spent(wall_s=10, vcpu_s=1, device_s=0.5, guest_wall_s=10, guest_busy_s=2)
    loaded = spent(wall_s=20, vcpu_s=6, device_s=2, guest_wall_s=22, guest_busy_s=9.4)
    cost = accounting.cost(idle, loaded, connections=1000)
    # The host: 6 - 20/10 of 1; the guest by its own clock: 9.4 - 22/10 of 2.
    assert cost.vcpu_s == pytest.approx(40)
    assert cost.device_s == pytest.approx(10)
    assert cost.guest_s == pytest.approx(50)
