"""The commands of the documentation work as they are printed, page after page, in a lab.

Each run has namespaces of its own for the network, mounts and processes, and what it writes below
/etc, /run and /var is gone afterwards. Output is compared where a page shows it,
with every number standing for any number; a mark with a reason, ``<!-- run: REASON -->``, says why
a block's is not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, Shown, every_block, shown

pytestmark = pytest.mark.kernel

# Pages whose commands follow each other in one lab, in `make test`, and those that make labs
# themselves, which takes too long for it.
TOGETHER = ("docs/guard.md", "docs/discovery.md", "docs/scaling.md")
LONGER = tuple(  # likewise, in the soak
    f"docs/{name}.md" for name in ("install", "migrate", "change", "observe")
)
ALONE = ("docs/lab.md", "docs/tutorial.md")
PRIVATE = """\
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock
for folder in etc var; do
	mkdir /run/$folder /run/$folder-work
	mount -t overlay -o lowerdir=/$folder,upperdir=/run/$folder,workdir=/run/$folder-work \\
		overlay /$folder
done
mkdir -p /var/lib/steelyard
mount -t tmpfs tmpfs /var/lib/steelyard
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
mkdir -p /etc/steelyard /etc/keepalived /etc/haproxy
sudo() { "$@"; }
"""
# A lab whose backends are called as on the pages, gpu-1 and so on.
LAB = """\
lbctl lab up --engines h100,a100 --backends 4 --forward fullnat
export STEELYARD_SOCKET=/run/steelyard/lab/lb1.sock
sed -i 's/name: be\\([0-9]\\)/name: gpu-\\1/' /run/steelyard/lab/lb1.yaml
lbctl reload --yes
"""
# What lbctl says on a busy host, before the answer.
PATIENCE = "the agent is still working"
FILES = {
    "/etc/steelyard/gpu.yaml": """\
- targets: ["10.1.0.21:8000", "gpu-9.example.org:8000"]
  labels: {model: llama}
- targets: ["10.1.0.22:8000"]
  labels: {model: llama, zone: east, weight: "50", state: drain}
- targets: ["10.1.0.23:8000"]
  labels: {model: another}
""",
    "/etc/keepalived/keepalived.conf": """\
vrrp_instance VI_1 {
    interface eth0
    virtual_router_id 51
    virtual_ipaddress { 192.0.2.10 }
}
virtual_server 192.0.2.10 80 {
    lb_algo wlc
    lb_kind DR
    real_server 192.0.2.21 80 { weight 1 }
}
""",
    "/etc/haproxy/haproxy.cfg": (ROOT / "tests/cli/haproxy/engines.cfg").read_text(),
}


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a page that is run, and what came of it."""

    block: Block
    shown: Shown

    @property
    def place(self) -> str:
        return f"{self.block.place.rpartition(':')[0]}:{self.shown.line}"


def steps(pages: Sequence[str]) -> list[Step]:
    found = [block for block in every_block() if block.mark == "run"]
    ordered = [block for page in pages for block in found if block.page == ROOT / page]
    return [
        Step(block, each) for block in ordered for each in shown(block) if _does_something(each)
    ]


def _does_something(each: Shown) -> bool:
    return bool(each.text.strip()) and not each.text.startswith("#")


def script(todo: Sequence[Step], before: str) -> Iterator[str]:
    """Yield the lines of a script that runs the steps one after the other in one shell."""
    yield f"set -e\n{PRIVATE}"
    for path, text in FILES.items():
        yield f"cat >{path} <<'END OF FILE'\n{text}END OF FILE\n"
    yield f"{before}set +e\n"
    for number, step in enumerate(todo):
        yield f"{{ {step.shown.text}\n}} >$OUT/{number}.out 2>&1; echo $? >$OUT/{number}.rc\n"


