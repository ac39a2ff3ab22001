/* SPDX-License-Identifier: MIT */
/*
 * hmmrt_shim's private device beside the kernel's own test_hmm in one machine, interleaved (A B B A ...):
 *   speed FILE [REPEATS]      prints a table and writes FILE, JSON of the form that bench/common/measure.cpp writes
 * Every ratio is the median of the repeats' own ratios, oriented so that more is better for hmmrt_shim. test_hmm's
 * migration also reads the data back for its caller: what reading alone costs is measured in the same repeat, and taken
 * off its time in the measure that is named so. Nor can it mirror without reading, except in SNAPSHOT.
 */
#define _GNU_SOURCE
#include <sys/utsname.h>

#include "dmirror.h"

enum { k_pages = 16384, k_chunk = k_block, k_touches = 2048, k_max_repeats = 64 };

static int ours, theirs, repeats = 9;
static char *memory, *data;

/* ---- samples: seconds, except for latency: microseconds ------------------------------------------ */

static uint32_t* word_at(size_t page) { return (uint32_t*)(memory + page * k_page); }
static void write_all(uint32_t seed) {
  for (size_t page = 0; page < k_pages; page++) word_at(page)[page % 1024] = word_of(page, seed);
}
static void check_all(uint32_t seed) {
  for (size_t page = 0; page < k_pages; page++) CHECK_EQ(word_at(page)[page % 1024], word_of(page, seed));
}

struct sample {
  double to_dev, to_sys, latency, mirror, read;
  double to_dev_less_read; /* test_hmm only */
};

static int ascending(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}
static double median(const double* values, int n) {
  double sorted[k_touches];
  memcpy(sorted, values, (size_t)n * sizeof(double));
  qsort(sorted, (size_t)n, sizeof(double), ascending);
  return n % 2 ? sorted[n / 2] : (sorted[n / 2] + sorted[n / 2 - 1]) / 2;
}

/* The time of one call over the whole, in chunks of 2 MiB; every page must move. */
static double chunks(int mine, unsigned long call) {
  const double since = seconds();
  for (size_t page = 0; page < k_pages; page += k_chunk) {
    const char* at = memory + page * k_page;
    CHECK_EQ(mine ? ranged(ours, call, at, k_chunk, 0, NULL) : dmirror(theirs, call, at, k_chunk, data), k_chunk);
  }
  return seconds() - since;
}

/* Takes away what the device has mapped, and leaves the CPU's pages where they are. */
static void invalidate(void) {
  CHECK(mprotect(memory, (size_t)k_pages * k_page, PROT_READ) == 0);
  CHECK(mprotect(memory, (size_t)k_pages * k_page, PROT_READ | PROT_WRITE) == 0);
}

static double touch_latency(void) {
  static double took[k_touches];
  for (size_t i = 0; i < k_touches; i++) {
    volatile uint32_t* word = word_at(i * (k_pages / k_touches));
    const double since = seconds();
    (void)*word;
    took[i] = (seconds() - since) * 1e6;
  }
  return median(took, k_touches);
}

static struct sample sample_of(int mine, uint32_t seed) {
  struct sample s = {0};
  double since;
  write_all(seed);
  s.to_dev = chunks(mine, mine ? HMMRT_SHIM_TO_DEV : DMIRROR_TO_DEV);
  if (!mine) s.to_dev_less_read = s.to_dev - chunks(0, DMIRROR_READ);
  s.to_sys = chunks(mine, mine ? HMMRT_SHIM_TO_SYS : DMIRROR_TO_SYS);
  check_all(seed);
  chunks(mine, mine ? HMMRT_SHIM_TO_DEV : DMIRROR_TO_DEV);
  s.latency = touch_latency();
  write_all(seed + 1);
  CHECK(!mine || query_of(ours).my_pages == 0);

