"""Makes docs/tier-reference.md from the tier's settings."""

from __future__ import annotations

from pathlib import Path

from agent.config.reference import section_lines
from agent.tier.settings import (
    Affinity,
    Behind,
    ClientCertificates,
    Limits,
    Plain,
    Queue,
    Route,
    Tier,
)

_ROOT = Path(__file__).resolve().parents[2]
TARGET = _ROOT / "docs" / "tier-reference.md"

_INTRODUCTION = """\
# The tier's file

<!-- Made from agent/tier/settings.py by `make docs`; do not edit. -->

`lb-agent tier` reads one YAML file, `/etc/steelyard/tier.yaml` unless `--config` names another;
[the tier](tier.md) says what it is for. `lbctl tier reload` (or SIGHUP) makes it read the file
again. All errors in it are reported at once, each with file, line and remedy, and then nothing
changes.
"""
_SECTIONS = (
    ("Top level", Tier),
    ("`limits`", Limits),
    ("`queue`", Queue),
    ("`routes[]`", Route),
    ("`affinity`", Affinity),
    ("`client_certificates`", ClientCertificates),
    ("`plain`", Plain),
    ("`behind`", Behind),
)


def files() -> dict[Path, str]:
    """Return the text of each file."""
    parts = ["\n".join(section_lines(title, section)) for title, section in _SECTIONS]
    return {TARGET: "\n".join([_INTRODUCTION, *parts])}
