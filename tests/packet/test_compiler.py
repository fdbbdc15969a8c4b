"""The real compiler, in its own process: the agent's loads nothing of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LOADS = """
from pathlib import Path
from agent.dataplane.helpers import load_decap
from ipaddress import ip_address
one = load_decap((ip_address("10.0.0.10"),), 6080)
files = {word for word in Path("/proc/self/maps").read_text().split() if word.startswith("/")}
print(one.origin.value, one.info.name, *(file for file in files if "LLVM" in file or "bcc" in file))
one.close()
print(*sorted(Path("/proc/self/fd").iterdir()))
"""


def test_the_agent_has_the_program_and_none_of_the_compilers_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With BCC in the agent's process, the agent kept 100 MB that it no longer used."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    for origin in ("compiled", "kept"):
        command = [sys.executable, "-P", "-c", LOADS]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        said, left = ran.stdout.splitlines()
        assert said == f"{origin} decap"
        assert len(left.split()) == 4, left  # 0, 1, 2 and the folder that is listed
