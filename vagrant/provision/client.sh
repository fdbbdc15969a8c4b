#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# client.sh NAME HOST: a client, which knows nothing of balancers.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
readonly host="$2"

want python3 curl apache2-utils iperf3 tcpdump
# In a real network a router would lead to the servers; here they are on the same segment.
network <<END
Address=$clients_ipv4.$host/24
Address=$clients_ipv6:$host/64

[Route]
Destination=$servers_ipv4.0/24
Scope=link
PreferredSource=$clients_ipv4.$host

[Route]
Destination=$servers_ipv6:/64
PreferredSource=$clients_ipv6:$host
END
names
# One connection per request uses up ports quickly.
place /etc/sysctl.d/90-steelyard-client.conf <<END
net.ipv4.ip_local_port_range = 1024 65535
net.ipv4.tcp_tw_reuse = 1
END
sysctl -q --load /etc/sysctl.d/90-steelyard-client.conf
say "ready: curl http://vip/"
