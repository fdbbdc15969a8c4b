"""What is made from other files is up to date, is checked, and is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.api import pyclient, reference
from bench import quoted
from deploy import generated
from deploy.grafana import generate


def test_the_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert generated.main(["--check"]) == 0, capsys.readouterr().err


def test_no_file_has_two_makers() -> None:
    made = [path for maker in generated.MAKERS for path in maker()]
    assert len(made) == len(set(made))
    assert {"api.md", "openapi.json", "client.py", "cli.md", "README.md"} <= {p.name for p in made}


def test_what_differs_is_named_and_written_anew_and_what_is_left_over_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {tmp_path / "same": "1\n", tmp_path / "changed": "2\n", tmp_path / "missing": "3\n"}
    monkeypatch.setattr(generated, "MAKERS", (lambda: wanted, lambda: {tmp_path / "gone": None}))
    monkeypatch.chdir(tmp_path)
    for name, text in (("same", "1\n"), ("changed", "typed\n"), ("gone", "former\n")):
        (tmp_path / name).write_text(text)
    before = {path: path.read_text() for path in tmp_path.iterdir()}
    assert generated.main(["--check"]) == 1
    named = capsys.readouterr().err.splitlines()
    assert named[::2] == ["changed is outdated", "missing is outdated", "gone is left over"]
    assert set(named[1::2]) == {"  remedy: make docs"}
    assert {path: path.read_text() for path in tmp_path.iterdir()} == before
    assert generated.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "changed written", "missing written", "gone removed",
    ]  # fmt: skip
    assert {path: path.read_text() for path in tmp_path.iterdir()} == wanted
    assert generated.main(["--check"]) == 0


def test_each_file_of_a_maker_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the description of the API is changed and the client for Python is not."""
    for holder, name in ((reference, "PAGE"), (reference, "DOCUMENT"), (pyclient, "FILE")):
        with monkeypatch.context() as patched:
            patched.setattr(holder, name, tmp_path / "file")
            assert generated.differing(reference.files()).keys() == {tmp_path / "file"}


def test_a_dashboard_that_is_none_any_more_is_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    former = tmp_path / "former.json"
    former.write_text("{}")
    files = generate.files()
    assert files.pop(former) is None
    assert {path.name: text for path, text in files.items()} == generate.documents()


def test_figures_that_were_typed_do_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- figures: glance -->\n28 ns, typed\n<!-- end of figures -->\nb\n")
    monkeypatch.setattr(quoted, "PAGES", (page,))
    text = quoted.files()[page]
    assert "typed" not in text
    assert text.startswith("a\n<!-- figures: glance -->\n\n|")
    assert text.endswith("|\n\n<!-- end of figures -->\nb\n")
