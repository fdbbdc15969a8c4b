"""Readers of what servers say: right on true pages, and safe on everything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address

from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from agent.model import ModelLoaded, ModelSource, NodeKind, NodeTelemetry, Telemetry, TelemetryKind
from agent.telemetry.asks import Question, Target, ask_of
from agent.telemetry.engines import Page
from agent.telemetry.exposition import Hints, TooManySamplesError, labels_of, samples
from agent.telemetry.expression import parse
from agent.telemetry.framing import HttpAnswer
from agent.telemetry.report import AgentCheck, EngineReport, Failure, NodeReport
from tests.examples import examples

NAMES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "m", "m_total", "other")
LABELS = st.dictionaries(st.sampled_from(("engine", "model_name", "tp_rank")), st.text(max_size=8))

type Labels = frozenset[tuple[str, str]]
type Series = dict[Labels, float]

PAGES = st.dictionaries(
    st.sampled_from(NAMES),
    st.dictionaries(LABELS.map(lambda labels: frozenset(labels.items())), st.floats(), max_size=5),
)


class Gauges(Collector):
    """Metrics with these samples."""

    def __init__(self, page: dict[str, Series]) -> None:
        self._page = page

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, series in self._page.items():
            family = GaugeMetricFamily(name, f"What {name} {{counts}}\n{name} 7.")
            for labels, value in series.items():
                family.add_sample(name, dict(labels), value)
            yield family

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()


def render(page: dict[str, Series]) -> bytes:
    registry = CollectorRegistry()
    registry.register(Gauges(page))
    return generate_latest(registry)


def ours(text: bytes, name: str, hints: Hints | None = None) -> list[tuple[Labels, str]]:
    found = samples(text, name.encode(), hints)
    return [(frozenset(labels_of(sample.labels).items()), repr(sample.value)) for sample in found]


@settings(max_examples=examples(50))
@given(PAGES)
def test_samples_are_those_of_prometheus_own_parser(page: dict[str, Series]) -> None:
    text = render(page)
    theirs: dict[str, list[tuple[Labels, str]]] = {name: [] for name in NAMES}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            theirs[sample.name].append((labels, repr(float(sample.value))))
    for name in NAMES:
        assert ours(text, name) == theirs[name]
        assert ours(text.replace(b"\n", b"\r\n"), name) == theirs[name]


@settings(max_examples=examples(30))
@given(PAGES, PAGES, st.integers(0, 3000), st.integers(0, 3000))
def test_hints_of_another_page_change_nothing(
    earlier: dict[str, Series], later: dict[str, Series], before: int, after: int
) -> None:
    hints: Hints = {}
    text = b"x 1\n" * before + render(earlier)
    for name in NAMES:
        samples(text, name.encode(), hints)
    text = b"x 1\n" * after + render(later)
    for name in NAMES:
        assert ours(text, name, hints) == ours(text, name)


FRAGMENTS = st.sampled_from(
    [b"vllm:num_requests_running", b"sglang:num_running_reqs", b"nv_trt_llm_request_metrics",
     b"ray_serve_replica_processing_queries", b"DCGM_FI_DEV_XID_ERRORS", b"tgi_queue_size",
     b"steelyard_node_gpu_xid_errors_total", b"DCGM_FI_DEV_CLOCKS_EVENT_REASONS", b"m",
     b'{gpu="0"', b'xid="79"', b'blames="hardware"', b'tp_rank="0"', b"{", b"}", b"} ", b'"',
     b"\\", b",", b"=", b" ", b"\t", b"\n", b"\r\n", b"1", b"-1", b"NaN", b"+Inf", b"1e999",
     b"9223372036854775794", b"#", b"HTTP/1.1 200 OK", b"Content-Length: 3", b"\r\n\r\n",
     b"Transfer-Encoding: chunked", b"0", b"a", b'{"models":[', b'{"size":', b"]}", b"75%", b"up"]
) | st.binary(max_size=4)  # fmt: skip
NONSENSE = st.lists(FRAGMENTS, max_size=40).map(b"".join)

QUESTIONS: list[Question] = [
    *(Telemetry(k, running="m", kv_usage="m / 2") for k in TelemetryKind if k.value != "none"),
    *(NodeTelemetry(kind) for kind in NodeKind if kind.value != "none"),
    *(ModelLoaded("m", source) for source in ModelSource),
]


@given(st.sampled_from(QUESTIONS), NONSENSE)
@example(Telemetry(TelemetryKind.OLLAMA), b'{"models":[{"size":' + b"9" * 400 + b"}]}")
def test_no_reader_fails_and_every_figure_is_in_its_range(question: Question, text: bytes) -> None:
    report = ask_of(Target(ip_address("::1"), 80, question)).read(text)
    shares: list[float | None] = []
    match report:
        case EngineReport():
            shares = [report.kv_usage, report.gpu_share]
            assert report.queue is None or 0 <= report.queue < math.inf
        case AgentCheck():
            shares = [report.weight_share]
        case NodeReport():
            for gpu in report.gpus:
                shares += [gpu.clock_share, gpu.utilization, gpu.memory_used_share]
        case Failure():
            assert report.reason
    assert all(share is None or 0 <= share <= 1 for share in shares)


@given(NONSENSE, st.sampled_from(NAMES), st.dictionaries(st.just(b"m"), st.integers(0, 200)))
def test_picking_samples_never_fails(text: bytes, name: str, hints: Hints) -> None:
    with suppress(TooManySamplesError):
        for sample in samples(text, name.encode(), hints):
            labels_of(sample.labels)


@given(NONSENSE)
def test_an_answer_of_nonsense_is_framed_or_refused(text: bytes) -> None:
    answer = HttpAnswer()
    for end in range(len(text) + 1):
        if answer.more(bytearray(text[:end])) is not None:
            break
    else:
        answer.closed(text)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.integers(1, 500))
def test_chunks_are_joined_however_they_arrive(chunks: list[bytes], step: int) -> None:
    text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    text += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    answer = HttpAnswer()
    results = [answer.more(bytearray(text[:end])) for end in range(step, len(text), step)]
    assert not any(results)
    assert answer.more(text) == b"".join(chunks)


TERMS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        st.tuples(st.sampled_from(("max", "min")), inner, inner).map(
            lambda three: f"{three[0]}({three[1]}, {three[2]})"
        ),
    ),
    max_leaves=8,
)


@given(TERMS)
def test_arithmetic_is_that_of_python(text: str) -> None:
    try:
        expected = float(eval(text))  # noqa: S307
    except ZeroDivisionError:
        return  # which argument is missing then, max and min may pass over
    value = parse(text).value(Page(b"", None))
    assert value is not None
    assert math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9)


@given(st.text(max_size=40) | st.text("m{}()=~\"'+-*/,.e1 max", max_size=40))
def test_an_expression_is_read_or_refused(text: str) -> None:
    with suppress(ValueError):
        parse(text).value(Page(b'm{a="1"} 5\nmax 3\n', None))
