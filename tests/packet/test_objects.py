"""A program that was compiled before is loaded without the compiler, and is the same program."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from agent.dataplane import btf, helpers, libbpf, objects, pins
from agent.dataplane.compile import Compiled
from agent.dataplane.program import Dataplane
from agent.errors import DataplaneError
from agent.model import Config, Forward, Hook
from tests.packet import harness
from tests.packet.frames import tcp
from tests.packet.harness import Rig, backend, service


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is kept yet."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    return tmp_path / "programs"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is kept of a small program, once compiled."""
    home = tmp_path_factory.mktemp("small")
    name = harness.instance_name("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIRECTORY", str(home))
        harness.close(start(name))
    pins.remove(pins.pins_of(name))
    (file,) = (home / "programs").iterdir()
    return file


@pytest.fixture
def kept(folder: Path, small: Path) -> Path:
    """The same in this test's folder; it is compiled only if that is not taken."""
    folder.mkdir(mode=0o700)
    return Path(shutil.copy(small, folder))


def start(instance: str, hook: Hook = Hook.AUTO) -> Dataplane:
    """A small program: what is kept of it is kept as of the largest."""
    config = Config(instance, "lo", hook=hook, tables=harness.SMALL)
    return harness.load(config, (service(backend("a")),))


def start_middling(instance: str, hook: Hook) -> Dataplane:
    """With tables that are pinned, and some that are not."""
    config = Config(instance, "lo", hook=hook, tables=harness.SMALL)
    return harness.load(config, (service(backend("a"), forward=Forward.FULLNAT),))


def start_largest(instance: str, hook: Hook) -> Dataplane:
    config = Config(instance, "lo", hook=hook, tables=harness.SMALL)
    return harness.load(config, harness.all_features())


def told(program: Compiled) -> tuple[object, ...]:
    """What the kernel says of a program, but for its number and that of its types."""
    return (
        replace(program.info, id=0, btf_id=0),
        libbpf.btf_data(program.info.btf_id),
        [info(fd) for fd in program.tables.values()],
    )


def info(fd: int) -> libbpf.MapInfo:
    return libbpf.map_info(fd)


@pytest.mark.parametrize(
    ("begin", "hook"),
    [
        (start, Hook.AUTO),
        pytest.param(start_middling, Hook.AUTO, marks=pytest.mark.soak),
        pytest.param(start_largest, Hook.AUTO, marks=pytest.mark.soak),
        pytest.param(start_largest, Hook.TC, marks=pytest.mark.soak),
    ],
)
def test_it_is_the_program_that_the_compiler_made(
    instance: str,
    begin: Callable[[str, Hook], Dataplane],
    hook: Hook,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The tag is a hash of all instructions, the secrets in them included. And the same is kept
    whatever the secrets are, or the compiler made something of them that is not found in its code.
    """
    dataplane = begin(instance, hook)
    first = dataplane.program
    assert first.code
    (file,) = folder.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(objects, "compile_program", refused)
        second = begin(instance, hook)
    again = second.program
    assert not again.code
    assert told(again)[:2] == told(first)[:2]
    pinned = {table.name: table for table in map(info, first.tables.values())}
    for name, fd in again.tables.items():
        assert replace(info(fd), id=0) == replace(pinned[name], id=0)
        lasting = pins.pins_of(instance).table(name).exists()
        assert (info(fd).id == pinned[name].id) is lasting, name

    keys, one = dataplane.keys, objects.unpacked(file.read_bytes())
    file.unlink()
    harness.close_all(instance)
    pins.remove(dataplane.pins)
    anew = begin(instance, hook)
    assert anew.program.code
    assert anew.keys != keys
    other = objects.unpacked(file.read_bytes())
    assert replace(one, btf=b"") == replace(other, btf=b"")
    assert btf.parse(one.btf).structs == btf.parse(other.btf).structs
    for value in (keys.key, keys.mul0, keys.mul1):
        assert f"{value:x}".encode() not in one.btf, "nor is it in a line of the source"


def refused(*_: object) -> Compiled:
    raise DataplaneError("nothing is compiled here")


@pytest.mark.usefixtures("kept")
def test_another_instance_shares_it_and_has_tables_of_its_own(
    instance: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(objects, "compile_program", refused)
    harness.close(start(instance))
    name = harness.instance_name("twin")
    try:
        rig = Rig(start(name))
        rig.serve(service(backend("a"), backend("b")))
        sent = {port: rig.backend_of(tcp("S", client_port=port)) for port in range(1000, 1050)}
        assert set(sent.values()) == {"a", "b"}
        assert (rig.tables.flows != 0).sum() == 50
        assert {port: rig.backend_of(tcp("A", client_port=port)) for port in sent} == sent
    finally:
        harness.close_all(name)
        pins.remove(pins.pins_of(name))


def test_what_the_kernel_refuses_is_compiled_anew(
    instance: str, kept: Path, capsys: pytest.CaptureFixture[str]
):
    whole = objects.unpacked(kept.read_bytes())
    kept.write_bytes(objects.packed(replace(whole, instructions=whole.instructions[:-8])))
    assert start(instance).program.code
    assert "compiling it" in capsys.readouterr().out
    assert replace(objects.unpacked(kept.read_bytes()), btf=b"") == replace(whole, btf=b"")


@pytest.mark.soak
def test_it_is_compiled_in_a_thread_as_well(instance: str):
    """As the agent does: there, what BCC allocates has addresses of more than 32 bits."""
    with ThreadPoolExecutor(1) as pool:
        program = pool.submit(start, instance).result().program
    assert program.code
    assert program.tables.keys() >= {"flows", "events"}


def test_agents_that_start_together_compile_it_once(instance: str):
    names = [instance, harness.instance_name("twin")]
    try:
        with ThreadPoolExecutor(2) as pool:
            both = [dataplane.program for dataplane in pool.map(start, names)]
        assert sorted(bool(program.code) for program in both) == [False, True]
    finally:
        pins.remove(pins.pins_of(names[1]))


def test_decap_is_kept_too():
    first = helpers.load_decap((), 6080)
    again = helpers.load_decap((), 6080)
    assert (bool(first.code), bool(again.code)) == (True, False)
    assert again.info.tag == first.info.tag
    assert helpers.load_decap((), 6081).code, "another port is another program"


@pytest.mark.usefixtures("kept")
def test_what_is_kept_runs_without_the_compiler_in_memory(instance: str):
    text = f"""
import sys
from tests.packet.test_objects import start
print(start("{instance}").program.info.name, "bcc" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["balancer", "False"]
