"""What HAProxy is told, and why."""

from dataclasses import replace

import pytest

from agent.node.reading import Driver, Fault, Gpu, GpuReading, NodeReading, Recovery, Throttle
from agent.node.verdict import (
    FAULT_HOLD_S,
    SILENT_S,
    ServerState,
    Verdict,
    clock_share,
    mean_clock_shares,
    verdict,
    worth_logging,
)
from agent.telemetry.xid import Blames, blames

WELL = Gpu("0", "GPU-0", sm_clock_hertz=2e9, sm_clock_max_hertz=2e9, recovery=Recovery.NONE)
HOT = replace(WELL, sm_clock_hertz=1e9, throttles=frozenset({Throttle.HW_THERMAL}))


def numbered(*gpus):
    return tuple(
        replace(gpu, index=str(number), uuid=f"GPU-{number}") for number, gpu in enumerate(gpus)
    )


def node(*gpus, driver=Driver.UP, problem="", age_s=0.5):
    reading = GpuReading(driver, problem, numbered(*gpus))
    return NodeReading(reading, age_s, mean_clock_shares([reading]), None)


def line(*gpus, engine=(), **more):
    return verdict(node(*gpus, **more), engine).line


def test_well_is_the_whole_weight():
    assert line(WELL, WELL) == "up 100%\n"


def test_a_throttled_gpu_leaves_its_share_of_the_clock():
    assert line(HOT) == "up 50% # GPU 0: hw-thermal, 50% of its clock\n"
    assert line(WELL, WELL, WELL, HOT) == "up 90% # GPU 3: hw-thermal, 50% of its clock\n"


def test_an_engine_is_as_fast_as_its_slowest_gpu():
    assert line(WELL, WELL, HOT, engine=("1", "2")).startswith("up 50% # GPU 2")
    assert line(WELL, WELL, HOT, engine=("0", "GPU-1")) == "up 100%\n"


def test_a_lost_gpu_takes_its_share_and_the_last_one_takes_all():
    lost = replace(WELL, up=False)
    assert line(WELL, WELL, WELL, lost) == "up 75% # GPU 3 is lost\n"
    assert line(lost, lost) == "down # GPU 0 is lost\n"


def test_an_engine_that_lost_one_of_its_gpus_is_down():
    lost = replace(WELL, up=False)
    assert line(WELL, lost, WELL, engine=("0", "1")) == "down # GPU 1 is lost\n"
    assert line(WELL, lost, WELL, engine=("0", "2")) == "up 100%\n"


@pytest.mark.parametrize("action", [one for one in Recovery if one is not Recovery.NONE])
def test_a_recovery_action_drains(action):
    sick = replace(WELL, recovery=action)
    assert line(WELL, sick) == f"up 0% # GPU 1: recovery action {action.value}\n"


@pytest.mark.parametrize("recovery", [None, Recovery.NONE])
def test_a_hardware_xid_drains(recovery):
    sick = replace(WELL, recovery=recovery, fault=Fault(48, 3.0))
    assert line(sick) == "up 0% # GPU 0: XID 48\n"


def test_a_hardware_xid_is_over_when_the_driver_wants_nothing_done():
    old = Fault(48, FAULT_HOLD_S + 1)
    assert line(replace(WELL, fault=old)) == "up 100%\n"
    assert line(replace(WELL, fault=old, recovery=None)) == "up 0% # GPU 0: XID 48\n"


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 68, 109])
def test_xids_of_the_application(xid):
    assert blames(xid) is Blames.APPLICATION


@pytest.mark.parametrize(
    ("xid", "who"),
    [(48, "hardware"), (79, "hardware"), (95, "hardware"), (9999, "hardware"), (63, "nobody")],
)
def test_xids_of_others(xid, who):
    assert blames(xid).value == who


def test_no_gpu_takes_nothing_away():
    said = line(driver=Driver.ABSENT, problem="no NVIDIA driver: x")
    assert said == "up 100% # no GPU: no NVIDIA driver: x\n"
    assert line() == "up 100% # no GPU: the driver has none\n"


