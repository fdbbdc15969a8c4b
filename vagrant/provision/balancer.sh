#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# balancer.sh NAME HOST: Steelyard as an operator installs it (README.md, docs/failover.md), from
# the working tree in /vagrant.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
readonly host="$2" configuration=/etc/steelyard/agent.yaml

want curl tcpdump
network <<END
Address=$servers_ipv4.$host/24
Address=$servers_ipv6:$host/64
Address=$clients_ipv4.$host/24
Address=$clients_ipv6:$host/64
END
names

place /etc/sysctl.d/90-steelyard.conf <"$tree/deploy/sysctl/balancer.conf"
sysctl -q --load /etc/sysctl.d/90-steelyard.conf

# The local box has the wheels, and pip knows where (/etc/pip.conf): nothing is fetched then.
offline=()
if [[ -d /opt/wheels ]]; then offline=(--offline); fi
"$tree/deploy/setup.sh" --service "${offline[@]}"

changed=""
place "$configuration" 0640 </tmp/agent.yaml
lb-agent check
units=(lb-agent)
if grep -q '^failover:' "$configuration"; then units+=(lb-agent-failover); fi
systemctl -q enable "${units[@]}"
for unit in "${units[@]}"; do
	systemctl restart "$unit" || {
		journalctl --no-pager -u "$unit" -n 20 >&2
		fail "$unit does not start" "journalctl -u $unit"
	}
done
say "ready: lbctl status"
