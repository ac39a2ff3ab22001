// SPDX-License-Identifier: MIT
// Address ranges as the pipeline takes them: block by block. Shared by what requests.hpp and ready.hpp promise.
#pragma once

#include <span>
#include <vector>

#include "migrate/pipeline.hpp"
#include "migrate/requests.hpp"

namespace hmmrt {

// A pipeline for the length of a call.
class Borrowed {
 public:
  explicit Borrowed(PipelinePool& pool) : pool_(pool), pipeline_(pool.take()) {}
  ~Borrowed() { pool_.give(std::move(pipeline_)); }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  Pipeline& operator*() const { return *pipeline_; }
  Pipeline* operator->() const { return pipeline_.get(); }

 private:
  PipelinePool& pool_;
  std::unique_ptr<Pipeline> pipeline_;
};

// The pages wanted of one block.
struct Piece {
  std::uintptr_t base;
  PageMask pages;
};

// The extents block by block, ascending, each block once.
std::vector<Piece> pieces_of(std::span<const Extent> extents);

}  // namespace hmmrt
