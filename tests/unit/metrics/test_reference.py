"""docs/metrics.md speaks of the metrics that there are."""

import re

from agent.metrics import reference
from agent.metrics.families import FAMILIES


def test_page_is_up_to_date():
    assert reference.main(["--check"]) == 0


def test_page_has_every_metric_once():
    rows = re.findall(r"^\| `(\w+)`", reference.page(), re.MULTILINE)
    assert sorted(rows) == sorted(family.name for family in FAMILIES)


def test_check_tells_an_outdated_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "PAGE", tmp_path / "metrics.md")
    assert reference.main(["--check"]) == 1
    assert "outdated" in capsys.readouterr().err
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
