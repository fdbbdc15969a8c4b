"""Roff: what is given is shown as it is, whatever it is made of."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from manual import roff


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("a well-known option --dry-run, or -y", r"a well-known option \-\-dry\-run, or \-y"),
        ("`--dry-run` and `load-aware`", r"\fB\-\-dry\-run\fR and \fBload\-aware\fR"),
        (r"C:\temp 'quoted' ~x ^y", r"C:\etemp \(aqquoted\(aq \(tix \(hay"),
        ("**required**, see [the guard](guard.md#a)", r"\fBrequired\fR, see the guard"),
        ("from\n  two lines", "from two lines"),
        ("[default: 10 - 2; [a|b]]", "[default: 10 - 2; [a|b]]"),
    ],
)
def test_text_is_escaped_and_its_markdown_known(text, made):
    assert roff.prose(text) == made


def test_a_line_is_never_a_request():
    assert roff.code([".TH", "'quoted", "x"])[3:6] == [r"\&.TH", r"\(aqquoted", "x"]
    long = "word " * 16 + ".so /etc/passwd"
    assert not [line for line in roff.paragraph(long)[1:] if line.startswith(".")]
    assert any(line.startswith(r"\&.so") for line in roff.paragraph(long))
    assert roff.item(".x", "")[1:] == [r"\&.x", r"\&"]


def test_quotes_do_not_end_an_argument():
    assert roff.subsection('say "x"') == r'.SS "say \(dqx\(dq"'
    assert roff.section("`a.b`") == '.SH "a.b"'
    assert roff.section("see also") == '.SH "SEE ALSO"'


MARKDOWN = """\
# Title

<!-- Generated. -->

Some text
in two lines.

- first
  goes on
- second

## `tables`

| key | value | default | |
|-|-|-|-|
| `hook` | `a` \\| `b` | `a` | Where. |
| `flows` | list | | What. |

```yaml
- not a list

# not a heading
```
"""


def test_the_markdown_of_our_references_is_understood():
    assert roff.from_markdown(MARKDOWN) == [
        *(".PP", "Some text in two lines."),
        *(r".IP \(bu 2", "first goes on", r".IP \(bu 2", "second"),
        '.SH "tables"',
        *(".TP", r"\fBhook\fR \fBa\fR | \fBb\fR [\fBa\fR]", "Where."),
        *(".TP", r"\fBflows\fR list", "What."),
        *(".PP", ".RS 4", ".EX", r"\- not a list", "", "# not a heading", ".EE", ".RE"),
    ]


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man-db")
def test_what_is_read_is_what_was_written():
    nasty = r"""\fBx .dot 'quote' --long-option ^~`"\e {}"""
    page = roff.page("x", 1, "2026-01-02", "0", roff.code([nasty, ".so x"]))
    shown = subprocess.run(
        ["man", "--warnings", "-l", "-"],
        input=page,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
    )
    lines = [line.strip() for line in shown.stdout.splitlines()]
    assert (nasty in lines, ".so x" in lines, shown.stderr) == (True, True, "")
