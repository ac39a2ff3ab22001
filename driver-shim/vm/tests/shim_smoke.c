// SPDX-License-Identifier: GPL-2.0-only
/*
 * A walk through the behaviours of hmmrt_shim, one line each; exits with the number of failures.
 *   shim_smoke [NODE...]     default: /dev/hmmrt0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hmmrt_shim.h"

static int failures;
static const char *node;

#define CHECK(c) do { if (!(c)) { failures++; \
	printf("FAIL %s %s:%d %s (errno %d)\n", node, __func__, __LINE__, #c, errno); } } while (0)
#define PAGE 4096ul

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static struct hmmrt_shim_range last;

static int range(int fd, unsigned long cmd, void *p, uint64_t n, uint32_t flags, uint8_t *status)
{
	struct hmmrt_shim_ranges a = { .ranges_ptr = (uintptr_t)&last, .count = 1 };

	last = (struct hmmrt_shim_range){ .addr = (uintptr_t)p, .npages = n, .flags = flags,
					  .status_ptr = (uintptr_t)status, .cookie = 42 };
	return ioctl(fd, cmd, &a) ? -errno : 0;
}

static struct hmmrt_shim_access acc;

static int access1(int fd, uint32_t op, void *p, void *buf, uint64_t len, uint32_t flags, uint64_t a0, uint64_t a1)
{
	struct hmmrt_shim_accesses a = { .accesses_ptr = (uintptr_t)&acc, .count = 1 };

	acc = (struct hmmrt_shim_access){ .addr = (uintptr_t)p, .buf = (uintptr_t)buf, .len = len, .op = op,
					  .flags = flags, .arg0 = a0, .arg1 = a1 };
	return ioctl(fd, HMMRT_SHIM_ACCESS, &a) ? -errno : acc.err;
}

static int dev_read(int fd, void *p, void *buf, uint64_t len) { return access1(fd, HMMRT_SHIM_OP_READ, p, buf, len, 0, 0, 0); }
static int dev_write(int fd, void *p, void *buf, uint64_t len) { return access1(fd, HMMRT_SHIM_OP_WRITE, p, buf, len, 0, 0, 0); }

static int open_bound(void)
{
	struct hmmrt_shim_bind b = { .flags = HMMRT_SHIM_BIND_EVENTS_ALL, .ring_order = 8, .eventfd = -1 };
	int fd = open(node, O_RDWR | O_CLOEXEC);

	CHECK(fd >= 0);
	CHECK(ioctl(fd, HMMRT_SHIM_BIND, &b) == 0);
	return fd;
}

static char *map(size_t n)
{
	char *p = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

static struct hmmrt_shim_query query(int fd)
{
	struct hmmrt_shim_query q = {0};

	CHECK(ioctl(fd, HMMRT_SHIM_QUERY, &q) == 0);
	return q;
}

static void fill(char *p, size_t bytes, unsigned seed)
{
	for (size_t i = 0; i < bytes / 4; i++)
		((unsigned *)p)[i] = i * 2654435761u + seed;
}

static int same(const char *p, size_t bytes, unsigned seed)
{
	for (size_t i = 0; i < bytes / 4; i++)
		if (((const unsigned *)p)[i] != (unsigned)(i * 2654435761u + seed))
			return 0;
	return 1;
}

static void arguments(int fd)
{
	struct hmmrt_shim_ranges a = { .count = 1 };
	char *p = map(1);
	int raw = open(node, O_RDWR);

	CHECK(ioctl(raw, HMMRT_SHIM_FAULT, &a) == -1 && errno == ENOTCONN);
	close(raw);
	CHECK(ioctl(fd, _IO(HMMRT_SHIM_MAGIC, 99), 0) == -1 && errno == ENOTTY);
	CHECK(range(fd, HMMRT_SHIM_FAULT, p + 1, 1, 0, 0) == -EINVAL);
	CHECK(range(fd, HMMRT_SHIM_FAULT, p, 0, 0, 0) == -EINVAL);
	CHECK(range(fd, HMMRT_SHIM_FAULT, p, 1ull << 40, 0, 0) == -EINVAL);
	CHECK(range(fd, HMMRT_SHIM_FAULT, p, 1, 1u << 31, 0) == -EINVAL);
	CHECK(range(fd, HMMRT_SHIM_FAULT, (void *)-PAGE, 1, 0, 0) == -EINVAL);
	a.pad1 = 1;
	CHECK(ioctl(fd, HMMRT_SHIM_FAULT, &a) == -1 && errno == EINVAL);
	a.pad1 = 0;
	CHECK(ioctl(fd, HMMRT_SHIM_FAULT, &a) == -1 && errno == EFAULT);
	a.count = 1u << 30;
	CHECK(ioctl(fd, HMMRT_SHIM_FAULT, &a) == -1 && errno == E2BIG);
	munmap(p, PAGE);
}

static void there_and_back(int fd, struct hmmrt_shim_query q)
{
	enum { n = 1500 };
	static uint8_t st[n];
	char *p = map(n), *b = malloc(n * PAGE);

	fill(p, n * PAGE, 1);
	if (q.devmem_pages) {
		CHECK(range(fd, HMMRT_SHIM_TO_DEV, p, n, 0, st) == 0 && last.done == n);
		CHECK(range(fd, HMMRT_SHIM_SNAPSHOT, p, n, 0, st) == 0 && (st[7] & 0x60));
		CHECK(query(fd).my_pages == n);
	}
	CHECK(dev_read(fd, p, b, n * PAGE) == 0 && same(b, n * PAGE, 1));
	fill(b, n * PAGE, 2);
	CHECK(dev_write(fd, p, b, n * PAGE) == 0 && acc.done == n * PAGE);
	CHECK(same(p, n * PAGE, 2));
	if (q.devmem_pages) {
		CHECK(range(fd, HMMRT_SHIM_TO_DEV, p, n, 0, st) == 0 && last.done == n);
		CHECK(range(fd, HMMRT_SHIM_TO_SYS, p, n, 0, st) == 0 && last.done == n);
		CHECK(query(fd).my_pages == 0);
	}
	CHECK(same(p, n * PAGE, 2));
	/* never touched */
	munmap(p, n * PAGE);
	p = map(600);
	if (q.devmem_pages) {
		CHECK(range(fd, HMMRT_SHIM_TO_DEV, p, 600, HMMRT_SHIM_RANGE_NO_POPULATE, st) == 0 && last.done == 0 &&
		      st[3] == HMMRT_SHIM_NOT_POPULATED);
		CHECK(range(fd, HMMRT_SHIM_TO_DEV, p, 600, HMMRT_SHIM_RANGE_GRANULE(4), st) == 0 && last.done == 600);
	}
	CHECK(dev_write(fd, p + 5000, "hello", 6) == 0);
	CHECK(!strcmp(p + 5000, "hello") && p[0] == 0 && p[599 * PAGE] == 0);
	/* dropped */
	if (q.devmem_pages)
		CHECK(range(fd, HMMRT_SHIM_TO_DEV, p, 600, 0, st) == 0);
	madvise(p, 600 * PAGE, MADV_DONTNEED);
	CHECK(dev_read(fd, p + 5000, b, 6) == 0 && b[0] == 0);
	munmap(p, 600 * PAGE);
	CHECK(dev_read(fd, p, b, 6) == -EFAULT);
	CHECK(range(fd, HMMRT_SHIM_TO_DEV, p, 1, 0, st) == 0 && st[0] == HMMRT_SHIM_GONE);
	free(b);
}

