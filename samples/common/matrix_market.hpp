// SPDX-License-Identifier: MIT
// Sparse matrices for the samples, in plain memory: read from Matrix Market files or generated (RMAT).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace samples {

struct Entry {
  std::uint32_t row, column;  // from 0
  double value;
};

// Compressed sparse rows: row r holds entries [begin[r], begin[r + 1]) of column and value.
struct Csr {
  std::uint32_t rows = 0, columns = 0;
  std::vector<std::uint64_t> begin;
  std::vector<std::uint32_t> column;
  std::vector<double> value;
  std::uint64_t entries() const { return column.size(); }
};

// Sorts entries into rows; the order inside a row is that of `entries`.
Csr to_csr(std::uint32_t rows, std::uint32_t columns, const std::vector<Entry>& entries);

// Reads `%%MatrixMarket matrix coordinate (real|integer|pattern) (general|symmetric)`; the other half of a symmetric
// matrix is filled in, pattern entries have the value 1. Throws std::runtime_error "FILE:LINE: what is wrong".
Csr read_matrix_market(const std::string& file);

// A random graph of 2^scale vertices and edge_factor * 2^scale edges with a skewed degree distribution, both directions
// of every edge present, vertices renumbered at random, values in [0.5, 1.5). The same seed gives the same graph.
Csr make_rmat(std::uint32_t scale, std::uint32_t edge_factor, std::uint64_t seed);

}  // namespace samples