def test_an_engine_whose_gpu_is_not_there_is_down():
    said = line(driver=Driver.ABSENT, problem="no NVIDIA driver: x", engine=("0",))
    assert said == "down # no GPU 0: no NVIDIA driver: x\n"
    assert line(WELL, engine=("0", "1")) == "down # no GPU 1\n"


@pytest.mark.parametrize("engine", [(), ("0",)])
def test_a_driver_that_cannot_be_read_changes_nothing(engine):
    said = line(driver=Driver.UNREADABLE, problem="mismatch", engine=engine)
    assert said == "# mismatch\n"


def test_before_the_first_reading_nothing_changes_until_it_takes_too_long():
    assert verdict(NodeReading(None, 2.0, {}, None)).line == "# no reading of the GPUs yet\n"
    assert verdict(NodeReading(None, SILENT_S + 1, {}, None)).line.startswith("down # no reading")


def test_a_driver_that_hangs_leaves_the_last_word_and_then_takes_the_host_down():
    assert line(HOT, age_s=SILENT_S).startswith("up 50%")
    assert line(HOT, age_s=SILENT_S + 1) == "down # no reading of the GPUs for 31 s\n"


def test_a_mig_instance_is_as_its_gpu():
    part = Gpu("0:1", "MIG-x", mig="1g.10gb")
    reading = GpuReading(Driver.UP, "", (HOT, part, replace(WELL, index="1", uuid="GPU-1")))
    now = NodeReading(reading, 0.0, mean_clock_shares([reading]), None)
    assert verdict(now, ("MIG-x",)).percent == 50
    assert verdict(now, ("0:1",)).percent == 50
    assert verdict(now).percent == 75


@pytest.mark.parametrize(
    "gpu",
    [
        replace(HOT, throttles=frozenset({Throttle.SW_POWER_CAP})),  # busy, not slow
        replace(HOT, throttles=frozenset({Throttle.HW_THERMAL, Throttle.IDLE})),
        replace(HOT, throttles=None),
        replace(HOT, sm_clock_hertz=None),
        replace(HOT, sm_clock_max_hertz=None),
        replace(HOT, sm_clock_max_hertz=0.0),
        replace(HOT, sm_clock_hertz=3e9),
    ],
)
def test_clocks_that_say_nothing_take_nothing_away(gpu):
    assert clock_share(gpu) == 1.0


def test_shares_are_means_of_the_readings_in_which_the_gpu_answered():
    lost = replace(HOT, up=False)
    readings = [GpuReading(Driver.UP, "", (gpu,)) for gpu in (WELL, HOT, lost)]
    assert mean_clock_shares(readings) == {"GPU-0": 0.75}


def test_a_gpu_at_almost_no_clock_is_slow_and_not_drained():
    assert line(replace(HOT, sm_clock_hertz=1e6)).startswith("up 5% ")


@pytest.mark.parametrize("problem", ["two\nlines", "a # sign", "ü", "x" * 500, "\0"])
def test_a_line_is_one_short_line_of_ascii(problem):
    said = line(driver=Driver.UNREADABLE, problem=problem)
    assert said.isascii()
    assert said.endswith("\n")
    assert said.count("\n") == said.count("#") == 1
    assert len(said) < 120


@pytest.mark.parametrize(
    ("before", "now", "logged"),
    [
        (Verdict(ServerState.UP, 100), Verdict(ServerState.UP, 95), True),
        (Verdict(ServerState.UP, 95), Verdict(ServerState.UP, 90), False),
        (Verdict(ServerState.UP, 95), Verdict(ServerState.UP, 75), True),
        (Verdict(ServerState.UP, 5), Verdict(ServerState.UP, 0), True),
        (Verdict(ServerState.UP, 50), Verdict(ServerState.DOWN), True),
        (
            Verdict(ServerState.DOWN, None, "for 31 s"),
            Verdict(ServerState.DOWN, None, "for 32 s"),
            False,
        ),
    ],
)
def test_steps_of_throttling_are_not_worth_a_log_line(before, now, logged):
    assert worth_logging(before, now) is logged
