#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prepares a backend for a VIP, or undoes it; prints every command it runs. An example: it lasts
# until the next boot. For good, put deploy/sysctl/backend.conf into /etc/sysctl.d, and the
# addresses and devices into your network configuration.
set -eu

usage() {
	cat <<'END'
Usage: backend-setup.sh up|down dsr|ipip|gue [--advmss BYTES] [--gue-port PORT] VIP...

  dsr     the balancer is on the same segment: the VIP goes on lo, and ARP is told to be silent
  ipip    as dsr, and the balancer's tunnel packets are unpacked
  gue     as ipip, and UDP is taken off them first
  --advmss BYTES
          the largest segment that clients may send, for the default routes. ipip adds 20 bytes
          (outer IPv4) or 40 (outer IPv6) on the way to the backend: where that way cannot carry
          1500 + that, use 1440 (IPv4 in IPv4), 1420 (IPv4 in IPv6, or IPv6 in IPv4) or 1400
          (IPv6 in IPv6). gue adds 8 more: 1432, 1412 or 1392
  --gue-port PORT
          the UDP port of gue, as in the balancer's gue.port; without it 6080

nat and fullnat need nothing of the VIP: for nat, the backend's default route is the balancer.

Examples:
  backend-setup.sh up dsr 10.0.0.10 fd00::10
  backend-setup.sh up ipip --advmss 1440 10.0.0.10
  backend-setup.sh up gue --advmss 1432 10.0.0.10
  backend-setup.sh down ipip 10.0.0.10
END
}

run() {
	echo "+ $*"
	"$@"
}

fail() {
	echo "backend-setup: error: $1" >&2
	echo "  remedy: $2" >&2
	exit 1
}

has_ipv6() { [ -d /proc/sys/net/ipv6 ]; }

has_device() { [ -d "/sys/class/net/$1" ] || ip link show dev "$1" >/dev/null 2>&1; }

# preferred_lft 0: the address answers, and is never chosen as the source of the backend's own
# connections.
vip_up() {
	case "$1" in
	*:*) run ip -6 address replace "$1/128" dev lo nodad preferred_lft 0 ;;
	*) run ip -4 address replace "$1/32" dev lo preferred_lft 0 ;;
	esac
}

vip_down() {
	case "$1" in
	*:*) run ip -6 address delete "$1/128" dev lo || true ;;
	*) run ip -4 address delete "$1/32" dev lo || true ;;
	esac
}

settings_up() {
	run sysctl -w net.ipv4.conf.all.arp_ignore=1
	run sysctl -w net.ipv4.conf.all.arp_announce=2
	run sysctl -w net.ipv4.conf.all.rp_filter=2
}

# tunnel_up DEVICE TYPE...: a device that takes tunnel packets from any sender.
tunnel_up() {
	device="$1"
	shift
	has_device "$device" || run ip link add name "$device" type "$@" || fail \
		"this kernel cannot make a tunnel device of type $1" \
		"modprobe $1; if there is no such module: lb-agent decap --interface NAME --vip VIP (docs/operations.md)"
	run ip link set dev "$device" up
}

tunnels_up() {
	tunnel_up sy-ipip ipip external mode any
	if has_ipv6; then
		tunnel_up sy-ip6tnl ip6tnl external mode any
		# IPv6 in IPv4: sit0 comes with its module and takes packets from anybody.
		has_device sit0 || run modprobe sit || echo "no sit: IPv6 in IPv4 will not be unpacked"
		if has_device sit0; then run ip link set dev sit0 up; fi
	fi
}

# on_tunnels VIP: also there. On a device without any address the kernel's rp_filter drops every
# IPv4 packet, at 2 as at 1.
on_tunnels() {
	case "$1" in *:*) return ;; esac
	for device in sy-ipip sy-ip6tnl; do
		if has_device "$device"; then
			run ip -4 address replace "$1/32" dev "$device" preferred_lft 0
		fi
	done
}

