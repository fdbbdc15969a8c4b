// SPDX-License-Identifier: Apache-2.0
/* A client that probes a VIP every millisecond, and records what else happens meanwhile.
 *
 *   watch FILE PERIOD_US VIP INTERFACE CLIENT_NS NODE_NS NODE_MAC NODE_NS NODE_MAC
 *
 * It writes records (records.h) into FILE until its parent is gone or the file is full.  The file
 * is mapped, so it can be read at any time.  Recorded are: every echo request that the client
 * sends, every answer with the node that gave it (by its MAC), every gratuitous ARP or unsolicited
 * NA that reaches the client, every VIP added to or removed from a node, and every advert that
 * reaches a node.  The nodes' kernels answer, so only VRRP is measured.  The time of an answer is
 * the kernel's time of arrival.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "records.h"

#define NODES 2
#define IP_PROTO_VRRP 112
#define FRAME 2048
#define IDENTITY 0x7379
#define ICMP_FILTER 1 /* from linux/icmp.h, which conflicts with net/if.h */

static int family, client, asking, nodes[NODES], taps[NODES];
static uint8_t vip[16], macs[NODES][ETH_ALEN];
static size_t vip_len;

static void enter(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(path);
	close(fd);
}

static int socket_or_die(int domain, int type, int protocol)
{
	int fd = socket(domain, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);

	if (fd < 0)
		die("socket");
	return fd;
}

static void set(int fd, int level, int option, const void *value, socklen_t length)
{
	if (setsockopt(fd, level, option, value, length))
		die("setsockopt");
}

/* Opens a socket that gets all frames of the interface, with their Ethernet headers. */
static int tap(const char *interface, int protocol)
{
	int fd = socket_or_die(AF_PACKET, SOCK_RAW, 0), on = 1;
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(protocol),
		.sll_ifindex = if_nametoindex(interface),
	};

	set(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on));
	set(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)))
		die("bind to the interface");
	return fd;
}

/* Filters for VRRP: the protocol is byte 9 of an IPv4 header, byte 6 of an IPv6 one. */
static int advert_tap(const char *interface)
{
	int fd = tap(interface, family == AF_INET ? ETH_P_IP : ETH_P_IPV6);
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, ETH_HLEN + (family == AF_INET ? 9 : 6)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IP_PROTO_VRRP, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, FRAME),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog filter = { .len = 4, .filter = code };

	set(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter));
	return fd;
}

