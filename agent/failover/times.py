"""Owns every time of failover, of a pair and of flow sync: what waits for what, and how long.

`_S` means seconds, `_INTERVALS` means intervals between adverts, and `_DOWNS` means master-down
times. A backup of priority P counts its master as gone after `MASTER_DOWN_INTERVALS` intervals plus
(256 - P)/256 of another one. tests/property/failover/test_times.py states what each time has to be
longer or shorter than. This module imports nothing, because the failover process and `lbctl` read
it too.
"""

# -- Adverts

MASTER_DOWN_INTERVALS = 3
"""A backup that hears no advert for this long, plus a skew that depends on its priority, takes over
(RFC 9568, section 6.1)."""

ALIVE_INTERVALS = 2
"""A master counts as alive if its last advert is younger than this."""

LOST_INTERVALS = 1.5
"""Flow sync shows that adverts are being lost only if it reports, at least this long after the last
advert, that the master is well. A master that died right after that advert cannot have sent
anything so late."""

VOUCH_S = 1.5
"""After flow sync reports that another node is master, and well, a backup does not take over for
this long."""

HANDED_OVER_DOWNS = 2
"""A master that hands over waits this long for a node that preempts before it announces that it
leaves. A claim stays valid for as long. One master-down time is for the other node to take over,
the second for packets that get lost."""

LEFT_INTERVALS = 2
"""After it has announced that it leaves, it sends no adverts for this long, so that a node that
does not preempt can take over."""

OVERTAKEN_INTERVALS = 0.5
"""A node that has taken over from a living master ignores the adverts of that master for this long,
because the last one may have been sent just before."""

FLOODED_INTERVALS = 20
"""While a flood hides whether its master is well, a backup postpones its takeover by at most this
much."""

EXPECTED_REST_S = 0.01
"""After a socket for adverts has brought many packets that are not adverts to this node, it is not
read for this long."""

OTHER_REST_S = 0.1
"""The same for a socket whose packets can only be mistakes."""

READ_PAUSE_INTERVALS = 0.05
"""Adverts that arrive in quick succession are read several at a time. This is the pause between two
reads, unless `LONGEST_READ_PAUSE_S` is shorter."""

LONGEST_READ_PAUSE_S = 0.005
"""The pause between two such reads is never longer than this."""

LEAST_TIMER_S = 0.0005
"""The timer of a virtual router is never set to expire sooner than this, so that no router keeps
the CPU to itself."""

COUNTERS_SAVED_S = 15.0
"""The failover process saves the last advert counter of each sender (`authentication`) this
often."""

OLDEST_COUNTER_S = 3600.0
"""A process that has just started refuses adverts whose counter says that they are older than
this."""

ANNOUNCE_ROW_S = 0.1
"""A master makes at most four announcements within this time, however many reasons there are."""

ANNOUNCE_GAP_S = 0.02
"""The gap between two frames that announce the same VIP, so that one mishap does not cost all of
them."""

# -- Problems that adverts reveal

PROBLEM_KEPT_S = 5.0
"""A problem is still shown for this long after the last advert that had it, or for
`PROBLEM_KEPT_INTERVALS` if that is longer."""

PROBLEM_KEPT_INTERVALS = 10
"""See `PROBLEM_KEPT_S`: the longer of the two applies."""

PROBLEM_LOGGED_AGAIN_S = 10.0
"""A problem whose text keeps changing is logged again only after this long."""

PROBLEM_LINES_S = 60.0
"""Each kind of problem gets at most four lines in the log within this time."""

# -- The agent and its failover process

AGENT_HEARTBEAT_S = 0.5
"""The agent sends the failover process a heartbeat with the state of this node at least this often.
If flow sync is a witness, it does so as often as the fastest instance sends adverts, within the two
limits below."""

LEAST_AGENT_HEARTBEAT_S = 0.1
"""The agent sends heartbeats no more often than this."""

AGENT_HEARTBEAT_PER_ROUTER_S = 0.02
"""It also leaves at least this much time between heartbeats for each virtual router, because more
would cost too much."""

ANSWER_S = 2.0
"""The agent waits this long for an answer of the failover process."""

RESTARTED_S = 2.0
"""An agent that has sent no heartbeat for this long is away, or may have been replaced by another
one. Until the next heartbeat the node does not preempt a master that is well."""

PRESENT_S = 5.0
"""A failover process that stops has the agent hand over, unless the agent has sent no heartbeat for
this long. It is longer than `RESTARTED_S` because an agent that is alive may run on a very busy
host."""

CLIENT_S = 5.0
"""Every other client of the failover process waits this long for an answer."""

CLIENT_IDLE_S = 90.0
"""The failover process closes the connection of a client that sends nothing, or does not get its
answer, for this long."""

READING_S = 60.0
"""The failover process waits this long for the child process that reads the configuration."""

KERNEL_ANSWER_S = 1.0
"""The failover process waits this long for an answer of the kernel, and sends no adverts
meanwhile."""

LOOK_S = 1.0
"""The failover process checks this often for what no event reports: garbage to collect, a socket or
a lock that was removed, an agent that sends no heartbeats."""

TASK_AGAIN_S = 1.0
"""A task of the failover process that has failed, or its script runner, is started again after this
long."""

LOG_CLOSE_S = 1.0
"""When it ends, the failover process waits this long until the log takes its last line, and this
long again until that line is written."""

# -- Heartbeats between balancers

HEARTBEAT_S = 0.5
"""Each balancer sends every other balancer something by flow sync at least this often."""

SILENCE_S = 4.0
"""The connection to a peer is closed when nothing has come from it, or its kernel has acknowledged
nothing, for this long."""

STALL_S = 1.0
"""If our own heartbeat is this late, this agent was away, not the peer."""