static void protections(int fd)
{
	uint8_t st[4];
	char *p = map(4), b[8];

	memset(p, 1, 4 * PAGE);
	range(fd, HMMRT_SHIM_TO_DEV, p, 4, 0, st);
	CHECK(dev_write(fd, p, "x", 1) == 0);
	mprotect(p, 4 * PAGE, PROT_READ);
	CHECK(dev_write(fd, p, "y", 1) == -EFAULT);
	CHECK(dev_read(fd, p, b, 1) == 0 && b[0] == 'x');
	mprotect(p, 4 * PAGE, PROT_NONE);
	CHECK(dev_read(fd, p, b, 1) == -EFAULT);
	CHECK(range(fd, HMMRT_SHIM_FAULT, p, 4, 0, st) == 0 && st[0] == HMMRT_SHIM_FORBIDDEN);
	mprotect(p, 4 * PAGE, PROT_READ | PROT_WRITE);
	CHECK(dev_write(fd, p, "z", 1) == 0 && p[0] == 'z');
	munmap(p, 4 * PAGE);
}

static void fork_cow(int fd)
{
	uint8_t st[16];
	char *p = map(16);
	int status;

	memset(p, 'p', 16 * PAGE);
	range(fd, HMMRT_SHIM_TO_DEV, p, 16, 0, st);
	pid_t pid = fork();
	if (!pid) {
		char b;

		failures = 0;
		CHECK(dev_read(fd, p, &b, 1) == -EPERM);
		close(fd);
		fd = open_bound();
		usleep(50000);
		/* the parent wrote meanwhile: not to us */
		CHECK(dev_read(fd, p, &b, 1) == 0 && b == 'p');
		CHECK(dev_write(fd, p + PAGE, "c", 1) == 0);
		CHECK(p[0] == 'p' && p[PAGE] == 'c' && p[2 * PAGE] == 'p');
		_exit(failures);
	}
	CHECK(dev_write(fd, p, "P", 1) == 0);			/* P1 */
	CHECK(p[0] == 'P' && p[1] == 'p');
	waitpid(pid, &status, 0);
	CHECK(status == 0);
	CHECK(p[PAGE] == 'p');
	munmap(p, 16 * PAGE);
}

