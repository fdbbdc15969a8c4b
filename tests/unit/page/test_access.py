"""Whom the status page is shown to."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.page.access import Answer, answer

TOKEN = b"0123456789abcdef"


def basic(user: str, password: bytes) -> str:
    return f"Basic {base64.b64encode(user.encode() + b':' + password).decode()}"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9180", "127.0.0.1", "[::1]:9180", "[::1]", "localhost:9180", "10.0.0.1:80"],
)
def test_without_a_token_who_asks_by_address_is_welcome(host: str):
    assert answer({"Host": host}, None) is Answer.ALLOWED


@pytest.mark.parametrize(
    "host",
    ["evil.example:9180", "evil.example", "", "127.0.0.1.evil.example", "[::1", "1234567890"],
)
def test_without_a_token_a_name_that_leads_here_is_not(host: str):
    assert answer({"Host": host}, None) is Answer.OTHER_HOST


@pytest.mark.parametrize("site", ["cross-site", "same-site", "else"])
def test_pages_of_other_sites_get_nothing(site: str):
    headers = {"Host": "127.0.0.1", "Sec-Fetch-Site": site, "Authorization": basic("", TOKEN)}
    assert answer(headers, None) is Answer.OTHER_SITE
    assert answer(headers, TOKEN) is Answer.OTHER_SITE


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_the_page_itself_and_a_typed_address_are_welcome(site: str):
    assert answer({"Host": "127.0.0.1", "Sec-Fetch-Site": site}, None) is Answer.ALLOWED


@pytest.mark.parametrize(
    "given_", [basic("anybody", TOKEN), basic("", TOKEN), f"Bearer {TOKEN.decode()}"]
)
def test_the_token_opens_by_any_name(given_: str):
    headers = {"Host": "lb.example", "Authorization": given_}
    assert answer(headers, TOKEN) is Answer.ALLOWED


@pytest.mark.parametrize("given_", ["", "Basic !", "Digest x", "Negotiate abc="])
def test_who_gives_none_is_asked_for_it(given_: str):
    assert answer({"Host": "x", "Authorization": given_}, TOKEN) is Answer.UNAUTHENTICATED


@given(st.text(), st.binary(max_size=20), st.sampled_from(["Basic", "Bearer", "basic", "X"]))
def test_nothing_else_opens(text: str, password: bytes, scheme: str):
    for value in (f"{scheme} {text}", basic("u", password), basic("u", TOKEN[:-1])):
        if TOKEN not in (password, text.strip().encode(errors="replace")):
            assert answer({"Host": "127.0.0.1", "Authorization": value}, TOKEN) in (
                Answer.UNAUTHENTICATED,
                Answer.REJECTED,
            )
