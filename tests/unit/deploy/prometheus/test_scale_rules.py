"""The rules for scalers give what the agent would say if one balancer saw everything, and what
the manifests in deploy/kubernetes ask for is there. A real Prometheus reads all of it.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.api import scaleviews
from agent.config.load import parse
from agent.metrics.scaling import SCALE_FAMILIES
from agent.model import Scale, Signal
from agent.state.scaling import Cause, Scaling, Seen, decide
from agent.state.snapshot import Snapshot
from deploy.prometheus.promql import labels_of, selectors
from tests.unit.api.conftest import CONFIG, make_snapshot

ROOT = Path(__file__).parents[4]
RULES = ROOT / "deploy" / "prometheus" / "steelyard-scale.rules.yml"
KUBERNETES = ROOT / "deploy" / "kubernetes"
WANTED = "service:steelyard_scale_wanted_backends:max"
HELD = "steelyard_service_held_clients"
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed: apt install promtool"
)


@pytest.fixture
def snapshot() -> Snapshot:
    """Of an agent with one service."""
    made = make_snapshot(parse(CONFIG, "agent.yaml"))
    return replace(made, services=made.services[:1])


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def series_of(
    snapshot: Any, balancer: str, scalings: dict[str, Scaling]
) -> Iterator[dict[str, str]]:
    """The series of a balancer that knows these services."""
    (plain,) = snapshot.services
    services = tuple(
        replace(plain, service=replace(plain.service, name=name), scaling=scaling)
        for name, scaling in scalings.items()
    )
    for family in SCALE_FAMILIES:
        for values, sample in family.samples(replace(snapshot, services=services)):
            labels = dict(zip(family.labels, values, strict=True)) | {"instance": balancer}
            text = ", ".join(f'{name}="{value}"' for name, value in labels.items())
            yield {"series": f"{family.name}{{{text}}}", "values": f"{float(sample)}x5"}
    for name, scaling in scalings.items():
        if scaling.seen.held is not None:
            text = f'{HELD}{{service="{name}", instance="{balancer}"}}'
            yield {"series": text, "values": f"{scaling.seen.held}x5"}


def judge(folder: Path, series: list[dict[str, str]], asked: list[dict[str, Any]]) -> str:
    """Why Prometheus disagrees; empty: it agrees."""
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}],
    }
    file = folder / "scale.test.yml"
    file.write_text(yaml.safe_dump(document, width=1000))
    command = [str(PROMTOOL), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def answers(expression: str, **by_service: float | None) -> dict[str, Any]:
    """What an expression must give; None: nothing for that service."""
    samples = [
        {"labels": f'{{service="{name}"}}', "value": float(value)}
        for name, value in by_service.items()
        if value is not None
    ]
    return {"expr": f"sum by (service) ({expression})", "eval_time": "3m", "exp_samples": samples}


def seen(
    usable: int = 2,
    *,
    missed: bool | None = None,
    held: int | None = None,
    **load: float | None,
) -> Seen:
    known = {Signal(name): value for name, value in load.items()}
    return Seen(usable, load=known, misses_objective=missed, held=held)


ASKED = Scale(connections=64, requests=32, min=0)


@needs_promtool
@pytest.mark.parametrize(
    ("lb1", "lb2", "synced", "wanted"),
    [
        # Each has flows of its own.
        (seen(connections=70, requests=0), seen(connections=70, requests=0), False, 3),
        # They exchange them, so each has all.
        (seen(connections=140, requests=0), seen(connections=139, requests=0), True, 3),
        # Both read the same reports.
        (seen(connections=0, requests=100), seen(connections=0, requests=97), False, 4),
        # One cannot reach the engines.
        (seen(connections=0, requests=100), seen(connections=0, requests=None), False, 4),
        # Neither can: no fewer than are usable.
        (seen(5, connections=10), seen(4, connections=10), False, 5),
        # The clients of one are late.
        (seen(4, connections=9, requests=0, missed=True),
         seen(4, connections=9, requests=0, missed=False), False, 5),
        # Clients wait at the other, and nobody serves them.
        (seen(0, connections=0, requests=0), seen(0, connections=0, waiting_bytes=9, requests=0),
         False, 1),
        # Nothing is known but that a client of the other waits for a backend.
        (seen(0, held=0), seen(0, held=1), False, 1),
    ],
)  # fmt: skip
def test_what_balancers_see_is_put_together(snapshot, tmp_path, lb1, lb2, synced, wanted):
    series = [
        *series_of(snapshot, "lb1", {"chat": decide(ASKED, lb1)}),
        *series_of(snapshot, "lb2", {"chat": decide(ASKED, lb2)}),
    ]
    if synced:
        for own, other in (("lb1", "lb2"), ("lb2", "lb1")):
            name = f'steelyard_flow_sync_connected{{instance="{own}", peer="{other}"}}'
            series.append({"series": name, "values": "1x5"})
    assert judge(tmp_path, series, [answers(WANTED, chat=wanted)]) == ""


def some(dice: random.Random, *values: float | None) -> float | None:
    return dice.choice((None, *values))


def any_case(dice: random.Random) -> tuple[Scale, Seen]:
    asked = Scale(
        connections=dice.choice((None, 1, 64)),
        waiting_bytes=dice.choice((None, 1000)),
        requests=dice.choice((None, 32)),
        queued=dice.choice((None, 2)),
        min=dice.choice((0, 1, 3)),
        max=dice.choice((None, 4, 9)),
    )
    known = seen(
        dice.choice((0, 1, 2, 5)),
        connections=dice.choice((0, 1, 64, 65, 500)),
        waiting_bytes=some(dice, 0, 1, 5001),
        requests=some(dice, 0, 33.5, 100),
        queued=some(dice, 0, 3),
        missed=dice.choice((None, True, False)),
        held=dice.choice((None, None, 0, 7)),
    )
    return asked, known


@needs_promtool
def test_of_one_balancer_the_rules_say_what_the_agent_says(snapshot, tmp_path):
    dice = random.Random(17)
    scalings = {f"s{number}": decide(*any_case(dice)) for number in range(300)}
    assert {scaling.cause for scaling in scalings.values()} == {None, *Cause}
    wanted = {name: scaling.wanted for name, scaling in scalings.items()}
    series = list(series_of(snapshot, "lb1", scalings))
    asked = [
        answers(WANTED, **wanted),
        answers("steelyard_service_scale_wanted_backends", **wanted),
    ]
    assert judge(tmp_path, series, asked) == ""


def test_the_rules_ask_for_metrics_and_labels_that_there_are():
    recorded = {rule["record"] for rule in rules()}
    used = set()
    for rule in rules():
        for name in re.findall(r"\b\w+:\w+:\w+\b", rule["expr"]):
            assert name in recorded, name
        raw = re.sub(r"\b\w+:\w+:\w+\b", "recorded", rule["expr"])
        for series, labels, _ in selectors(raw):
            assert set(labels) <= labels_of(series)
            used.add(series)
    # The agent's own number is of one balancer; the draining ones are for people.
    alone = {"wanted_backends", "draining_backends"}
    assert used - {"steelyard_flow_sync_connected", HELD} == {
        family.name for family in SCALE_FAMILIES
    } - {f"steelyard_service_scale_{name}" for name in alone}


# -- manifests


def manifest(name: str) -> list[Any]:
    return list(yaml.safe_load_all((KUBERNETES / name).read_text(encoding="utf-8")))


def trigger(name: str) -> dict[str, Any]:
    (scaled,) = manifest(name)
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    (found,) = scaled["spec"]["triggers"]
    return dict(found)


def adapter_rule() -> dict[str, Any]:
    _, configured = manifest("hpa.yaml")
    (rule,) = yaml.safe_load(configured["data"]["config.yaml"])["externalRules"]
    return dict(rule)


def adapters_queries() -> list[str]:
    """As the adapter sends them for the selector of the HPA: to find the series, and to read it."""
    rule, (hpa, _) = adapter_rule(), manifest("hpa.yaml")
    labels = hpa["spec"]["metrics"][0]["external"]["metric"]["selector"]["matchLabels"]
    (name,) = re.findall(r'__name__="([^"]*)"', rule["seriesQuery"])
    matchers = ",".join(f'{label}="{value}"' for label, value in labels.items())
    asked = rule["metricsQuery"].replace("<<.Series>>", name)
    return [rule["seriesQuery"], asked.replace("<<.LabelMatchers>>", matchers)]


@needs_promtool
@pytest.mark.parametrize(
    "query", [trigger("keda-prometheus.yaml")["metadata"]["query"], *adapters_queries()]
)
def test_what_manifests_ask_prometheus_for_is_the_wanted_number(snapshot, tmp_path, query):
    scaling = {"chat": decide(Scale(connections=10), seen(connections=61))}
    series = list(series_of(snapshot, "lb1", scaling))
    assert judge(tmp_path, series, [answers(query, chat=7)]) == ""
    wrong = query.replace("wanted", "wnated")
    assert "wnated" in judge(tmp_path, series, [answers(wrong, chat=7)])


def test_keda_reads_a_number_at_the_place_that_it_is_series_of(snapshot):
    metadata = trigger("keda-metrics-api.yaml")["metadata"]
    assert metadata["url"].endswith("/v1/scale/chat")
    scaling = decide(Scale(connections=10), seen(connections=61))
    body = scaleviews.scale(replace(snapshot.services[0], scaling=scaling))
    for key in metadata["valueLocation"].split("."):
        body = body[key]
    assert body == 7


def test_no_answer_is_not_taken_for_zero():
    assert trigger("keda-prometheus.yaml")["metadata"]["ignoreNullValues"] == "false"


@pytest.mark.parametrize("name", ["keda-prometheus.yaml", "keda-metrics-api.yaml"])
def test_keda_starts_as_many_as_are_wanted(name):
    found = trigger(name)
    assert found["metricType"] == "AverageValue"
    assert found["metadata"].get("threshold", found["metadata"].get("targetValue")) == "1"


def test_the_hpa_asks_for_the_metric_that_the_adapter_has():
    hpa, _ = manifest("hpa.yaml")
    (metric,) = hpa["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == adapter_rule()["name"]["as"]
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert adapter_rule()["resources"] == {"namespaced": False}
