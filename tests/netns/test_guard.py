"""The guard's rules as nftables and the kernel take them."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from agent.model import ANY_PORT, Forward, Protocol
from agent.state.guard import removal
from tests.unit.state.test_guard import OWN_PORT, decided, rules, service

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


def test_the_kernel_takes_every_kind_of_rule_twice_and_gives_it_up():
    commands = rules(
        service("10.0.0.1", 80, forward=Forward.FULLNAT),
        service("10.0.0.1", ANY_PORT, Protocol.UDP, Forward.FULLNAT),
        service("fd00::1", 443, backends=(OWN_PORT,), forward=Forward.FULLNAT),
        service("fd00:1::", 80, vip_bits=64),
        service("10.0.0.2", 8000, port_last=8010),
    )
    done = _in_a_namespace([commands, commands], "nft list table inet t")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("goto unheard") == len(decided(commands))
    assert _in_a_namespace([commands, removal("t")], "nft list table inet t").returncode == 1


def _in_a_namespace(batches, last):
    given = "\n".join(json.dumps({"nftables": batch}) for batch in batches) + "\n"
    script = f'while read -r batch; do nft -j -f - <<<"$batch" || exit 9; done; {last}'
    command = ["unshare", "--net", "bash", "-c", script]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)
