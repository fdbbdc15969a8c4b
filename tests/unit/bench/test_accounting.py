"""Whose time on the balancer's core it was, from readings of the kernel's clocks."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from bench.peers import accounting
from bench.peers.accounting import Moment, between

STAT = """\
cpu  300 0 200 7000 50 0 6 0 0 0
cpu0 100 0 100 3000 50 0 3 0 0 0
cpu1 200 0 100 4000 20 0 3 0 0 0
cpu10 9 9 9 9 9 9 9 9 9 9
intr 12345
"""
SOFTIRQS = """\
                    CPU0       CPU1
      NET_TX:        375        192
      NET_RX:     219261     289873
"""
START = Moment(wall_s=100.0, idle_s=50.0, data_s=7.0, control_s=1.0, receive_softirqs=10)


def test_busy_time_of_nobody_we_know_is_others() -> None:
    end = Moment(wall_s=102.0, idle_s=51.0, data_s=7.5, control_s=1.1, receive_softirqs=13)
    spent = between(START, end)
    assert spent.data_s == pytest.approx(0.5)
    assert spent.control_s == pytest.approx(0.1)
    assert spent.other_s == pytest.approx(2.0 - 1.0 - 0.6)
    assert spent.other_share == pytest.approx(0.2)
    assert spent.receive_softirqs == 3
    assert spent.busy_per_connection_us(1000) == pytest.approx(1000.0)


def test_the_coarse_idle_clock_makes_no_negative_time() -> None:
    end = replace(START, wall_s=101.0, idle_s=51.0, data_s=7.005)
    assert between(START, end).other_s == 0.0


def test_costs_are_of_the_data_path_alone() -> None:
    spent = between(START, replace(START, wall_s=102.0, data_s=7.2, control_s=1.5))
    assert spent.per_connection_us(10_000) == pytest.approx(20.0)
    assert spent.per_gb_s(500_000_000) == pytest.approx(0.4)
    assert spent.control_ms_per_s == pytest.approx(250.0)


def test_idle_time_is_that_of_the_cpu_and_counts_waiting() -> None:
    assert accounting.idle_s(STAT, 1, 100) == pytest.approx(40.2)
    with pytest.raises(ValueError, match="cpu2"):
        accounting.idle_s(STAT, 2, 100)


def test_receive_softirqs_are_read_from_the_cpus_column() -> None:
    assert accounting.receive_softirqs(SOFTIRQS, 0) == 219261
    assert accounting.receive_softirqs(SOFTIRQS, 1) == 289873


def test_a_process_has_its_own_cpu_clock() -> None:
    ours, real = accounting.cpu_s(os.getpid()), time.process_time()
    assert 0 < ours <= real
