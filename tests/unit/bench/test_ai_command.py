"""What ``python -m bench.ai`` takes, whom it measures, and when it keeps what it found."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.ai import __main__ as command
from bench.ai import report, results, run
from bench.ai.cases import CASES
from bench.ai.contenders import COMPLETE, REFERENCE, everybody
from bench.ai.results import Health, Row
from bench.ai.run import RunError
from bench.ai.trace import generated

ROW = Row(REFERENCE, "trace", (1.0,) * 4, (1.0,) * 4, 1.0, {})
HEALTH = Health(REFERENCE, "trace", 0.5, 0.1, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--case", "no-such"), "throttled"),
        (("--only", "no such"), "no contender's name contains 'no such'"),
        (("--traces", "/no/such"), "does not exist"),
        (("--traces", "EMPTY"), "there is no AzureLLMInferenceTrace_conv.csv in it"),
    ],
)
def test_what_does_not_exist_is_refused(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_simulated", pytest.fail)
    given = [word.replace("EMPTY", str(tmp_path)) for word in words]
    result = CliRunner().invoke(command.main, ["--simulate", *given])
    assert result.exit_code == 2
    assert said in result.output


def test_the_reference_is_always_there() -> None:
    assert [one.name for one in command._contenders("telemetry and")] == [REFERENCE, COMPLETE]


def test_who_fails_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [one for one in everybody() if one.name in (REFERENCE, "maglev")]

    def measured(contender: str, case: str, *_: object) -> tuple[Row, Health]:
        if contender == REFERENCE and case == "bursty":
            raise RunError("no request was answered")
        return Row(contender, case, (1.0,), (1.0,) * 4, 1.0, {}), HEALTH

    monkeypatch.setattr(run, "run", lambda _contender, mine, *_: mine)
    monkeypatch.setattr(results, "measured", measured)
    rows, health, failed = command._real(chosen, CASES[:2], generated(500), command.QUICK)
    assert [(row.contender, row.case) for row in rows] == [
        ("maglev", "trace"),
        ("maglev", "bursty"),
    ]
    assert len(health) == 2
    assert failed == [REFERENCE]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a whole run is kept; nothing is measured."""

    def simulated(*given: object) -> report.Found:
        failed = given[-1]
        assert isinstance(failed, list)
        machine = report.Machine(*["?"] * 1, 2, *["?"] * 8)
        return report.Found(
            machine, "here", 10.0, 10, (ROW,), (HEALTH,), (), (ROW,), 10, {}, tuple(failed)
        )

    monkeypatch.setattr(command, "_RESULTS", tmp_path / "results")
    monkeypatch.setattr(command, "require_root", lambda: None)
    monkeypatch.setattr(command, "_check_tools", lambda: None)
    monkeypatch.setattr(command, "_simulated", simulated)
    monkeypatch.setattr(command.wiring, "refuse_second", lambda _name: None)
    return tmp_path / "results"


def fail(monkeypatch: pytest.MonkeyPatch, *failed: str) -> None:
    monkeypatch.setattr(command, "_real", lambda *_: ([ROW], [HEALTH], list(failed)))


def test_a_whole_run_is_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch)
    assert CliRunner().invoke(command.main, []).exit_code == 0
    assert "Could not be measured" not in (kept / "ai.md").read_text()


def test_a_run_with_who_failed_is_kept_only_where_one_says(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, "maglev")
    result = CliRunner().invoke(command.main, [])
    assert result.exit_code == 1
    assert "maglev; nothing was kept" in result.output
    assert not kept.exists()
    result = CliRunner().invoke(command.main, ["--keep", str(tmp_path / "other")])
    assert result.exit_code == 1
    assert not kept.exists()
    assert (
        "Could not be measured by real connections: maglev."
        in (tmp_path / "other" / "ai.md").read_text()
    )
