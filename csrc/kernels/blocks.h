// Work cut in blocks and shared by the threads of the pool.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../workers.h"

namespace kernels {

// Cut [0, n) in `blocks` equal parts and run fn(block, begin, end), on up to `threads` threads.
template <typename Fn>
void for_blocks(int64_t n, int64_t blocks, int threads, const Fn& fn) {
  auto run = [&](int64_t first, int64_t step) {
    for (int64_t i = first; i < blocks; i += step) fn(i, n * i / blocks, n * (i + 1) / blocks);
  };
  const int64_t size = std::max<int64_t>(1, std::min<int64_t>(threads, blocks));
  workers::pool().run(static_cast<int>(size), [&](int rank) { run(rank, size); });
}

// Below this many elements a thread costs more than it saves.
constexpr int64_t kSmallArray = 1 << 16;
// Blocks whose sums are kept apart: more threads than this bring nothing.
constexpr int64_t kBlocks = 8;

inline int fit_threads(int threads, int64_t elements) {
  return elements < kSmallArray ? 1 : threads;
}

}  // namespace kernels
