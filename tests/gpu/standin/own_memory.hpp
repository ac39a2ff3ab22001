// SPDX-License-Identifier: MIT
// What must never be on a GPU, because the stand-in driver uses it while it moves pages: it would wait for itself. That is
// what it allocates, the libraries' variables, and the stacks of threads that call it.
// Thread: any, except own_memory()'s: one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory_resource>

namespace standin {

constexpr std::size_t k_page = 4096;

// Memory that stays; what it hands out is never given back to the system.
std::pmr::memory_resource* own_memory();

void keep_home(std::uintptr_t begin, std::uintptr_t end);
// Of every library that is loaded now.
void keep_libraries_home();
// The stack and thread-local variables of this thread, until it ends.
void keep_this_thread_home();

// Whether `at` stays. Cuts [*begin, *end), which contains it, at the nearest borders of what stays.
bool kept_home(std::uintptr_t at, std::uintptr_t* begin, std::uintptr_t* end);

}  // namespace standin
