"""Netlink messages are taken apart as they were put together, and what is cut off is left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.nlmsg import ERROR, Message, attribute, attributes, message, messages

BODIES = st.lists(st.binary(max_size=40).map(lambda body: body + bytes(-len(body) % 4)), max_size=4)


@given(bodies=BODIES)
def test_messages_are_what_was_sent(bodies: list[bytes]) -> None:
    sent = b"".join(message(20, 4, n, body) for n, body in enumerate(bodies))
    assert [*messages(sent)] == [Message(20, 5, n, body) for n, body in enumerate(bodies)]


@given(values=st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=30), max_size=5))
def test_attributes_are_what_was_written(values: dict[int, bytes]) -> None:
    written = b"".join(attribute(kind, value) for kind, value in values.items())
    assert attributes(written) == values


@given(data=st.binary(max_size=80))
def test_garbage_ends_somewhere(data: bytes) -> None:
    for each in messages(data):
        attributes(each.body)
    attributes(data)


@given(cut=st.integers(0, 23))
def test_a_message_that_is_cut_off_is_left_out(cut: int) -> None:
    whole = message(16, 0, 1, b"12345678")
    assert [*messages(whole + whole[:cut])] == [*messages(whole)]


def test_an_error_is_an_errno() -> None:
    assert Message(ERROR, 0, 1, (-19).to_bytes(4, "little", signed=True)).error == 19
    assert Message(ERROR, 0, 1, b"").error == 0