KEEPALIVE_S = 1
"""After a peer's kernel has been silent for this long, our kernel probes it (TCP keepalive), and
repeats the probe this often."""

FRESH_S = 1.5
"""A node knows the flows of a peer if it has everything that the peer had this long ago, or a
little more than one `failover.sync.interval` ago where that is longer. For a node that sees no
backend, a peer whose state is older counts as not heard."""

STALE_S = 2.5
"""The same limit for a node that has known the flows until now. It is longer because hosts are busy
at times."""

ROLES_FRESH_S = 3.0
"""What a peer reports of its virtual routers is compared with this node's for this long."""

PASSING_S = 2.0
"""Something that is normal while the VIPs move (two masters, for example) becomes a problem after
this long plus `PASSING_INTERVALS`."""

PASSING_INTERVALS = 4
"""See `PASSING_S`; these are intervals of the slowest adverts."""

ALIVE_S = 1.5
"""Packets of unknown flows are sent to a peer only if something has been heard from it within this
time."""

DETOURS_WRITTEN_S = 0.25
"""The agent writes the list of these peers for the packet path this often."""

# -- Connecting

CONNECT_S = 3.0
"""A connection to a peer has to be established within this time."""

GREETING_S = 3.0
"""After that, both sides have to prove within this time that they know the secret."""

FIRST_RETRY_S = 0.2
"""After a failure the node whose turn it is tries again after this long, and then waits twice as
long each time, up to `LONGEST_RETRY_S`."""

LONGEST_RETRY_S = 3.0
"""The longest wait between two attempts to connect (give or take 30 %)."""

FIRST_PATIENCE_S = 0.2
"""A node that has just started and whose turn it is not waits this long for the peer to connect,
and then tries as well: the peer may take seconds to notice that the former stream is dead."""

TURN_PATIENCE_S = 10.0
"""Later such a node waits this long before it tries as well, because the two may disagree about
whose turn it is."""

STREAM_SETTLED_S = 10.0
"""A stream that has lived for this long counts as a success: the next retry waits `FIRST_RETRY_S`
again."""

LISTEN_RETRY_S = 2.0
"""If the node cannot listen on an address, it tries again after this long."""

LOGGED_AGAIN_S = 60.0
"""What unknown senders and failures cause is logged once in this time for each kind."""

BURST_S = 0.05
"""Flow sync may send in one burst what `failover.sync.rate` allows in this time."""

GATHER_S = 0.01
"""The gap between two messages about flows that have just been established. Each message costs the
peer some 3 ms of CPU, however few flows it has."""

# -- When a node may serve

READY_PATIENCE_S = 15.0
"""A node that does not know the flows of the other balancers waits this long for them. A balancer
that has not sent them by then will not send them at all."""

MOST_SETTLE_S = 10.0
"""It waits until its checks have found the backends, but no longer than this."""

SYNCED_PREEMPT_DELAY_S = 2.0
"""The default of `preempt_delay` with flow sync. Before it ends, the agents settle who is master;
if they do not, the adverts do afterwards."""

AHEAD_S = 1.5
"""A node asks the master to hand over this long before `preempt_delay` ends."""

PREEMPT_PAUSE_S = 1.0
"""It waits this long before it asks for the next instance."""

# -- A handover, in its order

FLUSH_S = 2.0
"""The other balancer has to have all flows within this time, and at the end, within this time
again, those that were added since."""

HANDSHAKE_S = 0.1
"""New flows are held back for this long before the remaining ones are sent. Handshakes end
meanwhile, or have addresses by then."""

HELD_S = 0.5
"""New flows stay held back for at most this long in each of these steps: until the other balancer
has the remaining flows, until it answers the request to take the VIPs, and until it is master."""

TAKEN_LOOK_S = 0.005
"""The old master checks this often whether it is still master."""

LATE_S = 0.05
"""New flows stay held back for this long after the other balancer is master, because some clients
have not learned of it yet."""

TAKER_INTERVALS = 9
"""The VIPs are then left to a balancer that learns of the handover from adverts alone. It gets this
long plus `TAKER_MORE_S`."""

TAKER_MORE_S = 1.0
"""See `TAKER_INTERVALS`; this part is for slow hosts and networks."""

LONGEST_TAKER_S = 10.0
"""The two together are never longer than this."""

ASK_S = 16.0
"""A node that asks the master to hand over waits this long for its answer."""

ASKED_S = 30.0
"""A node gives up what a peer has asked it to do after this long."""

LBCTL_MOVE_S = 25.0
"""`lbctl failover handover`, `promote` and `release` wait this long for the agent's answer."""

CARRY_SETTLE_S = 0.003
"""When a new program takes over from an old one on the same host, packets that picked a backend
just before new flows were held back get this long to be recorded."""

# -- Stopping

STOP_HANDOVER_S = 20.0
"""A failover process that is stopped waits this long for its agent to hand over."""

EXCUSED_LOOK_S = 0.1
"""Meanwhile it checks this often whether the agent is still running."""

MOST_LEAVE_S = 60.0
"""It then serves until it hears a successor, for a skew and an interval, but no longer than this.
The service manager kills a process that takes longer, and its VIPs would stay."""

STOPPED_TOO_LOOK_S = 0.05
"""An agent that is stopped checks ten times, this long apart, whether the failover process is being
stopped too."""

OUTLAST_S = 6.5
"""If it is, the agent waits this long until the VIPs are handed over."""

STRAGGLERS_S = 1.5
"""An agent that has handed over stays at least this long, because handshakes that take longer than
new flows are held back return to it through the other balancer. A client's answer may take half a
second, and a server that does not get it retransmits after one second (RFC 6298)."""

GOODBYE_S = 0.5
"""At the end it tells the failover process that it is leaving, and waits this long for the
answer."""
