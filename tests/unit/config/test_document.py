"""Reading YAML: plain data, lines, and what YAML would turn into a surprise."""

from __future__ import annotations

import pytest

from agent.config.document import read_yaml
from agent.errors import ConfigError


def test_every_key_and_item_knows_its_line() -> None:
    document = read_yaml("a: 1\nb:\n  - x\n  - y: 2\n    z: 3\n", "f.yaml")
    assert document.data == {"a": 1, "b": ["x", {"y": 2, "z": 3}]}
    assert document.place(("b", 1, "z")) == ("f.yaml:5", "b[1].z")


def test_what_is_not_there_is_placed_at_the_nearest_thing_around_it() -> None:
    document = read_yaml("a: 1\nb:\n  - x: 1\n", "f.yaml")
    assert document.place(("b", 0, "missing")) == ("f.yaml:3", "b[0].missing")


@pytest.mark.parametrize("text", ["off", "on", "yes", "1:30", "1:2:3:4:5:6:7:8", "2024-01-01"])
def test_words_that_yaml_1_1_converts_stay_text(text: str) -> None:
    assert read_yaml(f"key: {text}", "f.yaml").data == {"key": text}


def test_duplicate_keys_are_problems_with_both_lines() -> None:
    document = read_yaml("a: 1\nb: 2\na: 3\n", "f.yaml")
    (problem,) = document.problems
    assert problem.message == "given twice, first on line 1"
    assert document.place(problem.path)[0] == "f.yaml:3"


def test_merge_keys_and_anchors_work() -> None:
    text = "base: &base {x: 1, y: 2}\nuse:\n  <<: *base\n  y: 3\n"
    document = read_yaml(text, "f.yaml")
    assert document.data == {"base": {"x": 1, "y": 2}, "use": {"x": 1, "y": 3}}
    assert document.problems == []


def test_what_is_merged_gives_way_to_a_mappings_own_keys_wherever_they_stand() -> None:
    text = "a: &a {x: 1, y: 1, z: 1}\nb: &b {y: 2}\nuse:\n  x: 3\n  <<: [*b, *a]\n"
    document = read_yaml(text, "f.yaml")
    assert document.data["use"] == {"x": 3, "y": 2, "z": 1}
    assert [document.place(("use", key))[0] for key in "xyz"] == [
        "f.yaml:4",
        "f.yaml:2",
        "f.yaml:1",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &x 1\nb: &x 2\n", 2),
        ("? [*nowhere]\n: 1\n", 1),
        ("<<: 1\n", 1),
        ("a: &a []\n<<: [*a]\n", 1),
        ("a: [1, 2\nb: 3\n", 2),
        ("a:\n\t- x\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
        ("a: 'x\n", 2),
        ("a: *nowhere\n", 1),
    ],
)
def test_broken_yaml_is_refused_with_its_line_and_a_remedy(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "f.yaml")
    assert caught.value.where == f"f.yaml:{line}"
    assert caught.value.remedy


def test_tabs_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml("a:\n\tb: 1\n", "f.yaml")
    assert "tabs" in caught.value.remedy


CHAIN = "m0: &m0 {x: 1}\n" + "".join(f"m{n}: &m{n} {{<<: *m{n - 1}}}\n" for n in range(1, 2000))
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(8)
)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\n",
        "a: &a {<<: *a}\n",
        CHAIN,
        "[" * 400 + "]" * 400,
        "[" * 100_000,
        BOMB,
        "a: \x07\n",
        "a: [",
    ],
)
def test_hostile_yaml_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "f.yaml")
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text",
    [
        "? [a, b]\n: c\n? {x: y}\n: d\n",
        "a: !!python/object/apply:os.system [ls]\n",
        "a: !mine x\n",
        "a: &x !!binary aGk=\n",
        "a: !!set {x}\n",
    ],
)
def test_keys_that_are_no_words_and_tags_are_problems(text: str) -> None:
    assert read_yaml(text, "f.yaml").problems


@pytest.mark.parametrize("text", ["a: !!int x\n", "a: !!float []\n", "a: !!bool [x]\n"])
def test_a_tag_that_does_not_fit_its_value_does_no_harm(text: str) -> None:
    assert isinstance(read_yaml(text, "f.yaml").data, dict)


def test_a_number_of_thousands_of_digits_is_left_as_text() -> None:
    assert read_yaml("a: " + "9" * 5000, "f.yaml").data == {"a": "9" * 5000}
