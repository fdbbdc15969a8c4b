"""docs/metrics.md speaks of the metrics that there are."""

import re

from agent.metrics import reference
from agent.metrics.families import FAMILIES


def test_page_has_every_metric_once():
    rows = re.findall(r"^\| `(\w+)`", reference.page(), re.MULTILINE)
    assert sorted(rows) == sorted(family.name for family in FAMILIES)
