"""Installs other routers from the package index, into environments below ``build/routers``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

_BUILD = Path(__file__).parents[2] / "build" / "routers"
VLLM, SGLANG = "vllm-router 0.1.17", "sglang-router 0.3.2"
_COMMANDS = {VLLM: ("vllm-router",), SGLANG: ("sglang-router", "launch")}


def command(router: str) -> Callable[[], Sequence[str]]:
    """Return a function that returns the router's command, and installs it if needed."""
    return partial(_command, router)


def _command(router: str) -> Sequence[str]:
    name, _, version = router.partition(" ")
    home = _BUILD / name
    program, *rest = _COMMANDS[router]
    if not (home / "bin" / program).exists():
        print(f"routers: installing {router} below {_BUILD}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(home / "bin/python"), "-m", "pip", "--quiet", "install"]
        subprocess.run([*pip, f"{name}=={version}"], check=True)
    return (str(home / "bin" / program), *rest)
