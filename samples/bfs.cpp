// SPDX-License-Identifier: MIT
// Breadth-first search over a graph in CSR: which vertices can be reached, in how many steps. The graph is read from a
// Matrix Market file (entry i j: an edge from i to j) or generated (RMAT). The GPU expands one level per launch, one
// work item per vertex of the frontier; who first claims a vertex (compare-and-exchange) appends it to the next
// frontier. The CPU reads the length of the frontier between launches: one page that both processors want.
// The answer is compared with a queue in plain memory on the CPU.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <vector>

#include "common/matrix_market.hpp"
#include "common/sample.hpp"

namespace {

constexpr std::uint32_t k_unreached = std::numeric_limits<std::uint32_t>::max();

struct Expand {
  hmmrt::gptr<const std::uint64_t> begin;
  hmmrt::gptr<const std::uint32_t> column, frontier;
  hmmrt::gptr<std::uint32_t> level, next, next_count;
  std::uint32_t depth;  // of the next frontier
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto vertex = static_cast<std::ptrdiff_t>(frontier[static_cast<std::ptrdiff_t>(i.x)].load());
    const auto end = static_cast<std::ptrdiff_t>(begin[vertex + 1].load());
    for (auto k = static_cast<std::ptrdiff_t>(begin[vertex].load()); k != end; ++k) {
      const std::uint32_t neighbour = column[k];
      const auto slot = level + static_cast<std::ptrdiff_t>(neighbour);
      if (*slot != k_unreached) continue;  // only spares the atomic: the exchange below decides
      if (hmmrt::atomic_compare_exchange(slot, k_unreached, depth) == k_unreached)
        next[static_cast<std::ptrdiff_t>(hmmrt::atomic_fetch_add(next_count, 1))] = neighbour;
    }
  }
};

std::vector<std::uint32_t> plain_bfs(const samples::Csr& graph, std::uint32_t source) {
  std::vector<std::uint32_t> level(graph.rows, k_unreached);
  std::deque<std::uint32_t> queue{source};
  level[source] = 0;
  for (; !queue.empty(); queue.pop_front()) {
    const std::uint32_t v = queue.front();
    for (std::uint64_t k = graph.begin[v]; k != graph.begin[v + 1]; ++k) {
      const std::uint32_t w = graph.column[k];
      if (level[w] != k_unreached) continue;
      level[w] = level[v] + 1;
      queue.push_back(w);
    }
  }
  return level;
}

std::uint32_t busiest_vertex(const samples::Csr& graph) {
  std::uint32_t best = 0;
  for (std::uint32_t v = 1; v != graph.rows; ++v)
    if (graph.begin[v + 1] - graph.begin[v] > graph.begin[best + 1] - graph.begin[best]) best = v;
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  samples::Sample sample("bfs", "Breadth-first search on the GPU over a graph that the CPU built");
  std::string file;
  std::uint32_t scale = 15, edge_factor = 16, source = 0;
  std::uint64_t seed = 1;
  sample.cli().add_option("FILE.mtx", file, "square matrix in Matrix Market format; default: a generated graph");
  sample.cli()
      .add_option("--rmat-scale", scale, "log2 of the vertices of the generated graph")
      ->check(CLI::Range(1, 26));
  sample.cli().add_option("--edge-factor", edge_factor, "its edges per vertex")->check(CLI::Range(1, 256));
  sample.cli().add_option("--seed", seed, "of the generated graph");
  sample.cli().add_option("--source", source, "vertex to start from, counted from 1; 0: the one of highest degree");

  return sample.run(argc, argv, [&] {
    const samples::Csr graph =
        file.empty() ? samples::make_rmat(scale, edge_factor, seed) : samples::read_matrix_market(file);
    if (graph.rows != graph.columns) throw std::runtime_error(file + ": a graph needs a square matrix");
    const std::size_t n = graph.rows;
    if (source > n)
      throw std::runtime_error("--source " + std::to_string(source) + ": there are " + std::to_string(n) + " vertices");
    const std::uint32_t first = source == 0 ? busiest_vertex(graph) : source - 1;
    sample.say("bfs: %s, %zu vertices, %llu edges, from vertex %u", file.empty() ? "RMAT" : file.c_str(), n,
               static_cast<unsigned long long>(graph.entries()), first + 1);

    hmmrt::context context = sample.open();
    hmmrt::stream stream(context, sample.device());
    hmmrt::managed_buffer<std::uint64_t> begin(context, n + 1);
    hmmrt::managed_buffer<std::uint32_t> column(context, graph.entries() + 1);  // + 1: a graph may have no edge
    hmmrt::managed_buffer<std::uint32_t> level(context, n), frontier(context, n), next(context, n), count(context, 1);
    std::copy(graph.begin.begin(), graph.begin.end(), begin.data());
    std::copy(graph.column.begin(), graph.column.end(), column.data());
    std::fill_n(level.data(), n, k_unreached);
    level[first] = 0;
    frontier[0] = first;

    const samples::Stopwatch watch;
    std::uint32_t *now = frontier.data(), *then = next.data(), depth = 0;
    for (std::uint32_t length = 1; length != 0; length = count[0]) {
      count[0] = 0;
      ++depth;
      stream.launch("expand", length, Expand{begin.gpu(), column.gpu(), now, level.gpu(), then, count.gpu(), depth});
      stream.synchronize();
      std::swap(now, then);
    }
    const double ms = watch.milliseconds();

    std::uint64_t reached = 0, edges = 0, wrong = 0;
    const std::vector<std::uint32_t> wanted = plain_bfs(graph, first);
    for (std::size_t v = 0; v != n; ++v) {
      if (level[v] != k_unreached) ++reached, edges += graph.begin[v + 1] - graph.begin[v];
      if (level[v] != wanted[v]) ++wrong;
    }
    sample.result("vertices reached", static_cast<double>(reached), "");
    sample.result("deepest level", depth - 1, "");
    sample.result("time", ms, "ms");
    sample.result("rate", static_cast<double>(edges) / ms / 1e3, "M edges/s");
    sample.check("levels", wrong == 0, std::to_string(wrong) + " vertices differ");
    sample.statistics(context);
  });
}
