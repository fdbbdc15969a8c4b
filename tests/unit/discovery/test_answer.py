"""The answers of sources: which targets they name, which are refused, and what is no answer."""

from __future__ import annotations

import contextlib
import json
from ipaddress import ip_address

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from agent.config.kinds import Name
from agent.discovery import groups
from agent.discovery.answer import (
    MOST_TARGETS,
    Answer,
    Refused,
    SrvRecord,
    from_addresses,
    from_srv,
    parse_targets,
)
from agent.errors import DiscoveryError
from agent.model import AdminState, Target

WHERE = "http https://inventory.example/targets"


def parse(data: object, *match: tuple[str, str]) -> Answer:
    return parse_targets(json.dumps(data), WHERE, match)


def group(*targets: object, **labels: object) -> dict[str, object]:
    return {"targets": list(targets), "labels": labels}


def target(address: str, port: int | None = None, **others: object) -> Target:
    return Target(ip_address(address), port, **others)  # type: ignore[arg-type]


def why(written: object, **labels: object) -> str:
    """Why a target is refused, while the one beside it stays."""
    answer = parse([group(written, **labels), group("192.0.2.99:1")])
    assert answer.targets == (target("192.0.2.99", 1),)
    (refused,) = answer.refused
    return refused.why


def no_answer(text: str) -> str:
    with pytest.raises(DiscoveryError) as caught:
        parse_targets(text, WHERE)
    assert caught.value.where == WHERE
    assert caught.value.remedy
    return caught.value.message


# -- what is understood


def test_a_target_has_what_its_labels_say():
    labels = {
        "weight": "50",
        "zone": "a",
        "state": "drain",
        "backup": "true",
        "priority": "1",
        "name": "gpu-5",
        "model": "llama",
        "__meta_datacenter": "fra1",
    }
    expected = target(
        "10.0.0.5", 8000, name="gpu-5", weight=50, admin=AdminState.DRAIN, backup=True,
        priority=1, zone="a",
    )  # fmt: skip
    data = [{"targets": ["10.0.0.5:8000"], "labels": labels}]
    assert parse(data) == Answer((expected,))
    assert parse_targets(yaml.safe_dump(data), WHERE) == Answer((expected,))


def test_addresses_come_with_and_without_a_port_sorted():
    answer = parse([group("[2001:db8::5]:8000", "10.0.0.6", "10.0.0.5:8000", "[2001:db8::5]")])
    assert answer == Answer(
        (
            target("10.0.0.5", 8000),
            target("10.0.0.6"),
            target("2001:db8::5"),
            target("2001:db8::5", 8000),
        )
    )


def test_labels_may_be_numbers_and_booleans():
    answer = parse([group("10.0.0.5:1", weight=50, priority=2.0, backup=True)])
    assert answer.targets == (target("10.0.0.5", 1, weight=50, priority=2, backup=True),)


def test_scalars_of_yaml_stay_as_they_are_written():
    text = """\
- targets:
    - 10.0.0.5:8000
  labels:
    weight: 010
    backup: yes
    zone: 2024-01-01
    name: 1e3
    priority:
"""
    (found,) = parse_targets(text, WHERE).targets
    assert found == target("10.0.0.5", 8000, weight=10, backup=True, zone="2024-01-01", name="1e3")


@pytest.mark.parametrize("text", ["[]", "--- []\n", '[{"targets": []}]', '[{"targets": null}]',
                                  "- targets:\n  labels:\n", "\ufeff[]"])  # fmt: skip
def test_no_targets_are_an_answer(text: str):
    assert parse_targets(text, WHERE) == Answer(())


def test_an_empty_label_is_none():
    labels = dict.fromkeys(("weight", "zone", "state", "backup", "priority", "name"), "")
    assert parse([group("10.0.0.5:1", **labels)]).targets == (target("10.0.0.5", 1),)


