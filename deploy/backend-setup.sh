#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prepares a backend for a VIP, undoes that, or says what is missing; prints every command it runs.
# The setup lasts until the next boot; with --persist it is repeated at every boot.
set -eu

usage() {
	cat <<'END'
Usage: backend-setup.sh up|down|check dsr|ipip|gue [OPTION...] VIP...

  up      prepares this host
  down    undoes it
  check   changes nothing and says what is missing; the exit status is 1 if anything is

  dsr     the balancer is on the same segment: puts the VIP on lo, and keeps ARP silent about it
  ipip    as dsr, and unpacks the balancer's tunnel packets
  gue     as ipip, and removes UDP from them first
  --advmss BYTES
          the largest segment that clients may send, set on the default routes. ipip adds 20
          bytes (outer IPv4) or 40 (outer IPv6) on the way to the backend. If that path cannot
          carry as many bytes more than 1500, use 1440 (IPv4 in IPv4), 1420 (IPv4 in IPv6, or
          IPv6 in IPv4) or 1400 (IPv6 in IPv6). gue adds 8 more: 1432, 1412 or 1392
  --gue-port PORT
          the UDP port of gue, as in the balancer's gue.port; the default is 6080
  --from PREFIX
          ipip and gue: a balancer's address, or a prefix that the balancers are in; repeatable.
          nftables then drops tunnel packets from all other senders, which could otherwise send
          packets that seem to come from clients

  --persist
          repeat this at every boot: a systemd unit runs this command, from a copy of this script
          in /usr/local/sbin. There is one unit per mode, so name all VIPs of the mode at once;
          down removes the unit

nat and fullnat need no VIP on the backend; for nat, the balancer has to be its default route.

Examples:
  backend-setup.sh up dsr --persist 10.0.0.10 fd00::10
  backend-setup.sh check dsr 10.0.0.10
  backend-setup.sh up ipip --advmss 1440 --from 10.0.0.1 --from 10.0.0.2 10.0.0.10
  backend-setup.sh up gue --advmss 1432 --from 10.0.0.0/28 10.0.0.10
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

# preferred_lft 0: the address answers, but is never chosen as the source of the backend's own
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

# tunnel_up DEVICE TYPE...: makes a device that accepts tunnel packets from any sender.
tunnel_up() {
	device="$1"
	shift
	has_device "$device" || run ip link add name "$device" type "$@" || fail \
		"this kernel cannot make a tunnel device of type $1" \
		"modprobe $1; if there is no such module: lb-agent decap --interface NAME --vip VIP (docs/backends.md)"
	run ip link set dev "$device" up
}

tunnels_up() {
	tunnel_up sy-ipip ipip external mode any
	if has_ipv6; then
		tunnel_up sy-ip6tnl ip6tnl external mode any
		# IPv6 in IPv4: sit0 comes with its module and accepts packets from any sender.
		has_device sit0 || run modprobe sit || echo "no module sit: IPv6 in IPv4 will not be unpacked"
		if has_device sit0; then run ip link set dev sit0 up; fi
	fi
}

# on_tunnels VIP: puts it on the tunnel devices, too. On a device without an address, the kernel's
# rp_filter drops every IPv4 packet, whether it is 1 or 2.
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

# gue_up PORT: turns datagrams to the port into tunnel packets, which the devices unpack.
gue_up() {
	families=-4
	if has_ipv6; then families="-4 -6"; fi
	for family in $families; do
		has_gue "$family" "$1" || run ip "$family" fou add port "$1" gue || fail \
			"this kernel cannot remove UDP from a packet" \
			"modprobe fou; if there is no such module: lb-agent decap --interface NAME --vip VIP (docs/backends.md)"
	done
}

gue_down() {
	for family in -4 -6; do
		if has_gue "$family" "$1"; then run ip "$family" fou del port "$1"; fi
	done
}

# senders_up PORT SENDER...: accepts packets for the tunnel devices only from these senders.
senders_up() {
	table="inet steelyard_tunnels" port="$1" v4='' v6=''
	shift
	for sender in "$@"; do
		case "$sender" in
		*:*) v6="${v6:+$v6, }$sender" ;;
		*) v4="${v4:+$v4, }$sender" ;;
		esac
	done
	rules="add table $table; flush table $table;"
	rules="$rules add chain $table input { type filter hook input priority filter; };"
	rules="$rules add chain $table tunnel;"
	rules="$rules add rule $table input meta l4proto { 4, 41 } jump tunnel;"
	if [ -n "$port" ]; then rules="$rules add rule $table input udp dport $port jump tunnel;"; fi
	if [ -n "$v4" ]; then rules="$rules add rule $table tunnel ip saddr { $v4 } return;"; fi
	if [ -n "$v6" ]; then rules="$rules add rule $table tunnel ip6 saddr { $v6 } return;"; fi
	rules="$rules add rule $table tunnel counter drop"
	# In one transaction, so that there is no moment without the rules.
	echo "+ nft '$rules'"
	nft "$rules" || fail \
		"nftables does not accept these rules" \
		"give each --from as an address or a prefix such as 10.0.0.0/28"
}

