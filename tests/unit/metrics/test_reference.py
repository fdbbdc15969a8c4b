"""docs/metrics.md and the alerts speak of the metrics that there are."""

import re
from pathlib import Path

import yaml

from agent.metrics import reference
from agent.metrics.families import FAMILIES

RULES = Path(__file__).parents[3] / "deploy" / "prometheus" / "steelyard.rules.yml"


def rules():
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return group["rules"]


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


def test_alerts_use_metrics_and_labels_that_there_are():
    labels = {family.name: family.labels for family in FAMILIES}
    for rule in rules():
        used = re.findall(r"(steelyard_\w+)(?:\{(\w+))?", rule["expr"])
        assert used or "up{" in rule["expr"], rule["alert"]
        for name, label in used:
            assert name in labels, rule["alert"]
            assert not label or label in labels[name], rule["alert"]


def test_alerts_say_how_bad_it_is_and_what_to_do():
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert isinstance(rule["expr"], str)