def test_groups_without_the_labels_of_match_are_skipped_silently():
    data = [
        group("10.0.0.1:1", model="llama", env="prod"),
        group("10.0.0.2:1", model="llama", env="test"),
        group("10.0.0.3:1", env="prod"),
        group("not an address", model="mixtral", env="prod"),
        {"targets": ["10.0.0.4:1"]},
    ]
    answer = parse(data, ("model", "llama"), ("env", "prod"))
    assert answer == Answer((target("10.0.0.1", 1),))


def test_match_compares_numbers_and_booleans_as_text():
    data = [group("10.0.0.1:1", rack=7, spot=False), group("10.0.0.2:1", rack=8, spot=False)]
    assert parse(data, ("rack", "7"), ("spot", "false")).targets == (target("10.0.0.1", 1),)


# -- what is refused


@pytest.mark.parametrize(
    "written",
    ["gpu-5.example:8000", "", "10.0.0.256:1", "10.0.0:1", "10.0.0.5:", "10.0.0.5:http",
     "10.0.0.5:-1", "10.0.0.5/32", "http://10.0.0.5:8000", "10.0.0.5:8000 ", "[]:1", "[gpu]:1",
     "10.0.0.5:1234567", "10.0.0.5:٨"],
)  # fmt: skip
def test_what_is_no_address_with_a_port_is_refused(written: str):
    assert why(written).startswith("it is not an IP address with a port, such as 10.0.0.5:8000")


@pytest.mark.parametrize("port", ["0", "65536", "99999", "00"])
def test_a_port_out_of_range_is_refused(port: str):
    assert why(f"10.0.0.5:{port}") == f"port {int(port)} is not from 1 to 65535"


def test_the_brackets_around_addresses_are_required_and_only_for_ipv6():
    # This is a valid address, so without brackets a port would go into it unnoticed.
    assert "must be in brackets" in why("2001:db8::5:8000")
    assert why("[10.0.0.5]:8000").startswith("brackets belong around an IPv6 address")


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("0.0.0.0", "the unspecified address"),
        ("[::]", "the unspecified address"),
        ("127.0.0.1", "a loopback address"),
        ("[::1]", "a loopback address"),
        ("169.254.1.1", "a link-local address"),
        ("[fe80::1]", "a link-local address"),
        ("224.0.0.18", "a multicast address"),
        ("[ff02::1]", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("240.0.0.1", "a reserved address"),
        ("0.1.2.3", "a reserved address"),
        ("[4000::1]", "a reserved address"),
    ],
)
def test_an_address_that_is_not_of_one_host_is_refused(address: str, kind: str):
    bare = address.strip("[]")
    assert why(f"{address}:80") == f"{bare} is {kind}, not the unicast address of one host"


def test_addresses_with_a_scope_and_mapped_addresses_are_refused():
    assert why("[2001:db8::1%eth0]:80") == "its address is valid on one interface only"
    assert "write 10.0.0.5" in why("[::ffff:10.0.0.5]:80")


@pytest.mark.parametrize("written", [None, 7, 8.5, True, ["10.0.0.5:1"], {"a": 1}])
def test_a_target_that_is_no_text_is_refused(written: object):
    assert why(written) == "it is not a string such as 10.0.0.5:8000"


@pytest.mark.parametrize(
    ("label", "value", "words"),
    [
        ("weight", "1001", "is not a whole number from 0 to 1000"),
        ("weight", "-1", "is not a whole number from 0 to 1000"),
        ("weight", "+5", "is not a whole number from 0 to 1000"),
        ("weight", "5_0", "is not a whole number from 0 to 1000"),
        ("weight", "high", "is not a whole number from 0 to 1000"),
        ("weight", 0.5, "is not a whole number from 0 to 1000"),
        ("weight", 10**12, "is not a whole number from 0 to 1000"),
        ("weight", 10**40, "is neither a string nor an ordinary number"),
        ("weight", float("inf"), "is neither a string nor an ordinary number"),
        ("weight", float("nan"), "is neither a string nor an ordinary number"),
        ("weight", [50], "is neither a string nor an ordinary number"),
        ("priority", "8", "is not a whole number from 0 to 7"),
        ("state", "up", "is not active, drain or maintenance"),
        ("state", "Drain", "is not active, drain or maintenance"),
        ("backup", "maybe", "is neither true nor false"),
        ("name", "GPU-5", "is not a name of at most 64"),
        ("name", "-gpu", "is not a name of at most 64"),
        ("name", "g" * 65, "is not a name of at most 64"),
        ("zone", "a b", "is not a name of at most 64"),
    ],
)
def test_a_label_that_means_nothing_refuses_the_target(label: str, value: object, words: str):
    assert why("10.0.0.5:1", **{label: value}).startswith(f"its {label} ")
    assert words in why("10.0.0.5:1", **{label: value})


