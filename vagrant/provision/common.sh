# SPDX-License-Identifier: Apache-2.0
# What the provisioning of every machine shares; the others read it with `source`.
# shellcheck shell=bash disable=SC2034 # others read the variables
set -euo pipefail

readonly tree=/vagrant
readonly vips=(10.77.1.100 fd77:0:0:1::100)
readonly clients_ipv4=10.77.1 clients_ipv6=fd77:0:0:1: # the networks' first parts
readonly servers_ipv4=10.77.0 servers_ipv6=fd77:
readonly gateway_ipv4=10.77.0.100 gateway_ipv6=fd77::100 # of nat; moves with the VIPs
role="$(basename "$0")"
readonly role

say() { printf '%s: %s\n' "$role" "$*"; }

# fail WHAT REMEDY...: one line each on standard error.
fail() {
	printf '%s: error: %s\n' "$role" "$1" >&2
	shift
	printf '  remedy: %s\n' "$@" >&2
	exit 1
}

# place TARGET [MODE]: standard input becomes the file; says so if it was another one.
changed=""
place() {
	local new
	new="$(mktemp)"
	cat >"$new"
	if ! cmp -s "$new" "$1"; then
		say "$1"
		install -D -m "${2:-0644}" "$new" "$1"
		changed=1
	fi
	rm -f "$new"
}

# want PACKAGE...: from the network, if the box does not have them.
want() {
	local package missing=()
	for package in "$@"; do
		[[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] ||
			missing+=("$package")
	done
	[[ ${#missing[@]} != 0 ]] || return 0
	say "installing ${missing[*]}"
	{ apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y \
		install --no-install-recommends "${missing[@]}"; } >/tmp/apt.log 2>&1 || {
		tail -n 12 /tmp/apt.log >&2
		fail "these packages cannot be installed here: ${missing[*]}" \
			"give the machine a network, or use the box that has them: vagrant/build-box"
	}
}

# eth1 from now on and at every boot, by systemd-networkd: the lines are those of its .network file.
network() {
	[[ -d /sys/class/net/eth1 ]] || fail "this machine has no eth1" \
		"use a box that calls its interfaces eth0 and eth1 (net.ifnames=0): STEELYARD_VM_BOX"
	changed=""
	place /etc/systemd/network/30-eth1.network < <(
		printf '[Match]\nName=eth1\n\n[Network]\nDHCP=no\nIPv6AcceptRA=no\n'
		cat
	)
	systemctl -q is-enabled systemd-networkd || systemctl -q enable systemd-networkd
	if [[ -n "$changed" ]] || ! systemctl -q is-active systemd-networkd; then
		systemctl restart systemd-networkd
	fi
	/usr/lib/systemd/systemd-networkd-wait-online --interface eth1 --timeout 60 ||
		fail "eth1 has no address after a minute" "networkctl status eth1"
}

# Names for people: `ping be1`, `curl http://vip/`.
names() {
	local index line lines=("${vips[0]} vip" "${vips[1]} vip vip6" "$clients_ipv4.21 client")
	for index in {1..9}; do
		lines+=("$servers_ipv4.$((10 + index)) lb$index" "$servers_ipv4.$((100 + index)) be$index")
	done
	for line in "${lines[@]}"; do
		# The machine itself has its name already, at 127.0.1.1.
		[[ "${line##* }" == "$HOSTNAME" ]] || grep -qxF "$line" /etc/hosts ||
			printf '%s\n' "$line" >>/etc/hosts
	done
}