  /* All at home. */
  invalidate();
  since = seconds();
  if (mine) {
    CHECK_EQ(ranged(ours, HMMRT_SHIM_FAULT, memory, k_pages, 0, NULL), k_pages);
    s.mirror = seconds() - since;
    invalidate();
    since = seconds();
    CHECK_EQ(device_read(ours, memory, data, (size_t)k_pages * k_page), 0);
    s.read = seconds() - since;
  } else {
    CHECK_EQ(dmirror(theirs, DMIRROR_SNAPSHOT, memory, k_pages, data), k_pages);
    s.mirror = seconds() - since;
    since = seconds();
    CHECK_EQ(dmirror(theirs, DMIRROR_READ, memory, k_pages, data), k_pages);
    s.read = seconds() - since;
  }
  check_all(seed + 1);
  return s;
}

/* ---- measures ------------------------------------------------------------------------------------ */

static FILE* json;
static int missed, written;

/* value and ceiling as rates or times; `less_is_more`: times. target 0: none. */
static void measure(const char* name, const char* unit, const double* value, const double* ceiling, int less_is_more,
                    double target, const char* note) {
  double ratio[k_max_repeats], low = 1e30, high = 0;
  char criterion[32] = "", number[16] = "null";
  for (int i = 0; i < repeats; i++) {
    ratio[i] = less_is_more ? ceiling[i] / value[i] : value[i] / ceiling[i];
    if (ratio[i] < low) low = ratio[i];
    if (ratio[i] > high) high = ratio[i];
  }
  const double middle = median(ratio, repeats), mine = median(value, repeats), best = median(ceiling, repeats);
  const int pass = middle >= target;
  if (target) {
    snprintf(criterion, sizeof(criterion), ">= %.2f x ceiling", target);
    snprintf(number, sizeof(number), "%g", target);
    missed += !pass;
  }
  printf("  %-36s %9.1f %-10s %9.1f %7.2f  %6.2f ..%6.2f  %3d  %-17s %s\n", name, mine, unit, best, middle, low, high,
         repeats, criterion,
         !target ? ""
         : pass  ? "pass"
                 : "MISS");
  fprintf(json, "%s\n    {\"name\": \"vm/%s\", \"value\": %.6g, \"unit\": \"%s\", \"ceiling\": %.6g, \"ratio\": %.6g, ",
          written++ ? "," : "", name, mine, unit, best, middle);
  fprintf(json, "\"target\": %s, \"pass\": %s, \"repeats\": %d, \"min\": %.6g, \"max\": %.6g, ", number,
          !target ? "null"
          : pass  ? "true"
                  : "false",
          repeats, low, high);
  fprintf(json, "\"criterion\": \"%s\", \"note\": \"%s\"}", criterion, note);
}

static void first_line(const char* path, const char* key, char* out, size_t size) {
  FILE* in = fopen(path, "r");
  char line[128];
  out[0] = '\0';
  while (in && fgets(line, sizeof(line), in)) {
    const char* from = line;
    if (key && strncmp(line, key, strlen(key)) != 0) continue;
    if (key) from = strchr(line, ':') ? strchr(line, ':') + 2 : line;
    snprintf(out, size, "%.120s", from);
    out[strcspn(out, "\n")] = '\0';
    break;
  }
  if (in) fclose(in);
}

static void machine(void) {
  char cpu[128], thp[128], load[128], date[32];
  struct utsname name;
  const time_t now = time(NULL);
  uname(&name);
  first_line("/proc/cpuinfo", "model name", cpu, sizeof(cpu));
  first_line("/sys/kernel/mm/transparent_hugepage/enabled", NULL, thp, sizeof(thp));
  first_line("/proc/loadavg", NULL, load, sizeof(load));
  strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
  fprintf(
      json,
      "{\n  \"machine\": {\"cpu\": \"%s (guest of QEMU)\", \"cores\": %ld, \"memory_bytes\": %llu, \"kernel\": \"%s\", "
      "\"thp\": \"%s\", \"load_average\": \"%s\", \"compiler\": \"%s\", \"date\": \"%s\"},\n  \"measures\": [",
      cpu, sysconf(_SC_NPROCESSORS_ONLN),
      (unsigned long long)sysconf(_SC_PHYS_PAGES) * (unsigned long long)sysconf(_SC_PAGESIZE), name.release, thp, load,
      __VERSION__, date);
}

