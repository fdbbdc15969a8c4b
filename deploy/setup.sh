#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs Steelyard on Debian 13 or Ubuntu 24.04, or says what prevents that and what to do; or
# removes it again.
#
# Every step checks first and acts only on what is missing, so it can be run again at any time. When
# nothing is missing it takes about a second and needs no network.
set -euo pipefail

readonly python=/usr/bin/python3 # the distribution's, which python3-bpfcc is built for
readonly bpffs=/sys/fs/bpf
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
readonly repository

usage() {
	cat <<'END'
Usage: deploy/setup.sh [options]

Installs Steelyard and what it needs into a virtual environment.

  --prefix DIR            where the virtual environment is
                          (default /opt/steelyard; with --dev: .venv in the checkout)
  --dev                   for development: an editable install, with the tools of `make test`
  --service               also install lbctl and lb-agent into /usr/local/bin, their manual
                          pages (not with --dev), completion for bash, zsh and fish, the
                          systemd units lb-agent, lb-agent-api, lb-agent-failover,
                          lb-agent-companion, lb-agent-tier and lb-agent-tier-proxy, and an
                          example of /etc/steelyard/agent.yaml
  --node                  for a GPU host that only runs the node agent: neither BCC nor BPF
                          is needed; with --service the unit lb-agent-node
  --offline               never use the network: Python packages come from the directories
                          in PIP_FIND_LINKS, the distribution's must be installed already
  --force-distribution    try to install on another distribution that has apt
  --uninstall             remove what setup has installed, also from the kernel, and list what
                          is left: your configuration, the state, the distribution's packages
  --purge                 with --uninstall: remove the configuration and the state too
  --help                  this text

The settings of pip (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf) and of apt are respected.
Examples:
  sudo deploy/setup.sh --service
  sudo deploy/setup.sh --node --service
  sudo PIP_FIND_LINKS=/srv/wheels deploy/setup.sh --offline
  sudo deploy/setup.sh --uninstall --purge
END
}

say() { printf 'setup: %s\n' "$*"; }

# fail WHAT REMEDY...: prints one line for each on standard error, and exits.
fail() {
	printf 'setup: error: %s\n' "$1" >&2
	shift
	printf '  remedy: %s\n' "$@" >&2
	exit 1
}

log="" policy="" pages="" builder=""
forget_files() {
	rm -rf ${log:+"$log"} ${policy:+"$policy"} ${pages:+"$pages"} ${builder:+"$builder"}
}
trap forget_files EXIT
trap 'exit 130' INT TERM

# logged COMMAND...: runs a command and keeps its output for show_log.
logged() {
	[[ -n "$log" ]] || log="$(mktemp -t steelyard-setup.XXXXXX)"
	"$@" >"$log" 2>&1 </dev/null
}

show_log() {
	printf 'setup: the last lines of its output:\n' >&2
	grep -v 'WARNING: Retrying' "$log" | tail -n 12 | sed 's/^/  | /' >&2
}

# --- what this host must be ---------------------------------------------------------------

require_root() {
	[[ "$(id -u)" == 0 ]] || fail "not root" \
		"run it as root: sudo $0${*:+ $*}"
}

require_distribution() {
	local name
	# shellcheck source=/dev/null
	name="$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}")" || true
	case "$name" in
	"debian 13" | "ubuntu 24.04") return ;;
	esac
	[[ -n "$force_distribution" ]] || fail \
		"this is ${name:-an unknown distribution}; Debian 13 and Ubuntu 24.04 are supported" \
		"use one of them, or try your luck: $0 --force-distribution"
	[[ -x /usr/bin/apt-get && -x /usr/bin/dpkg-query ]] || fail \
		"this distribution has no apt" \
		"install BCC for Python (0.29 or newer), Python 3.12 and iproute2 with its package manager, then: $python -m venv --system-site-packages $prefix && $prefix/bin/pip install $repository"
}

require_architecture() {
	case "$(uname -m)" in
	x86_64 | aarch64) ;;
	*) fail "the architecture $(uname -m) is not supported" "use an x86-64 or arm64 host" ;;
	esac
}

