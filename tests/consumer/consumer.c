/* SPDX-License-Identifier: MIT
 * libhmmrt from C: write on the CPU, send the pages to device 0 and home again, and check that nothing changed and that
 * the statistics say so. */
#include <hmmrt/hmmrt.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>

#define CHECK(call)                                                                                  \
  do {                                                                                               \
    hmmrt_result_t result_ = (call);                                                                 \
    if (result_ != HMMRT_SUCCESS) {                                                                  \
      fprintf(stderr, "%s: %s: %s\n", #call, hmmrt_result_name(result_), hmmrt_last_error_detail()); \
      return 1;                                                                                      \
    }                                                                                                \
  } while (0)

int main(void) {
  const size_t count = (size_t)1 << 20;
  const size_t bytes = count * sizeof(uint32_t);
  if (hmmrt_version() != HMMRT_VERSION_MAJOR * 10000 + HMMRT_VERSION_MINOR * 100 + HMMRT_VERSION_PATCH) {
    fprintf(stderr, "header and library are of different versions\n");
    return 1;
  }

  hmmrt_context_t context = NULL;
  CHECK(hmmrt_context_create(NULL, &context));

  uint32_t devices = 0;
  CHECK(hmmrt_device_count(context, &devices));
  if (devices == 0) {
    fprintf(stderr, "no device, not even the software one\n");
    return 1;
  }

  void* memory = NULL;
  CHECK(hmmrt_alloc(context, bytes, &memory));
  uint32_t* values = memory;
  for (size_t i = 0; i < count; ++i) values[i] = (uint32_t)(i * 2654435761u);

  CHECK(hmmrt_prefetch(context, values, bytes, 0, NULL));
  int32_t where = HMMRT_INVALID_LOCATION;
  CHECK(hmmrt_range_get_attribute(context, &where, sizeof where, HMMRT_RANGE_RESIDENCY, values, bytes));
  if (where != 0) {
    fprintf(stderr, "prefetched to device 0, but resident on %" PRId32 "\n", where);
    return 1;
  }
  CHECK(hmmrt_prefetch(context, values, bytes, HMMRT_CPU, NULL));

  for (size_t i = 0; i < count; ++i) {
    if (values[i] != (uint32_t)(i * 2654435761u)) {
      fprintf(stderr, "value %zu changed on the way\n", i);
      return 1;
    }
  }

  hmmrt_stats_t stats = {.size = sizeof stats};
  CHECK(hmmrt_stats_context(context, &stats));
  const uint64_t to_device = stats.bytes_to_device_by_cause[HMMRT_CAUSE_PREFETCH_USER];
  const uint64_t to_host = stats.bytes_to_host_by_cause[HMMRT_CAUSE_PREFETCH_USER];
  /* The device only held the pages: they come home without being copied, where the kernel can move pages. */
  if (to_device != bytes || to_host > bytes || stats.pages_to_host * 4096 != bytes) {
    fprintf(stderr, "of %zu bytes, %" PRIu64 " went to the device and %" PRIu64 " came back in %" PRIu64 " pages\n",
            bytes, to_device, to_host, stats.pages_to_host);
    return 1;
  }

  CHECK(hmmrt_free(context, values));
  CHECK(hmmrt_context_destroy(context));
  printf("C: hmmrt %" PRIu32 ", %" PRIu32 " device(s), %" PRIu64 " bytes there and back\n", hmmrt_version(), devices,
         to_device);
  return 0;
}