senders_down() {
	if nft list table inet steelyard_tunnels >/dev/null 2>&1; then
		run nft delete table inet steelyard_tunnels
	fi
}

# advmss_up BYTES: makes every default route announce smaller segments.
advmss_up() {
	for family in -4 -6; do
		ip "$family" route show default | while read -r route; do
			# shellcheck disable=SC2086 # the words of a route are arguments
			run ip "$family" route replace $route advmss "$1"
		done
	done
}

COPY=/usr/local/sbin/backend-setup.sh
UNITS=/etc/systemd/system

unit_of() { echo "steelyard-backend-$1.service"; }

# persist_up MODE WORD...: has this command run at each boot, once the network is up: the program
# that configures the network may remove addresses that are not its own.
persist_up() {
	unit="$(unit_of "$1")"
	# Installed under another name first: a running shell still reads the old file to its end.
	run install -m 0755 "$0" "$COPY.new"
	run mv "$COPY.new" "$COPY"
	echo "+ write $UNITS/$unit"
	cat >"$UNITS/$unit" <<-END
		[Unit]
		Description=Prepares this host for VIPs that Steelyard balances ($1)
		Wants=network-online.target
		After=network-online.target nftables.service

		[Service]
		Type=oneshot
		RemainAfterExit=yes
		ExecStart=$COPY up $*

		[Install]
		WantedBy=multi-user.target
	END
	run systemctl daemon-reload
	run systemctl enable "$unit"
}

persist_down() {
	unit="$(unit_of "$1")"
	if [ -e "$UNITS/$unit" ]; then
		run systemctl disable "$unit"
		run rm "$UNITS/$unit"
		run systemctl daemon-reload
	fi
}

missing=0

# found STATUS WHAT REMEDY: reports WHAT; STATUS 0 means that it is in place.
found() {
	if [ "$1" = 0 ]; then
		echo "ok       $2"
	else
		missing=1
		echo "MISSING  $2"
		echo "         remedy: $3"
	fi
}

# setting KEY INTERFACE: prints the value in effect, the larger of "all" and the interface's own.
setting() {
	all="$(cat "/proc/sys/net/ipv4/conf/all/$1")" own="$(cat "/proc/sys/net/ipv4/conf/$2/$1")"
	if [ "$own" -gt "$all" ]; then echo "$own"; else echo "$all"; fi
}

# on_link VIP DEVICE: succeeds if the device has the VIP.
on_link() { ip -o address show dev "$2" to "$1" 2>/dev/null | grep -q .; }

check_vip() {
	status=0
	on_link "$1" lo || status=1
	found $status "$1 is on lo" "$0 up $mode $1"
}

check_arp() {
	# shellcheck disable=SC2013 # names of interfaces have no spaces
	for device in $(ip -o -4 address show | sed 's/^[0-9]*: *\([^ @]*\).*/\1/' | sort -u); do
		case "$device" in lo | sy-*) continue ;; esac
		status=0
		[ "$(setting arp_ignore "$device")" -ge 1 ] || status=1
		found $status "$device is silent about addresses of other interfaces (arp_ignore)" \
			"sysctl -w net.ipv4.conf.all.arp_ignore=1"
		status=0
		[ "$(setting arp_announce "$device")" -eq 2 ] || status=1
		found $status "$device sends ARP requests with its own address (arp_announce)" \
			"sysctl -w net.ipv4.conf.all.arp_announce=2"
	done
}

# check_tunnels MODE: something removes the outer header. A program at XDP may be lb-agent decap.
check_tunnels() {
	if ip link show up | grep -q 'prog/xdp'; then
		echo "ok       an XDP program is attached, maybe lb-agent decap, which unpacks $1 (lbctl doctor checks it)"
		return
	fi
	for device in sy-ipip tunl0; do
		if ip link show up dev "$device" 2>/dev/null | grep -q .; then
			found 0 "$device accepts tunnel packets"
			status=0
			[ "$(setting rp_filter "$device")" -ne 1 ] || status=1
			found $status "$device accepts them whichever way answers go (rp_filter)" \
				"sysctl -w net.ipv4.conf.all.rp_filter=2"
			[ "$1" != gue ] || check_gue
			return
		fi
	done
	found 1 "nothing takes tunnel packets" "$0 up $1 … VIP, or lb-agent decap"
}

check_gue() {
	status=0
	has_gue -4 "$gue_port" || status=1
	found $status "UDP to port $gue_port is removed" "$0 up gue --gue-port $gue_port … VIP"
}

