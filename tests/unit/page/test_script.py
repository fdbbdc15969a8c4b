"""The page's script, in an engine without a browser: from what the agent tells to HTML."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import humanise
from agent.api import views
from agent.config.load import parse
from agent.page.views import overview
from agent.state.causes import Troubles
from agent.state.fleetview import FleetStatus
from agent.state.journal import tally
from agent.state.matrix import Matrix, MatrixCell
from agent.state.snapshot import Handshakes, Page, RecentTimes, ServiceRow
from tests.unit.api.conftest import CONFIG, ENTRIES, NOW, FakeControl, make_snapshot

_ASKS = """
const asked = JSON.parse(std.loadFile(scriptArgs[1]));
print(JSON.stringify(asked.map(([name, ...given]) => {
  const told = globalThis[name](...given);
  return told === null || told.constructor === Object ? told : String(told);
})));
"""


class Script:
    """Calls functions of the page's script, many at once."""

    def __init__(self, folder: Path) -> None:
        self._script, self._asked = folder / "page.js", folder / "asked.json"
        text = resources.files("agent.page").joinpath("page.js").read_text()
        names = [line.split("(")[0].split()[-1] for line in text.splitlines()
                 if line.startswith("function ")]  # fmt: skip
        shown = "".join(f"globalThis.{name} = {name};\n" for name in names)
        self._script.write_text(text + shown + _ASKS)

    def call(self, *asked: tuple[Any, ...]) -> list[Any]:
        self._asked.write_text(json.dumps(asked))
        command = ["qjs", "--std", self._script, self._asked]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return list(json.loads(done.stdout))

    def view(self, name: str, *given_: Any) -> str:
        return str(self.call((name, *given_))[0])


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    return Script(tmp_path_factory.mktemp("script"))


def told(name: str = "chat", cells: int = 1, reason: str = "1 of 2 backends up") -> dict[str, Any]:
    """What the agent tells, with so many cells in the map."""
    snapshot = make_snapshot(parse(CONFIG, "agent.yaml"))
    chat = snapshot.services[0]
    row = ServiceRow(chat.service, chat.state, reason, chat.since, 1, 2, 8, chat.rates, 8192,
                     RecentTimes(3, 12.3, 250.0), Handshakes(50, 25, 25.0))  # fmt: skip
    state = chat.backends[0].state
    servers = tuple((f"gpu-{n}", (chat.service.backends[0].address,)) for n in range(cells))
    own = tuple(MatrixCell(n, 0, f"gpu-{n}", state, n / cells) for n in range(cells))
    recent = tally(reversed(ENTRIES), 0.0)
    page = Page(NOW, (), (row,), 1, 1)
    body = overview(snapshot, Troubles(), recent, page, Matrix(servers, (name,), own), ENTRIES)
    body["services"][0]["name"] = name  # type: ignore[index]
    return body


class _Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.words += " " if tag not in ("span", "b") else ""

    def handle_data(self, data: str) -> None:
        self.words += data


def words(text: str) -> str:
    return " ".join(_Elements(text).words.split())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=60))
def test_numbers_read_as_in_lbctl(script: Script, values: list[float]):
    for name in ("count", "age", "milliseconds"):
        theirs = script.call(*((name, value) for value in values))
        ours = [getattr(humanise, name)(value) for value in values]
        # A half is rounded up here and to even there.
        different = [pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]]
        assert all(_near(*pair) for pair in different), different


def _near(a: str, b: str) -> bool:
    numbers = [float("".join(c for c in text if c in "0123456789.")) for text in (a, b)]
    units = ["".join(c for c in text if c not in "0123456789.") for text in (a, b)]
    return units[0] == units[1] and abs(numbers[0] - numbers[1]) <= 1


FLEET: dict[str, Any] = {
    "name": "prod", "node": "lb1", "version": 12, "wanted_version": 12, "stable_version": 12,
    "frozen": None, "store_away_s": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, "version 12 "),
        ({"stable_version": 11}, "version 12, being tried "),
        ({"wanted_version": 13, "stable_version": 13}, "version 12, 13 is wanted "),
        ({"frozen": "by root", "wanted_version": 13}, "version 12, frozen, 13 is wanted "),
        ({"store_away_s": 3.0}, "version 12, store away "),
        ({"version": 0, "wanted_version": None, "stable_version": None}, "own services "),
    ],
)
def test_the_head_says_which_version_of_the_fleet_runs(
    script: Script, changed: dict[str, Any], text: str
):
    body = told()
    assert "fleet" not in words(script.view("headView", body))
    body["status"]["fleet"] = FLEET | changed
    assert f"fleet prod {text}services" in words(script.view("headView", body))


def test_a_balancer_that_does_not_follow_its_fleet_needs_you(script: Script):
    snapshot = make_snapshot(parse(CONFIG, "agent.yaml"))
    problem = "the fleet's store is away: no answer; version 12 stays"
    fleet = FleetStatus("prod", "lb1", 12, NOW, None, None, None, (), None, None, problem, NOW)
    page = Page(NOW, (), (), 0, 0)
    body = overview(replace(snapshot, fleet=fleet), Troubles(), tally((), 0.0), page,
                    Matrix((), (), ()), ())  # fmt: skip
    assert problem in words(script.view("needsView", body))


