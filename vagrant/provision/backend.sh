#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# backend.sh NAME HOST: a server that says its name, behind all ways of forwarding at a time.
#
#   dsr      port 80    the VIPs on lo, and silence about them
#   ipip     port 81    and tunnel devices
#   nat      port 8082  answers go back through the balancer
#   fullnat  port 8083  nothing
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
readonly name="$1" host="$2"
readonly nat_port=8082 nat_table=82

want python3 curl tcpdump
# Clients are on the same segment, and answers go straight to them: but not those of nat, which
# the balancer has to see, wherever the VIPs are. Through tunnels 20 or 40 bytes less get through.
network <<END
Address=$servers_ipv4.$host/24
Address=$servers_ipv6:$host/64

[Route]
Destination=$clients_ipv4.0/24
Scope=link
PreferredSource=$servers_ipv4.$host
TCPAdvertisedMaximumSegmentSize=1440

[Route]
Destination=$clients_ipv6:/64
PreferredSource=$servers_ipv6:$host
TCPAdvertisedMaximumSegmentSize=1400

[RoutingPolicyRule]
Family=both
IPProtocol=tcp
SourcePort=$nat_port
Table=$nat_table
Priority=1000

[Route]
Table=$nat_table
Destination=$servers_ipv4.0/24
Scope=link

[Route]
Table=$nat_table
Gateway=$gateway_ipv4

[Route]
Table=$nat_table
Destination=$servers_ipv6:/64

[Route]
Table=$nat_table
Gateway=$gateway_ipv6
END
names

place /etc/sysctl.d/90-steelyard.conf <"$tree/deploy/sysctl/backend.conf"
place /usr/local/sbin/backend-setup.sh 0755 <"$tree/deploy/backend-setup.sh"
place /etc/systemd/system/steelyard-vips.service <<END
[Unit]
Description=The VIPs of Steelyard on this backend
After=network.target
Before=steelyard-backend.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/backend-setup.sh up ipip ${vips[*]}
ExecStop=/usr/local/sbin/backend-setup.sh down ipip ${vips[*]}

[Install]
WantedBy=multi-user.target
END
place /etc/systemd/system/steelyard-backend.service <<END
[Unit]
Description=The server behind the balancers
After=network.target

[Service]
ExecStart=/usr/bin/python3 -m lbctl.lab.server --name $name --port 80 --port 81 --port $nat_port --port 8083
WorkingDirectory=$tree
Environment=PYTHONDONTWRITEBYTECODE=1
DynamicUser=yes
AmbientCapabilities=CAP_NET_BIND_SERVICE
LimitNOFILE=65536
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
sysctl -q --load /etc/sysctl.d/90-steelyard.conf
systemctl -q enable steelyard-vips steelyard-backend
systemctl restart steelyard-vips steelyard-backend
for port in 80 81 "$nat_port" 8083; do
	curl -fsS --retry 60 --retry-delay 1 --retry-connrefused "http://127.0.0.1:$port/health" >/dev/null 2>&1 ||
		fail "the server does not answer on port $port" "journalctl -u steelyard-backend -e"
done
say "ready: serves ports 80, 81, $nat_port, 8083"