check_boot() {
	unit="$(unit_of "$mode")"
	if [ -e "$UNITS/$unit" ]; then
		for vip in "$@"; do
			status=0
			grep -q "^ExecStart=.* $vip\( .*\)\?$" "$UNITS/$unit" || status=1
			found $status "$unit brings $vip back at a boot" "$0 up $mode --persist, with all VIPs"
		done
	else
		echo "note     this script brings nothing back at a boot; for that: $0 up $mode --persist …"
	fi
}

# The whole command line is read before anything is changed.
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
action="$1" mode="$2" advmss="" gue_port=6080 senders="" persist=""
shift 2
case "$action" in
up | down | check) ;;
*) fail "unknown action $action" "up, down or check: $0 --help" ;;
esac
case "$mode" in
dsr | ipip | gue) ;;
nat | fullnat) fail "$mode needs no preparation" "see docs/backends.md for what it needs" ;;
*) fail "unknown mode $mode" "dsr, ipip or gue: $0 --help" ;;
esac
words="" # the options and VIPs of this command, for later boots
for word in "$@"; do
	[ "$word" = --persist ] || words="$words $word"
done
while :; do
	case "$1" in
	--persist)
		persist=1
		shift
		[ $# -ge 1 ] || fail "a VIP must follow" "$0 up $mode --persist VIP"
		continue
		;;
	--advmss) example=1432 ;;
	--gue-port) example=6080 ;;
	--from) example=10.0.0.1 ;;
	*) break ;;
	esac
	[ $# -ge 3 ] || fail "$1 needs a value, and a VIP must follow" "$0 up gue $1 $example VIP"
	case "$1 $2" in
	--from\ | --from\ *[!0-9a-fA-F:./]*) fail "$1 $2 is neither an address nor a prefix" "$1 $example" ;;
	--from\ *) ;;
	*\ | *\ *[!0-9]*) fail "$1 $2 is not a number" "$1 $example" ;;
	esac
	case "$1" in
	--advmss) advmss="$2" ;;
	--gue-port) gue_port="$2" ;;
	--from) senders="$senders $2" ;;
	esac
	shift 2
done
for vip in "$@"; do
	case "$vip" in
	-*) fail "unknown option $vip" "options come before the VIPs: $0 --help" ;;
	*/*) fail "$vip is a network" "give the address alone: ${vip%%/*}" ;;
	*:*) ;;
	"" | *[!0-9.]*) fail "'$vip' is not an address" "give the VIP as in 10.0.0.10 or fd00::10" ;;
	esac
done
if [ -n "$senders" ] && [ "$action" = up ]; then
	[ "$mode" != dsr ] || fail "--from is only for ipip and gue" "leave it out: dsr has no tunnel"
	command -v nft >/dev/null || fail "--from needs nft" "apt-get install nftables"
fi
if [ -n "$persist" ] && [ "$action" = up ]; then
	[ -d /run/systemd/system ] || fail "--persist needs systemd" \
		"put deploy/sysctl/backend.conf into /etc/sysctl.d, and the VIP on lo where your system configures its network"
fi
[ "$action" = check ] || [ "$(id -u)" = 0 ] || fail "not root" "sudo $0 …"

case "$action" in
up)
	settings_up # first, so that the VIP does not answer ARP even for a moment
	if [ -n "$senders" ]; then # before the tunnel devices exist
		port=''
		if [ "$mode" = gue ]; then port="$gue_port"; fi
		# shellcheck disable=SC2086 # each sender is an argument
		senders_up "$port" $senders
	elif [ "$mode" != dsr ] && nft list table inet steelyard_tunnels >/dev/null 2>&1; then
		echo "left as they are: the rules of an earlier --from; down removes them"
	fi
	if [ "$mode" != dsr ]; then tunnels_up; fi
	if [ "$mode" = gue ]; then gue_up "$gue_port"; fi
	for vip in "$@"; do
		vip_up "$vip"
		if [ "$mode" != dsr ]; then on_tunnels "$vip"; fi
	done
	if [ -n "$advmss" ]; then advmss_up "$advmss"; fi
	# shellcheck disable=SC2086 # each is an argument
	if [ -n "$persist" ]; then persist_up "$mode" $words; fi
	;;
check)
	for vip in "$@"; do check_vip "$vip"; done
	check_arp
	if [ "$mode" != dsr ]; then check_tunnels "$mode"; fi
	check_boot "$@"
	exit $missing
	;;
down)
	persist_down "$mode"
	for vip in "$@"; do vip_down "$vip"; done
	if [ "$mode" = gue ]; then gue_down "$gue_port"; fi
	if [ "$mode" != dsr ]; then
		tunnels_down
		senders_down
	fi
	echo "left unchanged: the sysctl settings, and the routes' advmss"
	;;
esac