static void two_files(int fd)
{
	int fd2 = open_bound();
	char *p = map(1), b;

	p[0] = 'a';
	CHECK(dev_read(fd2, p, &b, 1) == 0 && b == 'a');
	CHECK(dev_write(fd, p, "b", 1) == 0);
	CHECK(dev_read(fd2, p, &b, 1) == 0 && b == 'b');	/* P2 */
	p[0] = 'c';
	CHECK(dev_read(fd2, p, &b, 1) == 0 && b == 'c');
	close(fd2);
	munmap(p, PAGE);
}

static void exclusive(int fd, struct hmmrt_shim_query q)
{
	enum { n = 1024 };
	static uint8_t st[n];
	char *p = mmap(NULL, (n + 512) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *a = (char *)(((uintptr_t)p + (2ul << 20) - 1) & ~((2ul << 20) - 1));

	if (!(q.caps & HMMRT_SHIM_CAP_EXCLUSIVE)) {
		CHECK(range(fd, HMMRT_SHIM_EXCLUSIVE, a, n, 0, st) == -EOPNOTSUPP);
		goto out;
	}
	memset(a, 0, n * PAGE);
	if (q.devmem_pages)
		CHECK(range(fd, HMMRT_SHIM_TO_DEV, a, 100, 0, st) == 0);
	CHECK(range(fd, HMMRT_SHIM_EXCLUSIVE, a, n, 0, st) == 0);
	if (last.done != n)
		printf("     exclusive: %llu of %d\n", (unsigned long long)last.done, n);
	CHECK(last.done == n);
	CHECK(access1(fd, HMMRT_SHIM_OP_CHECK_EXCLUSIVE, a, 0, n * PAGE, 0, 0, 0) == 0 && acc.out == n);
	for (int i = 0; i < 100; i++)
		CHECK(access1(fd, HMMRT_SHIM_OP_ADD, a + 8, 0, 8, HMMRT_SHIM_ACCESS_EXCLUSIVE, 3, 0) == 0);
	CHECK(((uint64_t *)a)[1] == 300);
	CHECK(access1(fd, HMMRT_SHIM_OP_CHECK_EXCLUSIVE, a, 0, n * PAGE, 0, 0, 0) == 0 && acc.out == n - 1);
	CHECK(access1(fd, HMMRT_SHIM_OP_CAS, a + 8, 0, 8, 0, 300, 7) == 0 && acc.out == 300);
	CHECK(((uint64_t *)a)[1] == 7);
out:
	munmap(p, (n + 512) * PAGE);
}

struct racer { char *page; int rounds; pthread_barrier_t *bar; };

static long race_faults, race_most;

static long my_faults(void)
{
	struct rusage u;

	getrusage(RUSAGE_THREAD, &u);
	return u.ru_minflt + u.ru_majflt;
}

static void *race_cpu(void *arg)
{
	struct racer *r = arg;

	for (int i = 0; i < r->rounds; i++) {
		long faults;

		pthread_barrier_wait(r->bar);
		faults = my_faults();
		__atomic_fetch_add((int *)r->page, 1, __ATOMIC_RELAXED);
		faults = my_faults() - faults;
		__atomic_fetch_add(&race_faults, faults, __ATOMIC_RELAXED);
		if (faults > race_most)
			race_most = faults;
		pthread_barrier_wait(r->bar);
	}
	return NULL;
}

static void race(int fd, struct hmmrt_shim_query q)
{
	enum { threads = 32, rounds = 30 };
	pthread_barrier_t bar;
	pthread_t t[threads];
	struct racer r = { map(1), rounds, &bar };
	double worst = 0;
	uint8_t st;

	if (!q.devmem_pages)
		return;
	race_faults = race_most = 0;
	pthread_barrier_init(&bar, NULL, threads + 1);
	for (int i = 0; i < threads; i++)
		pthread_create(&t[i], NULL, race_cpu, &r);
	for (int i = 0; i < rounds; i++) {
		double start;

		CHECK(range(fd, HMMRT_SHIM_TO_DEV, r.page, 1, 0, &st) == 0 && st <= 1);
		start = now();
		pthread_barrier_wait(&bar);
		pthread_barrier_wait(&bar);
		worst = now() - start > worst ? now() - start : worst;
	}
	for (int i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
	CHECK(*(int *)r.page == threads * rounds);
	printf("     32 threads on one device page: worst round %.1f ms, faults mean %.2f most %ld\n", worst * 1e3,
	       (double)race_faults / threads / rounds, race_most);
	munmap(r.page, PAGE);
}

static void eviction(int fd, struct hmmrt_shim_query q)
{
	struct hmmrt_shim_evict e = { .npages = ~0ull };
	size_t n = q.devmem_pages + 1024, i;
	uint8_t *st = malloc(n);
	char *p;

	if (!q.devmem_pages || q.devmem_pages > 16384)
		return;
	p = map(n);
	for (i = 0; i < n; i++)
		*(size_t *)(p + i * PAGE) = i;
	CHECK(range(fd, HMMRT_SHIM_TO_DEV, p, n, 0, st) == 0 && last.done == q.devmem_pages &&
	      st[n - 1] == HMMRT_SHIM_NO_SPACE);
	CHECK(range(fd, HMMRT_SHIM_TO_SYS, p, n, 0, st) == 0);
	CHECK(range(fd, HMMRT_SHIM_TO_DEV, p, n, HMMRT_SHIM_RANGE_EVICT, st) == 0 && last.done == n);
	if (last.done != n)
		printf("     evicting: %llu of %zu\n", (unsigned long long)last.done, n);
	CHECK(ioctl(fd, HMMRT_SHIM_EVICT, &e) == 0 && e.left == 0);
	for (i = 0; i < n; i++)
		if (*(size_t *)(p + i * PAGE) != i)
			break;
	CHECK(i == n);
	munmap(p, n * PAGE);
	free(st);
}

static void injected(int fd, struct hmmrt_shim_query q)
{
	static uint8_t st[1024];
	char *p = map(1024);

	if (!q.devmem_pages)
		return;
	fill(p, 1024 * PAGE, 9);
	for (unsigned kind = 1; kind < HMMRT_SHIM_INJECT_KINDS; kind++) {
		struct hmmrt_shim_inject in = { .kind = kind, .skip = 3, .count = 5 };

		CHECK(ioctl(fd, HMMRT_SHIM_INJECT, &in) == 0);
		for (int i = 0; i < 8; i++) {
			CHECK(range(fd, HMMRT_SHIM_TO_DEV, p + i * 100 * PAGE, 100, 0, st) == 0);
			CHECK(range(fd, HMMRT_SHIM_FAULT, p + i * 100 * PAGE, 100, 1, st) == 0);
			CHECK(range(fd, HMMRT_SHIM_TO_SYS, p + i * 100 * PAGE, 50, 0, st) == 0);
		}
		CHECK(same(p, 1024 * PAGE, 9));
		in.kind = 0;
		CHECK(ioctl(fd, HMMRT_SHIM_INJECT, &in) == 0);
	}
	munmap(p, 1024 * PAGE);
}

static void ring(void)
{
	struct hmmrt_shim_bind b = { .flags = HMMRT_SHIM_BIND_EVENTS_ALL, .ring_order = 4, .eventfd = -1 };
	struct hmmrt_shim_wait w = { .seq = 1, .timeout_ns = 1000000 };
	struct hmmrt_shim_ring *r;
	struct hmmrt_shim_event *ev;
	struct pollfd pfd;
	int fd = open(node, O_RDWR);
	char *p = map(64), c;

	CHECK(ioctl(fd, HMMRT_SHIM_BIND, &b) == 0);
	r = mmap(NULL, b.ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, b.ring_mmap_off);
	CHECK(r != MAP_FAILED && r->magic == HMMRT_SHIM_RING_MAGIC);
	if (r == MAP_FAILED)
		return;
	CHECK(ioctl(fd, HMMRT_SHIM_WAIT, &w) == -1 && errno == ETIMEDOUT);
	p[0] = 1;
	CHECK(dev_read(fd, p, &c, 1) == 0);
	w.seq = 1;
	CHECK(ioctl(fd, HMMRT_SHIM_WAIT, &w) == 0);
	pfd = (struct pollfd){ fd, POLLIN, 0 };
	CHECK(poll(&pfd, 1, 0) == 1 && pfd.revents & POLLIN);
	ev = (void *)((char *)r + r->events_off);
	CHECK(ev->seq == 1 && ev->type == HMMRT_SHIM_EVENT_DEVICE_FAULT && ev->addr == (uintptr_t)p);
	for (int i = 0; i < 40; i++) {
		madvise(p, PAGE, MADV_DONTNEED);
		CHECK(dev_read(fd, p, &c, 1) == 0);
	}
	CHECK(r->head == 16 && r->dropped > 40);
	munmap(p, 64 * PAGE);
	munmap(r, b.ring_bytes);
	close(fd);
}

static void speed(int fd, struct hmmrt_shim_query q)
{
	enum { n = 8192 };
	char *p = map(n);
	double t[4];

	if (q.devmem_pages < n)
		return;
	for (int i = 0; i < 3; i++) {
		memset(p, 1, n * PAGE);
		t[0] = now();
		CHECK(range(fd, HMMRT_SHIM_TO_DEV, p, n, 0, 0) == 0 && last.done == n);
		t[1] = now();
		CHECK(range(fd, HMMRT_SHIM_TO_SYS, p, n, 0, 0) == 0);
		t[2] = now();
		CHECK(range(fd, HMMRT_SHIM_FAULT, p, n, 1, 0) == 0);
		t[3] = now();
	}
	printf("     32 MiB: to device %.0f, to system %.0f, fault %.0f kpages/s (%llu faults)\n", n / (t[1] - t[0]) / 1e3,
	       n / (t[2] - t[1]) / 1e3, n / (t[3] - t[2]) / 1e3, (unsigned long long)last.faults);
	munmap(p, n * PAGE);
}

int main(int argc, char **argv)
{
	static char *dflt[] = { "", "/dev/hmmrt0" };
	int total = 0;

	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc < 2)
		argc = 2, argv = dflt;
	for (int i = 1; i < argc; i++) {
		struct hmmrt_shim_query q;
		int fd;

		node = argv[i];
		failures = 0;
		fd = open_bound();
		q = query(fd);
		printf("%s: type %u caps %#llx pages %llu\n", node, q.mem_type, (unsigned long long)q.caps,
		       (unsigned long long)q.devmem_pages);
		arguments(fd);
		there_and_back(fd, q);
		protections(fd);
		fork_cow(fd);
		two_files(fd);
		ring();
		exclusive(fd, q);
		race(fd, q);
		eviction(fd, q);
		injected(fd, q);
		speed(fd, q);
		q = query(fd);
		CHECK(q.my_pages == 0);
		/* Pages left behind, for unload or exit to bring home. */
		char *p = map(300);
		memset(p, 1, 300 * PAGE);
		range(fd, HMMRT_SHIM_TO_DEV, p, 300, 0, 0);
		close(fd);
		CHECK(p[200 * PAGE] == 1);
		printf("%s: %d failures\n", node, failures);
		total += failures;
	}
	return total > 99 ? 99 : total;
}