@given(st.text(alphabet="abAB01._-é \n", max_size=3) | st.sampled_from(["g" * 64, "g" * 65]))
def test_a_name_is_what_it_is_in_the_configuration(name: str):
    answer = parse([group("10.0.0.5:1", name=name or "x")])
    try:
        TypeAdapter(Name).validate_python(name or "x")
    except ValidationError:
        assert answer.targets == ()
    else:
        assert answer.targets[0].name == (name or "x")


def test_the_same_target_twice_is_one_and_with_other_settings_the_second_is_refused():
    same, other = group("10.0.0.5:1", weight=5), group("10.0.0.5:1", weight=6)
    assert parse([same, same]) == Answer((target("10.0.0.5", 1, weight=5),))
    refused = Refused("10.0.0.5:1", "it is listed twice, with different settings")
    assert parse([other, same]) == Answer((target("10.0.0.5", 1, weight=5),), (refused,))


def test_two_targets_cannot_have_the_same_name():
    answer = parse([group("[2001:db8::5]:1", "10.0.0.5:1", name="gpu-5")])
    why = "its name gpu-5 is also that of 10.0.0.5:1"
    expected = target("10.0.0.5", 1, name="gpu-5")
    assert answer == Answer((expected,), (Refused("[2001:db8::5]:1", why),))


def test_what_is_refused_is_shown_in_a_printable_and_short_form():
    answer = parse([group("\x1b[31m", "x" * 1000)])
    assert [refused.what for refused in answer.refused] == ["'\\x1b[31m'", "x" * 59 + "…"]


