// SPDX-License-Identifier: Apache-2.0
/* The clients and the servers of the comparison: TCP with epoll, in one thread each.
 *
 *   load serve PORT
 *   load ask KIND BYTES CONNECTIONS AT_ONCE RATE SECONDS ADDRESS:PORT...
 *   load flood RATE SECONDS ADDRESS:PORT
 *
 * KIND is short (a small request and a small answer, then the server closes), up (the client sends
 * BYTES) or down (the server sends them).  RATE is the number of connections to begin per second,
 * evenly spaced; 0: as fast as they end.  Answers are checked to the byte; the last line of the
 * output is JSON.  None of the known HTTP tools is used: they have no uploads that a layer-4
 * balancer would see as one connection, and a server that needs more CPU than the client's core
 * would set the pace for every balancer alike.
 *
 * flood sends RATE packets a second, each from another address and port of 198.18.0.0/15 (RFC 2544,
 * 6): in turn a SYN, an ACK, data, and a RST, of connections that do not exist.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 256
#define BACKLOG 4096
#define MAX_FDS 20000
#define MAX_PEERS 16
#define CHUNK (256 << 10)

static const char request[] = "GET /health HTTP/1.0\r\n"
			      "Host: balanced.example\r\n"
			      "User-Agent: steelyard-bench/1\r\n\r\n";
static const char answer[] = "HTTP/1.0 200 OK\r\n"
			     "Content-Type: text/plain\r\n"
			     "Content-Length: 64\r\n"
			     "Cache-Control: no-store\r\n"
			     "Connection: close\r\n\r\n"
			     "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";
static const char done[] = "done\n";

/* A connection, on either side. */
struct talk {
	bool asked;
	long long to_send, to_read; /* of the bulk */
	long long got;
};

static struct talk talks[MAX_FDS];
static char bulk[CHUNK];
static int poller;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void watch(int fd, int operation, unsigned events)
{
	struct epoll_event event = { .events = events, .data.fd = fd };

	if (epoll_ctl(poller, operation, fd, &event))
		die("epoll_ctl");
}

/* Sends as much of the bulk as the socket accepts; false: the connection is lost. */
static bool push(int fd, struct talk *talk)
{
	while (talk->to_send > 0) {
		size_t size = talk->to_send < CHUNK ? talk->to_send : CHUNK;
		ssize_t sent = send(fd, bulk, size, MSG_NOSIGNAL);

		if (sent < 0)
			return errno == EAGAIN;
		talk->to_send -= sent;
	}
	return true;
}

/* Discards received bytes without copying them; returns their number, 0 at the end, -1: lost, -2:
 * none now.
 */
static ssize_t drop(int fd)
{
	ssize_t got = recv(fd, bulk, CHUNK, MSG_TRUNC);

	return got < 0 && errno == EAGAIN ? -2 : got;
}

/* --- the server ------------------------------------------------------------------------- */

static void take(int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
		if (fd >= MAX_FDS) {
			close(fd);
			continue;
		}
		talks[fd] = (struct talk){};
		watch(fd, EPOLL_CTL_ADD, EPOLLIN);
	}
}

/* Reads the request, whose first letter says what is wanted.  True: the connection is over. */
static bool hear(int fd, struct talk *talk)
{
	char line[512];
	ssize_t got = recv(fd, line, sizeof(line) - 1, MSG_PEEK);
	char *end;

	if (got <= 0)
		return got == 0 || errno != EAGAIN;
	line[got] = 0;
	end = strchr(line, '\n');
	if (!end)
		return false;
	if (line[0] == 'U' || line[0] == 'D') {
		recv(fd, line, end + 1 - line, 0);
		talk->asked = true;
		*(line[0] == 'U' ? &talk->to_read : &talk->to_send) = atoll(line + 1);
		return false;
	}
	recv(fd, line, sizeof(line), 0);
	send(fd, answer, sizeof(answer) - 1, MSG_NOSIGNAL);
	return true;
}

