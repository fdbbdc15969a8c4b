"""docs/api.md, docs/openapi.json and the client for Python are as the code says."""

import json
import re
import shlex
import sys

import pytest

from agent.api import pyclient, reference
from agent.api.openapi import document
from agent.api.routes import ROUTES


def test_the_files_are_up_to_date(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 0
    assert json.loads(reference.DOCUMENT.read_text()) == document()


@pytest.mark.parametrize("name", ["PAGE", "DOCUMENT", "FILE"])
def test_check_tells_an_outdated_file(tmp_path, monkeypatch, capsys, name):
    holder = pyclient if name == "FILE" else reference
    monkeypatch.setattr(holder, name, tmp_path / "file")
    monkeypatch.setattr(sys, "argv", ["reference", "--check"])
    assert reference.main() == 1
    assert "is outdated" in capsys.readouterr().err


def test_page_has_a_section_and_an_example_for_every_route():
    page = reference.page()
    headings = re.findall(r"^## (\w+ /\S+)$", page, re.MULTILINE)
    assert headings == [f"{route.method} {route.path}" for route in ROUTES]
    examples = [shlex.split(line) for line in re.findall(r"^curl .*$", page, re.MULTILINE)]
    assert examples == [reference.curl(route) for route in ROUTES]


def test_every_link_of_the_table_leads_to_a_section():
    page = reference.page()
    links = re.findall(r"^\| \[`([^`]+)`\]\(#([^)]+)\)", page, re.MULTILINE)
    assert len(links) == len(ROUTES)
    for title, anchor in links:
        # As GitHub makes anchors: lower case, spaces to hyphens, other characters removed.
        assert anchor == re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_a_change_is_sent_with_its_body():
    edit = next(route for route in ROUTES if route.name == "edit")
    assert reference.curl(edit)[-2:] == ["--json", json.dumps(edit.sent)]
    accept = next(route for route in ROUTES if route.name == "discoveryAccept")
    assert reference.curl(accept)[-2:] == ["--request", "POST"]