require_bpffs() {
	grep -qw bpf /proc/filesystems || fail \
		"this kernel has no BPF file system ($(uname -r) was built without CONFIG_BPF_SYSCALL)" \
		"boot a distribution's kernel: apt-get install linux-image-amd64 (Debian), linux-image-generic (Ubuntu)"
	[[ "$(stat -f -c %T "$bpffs" 2>/dev/null)" != bpf_fs ]] || return 0
	say "mounting the BPF file system on $bpffs (systemd does it at every boot)"
	logged mount -t bpf -o mode=0700 bpf "$bpffs" || {
		show_log
		fail "the BPF file system cannot be mounted on $bpffs" \
			"in a container: run setup on the host, or start the container with --privileged"
	}
	acted=1
}

require_python() {
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' || fail \
		"$("$python" --version) is too old" "use a distribution with Python 3.12 or newer"
}

# Tries the bpf system call, with a map that can be mapped into memory (kernel 5.5).
require_bpf() {
	local problem
	problem="$("$python" -I - <<'END'
import ctypes, os, platform
BPF_MAP_CREATE, BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE = 0, 2, 1 << 10
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
attributes = (ctypes.c_uint32 * 18)(BPF_MAP_TYPE_ARRAY, 4, 8, 1, BPF_F_MMAPABLE)
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(number, BPF_MAP_CREATE, ctypes.byref(attributes), ctypes.sizeof(attributes))
if fd < 0:
    print(os.strerror(ctypes.get_errno()))
END
	)"
	[[ -z "$problem" ]] || fail "the kernel refuses to create a BPF map: $problem" \
		"in a container: start it with --privileged; else boot a distribution's kernel (5.15 or newer)"
}

# --- what is installed --------------------------------------------------------------------

packages=(python3 python3-bpfcc python3-venv ethtool iproute2 libatomic1 nftables)
dev_packages=(bird2 ca-certificates curl dnsmasq-base etcd-client etcd-server git haproxy iperf3
	iputils-ping keepalived make nginx openssl procps python3-grpcio quickjs
	slowhttptest suricata)
# These packages start a service, now and at every boot, but the tests need only the programs. A
# service that was installed before is left as it is.
declare -A services=([bird2]=bird [etcd-server]=etcd [haproxy]=haproxy [keepalived]=keepalived [nginx]=nginx
	[suricata]=suricata)