static bool serve_one(int fd, struct talk *talk)
{
	ssize_t got;

	if (!talk->asked && hear(fd, talk))
		return true;
	if (!talk->asked)
		return false;
	while (talk->to_read > 0) {
		got = drop(fd);
		if (got == -2)
			return false;
		if (got <= 0)
			return true;
		talk->to_read -= got;
		if (talk->to_read <= 0) {
			send(fd, done, sizeof(done) - 1, MSG_NOSIGNAL);
			return true;
		}
	}
	if (!push(fd, talk) || !talk->to_send)
		return true;
	watch(fd, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
	return false;
}

static void serve(int port)
{
	struct sockaddr_in6 here = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
	struct epoll_event events[EVENTS];

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (void *)&here, sizeof(here)) || listen(listener, BACKLOG))
		die("listen");
	watch(listener, EPOLL_CTL_ADD, EPOLLIN);
	for (;;) {
		int ready = epoll_wait(poller, events, EVENTS, -1);

		for (int i = 0; i < ready; i++) {
			int fd = events[i].data.fd;

			if (fd == listener)
				take(listener);
			else if (serve_one(fd, &talks[fd]))
				close(fd);
		}
	}
}

/* --- the client ------------------------------------------------------------------------- */

static struct sockaddr_in peers[MAX_PEERS];
static int peer_count, failed, finished, started;
static const char *kind;
static long long bytes, expected;

static void address(const char *text)
{
	char host[64];
	const char *colon = strrchr(text, ':');

	if (!colon || colon - text >= (long)sizeof(host) || peer_count == MAX_PEERS)
		exit(2);
	memcpy(host, text, colon - text);
	host[colon - text] = 0;
	peers[peer_count].sin_family = AF_INET;
	peers[peer_count].sin_port = htons(atoi(colon + 1));
	if (inet_pton(AF_INET, host, &peers[peer_count++].sin_addr) != 1)
		exit(2);
}

