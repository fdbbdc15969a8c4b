"""Checks a tier before it runs: its file, certificates and keys, and what HAProxy says to them."""

from __future__ import annotations

import asyncio
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from agent.errors import ConfigError
from agent.tier import certificates, haproxy, keys, render
from agent.tier.haproxy import Files
from agent.tier.settings import load, proxies_of


async def check_all(path: Path) -> list[str]:
    """Return lines that say what was found. Raises ConfigError for what would not be served."""
    tier = load(path)
    found = certificates.read(tier.certificates, time.time())
    known = keys.read(tier.keys) if tier.keys else None
    proxies = proxies_of(tier.behind) if tier.behind else None
    lines = [f"{problem}" for problem in found.problems]
    names = [each.name for each in found.certificates]
    if not names or (tier.default_certificate or names[0]) not in names:
        raise ConfigError(
            "; ".join(found.problems) or f"no certificate {tier.default_certificate or ''}".strip(),
            where=str(tier.certificates), remedy="put the certificate and its key there",
        )  # fmt: skip
    for each in found.certificates:
        end = datetime.fromtimestamp(each.end_s, UTC)
        lines.append(f"certificate {each.name}: until {end:%Y-%m-%d}")
    if tier.affinity and (problem := haproxy.sources_problem(tier.affinity.sources)):
        lines.append(problem)
    if known is not None:
        lines.append(f"keys: {len(known)}")
    if proxies is not None:
        lines.append(f"prefixes of proxies: {len(proxies)}")
    with tempfile.TemporaryDirectory(prefix="steelyard-tier-") as folder:
        files = Files(Path(folder))
        await asyncio.to_thread(files.make)
        for one in found.certificates:
            files.of_certificate(one.name).write_bytes(one.pem)
        for name, entries in render.maps(known, proxies).items():
            files.of_map(name).write_text(render.map_text(entries))
        await haproxy.check(files, render.rendered(tier, files.folder))
    lines.append(f"{path}: ok")
    return lines
