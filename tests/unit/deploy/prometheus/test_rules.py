"""The alerts ask for what there is, say how bad it is, and have a section in the runbook."""

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from agent.dataplane.abi import FIRST_DROP, Reason
from agent.metrics.families import BASIC, FAMILIES
from deploy.prometheus.promql import labels_of, selectors
from lbctl.main import cli

ROOT = Path(__file__).parents[4]
RULES = ROOT / "deploy" / "prometheus" / "steelyard.rules.yml"
CASES = sorted(Path(__file__).parent.glob("*.test.yml"))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
PROMTOOL = shutil.which("promtool")


def rules():
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return group["rules"]


@pytest.fixture(params=rules(), ids=lambda rule: rule["alert"])
def rule(request):
    return request.param


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed: apt install promtool")
def test_alerts_fire_when_they_should_and_not_before():
    judged = subprocess.run(
        [PROMTOOL, "test", "rules", *map(str, CASES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr


def test_an_alert_asks_for_metrics_and_labels_that_there_are(rule):
    used = list(selectors(rule["expr"]))
    assert used
    for series, labels, _ in used:
        assert set(labels) <= labels_of(series)
    by = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", rule["expr"])
    for label in (label.strip() for names in by for label in names.split(",")):
        assert any(label in labels_of(each.series) for each in used), label


def test_an_alert_names_labels_that_it_has(rule):
    """A label that it lacks would leave a gap in the sentence."""
    first = next(selectors(rule["expr"])).series
    aggregated = re.match(r"\s*(?:sum|max) by \(([^)]*)\)", rule["expr"])
    has = set(re.split(r",\s*", aggregated[1])) if aggregated else labels_of(first)
    texts = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", texts)) <= has


def test_an_alert_asks_for_nothing_that_is_not_basic(rule):
    asked = {each.series for each in selectors(rule["expr"])}
    of_backends = {family.name for family in FAMILIES if family.is_of_backends}
    assert asked & of_backends <= BASIC


def test_alerts_have_names_of_their_own():
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names))


def test_an_alert_says_how_bad_it_is_and_what_to_do(rule):
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_every_alert_has_a_case_that_fires_and_moments_that_do_not():
    firing, moments = set(), {}
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in CASES]
    for case in (case for file in files for case in file["tests"]):
        asked = case["promql_expr_test"]
        wanted = [sample for each in asked for sample in each["exp_samples"]]
        found = {
            name for each in wanted for name in re.findall(r'alertname="(\w+)"', each["labels"])
        }
        firing |= found
        for name in found:
            moments[name] = sum(not each["exp_samples"] for each in asked)
    assert firing == {rule["alert"] for rule in rules()}
    assert [name for name, quiet in moments.items() if not quiet] == []


def test_the_runbook_has_a_section_for_every_alert_in_their_order():
    sections = re.findall(r"^## (Steelyard\w+)$", RUNBOOK, re.MULTILINE)
    assert sections == [rule["alert"] for rule in rules()]


def test_a_section_says_how_bad_it_is_and_what_it_means(rule):
    section = RUNBOOK.split(f"\n## {rule['alert']}\n")[1].split("\n## ")[0].strip()
    assert section.startswith(f"{rule['labels']['severity'].capitalize()}. ")
    assert all(f"**{part}" in section for part in ("Users", "Look", "Ends"))


def test_the_runbook_explains_every_reason_of_drops():
    table = RUNBOOK.split("## Reasons of drops")[1]
    first_cells = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    named = [name for cell in first_cells for name in re.findall(r"`([\w-]+)`", cell)]
    dropped = [reason.label for reason in Reason if reason >= FIRST_DROP]
    assert sorted(named) == sorted(dropped)


def commands(text):
    """Each `lbctl …` that is quoted, as words."""
    for quoted in re.findall(r"`(?:sudo )?lbctl ([^`]*)`", text):
        yield re.sub(r"\{\{.*?\}\}", "NAME", quoted).split()


def test_commands_of_lbctl_and_their_options_are_there():
    texts = [RUNBOOK, *(" ".join(rule["annotations"].values()) for rule in rules())]
    found = [words for text in texts for words in commands(text)]
    assert len(found) > 50
    for words in found:
        command: click.Command = cli
        context, rest = click.Context(cli), list(words)
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            next_command = command.get_command(context, rest[0])
            if next_command is None:
                break
            command = next_command
            del rest[0]
        assert command is not cli, words
        options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        assert {word for word in rest if word.startswith("-")} <= options, words


def test_links_of_the_runbook_lead_somewhere():
    links = re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", RUNBOOK)
    assert links
    for path, anchor in links:
        page = ROOT / "docs" / (path or "runbook.md")
        assert page.is_file(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, (path, anchor)