# -- what is no answer at all


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the answer is empty"),
        (" \n", "the answer is empty"),
        ("<!DOCTYPE html><html>", "the answer is HTML, "),
        ("\n<HTML lang=en>", "the answer is HTML, "),
        ("<?xml version='1.0'?>", "the answer is XML or HTML, "),
        ("null", "the answer is null, "),
        ("# nothing\n", "the answer is null, "),
        ('"10.0.0.5:8000"', "the answer is a string, "),
        ("10.0.0.5:8000", "the answer is a string, "),
        ("service unavailable", "the answer is a string, "),
        ('{"targets": ["10.0.0.5:8000"]}', "the answer is a mapping, "),
        ("targets: [a]", "the answer is a mapping, "),
        ('[{"targets":\n ["10.0.0.5', "the answer is not valid JSON: "),
        ('[{"targets":\n', "the answer is not valid JSON: it ends too early in line 2"),
        ('[{"targets":\n ]}', "the answer is not valid JSON: Expecting value in line 2, column 2"),
        ("[" + "9" * 5000 + "]", "the answer is not valid JSON: Exceeds the limit"),
        ("[" * 100_000, "the answer is nested too deeply"),
        ("- " * 100_000, "the answer is nested too deeply"),
        ("- targets:\n  - a\n b: [", "the answer is neither JSON nor valid YAML: "),
        ("- {a: b\n- c", "the answer is neither JSON nor valid YAML: "),
        ("- a\x00", "the answer is neither JSON nor valid YAML: "),
        ("- \ud800", "the answer is neither JSON nor valid YAML: "),
        ("- []\n---\n- []", "the answer is neither JSON nor valid YAML: "),
        ("&a [*a]", "the answer is neither JSON nor valid YAML: "),
        ("- *nowhere", "the answer is neither JSON nor valid YAML: "),
        ('["10.0.0.5:8000"]', "group 1 is a string, not a mapping"),
        ('[{"targets": []}, 7]', "group 2 is a number, not a mapping"),
        ('[{"target": ["10.0.0.5:8000"]}]', "group 1 has no list 'targets'"),
        ('[{"targets": "10.0.0.5:8000"}]', "group 1 has no list 'targets'"),
        ('[{"targets": [], "labels": [1]}]', "the labels of group 1 are a list"),
        ("- targets: []\n  labels: {<<: {weight: 5}}", "group 1 has a merge key"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_groups_is_no_answer(text: str, words: str):
    assert no_answer(text).startswith(words)


def test_an_error_in_yaml_names_the_line():
    assert "in line 3" in no_answer("- targets:\n  - a\n b: [")


def test_a_small_text_cannot_become_a_large_answer():
    doubled = [
        f"- &a{number} {{targets: [*a{number - 1}, *a{number - 1}]}}" for number in range(1, 200)
    ]
    answer = parse_targets("\n".join(["- &a0 {targets: ['10.0.0.1:1']}", *doubled]), WHERE)
    assert answer.targets == (target("10.0.0.1", 1),)
    assert answer.refused == (Refused("a mapping", "it is not a string such as 10.0.0.5:8000"),)


def test_too_many_targets_are_no_answer():
    addresses = [f"10.0.{number >> 8}.{number & 255}" for number in range(MOST_TARGETS + 1)]
    assert len(parse([group(*addresses[1:])]).targets) == MOST_TARGETS
    assert no_answer(json.dumps([group(*addresses)])) == "the answer has more than 20000 targets"
    assert len(parse([group(*addresses, model="a"), group("10.9.0.1")], ("model", "")).targets) == 1


def test_a_text_of_more_than_8_mib_is_no_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(groups, "MOST_BYTES", 1 << 20)
    text = "[]".ljust(1 << 20)
    assert parse_targets(text, WHERE) == Answer(())
    assert no_answer(f"{text} ") == "the answer is longer than 1 MiB"
    assert no_answer("é" * ((1 << 19) + 1)) == "the answer is longer than 1 MiB"


# -- whatever a source sends

_ADDRESSES = st.sampled_from(
    ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1", "10.0.0.2:1", "[2001:db8::1]:1", "127.0.0.1:1", "x"]
)
_LABELS = st.fixed_dictionaries(
    {},
    optional={
        "weight": st.sampled_from(["1", 2, "heavy"]),
        "name": st.sampled_from(["a", "b", "C"]),
        "state": st.sampled_from(["drain", "active"]),
        "zone": st.sampled_from(["east", "west"]),
        "backup": st.booleans(),
    },
)
_GROUPS = st.lists(
    st.fixed_dictionaries({"targets": st.lists(_ADDRESSES, max_size=4), "labels": _LABELS}),
    max_size=5,
)


@given(_GROUPS, st.data())
def test_the_order_of_groups_and_targets_does_not_matter(
    data: list[dict[str, list[object]]], draw: st.DataObject
):
    shuffled = [
        {**entry, "targets": draw.draw(st.permutations(entry["targets"]))}
        for entry in draw.draw(st.permutations(data))
    ]
    assert parse(shuffled) == parse(data)


@given(_GROUPS)
def test_targets_are_sorted_and_unique_and_json_and_yaml_say_the_same(data: object):
    answer = parse(data)
    places = [
        (found.address.version, int(found.address), found.port or 0) for found in answer.targets
    ]
    assert places == sorted(set(places))
    names = [found.name for found in answer.targets if found.name]
    assert len(names) == len(set(names))
    assert parse_targets(f"# {WHERE}\n{yaml.safe_dump(data)}", WHERE) == answer


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | _ADDRESSES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["targets", "labels", "weight", "name"]), inner)
    ),
    max_leaves=20,
)


@given(
    st.text()
    | st.text(alphabet="[]{}-:,'\"\n &*!<|>#%@`?~0aé\ud800\x00")
    | st.builds(json.dumps, _JSON)
    | st.builds(yaml.safe_dump, _JSON)
)
def test_no_text_raises_anything_but_a_discovery_error(text: str):
    with contextlib.suppress(DiscoveryError):
        assert isinstance(parse_targets(text, WHERE, (("weight", "1"),)), Answer)