int main(int argc, char** argv) {
  static struct sample us[k_max_repeats], them[k_max_repeats];
  double value[k_max_repeats], ceiling[k_max_repeats];
  if (argc < 2) return 2;
  if (argc > 2) repeats = atoi(argv[2]);
  CHECK(repeats > 0 && repeats <= k_max_repeats);
  json = fopen(argv[1], "w");
  CHECK(json != NULL);
  ours = open_bound("/dev/hmmrt0");
  theirs = open(k_dmirror_node, O_RDWR | O_CLOEXEC);
  CHECK(theirs >= 0);
  memory = map_pages(k_pages);
  data = map_pages(k_pages);
  memset(data, 1, (size_t)k_pages * k_page);
  sample_of(1, 1);
  sample_of(0, 2);
  for (int i = 0; i < repeats; i++) {
    if (i % 2) them[i] = sample_of(0, 10 + (uint32_t)i * 4);
    us[i] = sample_of(1, 12 + (uint32_t)i * 4);
    if (!(i % 2)) them[i] = sample_of(0, 10 + (uint32_t)i * 4);
  }

  machine();
  printf("vm: hmmrt_shim, the ceiling is test_hmm\n  %-36s %9s %-10s %9s %7s  %15s  %3s  %s\n", "measure", "value",
         "unit", "ceiling", "ratio", "spread of ratio", "n", "target");
#define EACH(expression_of_us, expression_of_them)                \
  for (int i = 0; i < repeats; i++) {                             \
    value[i] = expression_of_us, ceiling[i] = expression_of_them; \
  }
  EACH(k_pages / us[i].to_dev / 1e3, k_pages / them[i].to_dev / 1e3)
  measure("migrate/to_device", "kpages/s", value, ceiling, 0, 0, "64 MiB in 2 MiB chunks; test_hmm's call as it is");
  EACH(k_pages / us[i].to_dev / 1e3, k_pages / them[i].to_dev_less_read / 1e3)
  measure("migrate/to_device_without_read", "kpages/s", value, ceiling, 0, 0,
          "the same, less the time of test_hmm's reading the data back");
  EACH(k_pages / us[i].to_sys / 1e3, k_pages / them[i].to_sys / 1e3)
  measure("migrate/to_system", "kpages/s", value, ceiling, 0, 0, "64 MiB in 2 MiB chunks");
  EACH(2 * k_pages / (us[i].to_dev + us[i].to_sys) / 1e3, 2 * k_pages / (them[i].to_dev + them[i].to_sys) / 1e3)
  measure("migrate/there_and_back", "kpages/s", value, ceiling, 0, 2, "to_device and to_system");
  EACH(2 * k_pages / (us[i].to_dev + us[i].to_sys) / 1e3,
       2 * k_pages / (them[i].to_dev_less_read + them[i].to_sys) / 1e3)
  measure("migrate/there_and_back_without_read", "kpages/s", value, ceiling, 0, 0,
          "to_device_without_read and to_system: what the kernel's own part leaves to win");
  EACH(us[i].latency, them[i].latency)
  measure("cpu_fault/latency", "us", value, ceiling, 1, 0.95,
          "median of 2048 touches of single pages on the device; not worse, to the 5 % that repeats differ by");
  EACH(us[i].mirror * 1e3, them[i].mirror * 1e3)
  measure("fault/mirror_64MiB", "ms", value, ceiling, 1, 1,
          "FAULT beside SNAPSHOT, which walks with hmm_range_fault too and installs nothing; small pages");
  EACH(us[i].read * 1e3, them[i].read * 1e3)
  measure("fault/mirror_and_read_64MiB", "ms", value, ceiling, 1, 1, "ACCESS READ beside READ, both with faults");
  fprintf(json, "\n  ],\n  \"failures\": []\n}\n");
  CHECK(fclose(json) == 0);
  printf("%d targets missed\n", missed);
  return missed != 0;
}
