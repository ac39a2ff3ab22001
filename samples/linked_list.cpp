// SPDX-License-Identifier: MIT
// Pointer chasing: linked lists whose nodes come from std::pmr over managed memory. The CPU builds the lists, each from
// nodes scattered over the whole pool; the GPU follows every list through the very same pointers, one work item per
// list, changes the values and turns the list round in place; the CPU follows the pointers that the GPU wrote.
// No copies, no handles, no offsets: a Node* means the same on both sides.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "common/sample.hpp"

namespace {

struct Node {
  Node* next;
  std::uint64_t value;
};

HMMRT_KERNEL std::uint64_t changed(std::uint64_t value) { return value * 3 + 1; }

struct ChangeAndReverse {
  hmmrt::gptr<Node*> heads;
  hmmrt::gptr<std::uint64_t> lengths;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto list = static_cast<std::ptrdiff_t>(i.x);
    Node* before = nullptr;
    std::uint64_t length = 0;
    for (Node* node = heads[list]; node != nullptr; ++length) {
      const hmmrt::gptr<Node> here = node;
      const Node seen = *here;
      *here = Node{before, changed(seen.value)};
      before = node;
      node = seen.next;
    }
    heads[list] = before;
    lengths[list] = length;
  }
};

}  // namespace

int main(int argc, char** argv) {
  samples::Sample sample("linked_list", "Pointer chasing: lists built by the CPU, followed and reversed by the GPU");
  std::uint64_t lists = 256, length = 1000, seed = 1;
  sample.size_option("--lists", lists, "number of lists")->check(CLI::Range(1, 1 << 24));
  sample.size_option("--length", length, "nodes in each")->check(CLI::Range(1, 1 << 24));
  sample.cli().add_option("--seed", seed, "of the order of the nodes");

  return sample.run(argc, argv, [&] {
    hmmrt::context context = sample.open();
    hmmrt::stream stream(context, sample.device());
    hmmrt::memory_resource managed(context);
    std::pmr::monotonic_buffer_resource pool(lists * length * sizeof(Node), &managed);
    std::pmr::polymorphic_allocator<Node> allocator(&pool);
    sample.say("linked_list: %llu lists of %llu nodes, %.1f MiB", static_cast<unsigned long long>(lists),
               static_cast<unsigned long long>(length), samples::mib(lists * length * sizeof(Node)));

    std::vector<Node*> nodes(lists * length);
    for (Node*& node : nodes) node = allocator.allocate(1);
    std::uint64_t state = seed;
    for (std::size_t i = nodes.size() - 1; i > 0; --i)
      std::swap(nodes[i], nodes[(state = samples::mix(state)) % (i + 1)]);

    hmmrt::managed_buffer<Node*> heads(context, lists);
    hmmrt::managed_buffer<std::uint64_t> lengths(context, lists);
    for (std::size_t list = 0; list != lists; ++list) {
      Node** const mine = &nodes[list * length];
      heads[list] = mine[0];
      for (std::size_t k = 0; k != length; ++k)
        *mine[k] = Node{k + 1 == length ? nullptr : mine[k + 1], list * length + k};
    }

    const samples::Stopwatch watch;
    stream.launch("change_and_reverse", lists, ChangeAndReverse{heads.gpu(), lengths.gpu()});
    stream.synchronize();
    const double ms = watch.milliseconds();

    std::uint64_t wrong = 0;
    for (std::size_t list = 0; list != lists; ++list) {
      std::size_t k = length;  // the lists now run backwards
      const Node* node = heads[list];
      for (; node != nullptr && k != 0; node = node->next, --k)
        if (node != nodes[list * length + k - 1] || node->value != changed(list * length + k - 1)) ++wrong;
      if (node != nullptr || k != 0 || lengths[list] != length) ++wrong;
    }
    sample.result("time", ms, "ms");
    sample.result("rate", static_cast<double>(nodes.size()) / ms / 1e3, "M nodes/s");
    sample.check("lists", wrong == 0, std::to_string(wrong) + " nodes or lists are not what they should be");
    sample.statistics(context);
  });
}
