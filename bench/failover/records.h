// SPDX-License-Identifier: Apache-2.0
/* The file that watch.c writes while watch.py reads it: events and their times. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RECORDS (2u << 20) /* 32 MB of a sparse file: a quarter of an hour */
#define SECOND 1000000000ull

/* timeline.py has the same kinds, and the same record layout. */
enum kind {
	SENT = 1,
	ANSWERED,
	TAKEN,
	DROPPED,
	HEARD,
	ANNOUNCED
};

struct record {
	uint64_t at_ns;  /* CLOCK_MONOTONIC */
	uint32_t number; /* of the probe; HEARD: the advert's priority */
	uint8_t kind;
	uint8_t node; /* that answered, announced, has the VIP, or heard the advert */
	uint16_t pad;
};

struct log {
	volatile uint64_t count;
	uint64_t pad;
	struct record records[RECORDS];
};

static struct log *records;

static void die(const char *what)
{
	fprintf(stderr, "watch: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(clockid_t clock)
{
	struct timespec at;

	clock_gettime(clock, &at);
	return at.tv_sec * SECOND + at.tv_nsec;
}

static void note(uint64_t at_ns, enum kind kind, int node, uint32_t number)
{
	uint64_t count = records->count;

	if (count >= RECORDS)
		exit(0);
	records->records[count] =
		(struct record){ .at_ns = at_ns, .number = number, .kind = kind, .node = node };
	__atomic_store_n(&records->count, count + 1, __ATOMIC_RELEASE);
}

static void map_file(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, sizeof(*records)))
		die(path);
	records = mmap(NULL, sizeof(*records), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (records == MAP_FAILED)
		die("mmap");
	close(fd);
}
