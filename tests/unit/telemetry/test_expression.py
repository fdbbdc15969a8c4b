"""Expressions: what they compute, and how mistakes are reported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.model import Telemetry, TelemetryKind
from agent.telemetry.engines import Page
from agent.telemetry.expression import parse, read_expressions
from agent.telemetry.report import EngineReport, Failure

PAGE = b"""# TYPE jobs gauge
jobs{state="running",queue="a"} 3
jobs{state="running",queue="b"} 5
jobs{state="waiting",queue="a"} 2
jobs{state="waiting",queue="b\\"x"} 1
used 30
limit 40
none 0
broken NaN
"""


def value(text: str) -> float | None:
    return parse(text).value(Page(PAGE, None))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jobs", 11),
        ('jobs{state="running"}', 8),
        ("jobs{state='running'}", 8),
        ('jobs{state!="running"}', 3),
        ('jobs{queue=~"a|c"}', 5),
        ('jobs{queue=~"b"}', 5),  # the whole value, as in Prometheus
        ('jobs{queue!~"b.*",state="running",}', 3),
        ('jobs{queue="b\\"x"}', 1),
        ('jobs{other=""}', 11),
        ("used / limit", 0.75),
        ("1 - used/limit", 0.25),
        ("2 + 3 * 4 - 10 / 5", 12),
        ("(2 + 3) * -4", -20),
        ("1.5e1 + .5", 15.5),
        ("max(jobs)", 5),
        ("min(jobs)", 1),
        ("avg(jobs)", 2.75),
        ("max(used, limit)", 40),
        ("max(absent, used)", 30),
        ("max(jobs) + max(used, 7) * 2", 65),
        ("max(used / limit)", 0.75),
        ("absent", None),
        ("absent + used", None),
        ("used / none", None),
        ("broken", None),
        ("max(absent)", None),
        ("1e308 * 10", None),
    ],
)
def test_an_expression_has_its_value(text: str, expected: float | None) -> None:
    assert value(text) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at the end: a metric, a number or ( is expected"),
        ("jobs +", "at the end"),
        ("jobs jobs", "at character 6 ('jobs'): an operator or the end"),
        ("jobs ^ 2", "at character 6 ('^ 2'): this character has no meaning"),
        ("(jobs", "at the end: ) is expected"),
        ("rate(jobs)", "at character 1 ('rate(jobs)'): there is no function rate; use one of max"),
        ("jobs{state}", 'a "quoted" text'),
        ("jobs{state=running}", 'a "quoted" text'),
        ('jobs{"a"="b"}', "the name of a label"),
        ('jobs{state=~"("}', "not a regular expression"),
        ("jobs{state='x'", "at the end: } is expected"),
        ("(" * 21 + "1" + ")" * 21, "more than 20 levels"),
        ("-" * 21 + "1", "more than 20 levels"),
        ("1+" * 500 + "1", "longer than 1000 characters"),
    ],
)
def test_a_mistake_is_reported_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(text)


def test_the_three_figures_come_from_three_expressions() -> None:
    telemetry = Telemetry(
        TelemetryKind.PROMETHEUS,
        running='jobs{state="running"}',
        waiting='jobs{state="waiting"}',
        kv_usage="used / limit",
    )
    assert read_expressions(telemetry, PAGE) == EngineReport(8, 3, 0.75)


def test_values_that_cannot_be_true_are_missing_and_counted() -> None:
    telemetry = Telemetry(
        TelemetryKind.PROMETHEUS, running="used", waiting="0 - used", kv_usage="used"
    )
    assert read_expressions(telemetry, PAGE) == EngineReport(30, dropped=2)


def test_a_page_without_any_of_it_is_a_failure() -> None:
    telemetry = Telemetry(TelemetryKind.PROMETHEUS, running="absent")
    report = read_expressions(telemetry, b"<html>")
    assert report == Failure("the page is HTML: none of the expressions has a value there")


def test_it_reads_true_pages() -> None:
    page = Page((Path(__file__).with_name("pages") / "triton_trtllm.prom").read_bytes(), None)
    blocks = 'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="%s"}'
    expression = parse(f"{blocks % 'used'} / {blocks % 'max'}")
    assert expression.value(page) == pytest.approx(1 / 6239)