static int address_events(void)
{
	int fd = socket_or_die(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	struct sockaddr_nl address = {
		.nl_family = AF_NETLINK,
		.nl_groups = family == AF_INET ? RTMGRP_IPV4_IFADDR : RTMGRP_IPV6_IFADDR,
	};

	if (bind(fd, (struct sockaddr *)&address, sizeof(address)))
		die("bind to address events");
	return fd;
}

/* Opens the socket that sends echo requests; the tap sees the replies. */
static int asking_socket(void)
{
	int fd = socket_or_die(family, SOCK_RAW,
			       family == AF_INET ? IPPROTO_ICMP : (int)IPPROTO_ICMPV6);

	if (family == AF_INET) {
		uint32_t nothing = ~0u;

		set(fd, SOL_RAW, ICMP_FILTER, &nothing, sizeof(nothing));
	} else {
		struct icmp6_filter nothing;

		ICMP6_FILTER_SETBLOCKALL(&nothing);
		set(fd, IPPROTO_ICMPV6, ICMP6_FILTER, &nothing, sizeof(nothing));
	}
	return fd;
}

static uint16_t checksum(const uint16_t *words, size_t count)
{
	uint32_t sum = 0;

	while (count--)
		sum += *words++;
	sum = (sum >> 16) + (sum & 0xffff);
	return ~(sum + (sum >> 16));
}

static void ask(uint32_t number)
{
	uint64_t at = now(CLOCK_MONOTONIC);
	struct sockaddr_storage to = { .ss_family = family };
	/* Echo requests of both families have the layout type, code, checksum, id, sequence. */
	uint16_t packet[8] = { 0 };

	packet[0] = htons((family == AF_INET ? ICMP_ECHO : ICMP6_ECHO_REQUEST) << 8);
	packet[2] = htons(IDENTITY);
	packet[3] = htons(number & 0xffff);
	memcpy(&packet[4], &number, sizeof(number));
	if (family == AF_INET) {
		packet[1] = checksum(packet, 8);
		memcpy(&((struct sockaddr_in *)&to)->sin_addr, vip, vip_len);
	} else {
		memcpy(&((struct sockaddr_in6 *)&to)->sin6_addr, vip, vip_len);
	}
	/* Counts as sent even if the kernel reports an error: there will be no answer. */
	sendto(asking, packet, sizeof(packet), 0, (struct sockaddr *)&to,
	       family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
	note(at, SENT, 0, number);
}

static int node_of(const uint8_t *mac)
{
	for (int node = 0; node < NODES; node++)
		if (!memcmp(mac, macs[node], ETH_ALEN))
			return node;
	return -1;
}

/* Records an echo reply to one of our probes, or an advertisement of the VIP. */
static void seen_icmp(uint64_t at, int node, const uint8_t *icmp, size_t length)
{
	uint32_t number; /* after type, code, checksum, id and sequence, in both families */

	if (length < 8 + sizeof(number))
		return;
	if (icmp[0] == (family == AF_INET ? ICMP_ECHOREPLY : ICMP6_ECHO_REPLY) &&
	    icmp[4] == IDENTITY >> 8 && icmp[5] == (IDENTITY & 0xff)) {
		memcpy(&number, icmp + 8, sizeof(number));
		note(at, ANSWERED, node, number);
	} else if (family == AF_INET6 && icmp[0] == ND_NEIGHBOR_ADVERT && length >= 24 &&
		   !(icmp[4] & 0x40) && !memcmp(icmp + 8, vip, 16)) {
		note(at, ANNOUNCED, node, 0); /* unsolicited */
	}
}

static void seen_by_client(uint64_t at, const uint8_t *frame, size_t length)
{
	const struct ethhdr *ethernet = (const void *)frame;
	const uint8_t *packet = frame + ETH_HLEN;
	size_t head = family == AF_INET ? sizeof(struct iphdr) : sizeof(struct ip6_hdr);
	int node;

	if (length < ETH_HLEN + head || (node = node_of(ethernet->h_source)) < 0)
		return;
	length -= ETH_HLEN;
	if (ethernet->h_proto == htons(ETH_P_ARP)) {
		/* gratuitous: sender and target are the same address */
		if (length >= 28 && !memcmp(packet + 14, packet + 24, 4) &&
		    !memcmp(packet + 14, vip, 4))
			note(at, ANNOUNCED, node, 0);
	} else if (family == AF_INET ? packet[9] == IPPROTO_ICMP : packet[6] == IPPROTO_ICMPV6) {
		seen_icmp(at, node, packet + head, length - head);
	}
}

static void seen_by_node(uint64_t at, int node, const uint8_t *frame, size_t length)
{
	size_t head = ETH_HLEN +
		      (family == AF_INET ? 4u * (frame[ETH_HLEN] & 15) : sizeof(struct ip6_hdr));

	if (length > head + 2)
		note(at, HEARD, node, frame[head + 2]); /* version, VRID, priority */
}

/* node < 0: the client */
static void read_frames(int fd, int node)
{
	uint8_t frame[FRAME], control[128];
	struct iovec part = { frame, sizeof(frame) };
	ssize_t length;

	for (;;) {
		struct msghdr message = { .msg_iov = &part,
					  .msg_iovlen = 1,
					  .msg_control = control,
					  .msg_controllen = sizeof(control) };
		struct timespec arrived;
		uint64_t at;

		length = recvmsg(fd, &message, 0);
		if (length < 0)
			return;
		at = now(CLOCK_MONOTONIC);
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
			if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPNS) {
				memcpy(&arrived, CMSG_DATA(c), sizeof(arrived));
				at -= now(CLOCK_REALTIME) -
				      (arrived.tv_sec * SECOND + arrived.tv_nsec);
			}
		if (node < 0)
			seen_by_client(at, frame, length);
		else
			seen_by_node(at, node, frame, length);
	}
}

static bool is_vip(struct nlmsghdr *message)
{
	struct ifaddrmsg *address = NLMSG_DATA(message);
	struct rtattr *attribute = IFA_RTA(address);
	int length = IFA_PAYLOAD(message);

	for (; RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length))
		if (attribute->rta_type == IFA_ADDRESS &&
		    !memcmp(RTA_DATA(attribute), vip, vip_len))
			return true;
	return false;
}

