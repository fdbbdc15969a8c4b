"""Every time of failover, of a pair and of flow sync: what waits for what, and how long.

`_S` is seconds, `_INTERVALS` is intervals between adverts, `_DOWNS` is master-down times: a backup
of priority P counts its master as gone after `MASTER_DOWN_INTERVALS` intervals and (256 - P)/256 of
one more. What each of them has to be longer or shorter than is in
tests/property/failover/test_times.py. This module imports nothing: the failover process and `lbctl`
read it too.
"""

# -- Adverts

MASTER_DOWN_INTERVALS = 3
"""A backup that has heard no advert for so long, and a skew by its priority, takes over (RFC 9568,
section 6.1)."""

ALIVE_INTERVALS = 2
"""A master whose last advert is younger is alive."""

LOST_INTERVALS = 1.5
"""Only what a master has said by flow sync so long after its last advert tells that its adverts are
lost: one that has died since that advert had said nothing by then."""

VOUCH_S = 1.5
"""A word of flow sync that another node is master, and well, keeps a backup from taking over for
so long."""

HANDED_OVER_DOWNS = 2
"""A master that is handed over waits so long for a node that preempts, before it says that it
leaves; a claim stays open as long. One for the other to take over, one for what gets lost."""

LEFT_INTERVALS = 2
"""It is then silent for so long, so that a node that does not preempt can take over."""

OVERTAKEN_INTERVALS = 0.5
"""Who has taken over from a living master does not listen for so long to its last advert, which may
have been sent just before."""

FLOODED_INTERVALS = 20
"""A backup takes over so much later at most while a flood hides whether its master is well."""

EXPECTED_REST_S = 0.01
"""A socket of adverts that brought many packets that are no adverts for us is not read for so
long."""

OTHER_REST_S = 0.1
"""Likewise a socket of packets that can only be mistakes."""

READ_PAUSE_INTERVALS = 0.05
"""Where adverts come one after the other, they are read together, so much later at most ..."""

LONGEST_READ_PAUSE_S = 0.005
"""... and no more than this."""

LEAST_TIMER_S = 0.0005
"""The timer of a virtual router is never set sooner, so that none has the CPU for itself."""

COUNTERS_SAVED_S = 15.0
"""The failover process saves so often which counters of adverts (`authentication`) it has heard
last."""

OLDEST_COUNTER_S = 3600.0
"""A process that has just started refuses adverts whose counter says that they are older."""

ANNOUNCE_ROW_S = 0.1
"""A master makes four announcements at most in so long, whatever the reasons."""

ANNOUNCE_GAP_S = 0.02
"""Between two frames for one VIP, so that one mishap does not cost all."""

# -- What adverts tell of problems

PROBLEM_KEPT_S = 5.0
"""A problem that no advert tells of any more is shown for so long ..."""

PROBLEM_KEPT_INTERVALS = 10
"""... or for so many intervals, where that is longer."""

PROBLEM_LOGGED_AGAIN_S = 10.0
"""One whose text keeps changing is logged again after so long."""

PROBLEM_LINES_S = 60.0
"""In so long a kind of problem gets four lines in the log."""

# -- The agent and its failover process

WORD_S = 0.5
"""The agent tells the failover process how this node is, so often at least; with flow sync as a
witness as often as adverts of the fastest instance, but ..."""

LEAST_WORD_S = 0.1
"""... not more often than this ..."""

WORD_PER_ROUTER_S = 0.02
"""... nor than this for each virtual router: it would cost too much."""

ANSWER_S = 2.0
"""The agent waits so long for the answer of the failover process."""

RESTARTED_S = 2.0
"""An agent that has said nothing for so long is away, or may be another one by now: the node takes
nothing from a master that is well."""

PRESENT_S = 5.0
"""A failover process that is to leave has the agent hand over, unless that one has said nothing for
so long: who is there may be on a host that is very busy."""

CLIENT_S = 5.0
"""Whoever else asks the failover process waits so long for its answer."""

CLIENT_IDLE_S = 90.0
"""The failover process gives up a client that says nothing, or waits for an answer, for so long."""

READING_S = 60.0
"""The failover process waits so long for the child that reads the configuration."""

KERNEL_ANSWER_S = 1.0
"""The failover process waits so long for an answer of the kernel, and sends no advert meanwhile."""

LOOK_S = 1.0
"""The failover process looks so often at what no event tells: garbage, a socket or a lock that was
removed, an agent that says nothing."""

TASK_AGAIN_S = 1.0
"""A task of the failover process that has failed, or its runner of scripts, begins again after so
long."""

LOG_CLOSE_S = 1.0
"""At its end the failover process waits so long for a place for its last line in the log, and once
more until the line is out."""

# -- Heartbeats between balancers

HEARTBEAT_S = 0.5
"""Each balancer says something to each other one by flow sync, so often at least."""

SILENCE_S = 4.0
"""A peer from which nothing has come for so long, or whose kernel has acknowledged nothing for so
long, is left."""

STALL_S = 1.0
"""A heartbeat of ours that is so late says that this agent was away, not the peer."""

KEEPALIVE_S = 1
"""The kernel asks a peer's kernel that is silent for so long whether it is there, and again so
often."""

