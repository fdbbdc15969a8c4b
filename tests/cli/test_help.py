"""What a user sees before anything runs: help, suggestions, the generated reference."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from lbctl import reference
from lbctl.main import COMMANDS, cli

OURS = [entry for entry in COMMANDS if entry.name != "lab"]
HEAVY = {"rich", "yaml", "pydantic", "aiohttp", "pyroute2", "numpy", "bcc"}


def leaves(ctx: click.Context, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield ctx.command_path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            if ctx.command_path == "lbctl" and name == "lab":
                continue  # has tests of its own
            child = command.get_command(ctx, name)
            assert child is not None
            yield from leaves(click.Context(child, info_name=name, parent=ctx), child)


EVERY = dict(leaves(click.Context(cli, info_name="lbctl"), cli))


@pytest.mark.parametrize("path", EVERY)
def test_every_help_shows_an_example(path, run):
    result = run(*path.split()[1:], "--help")
    assert result.code == 0
    assert "Example" in result.out
    assert path in result.out.split("Example", 1)[1].split("Options:")[0]


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
def test_short_help_in_the_table_is_the_command_s_own(entry):
    command = cli.get_command(click.Context(cli), entry.name)
    assert command is not None
    assert command.name == entry.name
    assert (command.help or "").split("\n")[0] == entry.help


def test_help_imports_no_command_and_nothing_heavy():
    probe = (
        "import sys\n"
        "from lbctl.main import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: pass\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    modules = done.stdout.split("MODULES", 1)[1].split()
    assert not HEAVY & {name.split(".")[0] for name in modules}
    assert not [name for name in modules if name.startswith(("lbctl.commands.", "lbctl.lab."))]


def test_mistyped_command_is_guessed(run):
    result = run("statsu")
    assert result.code == 2
    assert "did you mean status?" in result.err
    result = run("backend", "darin", "chat/gpu-1")
    assert result.code == 2
    assert "did you mean drain?" in result.err


def test_hopeless_command_lists_what_there_is(run):
    result = run("service", "frobnicate")
    assert result.code == 2
    assert "list, show, add, set, remove" in result.err


def test_unknown_option_is_a_usage_error(run):
    assert run("--frobnicate").code == 2
    assert run("status", "--frobnicate").code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_calls_lbctl(shell, run):
    result = run("completion", shell)
    assert result.code == 0
    assert "_LBCTL_COMPLETE" in result.out


def test_completion_knows_the_agents_backends(agent):
    environment = {
        "PYTHONPATH": ":".join(sys.path),
        "_LBCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": f"lbctl --socket {agent.socket} backend drain chat/gpu-",
        "COMP_CWORD": "5",
    }
    done = subprocess.run(
        [sys.executable, "-m", "lbctl.main"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line.partition(",")[2] for line in done.stdout.split()] == [
        "chat/gpu-1",
        "chat/gpu-2",
        "chat/gpu-3",
    ]


def test_completion_without_an_agent_is_silent(tmp_path):
    environment = {
        "PYTHONPATH": ":".join(sys.path),
        "_LBCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": f"lbctl --socket {tmp_path}/none backend drain ",
        "COMP_CWORD": "5",
    }
    done = subprocess.run(
        [sys.executable, "-m", "lbctl.main"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_reference_names_every_command():
    page = reference.page()
    for path in EVERY:
        assert f"{path}\n" in page
