// SPDX-License-Identifier: MIT
// Memory that nobody prepared: a file mapped into memory, a table from new, results in memory from malloc. Where the
// kernel module keeps the CPU and the GPU coherent (option host_mirror=shim), or AMD's driver with XNACK on (kfd), the
// kernel uses these pointers as they are. With userfaultfd it cannot; then the sample says so and hands the same kernel managed copies.
//
// The computation: for each 4 KiB of the file, the sum of its bytes' weights.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "common/sample.hpp"

namespace {

constexpr std::uint64_t k_piece = 4096;

struct SumWeights {
  hmmrt::gptr<const unsigned char> bytes;
  std::uint64_t count;
  hmmrt::gptr<const double> weights;  // 256
  hmmrt::gptr<double> sums;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    double table[256];
    hmmrt::with_spans(
        [&table](const double* w, std::size_t first, std::size_t n) {
          for (std::size_t k = 0; k != n; ++k) table[first + k] = w[k];
        },
        hmmrt::read(weights, 256));
    const std::uint64_t begin = i.x * k_piece;
    double sum = 0;
    hmmrt::with_spans(
        [&](const unsigned char* b, std::size_t, std::size_t n) {
          for (std::size_t k = 0; k != n; ++k) sum += table[b[k]];
        },
        hmmrt::read(bytes + static_cast<std::ptrdiff_t>(begin), count - begin < k_piece ? count - begin : k_piece));
    sums[static_cast<std::ptrdiff_t>(i.x)] = sum;
  }
};

// A file, mapped for reading.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat about {};
    if (fd < 0 || fstat(fd, &about) != 0) throw std::runtime_error(path + ": " + std::strerror(errno));
    size_ = static_cast<std::uint64_t>(about.st_size);
    if (!S_ISREG(about.st_mode) || size_ == 0) {
      close(fd);
      throw std::runtime_error(path + ": not a file with anything in it");
    }
    data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    const int error = errno;
    close(fd);
    if (data_ == MAP_FAILED) throw std::runtime_error(path + ": mmap: " + std::strerror(error));
  }
  ~MappedFile() { munmap(data_, size_); }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const unsigned char* data() const { return static_cast<const unsigned char*>(data_); }
  std::uint64_t size() const { return size_; }

 private:
  void* data_;
  std::uint64_t size_;
};

struct Free {
  void operator()(double* p) const { std::free(p); }
};

}  // namespace

int main(int argc, char** argv) {
  samples::Sample sample("any_pointer", "Memory from mmap, new and malloc, used by the GPU as it is");
  std::string path = argv[0];
  sample.cli().add_option("FILE", path, "file to read")->default_str("this program");

  return sample.run(argc, argv, [&] {
    hmmrt::context context = sample.open();
    hmmrt::stream stream(context, sample.device());
    const MappedFile file(path);
    const std::uint64_t pieces = (file.size() + k_piece - 1) / k_piece;
    const std::unique_ptr<double[]> weights(new double[256]);
    for (unsigned byte = 0; byte != 256; ++byte) weights[byte] = byte % 17 * 0.25;
    const std::unique_ptr<double, Free> sums(static_cast<double*>(std::malloc(pieces * sizeof(double))));
    if (sums == nullptr) throw std::bad_alloc();
    std::fill_n(sums.get(), pieces, -1.0);
    sample.say("any_pointer: %s, %.2f MiB; a table from new; %llu sums in memory from malloc", path.c_str(),
               samples::mib(file.size()), static_cast<unsigned long long>(pieces));

    const samples::Stopwatch watch;
    if (context.info().any_pointer != 0) {
      stream.launch("sum_weights", pieces, SumWeights{file.data(), file.size(), weights.get(), sums.get()});
      stream.synchronize();
    } else {
      sample.say("  with the host mirror %s the GPU reaches managed memory only: these are copies",
                 context.info().host_mirror);
      hmmrt::managed_buffer<unsigned char> bytes(context, file.size());
      hmmrt::managed_buffer<double> table(context, 256), out(context, pieces);
      std::memcpy(bytes.data(), file.data(), file.size());
      std::copy_n(weights.get(), 256, table.begin());
      stream.launch("sum_weights", pieces, SumWeights{bytes.gpu(), file.size(), table.gpu(), out.gpu()});
      stream.synchronize();
      std::copy(out.begin(), out.end(), sums.get());
    }
    const double ms = watch.milliseconds();

    std::uint64_t wrong = 0;
    for (std::uint64_t piece = 0; piece != pieces; ++piece) {
      double sum = 0;
      for (std::uint64_t at = piece * k_piece; at != std::min(file.size(), (piece + 1) * k_piece); ++at) {
        sum += weights[file.data()[at]];
      }
      wrong += sums.get()[piece] != sum;
    }
    sample.result("time", ms, "ms");
    sample.check("sums", wrong == 0, std::to_string(wrong) + " of them are wrong");
    sample.statistics(context);
  });
}
