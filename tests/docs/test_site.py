"""The order of the pages on the site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import yaml

from tests.docs.pages import PAGES, ROOT

type Nav = str | list[Nav] | dict[str, Nav]


def pages_of(nav: Nav) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for each in nav.values():
            yield from pages_of(each)
    else:
        for each in nav:
            yield from pages_of(each)


def test_every_page_has_one_place_on_the_site() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = {str(page.relative_to(ROOT)) for page in PAGES} | {"CHANGELOG.md"}
    assert Counter(pages_of(settings["nav"])) == Counter(pages)


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    ours = {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"}
    assert {page for page in ours if f"]({page}" not in text} == set()