static void read_addresses(int node)
{
	char buffer[16384] __attribute__((aligned(8)));
	ssize_t got;

	while ((got = recv(nodes[node], buffer, sizeof(buffer), 0)) > 0) {
		struct nlmsghdr *message = (void *)buffer;
		int length = got;

		for (; NLMSG_OK(message, length); message = NLMSG_NEXT(message, length))
			if (is_vip(message))
				note(now(CLOCK_MONOTONIC),
				     message->nlmsg_type == RTM_NEWADDR ? TAKEN : DROPPED, node, 0);
	}
}

static void read_vip(const char *text)
{
	family = strchr(text, ':') ? AF_INET6 : AF_INET;
	vip_len = family == AF_INET ? 4 : 16;
	if (inet_pton(family, text, vip) != 1)
		die(text);
}

static void read_mac(uint8_t *mac, const char *text)
{
	if (sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4,
		   mac + 5) != ETH_ALEN)
		die(text);
}

/* Real-time priority, so that nothing delays the probes and records, not even the daemons. */
static void hurry(void)
{
	struct sched_param first = { .sched_priority = 60 };

	if (sched_setscheduler(0, SCHED_FIFO, &first))
		fprintf(stderr, "watch: no real-time scheduling: %s\n", strerror(errno));
	mlockall(MCL_CURRENT);
}

static int timer(long period_us)
{
	struct itimerspec every = {
		.it_interval = { period_us / 1000000, period_us % 1000000 * 1000 },
		.it_value = { 0, 1 },
	};
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

	if (fd < 0 || timerfd_settime(fd, 0, &every, NULL))
		die("timer");
	return fd;
}

int main(int argc, char **argv)
{
	struct pollfd ready[2 + 2 * NODES];
	uint32_t number = 0;
	pid_t parent = getppid();

	if (argc != 6 + 2 * NODES) {
		fprintf(stderr, "watch: see the head of watch.c\n");
		return 2;
	}
	read_vip(argv[3]);
	for (int node = 0; node < NODES; node++) {
		enter(argv[6 + 2 * node]);
		read_mac(macs[node], argv[7 + 2 * node]);
		nodes[node] = address_events();
		taps[node] = advert_tap(argv[4]);
		ready[2 + node] = (struct pollfd){ nodes[node], POLLIN, 0 };
		ready[2 + NODES + node] = (struct pollfd){ taps[node], POLLIN, 0 };
	}
	enter(argv[5]);
	client = tap(argv[4], ETH_P_ALL);
	asking = asking_socket();
	hurry();
	map_file(argv[1]);
	ready[0] = (struct pollfd){ timer(atol(argv[2])), POLLIN, 0 };
	ready[1] = (struct pollfd){ client, POLLIN, 0 };
	while (poll(ready, 2 + 2 * NODES, 2000) >= 0 && getppid() == parent) {
		uint64_t periods;

		/* If several periods late, send one probe and not a burst. */
		if (read(ready[0].fd, &periods, sizeof(periods)) > 0)
			ask(number++);
		read_frames(client, -1);
		for (int node = 0; node < NODES; node++) {
			if (ready[2 + node].revents)
				read_addresses(node);
			if (ready[2 + NODES + node].revents)
				read_frames(taps[node], node);
		}
	}
	return 0;
}
