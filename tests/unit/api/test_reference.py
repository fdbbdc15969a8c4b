"""What docs/api.md says."""

import json
import re
import shlex

from agent.api import reference
from agent.api.routes import ROUTES


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
