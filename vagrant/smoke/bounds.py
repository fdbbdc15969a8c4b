"""Decides when the smoke test gives up, and how hard it presses: all its times are here.

No row passes or fails by how long something took; these bounds only end a wait for something that
does not come. Machines emulated in software are ten to thirty times slower than real ones, and six
of them share the host, so each bound is many times what was ever seen there.
"""

from __future__ import annotations

from dataclasses import dataclass

# What the host does.
BOX_S = 3600.0  # packages are fetched and unpacked
UP_S = 5400.0  # all machines boot and are provisioned
DOWN_S = 900.0
VAGRANT_S = 300.0  # any other command of vagrant's
POWER_S = 120.0
LEAVE_S = 60.0  # a command that was asked to leave cleans up

# What machines do.
CONNECT_S = 20  # one attempt of ssh
COMMAND_S = 300.0
SETUP_S = 1800.0  # deploy/setup.sh builds and installs a wheel
RESTART_S = 900.0  # the agent compiles its program
BOOT_S = 1200.0
SETTLE_S = 1200.0  # checks, election and flow sync after anything that befell them
TELL_S = 30.0  # a wait that is longer says so, with what is still lacking
POLL_S = 2.0  # between two questions; each costs the one that is asked some processor time

# What the client does. The timeout is longer than TCP needs to try four times (1, 3 and 7 s), so
# a request that fails is lost, not late.
REQUEST_TIMEOUT_S = 15.0
WARM_S = 300.0  # until the load runs
ENOUGH_S = 300.0  # until so many requests were answered
# So many that outages do not stop the count: each may wait for its timeout.
WORKERS_PER_RATE = 16
REQUESTS_A_MODE = 60
AFTERWARDS = 60  # requests that are watched after everything is settled again


@dataclass(frozen=True, slots=True)
class Pace:
    """How much load the client makes: what the machines do with ease, whatever befalls them."""

    rate_per_s: float  # new connections, one request each
    keep_alive: int  # connections held open
    every_s: float  # between the requests on each of those


EMULATED = Pace(rate_per_s=8.0, keep_alive=16, every_s=2.0)
REAL = Pace(rate_per_s=80.0, keep_alive=16, every_s=0.5)
