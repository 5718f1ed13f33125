/* A load for a disk inside a small guest: blocks are written, zeroed, discarded and read in a random order by several processes,
 * and each read is compared with what the block must hold. Statically linked, since the guest has nothing but this.
 *
 *   guest_load verify DEVICE MIB JOBS END_SECTORS   until the disk has END_SECTORS; then every block is read
 *   guest_load read|write DEVICE MIB JOBS SECONDS   4 KiB at random, without looking; prints operations per second
 *
 * Each process has blocks of its own, so it knows what they hold: a block number, a count of its writes, and words that follow from both. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, JOBS_MAX = 64 };

/* Shared by all processes. */
static struct { volatile uint64_t ops[JOBS_MAX]; volatile int stop; } *shared;

static void fail(const char *what, uint64_t block)
{
	printf("guest: LOAD FAILED: %s at block %llu: %s\n", what, (unsigned long long)block, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void fill(uint64_t *words, uint64_t block, uint64_t count)
{
	for (int i = 0; i < BLOCK / 8; i++)
		words[i] = mix(block * 1000003 + count * 64 + i % 64) ^ i;
	words[0] = block;
	words[1] = count;
}

/* count 0: never written, or zeroed. */
static void check(int fd, uint64_t *words, uint64_t *expect, uint64_t block, uint64_t count)
{
	if (pread(fd, words, BLOCK, block * BLOCK) != BLOCK)
		fail("read", block);
	if (count)
		fill(expect, block, count);
	else
		memset(expect, 0, BLOCK);
	if (memcmp(words, expect, BLOCK)) {
		printf("guest: block %llu has number %llu and count %llu, written %llu times\n", (unsigned long long)block,
		       (unsigned long long)words[0], (unsigned long long)words[1], (unsigned long long)count);
		fail("content", block);
	}
}

static int open_disk(const char *path)
{
	int fd = open(path, O_RDWR | O_DIRECT);
	if (fd < 0)
		fail(path, 0);
	return fd;
}

static void *aligned(void)
{
	void *memory = NULL;
	if (posix_memalign(&memory, BLOCK, BLOCK))
		fail("memory", 0);
	return memory;
}

static void verify_job(const char *path, uint64_t blocks, int job, int jobs)
{
	int fd = open_disk(path);
	uint64_t *words = aligned(), *expect = aligned(), own = blocks / jobs, random = job + 1, writes = 0;
	/* By block: the count that it holds, 0 for zeros. */
	uint64_t *holds = calloc(own, sizeof *holds);
	while (!shared->stop) {
		random = mix(random);
		uint64_t at = (random >> 8) % own, block = at * jobs + job, range[2] = { block * BLOCK, BLOCK };
		switch (random % 16) {
		case 0:
			if (ioctl(fd, BLKDISCARD, range))
				fail("discard", block);
			holds[at] = 0;
			break;
		case 1:
			if (ioctl(fd, BLKZEROOUT, range))
				fail("zeroing", block);
			holds[at] = 0;
			break;
		case 2:
			if (fsync(fd))
				fail("flush", block);
			break;
		case 3: case 4: case 5: case 6: case 7:
			check(fd, words, expect, block, holds[at]);
			break;
		default:
			holds[at] = ++writes;
			fill(words, block, writes);
			if (pwrite(fd, words, BLOCK, block * BLOCK) != BLOCK)
				fail("write", block);
		}
		shared->ops[job]++;
	}
	for (uint64_t at = 0; at < own; at++)
		check(fd, words, expect, at * jobs + job, holds[at]);
	_exit(0);
}

static void bench_job(const char *path, uint64_t blocks, int job, int writing)
{
	int fd = open_disk(path);
	uint64_t *words = aligned(), random = job + 1;
	fill(words, job, 1);
	while (!shared->stop) {
		random = mix(random);
		off_t at = (random >> 8) % blocks * BLOCK;
		ssize_t done = writing ? pwrite(fd, words, BLOCK, at) : pread(fd, words, BLOCK, at);
		if (done != BLOCK)
			fail(writing ? "write" : "read", at / BLOCK);
		shared->ops[job]++;
	}
	_exit(0);
}

static uint64_t total(int jobs)
{
	uint64_t sum = 0;
	for (int job = 0; job < jobs; job++)
		sum += shared->ops[job];
	return sum;
}

static uint64_t sectors_of(const char *path)
{
	uint64_t bytes = 0;
	int fd = open(path, O_RDONLY);
	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes))
		fail(path, 0);
	close(fd);
	return bytes / 512;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Says how far it is, and what size the disk has when that changes. */
static void watch(const char *path, int jobs, uint64_t end_sectors)
{
	uint64_t sectors = sectors_of(path);
	for (int round = 0; sectors < end_sectors; round++) {
		usleep(100000);
		uint64_t seen = sectors_of(path);
		if (seen != sectors)
			printf("guest: the disk has %llu sectors now\n", (unsigned long long)seen);
		sectors = seen;
		if (round % 5 == 0)
			printf("guest: load at %llu\n", (unsigned long long)total(jobs));
		fflush(stdout);
		/* A process that has failed said why. */
		if (waitpid(-1, NULL, WNOHANG) > 0)
			exit(1);
	}
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return 64;
	const char *mode = argv[1], *path = argv[2];
	uint64_t blocks = strtoull(argv[3], NULL, 10) * 256;
	int jobs = atoi(argv[4]), verifying = !strcmp(mode, "verify");
	if (jobs < 1 || jobs > JOBS_MAX)
		return 64;
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	double begun = now();
	for (int job = 0; job < jobs; job++)
		if (!fork()) {
			if (verifying)
				verify_job(path, blocks, job, jobs);
			bench_job(path, blocks, job, !strcmp(mode, "write"));
		}
	if (verifying)
		watch(path, jobs, strtoull(argv[5], NULL, 10));
	else
		usleep(strtoull(argv[5], NULL, 10) * 1000000);
	double seconds = now() - begun;
	uint64_t done = total(jobs);
	shared->stop = 1;
	int status, failed = 0;
	while (wait(&status) > 0)
		failed |= status;
	if (failed)
		return 1;
	if (verifying)
		printf("guest: %llu operations, and all %llu blocks hold what was written\n", (unsigned long long)done,
		       (unsigned long long)blocks);
	else
		printf("guest: %s %.0f\n", mode, done / seconds);
	fflush(stdout);
	return 0;
}
