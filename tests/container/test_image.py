"""The container image: the agent balances from it with no more rights than the documentation says.

`make test-image` builds the image and runs this with podman, in namespaces of its own for the
network, mounts and processes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/container.md"
pytestmark = pytest.mark.image

# A client, a balancer and a server on a bridge. Containers share a network with `lb`, as with a
# host.
NETWORK = """\
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/steelyard
# What is written there is gone afterwards.
for folder in etc var; do
	mkdir /run/$folder /run/$folder-work
	mount -t overlay -o lowerdir=/$folder,upperdir=/run/$folder,workdir=/run/$folder-work \\
		overlay /$folder
done
for folder in /etc/steelyard /var/lib/steelyard /var/cache/steelyard /dev/shm; do
	mkdir -p $folder
	mount -t tmpfs tmpfs $folder
done
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
for name in switch client lb server; do ip netns add $name; ip -n $name link set lo up; done
ip -n switch link add br0 type bridge
ip -n switch link set br0 up
number=0
for name in client lb server; do
	number=$((number + 1))
	ip -n switch link add $name type veth peer name eth0 netns $name
	ip -n switch link set $name master br0 up
	ip -n $name link set eth0 up
	ip -n $name address add 192.0.2.$number/24 dev eth0
done
ip netns exec server sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
ip -n server address add 192.0.2.101/32 dev lo
mkdir /run/www
echo served >/run/www/index.html
ip netns exec server python3 -m http.server --directory /run/www 80 >/dev/null 2>&1 &
cat >/etc/steelyard/agent.yaml <<END
interface: eth0
services:
  - {name: full, vip: 192.0.2.100, port: 80, forward: fullnat,
     health: {type: http}, backends: [{name: one, address: 192.0.2.3}]}
  - {name: direct, vip: 192.0.2.101, port: 80, forward: dsr,
     health: {type: http}, backends: [{name: one, address: 192.0.2.3}]}
END
# As on a host, but in the network of `lb`, without control groups, and with its own storage.
podman() {
	local verb=$1
	shift
	case $verb in
	run) set -- --cgroups=disabled --pull=never "$@" ;;
	esac
	nsenter --net=/run/netns/lb /usr/bin/env podman --storage-driver vfs --root $STORE \\
		--runroot /run/podman $verb "$@"
}
sudo() { "$@"; }
healthy() {
	for attempt in $(seq 90); do
		podman exec steelyard healthy >/dev/null 2>&1 && return
		sleep 1
	done
	podman logs steelyard
	return 1
}
both() { ip netns exec client curl -sf --max-time 5 http://192.0.2.100/ http://192.0.2.101/; }
podman rm --force --all >/dev/null
[ -n "$(podman images --quiet)" ] || podman load --quiet --input $IMAGE
"""
LIFE = """\
RUN
healthy
podman healthcheck run steelyard
echo first: $(both)
podman exec steelyard lbctl backend list
podman stop --time 10 steelyard >/dev/null
echo without: $(both)
podman start steelyard >/dev/null
healthy
echo again: $(both)
podman logs steelyard 2>&1 | grep -E '"level": "(warning|error)"' || echo calm
echo rights: $(grep CapEff /proc/$(podman inspect -f '{{.State.Pid}}' steelyard)/status)
END
ip netns exec client curl -sf --max-time 3 http://192.0.2.100/ || echo gone
"""


def documented() -> tuple[str, str]:
    """Return the commands with which the page runs the agent, and removes it."""
    running = re.search(r"```sh\n(sudo podman run --detach .*?)\n```", PAGE.read_text(), re.DOTALL)
    ending = re.search(r"```sh\n(sudo podman rm .*?)\n```", PAGE.read_text(), re.DOTALL)
    assert running
    assert ending
    return running[1], ending[1]


@pytest.fixture(scope="module")
def image() -> Path:
    found = sorted((ROOT / "dist").glob("steelyard_*.image.tar"))
    assert found, "make image"
    return found[-1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where podman has the image: a gigabyte, which is not kept."""
    folder = tmp_path_factory.mktemp("podman")
    yield folder
    shutil.rmtree(folder)


def live(script: str, image: Path, store: Path) -> str:
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
         "--propagation", "private", "bash", "-c", NETWORK + script],
        env=os.environ | {"IMAGE": str(image), "STORE": str(store)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_agent_balances_from_a_container_as_the_page_runs_it(image: Path, store: Path) -> None:
    running, ending = documented()
    said = live(LIFE.replace("RUN", running).replace("END", ending), image, store)
    lines = said.splitlines()
    # Packets reach servers while it runs, after it has ended, and after it has come back.
    for when in ("first", "without", "again"):
        assert f"{when}: served served" in lines, said
    assert "calm" in lines, said
    # NET_ADMIN, NET_RAW and SYS_ADMIN, nothing else.
    assert "rights: CapEff: 0000000000203000" in lines, said
    assert lines[-1] == "gone", said


@pytest.mark.parametrize(
    ("missing", "says"),
    [("NET_ADMIN", "no hook takes the program"), ("SYS_ADMIN", "Operation not permitted")],
)
def test_a_right_that_the_page_names_is_needed(
    image: Path, store: Path, missing: str, says: str
) -> None:
    running, _ = documented()
    command = running.replace(f"--cap-add {missing} ", "")
    assert command != running
    # The first start is enough to miss NET_ADMIN, the second one to miss SYS_ADMIN.
    script = f"""{command}
for attempt in $(seq 60); do
	podman exec steelyard healthy && podman restart --time 5 steelyard
	podman logs steelyard 2>&1 | grep '{says}' && exit 0
	sleep 1
done
podman logs steelyard 2>&1
"""
    assert says in live(script, image, store)
