"""What an expression asks for is read rightly, and narrowed without changing the rest."""

import pytest

from deploy.prometheus.promql import family_of, labels_of, narrowed, selectors

BOTH = ("instance", "service")
NARROW = 'instance=~"$instance", service=~"$service"'


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("steelyard_guard_blocks", 'steelyard_guard_blocks{instance=~"$instance"}'),
        (
            'rate(steelyard_events_total{level!~"a|b"}[5m]) > 1',
            'rate(steelyard_events_total{level!~"a|b", instance=~"$instance"}[5m]) > 1',
        ),
        ('sum(up{job="steelyard"})', 'sum(up{job="steelyard", instance=~"$instance"})'),
        (
            "sum by (le) (steelyard_first_byte_seconds_bucket)",
            f"sum by (le) (steelyard_first_byte_seconds_bucket{{{NARROW}}})",
        ),
        ('ALERTS{alertstate="firing"}', 'ALERTS{alertstate="firing"}'),
    ],
)
def test_selectors_are_narrowed_by_the_labels_that_they_have(expression, wanted):
    assert narrowed(expression, BOTH) == wanted


def test_a_series_that_no_metric_has_is_refused():
    with pytest.raises(KeyError, match="steelyard_wrong_total"):
        narrowed("rate(steelyard_wrong_total[1m])", BOTH)


@pytest.mark.parametrize(
    ("series", "name"),
    [
        ("steelyard_first_byte_seconds_bucket", "steelyard_first_byte_seconds"),
        ("steelyard_first_byte_seconds_sum", "steelyard_first_byte_seconds"),
        ("steelyard_first_byte_seconds", None),  # a histogram has no series of its own name
        ("steelyard_first_byte_seconds_total", None),
        ("steelyard_backend_up", "steelyard_backend_up"),
        ("steelyard_backend_up_sum", None),
    ],
)
def test_series_of_histograms_belong_to_them(series, name):
    family = family_of(series)
    assert (family and family.name) == name


def test_labels_are_the_metrics_and_those_of_prometheus():
    assert labels_of("steelyard_first_byte_seconds_bucket") == {
        *("service", "backend", "le", "instance", "job")
    }


def test_matchers_of_every_kind_are_found():
    text = 'a - steelyard_backend_state{state="up", backend=~"g.*",service!="x"} * up'
    state, up = selectors(text)
    assert (state.series, state.labels) == (
        "steelyard_backend_state",
        ("state", "backend", "service"),
    )
    assert state.text in text
    assert up == ("up", (), "up")