FRESH_S = 1.5
"""A node knows the flows of a peer if it has all that the peer had so long ago, or a little more
than one `failover.sync.interval` ago where that is longer. A peer that is older counts as not
heard by a node that sees no backend."""

STALE_S = 2.5
"""Likewise for a node that knew them until now: hosts are busy at times."""

ROLES_FRESH_S = 3.0
"""What a peer has said of its virtual routers is compared with this node's for so long."""

PASSING_S = 2.0
"""What is ordinary while the VIPs move (two masters, say) is a problem after so long and ..."""

PASSING_INTERVALS = 4
"""... so many intervals of the slowest adverts."""

ALIVE_S = 1.5
"""Packets of flows that are not known go to a peer that has said something within so long."""

WAYS_TOLD_S = 0.25
"""The packet path is told so often which peers these are."""

# -- Connecting

CONNECT_S = 3.0
"""A connection to a peer has to be there within so long ..."""

GREETING_S = 3.0
"""... and both have to have proven that they know the secret within so long after that."""

FIRST_RETRY_S = 0.2
"""After a failure the node whose turn it is tries again after so long, and then twice as long each
time, but ..."""

LONGEST_RETRY_S = 3.0
"""... not longer than this (give or take 30 %)."""

FIRST_PATIENCE_S = 0.2
"""A node that has just started waits so long to be connected to, and then tries as well: the other
one may take seconds to notice that the former stream is dead."""

TURN_PATIENCE_S = 10.0
"""Later it waits so long: the two may disagree about whose turn it is."""

STREAM_SETTLED_S = 10.0
"""A stream that has lived for so long was a good one: the next retry is the first again."""

LISTEN_RETRY_S = 2.0
"""An address that cannot be listened at is tried again after so long."""

LOGGED_AGAIN_S = 60.0
"""What strangers and failures cause in the log is said once in so long for each kind."""

BURST_S = 0.05
"""Flow sync sends at once what `failover.sync.rate` allows in so long."""

GATHER_S = 0.01
"""Between two tellings of flows that have just been established: one costs the peer some 3 ms of
CPU, however few flows it has."""

# -- When a node may serve

READY_PATIENCE_S = 15.0
"""A node that does not know the flows of the others waits so long for them: who does not tell them
within that does not at all."""

MOST_SETTLE_S = 10.0
"""It waits for its checks to find the backends, but no longer than this."""

SYNCED_PREEMPT_DELAY_S = 2.0
"""`preempt_delay` with flow sync, unless it is set: the agents settle before it is over who is
master, and adverts after it."""

AHEAD_S = 1.5
"""So long before the end of `preempt_delay` a node asks the master to hand over."""

PREEMPT_PAUSE_S = 1.0
"""It waits for so long before it asks for the next instance."""

# -- A handover, in its order

FLUSH_S = 2.0
"""The other balancer has to have all flows within so long; and in the end those that came since."""

HANDSHAKE_S = 0.1
"""New flows are held back for so long before the rest is told: handshakes end meanwhile, or have
addresses by then."""

HELD_S = 0.5
"""New flows stay held back for so long at most for each of these: the other one gets the rest; it
answers when it is asked to take the VIPs; it is master."""

TAKEN_LOOK_S = 0.005
"""How often the master looks whether it is master still."""

LATE_S = 0.05
"""New flows are held back for so long after the other one is master: some clients have not heard of
it yet."""

TAKER_INTERVALS = 9
"""The VIPs are then left to a balancer that hears of it by adverts alone, for so long ..."""

TAKER_MORE_S = 1.0
"""... and this for slow hosts and networks ..."""

LONGEST_TAKER_S = 10.0
"""... but no longer than this."""

ASK_S = 16.0
"""Who asks the master to hand over waits so long for its answer."""

ASKED_S = 30.0
"""What a peer has asked for is given up after so long."""

LBCTL_MOVE_S = 25.0
"""`lbctl failover handover`, `promote` and `release` wait so long for the agent's answer."""

CARRY_SETTLE_S = 0.003
"""When a new program takes over from an old one on the same host, packets that chose a backend just
before new flows were held back get so long to be recorded."""

# -- Stopping

STOP_HANDOVER_S = 20.0
"""A failover process that is stopped waits so long for its agent to hand over ..."""

EXCUSED_LOOK_S = 0.1
"""... looks so often whether that one is still there ..."""

MOST_LEAVE_S = 60.0
"""... and then serves until it hears a successor, for a skew and an interval, but no longer than
this: the service manager kills who takes longer, and its VIPs would stay."""

STOPPED_TOO_LOOK_S = 0.05
"""An agent that is stopped looks ten times, so long apart, whether the failover process is stopped
too ..."""

OUTLAST_S = 6.5
"""... and then waits so long until the VIPs are handed over."""

STRAGGLERS_S = 1.5
"""An agent that has handed over stays at least so long: handshakes that take longer than new flows
are held back come back to it by way of the other balancer. A client's answer may take half a
second, and a server that does not get it asks again after one second (RFC 6298)."""

GOODBYE_S = 0.5
"""In the end it tells the failover process that it is going, and waits so long for the answer."""