def run(pages: Sequence[str], before: str, folder: Path) -> list[Step]:
    """Run the blocks of some pages; fail with what a command said if one fails."""
    todo = steps(pages)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
         "--propagation", "private", "bash", "-c", "".join(script(todo, before))],
        cwd=work, capture_output=True, text=True, timeout=580, check=False,
        env=os.environ | {"PATH": path, "OUT": str(folder), "COLUMNS": "200"},
    )  # fmt: skip
    last = folder / f"{len(todo) - 1}.rc"
    assert last.exists(), f"the lab did not come up, or a command ended the shell: {done.stderr}"
    for number, step in enumerate(todo):
        said = (folder / f"{number}.out").read_text()
        code = (folder / f"{number}.rc").read_text().strip()
        assert code == "0", f"{step.place}: {step.shown.text}: exit status {code}\n{said}"
        if step.block.info == "console" and not step.block.reason and step.shown.output:
            lines = [line for line in said.splitlines() if not line.startswith(PATIENCE)]
            missing = difference(step.shown.output, lines)
            assert not missing, f"{step.place}: {step.shown.text}: {missing}\nit says:\n{said}"
    return todo


def difference(expected: Sequence[str], actual: Sequence[str]) -> str:
    """Return how an output differs from what a page shows, or an empty text.

    A line ``…`` stands for any lines, a word ``…`` for the rest of its line.
    """
    left = [line.split() for line in actual if line.strip()]
    skipping = False
    for line in expected:
        words = line.split()
        if words == ["…"]:
            skipping = True
            continue
        if not words:
            continue
        while skipping and left and not alike(words, left[0]):
            left.pop(0)
        if not left or not alike(words, left[0]):
            return f"there is no line like {line!r}"
        left.pop(0)
        skipping = False
    return "" if skipping or not left else f"the page does not show {' '.join(left[0])!r}"


def alike(expected: Sequence[str], actual: Sequence[str]) -> bool:
    if "…" in expected:
        cut = list(expected).index("…")
        expected, actual = expected[:cut], actual[:cut]
    if len(expected) != len(actual):
        return False
    return all(a == b or number(a) == number(b) for a, b in zip(expected, actual, strict=True))


def number(word: str) -> str:
    """Return a word with a mark for each number in it, with its unit, and for a missing one."""
    plain = re.sub(r"[0-9][0-9.,:]*(ms|µs|[smhdkMG](?![a-z]))?", "#", word)
    return "#" if plain == "-" or not plain.strip("#T-Z") else plain


@pytest.mark.parametrize(
    ("expected", "actual", "differs"),
    [
        (["a 12ms b"], ["a  3.5s  b"], False),
        (["9m58s up"], ["59m7s up"], False),
        (["a", "…", "c"], ["a", "b", "b", "c"], False),
        (["a …"], ["a b c"], False),
        (["a", "…"], ["a", "b"], False),
        (["a"], ["a", "b"], True),
        (["a 1"], ["b 1"], True),
        (["a", "c"], ["a", "b", "c"], True),
        (["10.0.0.1 up"], ["10.0.0.1 down"], True),
    ],
)
def test_outputs_are_compared(expected: list[str], actual: list[str], differs: bool) -> None:
    assert bool(difference(expected, actual)) == differs


def test_every_page_with_commands_to_run_is_run() -> None:
    pages = {str(b.page.relative_to(ROOT)) for b in every_block() if b.mark == "run"}
    assert pages == {*TOGETHER, *LONGER, *ALONE}


@pytest.mark.parametrize("pages", [TOGETHER, pytest.param(LONGER, marks=pytest.mark.soak)])
def test_the_commands_of_the_pages_work(pages: Sequence[str], tmp_path: Path) -> None:
    assert len(run(pages, LAB, tmp_path)) > 5


@pytest.mark.soak
@pytest.mark.parametrize("page", ALONE)
def test_the_commands_of_a_page_that_makes_labs_work(page: str, tmp_path: Path) -> None:
    assert run([page], "", tmp_path)