static void ask(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	struct sockaddr_in *peer = &peers[started++ % peer_count];

	if (fd < 0 || fd >= MAX_FDS)
		die("socket");
	talks[fd] = (struct talk){};
	if (connect(fd, (void *)peer, sizeof(*peer)) && errno != EINPROGRESS)
		die("connect");
	watch(fd, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

/* Sends the request once the connection is established; false: it failed. */
static bool begin(int fd, struct talk *talk)
{
	char line[64];
	const char *text = request;
	size_t size = sizeof(request) - 1;

	if (*kind != 's') {
		size = snprintf(line, sizeof(line), "%c%lld\n", *kind == 'u' ? 'U' : 'D', bytes);
		text = line;
	}
	talk->asked = true;
	talk->to_send = *kind == 'u' ? bytes : 0;
	return send(fd, text, size, MSG_NOSIGNAL) == (ssize_t)size;
}

/* Continues a connection of the client.  True: it is over. */
static bool ask_on(int fd, struct talk *talk, unsigned events)
{
	ssize_t got;

	if (!talk->asked && (events & EPOLLOUT) && !begin(fd, talk))
		return true;
	if (events & EPOLLOUT) {
		if (!push(fd, talk))
			return true;
		if (!talk->to_send)
			watch(fd, EPOLL_CTL_MOD, EPOLLIN);
	}
	if (!(events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
		return false;
	while ((got = drop(fd)) > 0)
		talk->got += got;
	return got != -2;
}

/* Begins the connections that are due; returns the time until the next one, at most 0.1 s. */
static struct timespec begin_due(int count, int at_once, int rate, double start)
{
	double wait_s = 0.1;

	while (started < count && started - finished < at_once) {
		double due_s = rate ? start + (double)started / rate - now() : 0;

		if (due_s > 0) {
			wait_s = due_s < wait_s ? due_s : wait_s;
			break;
		}
		ask();
	}
	return (struct timespec){ .tv_nsec = wait_s * 1e9 };
}

static void client(int count, int at_once, int rate, double limit_s)
{
	struct epoll_event events[EVENTS];
	double start = now(), end = start + limit_s;

	prctl(PR_SET_TIMERSLACK, 1UL);
	while (finished < count && now() < end) {
		struct timespec wait = begin_due(count, at_once, rate, start);
		int ready = epoll_pwait2(poller, events, EVENTS, &wait, NULL);

		for (int i = 0; i < ready; i++) {
			int fd = events[i].data.fd;

			if (!ask_on(fd, &talks[fd], events[i].events))
				continue;
			failed += talks[fd].got != expected;
			finished++;
			close(fd);
		}
	}
	printf("{\"finished\": %d, \"failed\": %d, \"seconds\": %.6f}\n", finished,
	       failed + count - finished, now() - start);
}

/* --- the flood -------------------------------------------------------------------------- */

#define STRANGERS 0xc6120000u /* 198.18.0.0/15 */
#define JUNK 20

struct junk {
	struct iphdr ip;
	struct tcphdr tcp;
	char data[JUNK];
} __attribute__((packed));

static unsigned random_bits(void)
{
	static unsigned long long state = 88172645463325252ull;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

static unsigned sum_of(const void *start, size_t size)
{
	const unsigned char *at = start;
	unsigned sum = 0;

	for (size_t i = 0; i + 1 < size; i += 2)
		sum += at[i] << 8 | at[i + 1];
	return sum;
}

/* Makes the next packet; returns its length. */
static size_t make_junk(struct junk *junk, unsigned number)
{
	unsigned what = number % 4, sum;
	size_t of_tcp = sizeof(junk->tcp) + (what == 2 ? JUNK : 0);

	*junk = (struct junk){
		.ip = { .version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP },
		.tcp = { .doff = 5, .dest = peers[0].sin_port, .window = htons(64240) },
	};
	junk->ip.tot_len = htons(sizeof(junk->ip) + of_tcp);
	junk->ip.saddr = htonl(STRANGERS | (random_bits() & 0x1ffff));
	junk->ip.daddr = peers[0].sin_addr.s_addr;
	junk->tcp.source = htons(1024 + random_bits() % 64000);
	junk->tcp.seq = random_bits();
	junk->tcp.syn = what == 0;
	junk->tcp.ack = what == 1 || what == 2;
	junk->tcp.psh = what == 2;
	junk->tcp.rst = what == 3;
	junk->tcp.ack_seq = junk->tcp.ack ? random_bits() : 0;
	sum = sum_of(&junk->ip.saddr, 8) + IPPROTO_TCP + of_tcp + sum_of(&junk->tcp, of_tcp);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	junk->tcp.check = htons(~sum);
	return sizeof(junk->ip) + of_tcp;
}

static void flood(int rate, double limit_s)
{
	int raw = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	double start = now();
	unsigned sent = 0;
	struct junk junk;

	if (raw < 0)
		die("socket");
	prctl(PR_SET_TIMERSLACK, 1UL);
	while (now() - start < limit_s) {
		struct timespec pause = { .tv_nsec = 500000 };

		for (unsigned due = (now() - start) * rate; sent < due; sent++) {
			size_t size = make_junk(&junk, sent);

			/* What the queue has no room for was sent too fast for the cable. */
			if (sendto(raw, &junk, size, 0, (void *)&peers[0], sizeof(peers[0])) < 0 &&
			    errno != ENOBUFS)
				die("sendto");
		}
		nanosleep(&pause, NULL);
	}
	printf("{\"sent\": %u}\n", sent);
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	poller = epoll_create1(0);
	if (argc == 3 && !strcmp(argv[1], "serve")) {
		serve(atoi(argv[2]));
	} else if (argc >= 9 && !strcmp(argv[1], "ask")) {
		kind = argv[2];
		bytes = atoll(argv[3]);
		expected = *kind == 's' ? (long long)sizeof(answer) - 1 :
			   *kind == 'u' ? (long long)sizeof(done) - 1 :
					  bytes;
		for (int i = 8; i < argc; i++)
			address(argv[i]);
		client(atoi(argv[4]), atoi(argv[5]), atoi(argv[6]), atof(argv[7]));
	} else if (argc == 5 && !strcmp(argv[1], "flood")) {
		address(argv[4]);
		flood(atoi(argv[2]), atof(argv[3]));
	} else {
		return 2;
	}
	return 0;
}