is_installed() { [[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]; }

missing_packages() {
	local package
	for package in "${packages[@]}"; do
		is_installed "$package" || printf '%s ' "$package"
	done
}

apt() {
	logged env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
		-o DPkg::Lock::Timeout=300 -o Acquire::Retries=2 "$@"
}

# unwanted_services PACKAGE...: prints the services that these packages would start.
unwanted_services() {
	local package
	for package in "$@"; do
		[[ -z "${services[$package]:-}" ]] || printf '%s ' "${services[$package]}"
	done
}

# forbid_start SERVICE...: keeps them from starting until this script ends.
forbid_start() {
	[[ ! -e /usr/sbin/policy-rc.d ]] || return 0 # this host has its own rules, as containers do
	policy=/usr/sbin/policy-rc.d # run before a package starts a service; removed when we exit
	{
		printf '#!/bin/sh\n'
		printf '[ "${1%%%%.service}" != %s ] || exit 101\n' "$@"
	} >"$policy"
	chmod 0755 "$policy"
}

install_packages() {
	local missing unwanted service
	missing="$(missing_packages)"
	[[ -n "$missing" ]] || return 0
	[[ -z "$offline" ]] || fail "--offline, and these packages are not installed: $missing" \
		"install them from the distribution's media: apt-get install $missing"
	say "installing the distribution's packages: $missing"
	# The package lists may be old or absent. A failed update matters only if the install fails.
	apt update || true
	# shellcheck disable=SC2086 # one argument per package
	unwanted="$(unwanted_services $missing)"
	# shellcheck disable=SC2086 # one argument per service
	[[ -z "$unwanted" ]] || forbid_start $unwanted
	# shellcheck disable=SC2086 # one argument per package
	apt install --no-install-recommends $missing || {
		show_log
		fail "apt-get could not install: $missing" \
			"check the network and proxy (/etc/apt/apt.conf.d), or name a local mirror in /etc/apt/sources.list.d" \
			"Ubuntu: python3-bpfcc is in universe: add-apt-repository universe" \
			"without a network: install these packages by hand, then: $0 --offline"
	}
	for service in $unwanted; do
		logged update-rc.d "$service" disable || true
	done
	acted=1
}

# Prints a hash of what the virtual environment was made from; if it changes, install again.
# For operators that is the whole source; for an editable install it is only what is declared.
fingerprint() {
	{
		printf '%s\n' "$repository" "$dev" "$("$python" --version)"
		cat "${BASH_SOURCE[0]}"
		awk '/^\[/ { keep = /^\[(build-system|project|tool\.hatch)/ } keep' \
			"$repository/pyproject.toml"
		[[ -n "$dev" ]] || find "$repository"/{agent,bpf,lbctl,manual,steelyard} \
			"$repository"/deploy/{*.service,*.lock,agent.example.yaml} -type f ! -path '*/__pycache__/*' -print0 | sort -z | xargs -0 cat
	} | sha256sum
}

make_environment() {
	if [[ -d "$prefix" && ! -f "$prefix/pyvenv.cfg" && -n "$(ls -A "$prefix")" ]]; then
		fail "$prefix exists, and is not a virtual environment" "choose another --prefix, or remove it"
	fi
	say "making the virtual environment $prefix from $python"
	logged "$python" -m venv --clear --system-site-packages "$prefix" || {
		show_log
		fail "the virtual environment could not be made" "see above; is the disk full?"
	}
}

# Operators get the versions and the files that the locks name by their hashes. Developers get the
# newest tools, and who installs offline has made the wheels, whose hashes are others.
install_modules() {
	local pip=("$prefix/bin/pip" --disable-pip-version-check --no-input)
	[[ -z "$offline" ]] || export PIP_NO_INDEX=1
	if [[ -n "$dev" ]]; then
		# Developers use only a part of what their tools bring: modules are compiled when imported.
		logged "${pip[@]}" install --no-compile --editable "${repository}[dev]"
	elif [[ -n "$offline" ]]; then
		logged "${pip[@]}" install "$repository"
	else
		builder="$(mktemp -d -t steelyard-build.XXXXXX)"
		logged "${pip[@]}" install --require-hashes --requirement "$repository/deploy/requirements.lock" &&
			logged "${pip[@]}" install --require-hashes --target "$builder" \
				--requirement "$repository/deploy/build.lock" &&
			PYTHONPATH="$builder" logged "${pip[@]}" install --no-index --no-deps \
				--no-build-isolation "$repository"
	fi
}

install_project() {
	local stamp="$prefix/.steelyard-setup" wanted
	wanted="$(fingerprint)"
	if [[ -x "$prefix/bin/lb-agent" && "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
		touch "$stamp"
		return
	fi
	if [[ ! -x "$prefix/bin/pip" ]] ||
		! "$prefix/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
		make_environment
	fi
	rm -f "$stamp"
	say "installing Steelyard and the Python packages it needs into $prefix"
	install_modules || {
		show_log
		fail "pip could not install Steelyard" \
			"if a hash does not match, do not go on: a file is not what its author published" \
			"check the network and proxy; a local mirror: PIP_INDEX_URL=https://mirror.example/simple $0" \
			"without a network, on a connected host of the same kind: pip wheel --wheel-dir wheels '$repository${dev:+[dev]}' hatchling" \
			"  then here: PIP_FIND_LINKS=/path/to/wheels $0 --offline"
	}
	printf '%s\n' "$wanted" >"$stamp"
	acted=1
}

# PyPI's "bcc" is another project; inside the environment it would hide the real one.
require_bcc() {
	local problem
	problem="$("$prefix/bin/python" -I -c 'import bcc; bcc.BPF' 2>&1 | tail -n 1)" || true
	[[ -z "$problem" ]] || fail "BCC does not work in $prefix: $problem" \
		"if pip installed a package named bcc: $prefix/bin/pip uninstall bcc" \
		"reinstall the distribution's: apt-get install --reinstall python3-bpfcc" \
		"or make a new environment: rm -r $prefix, then $0"
}

# --- the service --------------------------------------------------------------------------

# place SOURCE TARGET: copies the file if it differs.
place() {
	cmp -s "$1" "$2" && return
	say "installing $2"
	install -D -m 0644 "$1" "$2"
	acted=1
}

# Installs an example that nothing reads: used unedited, it would take addresses that other hosts
# have. A configuration may hold a password, so other users lose access to it.
install_configuration() {
	local configuration="$configuration_folder/agent.yaml"
	place "$repository/deploy/agent.example.yaml" "$configuration.example"
	if [[ -e "$configuration" && -n "$(find "$configuration" -perm /o=rwx)" ]]; then
		say "removing the access of other users to $configuration"
		chmod o-rwx "$configuration"
		acted=1
	fi
}

# The pages are made from the commands and the configuration's schema, by the Python that runs them.
install_manual() {
	local stamp="$prefix/.steelyard-manual" wanted page
	wanted="$(fingerprint)"
	[[ ! -e "$manual_folder/man1/lbctl.1" || "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]] || return 0
	say "writing the manual pages below $manual_folder"
	pages="$(mktemp -d -t steelyard-manual.XXXXXX)"
	(cd "$repository" && logged "$prefix/bin/python" -B -m manual "$pages") || {
		show_log
		fail "the manual pages could not be written" "see above; is the disk full?"
	}
	# Also those of commands that no longer exist.
	rm -f "$manual_folder"/man1/lbctl{,-*}.1
	for page in "$pages"/man*/*; do
		install -D -m 0644 "$page" "$manual_folder/${page#"$pages/"}"
	done
	printf '%s\n' "$wanted" >"$stamp"
	acted=1
}

# Into the folder where each shell looks by itself; it loads the file when it first completes lbctl.
install_completion() {
	local shell file text
	for shell in "${!completion_files[@]}"; do
		file="${completion_files[$shell]}"
		text="$("$prefix/bin/lbctl" completion "$shell")" ||
			fail "lbctl cannot make its completion for $shell" "run $prefix/bin/lbctl completion $shell"
		[[ "$(cat "$file" 2>/dev/null)" != "$text" ]] || continue
		say "installing $file"
		install -d "${file%/*}"
		printf '%s\n' "$text" >"$file"
		acted=1
	done
}

install_service() {
	local command name changed=""
	local units=(lb-agent lb-agent-api lb-agent-failover lb-agent-companion lb-agent-tier lb-agent-tier-proxy)
	[[ -z "$node" ]] || units=(lb-agent-node)
	for command in lbctl lb-agent; do
		[[ "$(readlink "/usr/local/bin/$command")" != "$prefix/bin/$command" ]] || continue
		say "linking /usr/local/bin/$command"
		ln -sfn "$prefix/bin/$command" "/usr/local/bin/$command"
		acted=1
	done
	[[ -n "$dev" ]] || install_manual
	[[ -n "$node" ]] || install_completion
	[[ -n "$node" ]] || install_configuration
	for name in "${units[@]}"; do
		cmp -s "$repository/deploy/$name.service" "$units_folder/$name.service" && continue
		place "$repository/deploy/$name.service" "$units_folder/$name.service"
		changed=1
	done
	[[ -n "$changed" ]] || return 0
	if [[ -d /run/systemd/system ]]; then
		systemctl daemon-reload
	else
		say "systemd is not running here: the units take effect at the next boot"
	fi
}

# --- uninstalling -------------------------------------------------------------------------

# The failover process comes first: while its agent runs, it can hand the VIPs over.
all_units=(lb-agent-api lb-agent-failover lb-agent lb-agent-companion lb-agent-node lb-agent-tier-proxy lb-agent-tier)

# Stops the units and takes everything off the interfaces: without an agent, the program would go on
# sending clients to servers that nobody checks.
stop_balancing() {
	local unit stopped=()
	for unit in "${all_units[@]}"; do
		systemctl --quiet is-active "$unit" 2>/dev/null || continue
		say "stopping $unit"
		logged systemctl stop "$unit" || {
			show_log
			fail "$unit cannot be stopped" "journalctl -u $unit -e"
		}
		stopped=("$unit" "${stopped[@]}")
	done
	is_installed python3-bpfcc || return 0 # a GPU host, where only the node agent ran (--node)
	if [[ -x "$prefix/bin/lb-agent" ]]; then
		logged "$prefix/bin/lb-agent" detach --all || {
			show_log
			((!${#stopped[@]})) || systemctl start "${stopped[@]}"
			fail "not everything could be taken off the interfaces, so nothing is removed" \
				"see above, then: $0 --uninstall"
		}
		sed 's/^/setup: /' "$log"
	elif [[ -d "$bpffs/steelyard" ]]; then
		fail "$prefix has no lb-agent, and $bpffs/steelyard has tables of a balancer" \
			"give the --prefix of the installation, or install again first: $0"
	fi
}

# remove PATH...: removes what exists of these files and folders.
remove() {
	local path
	for path in "$@"; do
		[[ -e "$path" || -L "$path" ]] || continue
		say "removing $path"
		rm -rf -- "$path"
	done
}

remove_installed() {
	local command unit file
	for command in lbctl lb-agent; do
		[[ "$(readlink "/usr/local/bin/$command")" != "$prefix/bin/$command" ]] ||
			remove "/usr/local/bin/$command"
	done
	for unit in "${all_units[@]}"; do
		[[ -e "$units_folder/$unit.service" ]] || continue
		logged systemctl disable "$unit" || true
		remove "$units_folder/$unit.service"
	done
	remove "$manual_folder"/man1/lbctl{,-*}.1 "$manual_folder/man5/steelyard-agent.yaml.5" \
		"$manual_folder/man8/lb-agent.8" "${completion_files[@]}"
	for file in "${completion_files[@]}"; do
		rmdir "${file%/*}" "${file%/*/*}" 2>/dev/null || true
	done
	rmdir "$manual_folder"/man{1,5,8} 2>/dev/null || true
	# The package has the same file in the same place.
	! is_installed steelyard &&
		cmp -s "$repository/deploy/agent.example.yaml" "$configuration_folder/agent.yaml.example" &&
		remove "$configuration_folder/agent.yaml.example"
	rmdir "$configuration_folder" 2>/dev/null || true
	if [[ -f "$prefix/pyvenv.cfg" && -f "$prefix/.steelyard-setup" ]]; then remove "$prefix"; fi
}

# Prints what setup or the agent has made, or an operator for them, and is still there.
list_left() {
	local left=() path package
	for path in "$prefix" /usr/local/bin/{lbctl,lb-agent} "$configuration_folder" "${kept[@]}" \
		"$units_folder"/lb-agent*.service* /etc/sysctl.d/90-steelyard.conf; do
		[[ -e "$path" || -L "$path" ]] && left+=("$path")
	done
	((!${#left[@]})) || say "left: ${left[*]}"
	left=()
	for package in "${packages[@]}"; do
		if is_installed "$package"; then left+=("$package"); fi
	done
	say "the distribution's packages that Steelyard needs stay, others may need them: ${left[*]}"
}

uninstall() {
	local unit package="" enabled=()
	if is_installed steelyard; then package=1; fi
	[[ -z "$package" || -z "$purge" ]] || fail \
		"the package steelyard uses $configuration_folder and the state" \
		"without --purge only this installation is removed; all of it: apt-get purge steelyard"
	if [[ -n "$package" ]]; then
		say "the package steelyard is installed: the balancer stays at work for it"
		for unit in "${all_units[@]}"; do
			if systemctl --quiet is-enabled "$unit" 2>/dev/null; then enabled+=("$unit"); fi
		done
	else
		stop_balancing
	fi
	remove_installed
	[[ -n "$package" ]] || remove /var/cache/steelyard
	[[ -z "$purge" ]] || remove "$configuration_folder" "${kept[@]}" \
		"$units_folder"/lb-agent{,-api,-failover,-companion,-node,-tier,-tier-proxy}.service.d
	rmdir /run/steelyard 2>/dev/null || true
	[[ ! -d /run/systemd/system ]] || systemctl daemon-reload
	# Their links point to the units that were removed.
	((!${#enabled[@]})) || logged systemctl reenable "${enabled[@]}"
	list_left
	[[ -z "$package" ]] || say "done; now: systemctl restart lb-agent (and lb-agent-failover)"
}

# --- the steps ----------------------------------------------------------------------------

readonly configuration_folder="${STEELYARD_CONFIGURATION_FOLDER:-/etc/steelyard}"
readonly manual_folder=/usr/local/share/man
readonly units_folder=/etc/systemd/system
readonly kept=(/var/lib/steelyard /run/steelyard) # by --uninstall, unless --purge
readonly -A completion_files=(
	[bash]=/usr/local/share/bash-completion/completions/lbctl
	[zsh]=/usr/local/share/zsh/site-functions/_lbctl
	[fish]=/usr/local/share/fish/vendor_completions.d/lbctl.fish
)
dev="" service="" node="" offline="" force_distribution="" prefix="" acted="" uninstall="" purge=""

arguments() {
	while (($#)); do
		case "$1" in
		--prefix)
			[[ -n "${2:-}" ]] || fail "--prefix needs a directory" "$0 --prefix /opt/steelyard"
			prefix="$2"
			shift
			;;
		--prefix=?*) prefix="${1#*=}" ;;
		--dev) dev=1 ;;
		--service) service=1 ;;
		--node) node=1 ;;
		--offline) offline=1 ;;
		--force-distribution) force_distribution=1 ;;
		--uninstall) uninstall=1 ;;
		--purge) purge=1 ;;
		-h | --help)
			usage
			exit 0
			;;
		*) fail "unknown option $1" "$0 --help" ;;
		esac
		shift
	done
	[[ -z "$dev" || -z "$node" ]] || fail "--dev and --node exclude each other" \
		"developing needs BCC and BPF: $0 --dev"
	[[ -z "$purge" || -n "$uninstall" ]] || fail "--purge is for --uninstall" "$0 --uninstall --purge"
	[[ -z "$uninstall" || -z "$dev" ]] || fail "--uninstall is not for --dev" "make clean"
	[[ -z "$node" ]] || packages=(python3 python3-venv)
	[[ -z "$dev" ]] || packages+=("${dev_packages[@]}")
	# Judges the alerts. Ubuntu has no package of that name, and the test is skipped there.
	[[ -z "$dev" || "$(. /etc/os-release && echo "$ID")" != debian ]] || packages+=(promtool)
	if [[ -z "$prefix" ]]; then
		prefix=/opt/steelyard
		[[ -z "$dev" ]] || prefix="$repository/.venv"
	fi
	prefix="$(realpath -m -- "$prefix")"
}

main() {
	local start
	arguments "$@"
	require_root "$@"
	if [[ -n "$uninstall" ]]; then
		uninstall
		return
	fi
	require_distribution
	require_architecture
	[[ -n "$node" ]] || require_bpffs
	install_packages
	require_python
	[[ -n "$node" ]] || require_bpf
	install_project
	[[ -n "$node" ]] || require_bcc
	[[ -z "$service" ]] || install_service
	if [[ -z "$acted" ]]; then
		say "nothing to do: $prefix is complete"
	elif [[ -n "$node" && -n "$service" ]]; then
		say "done; now: systemctl enable --now lb-agent-node"
	elif [[ -n "$node" ]]; then
		say "done: $prefix/bin/lb-agent node --help"
	elif [[ -n "$service" ]]; then
		start="systemctl enable --now lb-agent"
		if [[ -e "$configuration_folder/agent.yaml" ]]; then
			say "done; now: lb-agent check && $start"
		else
			say "done; now: lb-agent init (writes $configuration_folder/agent.yaml; agent.yaml.example there shows more)"
			say "the units do not start without that file; then: lb-agent check && $start"
		fi
		say "if it has a section failover: $start lb-agent-failover"
	else
		say "done: $prefix/bin/lbctl --help"
	fi
}

[[ "${BASH_SOURCE[0]}" != "$0" ]] || main "$@" # a test calls single functions