tunnels_down() {
	for device in sy-ipip sy-ip6tnl; do
		if has_device "$device"; then run ip link delete dev "$device"; fi
	done
}

# has_gue FAMILY PORT: `fou show` lists both families, IPv6 ones with -6 at the end.
has_gue() {
	case "$1" in -4) end='' ;; -6) end='-6' ;; esac
	ip "$1" fou show 2>/dev/null | sed 's/ *$//' | grep -qx "port $2 gue${end:+ $end}"
}

# gue_up PORT: datagrams to the port become tunnel packets, which the devices unpack.
gue_up() {
	families=-4
	if has_ipv6; then families="-4 -6"; fi
	for family in $families; do
		has_gue "$family" "$1" || run ip "$family" fou add port "$1" gue || fail \
			"this kernel cannot take UDP off a packet" \
			"modprobe fou; if there is no such module: lb-agent decap --interface NAME --vip VIP (docs/operations.md)"
	done
}

gue_down() {
	for family in -4 -6; do
		if has_gue "$family" "$1"; then run ip "$family" fou del port "$1"; fi
	done
}

# advmss_up BYTES: every default route announces smaller segments.
advmss_up() {
	for family in -4 -6; do
		ip "$family" route show default | while read -r route; do
			# shellcheck disable=SC2086 # the words of a route are arguments
			run ip "$family" route replace $route advmss "$1"
		done
	done
}

# All of it is read before anything is changed.
for word in "$@"; do
	case "$word" in -h | --help)
		usage
		exit 0
		;;
	esac
done
[ $# -ge 3 ] || {
	usage >&2
	exit 2
}
action="$1" mode="$2" advmss="" gue_port=6080
shift 2
case "$action" in up | down) ;; *) fail "unknown action $action" "up or down: $0 --help" ;; esac
case "$mode" in
dsr | ipip | gue) ;;
nat | fullnat) fail "$mode needs no preparation" "docs/operations.md says what it does need" ;;
*) fail "unknown mode $mode" "dsr, ipip or gue: $0 --help" ;;
esac
while :; do
	case "$1" in
	--advmss) example=1432 ;;
	--gue-port) example=6080 ;;
	*) break ;;
	esac
	[ $# -ge 3 ] || fail "$1 needs a number, and a VIP must follow" "$0 up gue $1 $example VIP"
	case "$2" in "" | *[!0-9]*) fail "$1 $2 is not a number" "$1 $example" ;; esac
	case "$1" in
	--advmss) advmss="$2" ;;
	--gue-port) gue_port="$2" ;;
	esac
	shift 2
done
for vip in "$@"; do
	case "$vip" in
	-*) fail "unknown option $vip" "options stand before the VIPs: $0 --help" ;;
	*/*) fail "$vip is a network" "give the address alone: ${vip%%/*}" ;;
	*:*) ;;
	"" | *[!0-9.]*) fail "'$vip' is not an address" "give the VIP as in 10.0.0.10 or fd00::10" ;;
	esac
done
[ "$(id -u)" = 0 ] || fail "not root" "sudo $0 …"

case "$action" in
up)
	settings_up # first: the VIP must not answer ARP for a moment
	if [ "$mode" != dsr ]; then tunnels_up; fi
	if [ "$mode" = gue ]; then gue_up "$gue_port"; fi
	for vip in "$@"; do
		vip_up "$vip"
		if [ "$mode" != dsr ]; then on_tunnels "$vip"; fi
	done
	if [ -n "$advmss" ]; then advmss_up "$advmss"; fi
	;;
down)
	for vip in "$@"; do vip_down "$vip"; done
	if [ "$mode" = gue ]; then gue_down "$gue_port"; fi
	if [ "$mode" != dsr ]; then tunnels_down; fi
	echo "left as they are: the sysctl settings, and the routes' advmss"
	;;
esac