def test_the_head_says_what_the_tier_of_the_host_does(script: Script):
    body = told()
    assert "tier" not in words(script.view("headView", body))
    load = {
        "connections": 1, "current": 12, "queued": 3,
        "requests_per_s": 50.0, "refused_per_s": 5.0, "failed_per_s": 0.0,
    }  # fmt: skip
    body["status"]["tier"] = {"problems": [], "load": load}
    does = "50 requests/s, 5/s refused, 12 at engines, 3 queued, 1 connection"
    assert f"tier {does}" in words(script.view("headView", body))
    body["status"]["tier"] = {"problems": ["HAProxy is not running"], "load": None}
    assert "tier not known" in words(script.view("headView", body))


def test_services_have_their_figures(script: Script):
    text = words(script.view("servicesView", told(), "", "", False))
    figures = "1/2 1/s 1/s of 2/s 8 8.2kB 12ms 250ms"
    assert f"degraded chat 10.0.0.10:80/tcp dsr, least-load {figures}" in text
    assert "1 of 2 backends up, for 10s" in text


def test_a_filter_leaves_those_that_match(script: Script):
    assert "chat" in words(script.view("servicesView", told(), "CHA degr", "", False))
    assert words(script.view("servicesView", told(), "embed", "", False)) == "No service matches."
    assert script.view("servicesCount", told(), "embed") == "0 of 1 service"


def test_of_many_services_the_worst_are_shown_until_all_are_asked_for(script: Script):
    body = told()
    body["services"] = [{**body["services"][0], "name": f"s{n}"} for n in range(30)]
    few = script.view("servicesView", body, "", "", False)
    assert (few.count("data-service="), "Show all 30" in words(few)) == (20, True)
    assert script.view("servicesView", body, "", "", True).count("data-service=") == 30


def test_what_needs_you_comes_in_sentences_and_nothing_is_said_so(script: Script):
    assert "eth0 has no carrier" in words(script.view("needsView", told()))
    calm = told() | {"problems": []}
    assert words(script.view("needsView", calm)) == "Nothing is wrong."


@pytest.mark.parametrize(
    ("cells", "by_column"), [(3, True), (40, True), (41, False), (1000, False)]
)
def test_the_map_has_a_cell_for_each_backend(script: Script, cells: int, by_column: bool):
    text = script.view("mapView", told(cells=cells))
    assert text.count("<button") == cells
    assert ('<th scope="col"' in text) is by_column
    assert "chat/gpu-1 on gpu-1 (10.0.0.21): up, 33% of" in text if cells == 3 else True


def test_a_service_opens_with_its_backends_and_commands_to_copy(script: Script):
    snapshot = make_snapshot(parse(CONFIG, "agent.yaml"))
    chat = snapshot.services[0]
    page = Page(NOW, tuple((chat.service, each) for each in chat.backends), (), 2, 2)
    answer = views.page("backends", page, tally(reversed(ENTRIES), 0.0))
    text = script.view("detailView", "chat", answer, "gpu-2")
    shown = words(text)
    assert "up gpu-1 10.0.0.21 100 70% 1/s 4 4.1kB 250ms" in shown
    assert "lbctl backend drain chat/gpu-2" in shown
    assert 'data-copy="lbctl backend set chat/gpu-2 --weight 50"' in text


def test_refusals_and_answers_are_told(script: Script):
    control = FakeControl()
    answer = views.explanation(control.explain(None))
    assert "forward to chat/gpu-1: recorded flow" in words(script.view("answerView", answer))
    wrong = {"error": {"message": "it is not", "where": "parameter vip", "remedy": "Write it."}}
    assert words(script.view("answerView", wrong)) == "it is not: parameter vip. Write it."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("198.51.100.7:40000", {"address": "198.51.100.7", "port": "40000"}),
        (" [2001:db8::7]:443 ", {"address": "2001:db8::7", "port": "443"}),
        ("2001:db8::7:443", None),
        ("host:80", None),
        ("198.51.100.7", None),
    ],
)
def test_endpoints_are_taken_apart(script: Script, text: str, found: dict[str, str] | None):
    assert script.call(("splitEndpoint", text)) == [found]


@settings(max_examples=15, deadline=None)
@given(st.text("<>&\"'/ ab=`\\\n", max_size=24).map(lambda text: f"<img src=x onerror='{text}'>"))
def test_what_the_agent_tells_is_text_and_never_markup(script: Script, evil: str):
    clean, dirty = told(), told(evil, reason=evil)
    clean["problems"], dirty["problems"] = ["x"], [evil]
    clean["status"]["fleet"], dirty["status"]["fleet"] = FLEET, FLEET | {"name": evil}
    for event in dirty["events"]:
        event |= {"about": evil, "text": evil}
    names = ("needsView", "mapView", "eventsView", "headView", "servicesView")
    given_ = [(), (), (), (), ("", "", False)]
    theirs = script.call(*((name, dirty, *more) for name, more in zip(names, given_, strict=True)))
    ours = script.call(*((name, clean, *more) for name, more in zip(names, given_, strict=True)))
    for one, other in zip(theirs, ours, strict=True):
        assert _Elements(one).tags == _Elements(other).tags
        assert not [name for name, _ in _Elements(one).attributes if name.startswith("on")]