# -- DNS


def test_addresses_are_targets_with_one_port():
    answer = from_addresses(["192.0.2.2", "192.0.2.1", "127.0.0.1"], 8000, WHERE, 30)
    assert answer.targets == (target("192.0.2.1", 8000), target("192.0.2.2", 8000))
    assert [refused.what for refused in answer.refused] == ["127.0.0.1"]
    assert answer.valid_s == 30
    assert from_addresses(["2001:db8::1"], None, WHERE).targets == (target("2001:db8::1"),)


def srv(*records: tuple[int, int]) -> list[tuple[int, int]]:
    """The priorities and weights of targets with these SRV priorities and weights."""
    names = [f"gpu-{number}.test" for number in range(len(records))]
    answer = from_srv(
        [SrvRecord(*record, 8000, name) for record, name in zip(records, names, strict=True)],
        {name: [f"192.0.2.{number}"] for number, name in enumerate(names, 1)},
        4,
        WHERE,
    )
    assert answer.refused == ()
    return [(found.priority, found.weight) for found in answer.targets]


def test_srv_priorities_become_ours_in_their_order():
    assert srv((20, 1), (10, 1), (500, 1), (10, 1)) == [(1, 1), (0, 1), (2, 1), (0, 1)]
    many = [(10 * number, 1) for number in range(10)]
    assert [priority for priority, _ in srv(*many)] == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((60, 40), (60, 40)),
        ((1000, 1), (1000, 1)),
        ((65535, 32768, 1, 0), (1000, 500, 1, 1)),
        ((0, 0), (100, 100)),
        ((0, 5), (1, 5)),
        ((0,), (100,)),
    ],
)
def test_srv_weights_become_ours(weights: tuple[int, ...], expected: tuple[int, ...]):
    found = srv(*[(10, weight) for weight in weights])
    assert tuple(weight for _, weight in found) == expected


def test_srv_weights_compare_within_one_priority():
    assert srv((1, 65535), (1, 655), (2, 50), (3, 0)) == [(0, 1000), (0, 9), (1, 50), (2, 100)]


def test_the_target_dot_means_that_there_is_no_service():
    assert from_srv([SrvRecord(0, 0, 0, ".")], {}, 4, WHERE, 60) == Answer((), (), 60)


def test_srv_targets_that_cannot_be_used_are_refused_and_the_others_stay():
    records = [
        SrvRecord(1, 1, 8000, "good.test"),
        SrvRecord(1, 1, 0, "portless.test"),
        SrvRecord(1, 1, 8000, "nowhere.test"),
        SrvRecord(1, 1, 8000, "local.test"),
        SrvRecord(2, 1, 8000, "good.test"),
    ]
    addresses = {
        "good.test": ["2001:db8::1", "2001:db8::2"],
        "portless.test": ["2001:db8::3"],
        "local.test": ["::1"],
    }
    answer = from_srv(records, addresses, 6, WHERE)
    assert answer.targets == (
        target("2001:db8::1", 8000, weight=1),
        target("2001:db8::2", 8000, weight=1),
    )
    assert answer.refused == (
        Refused("[2001:db8::1]:8000", "it is listed twice, with different settings"),
        Refused("[2001:db8::2]:8000", "it is listed twice, with different settings"),
        Refused(
            "local.test (::1)", "::1 is a loopback address, not the unicast address of one host"
        ),
        Refused("nowhere.test", "the name has no AAAA records"),
        Refused("portless.test (2001:db8::3)", "port 0 is not from 1 to 65535"),
    )


def test_too_many_addresses_of_srv_targets_are_no_answer():
    addresses = [f"10.0.{number >> 8}.{number & 255}" for number in range(1001)]
    records = [SrvRecord(1, 1, port, "pool.test") for port in range(1, 21)]
    with pytest.raises(DiscoveryError, match="more than 20000 targets"):
        from_srv(records, {"pool.test": addresses}, 4, WHERE)
