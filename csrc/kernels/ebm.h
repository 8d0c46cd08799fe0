// Energy networks evaluated block by block: a block of rows goes through every layer while it is
// in the cache, and so do its gradients on the way back.
//
// One network, several builds of the loops: ebm_vector.cc once per instruction set, ebm_amx.cc for
// CPUs with tile registers; ebm_bind.cc chooses when the module is loaded. Sums over rows run over
// fixed groups of observations in a fixed order, so results don't depend on the number of threads.
#pragma once

#include <cstdint>

namespace ebm {

enum class Kind : int { kMlp = 0, kOrig = 1, kPreActivation = 2 };

// x = first[b] + w_a a; h_0 = relu(x) (kOrig: x); h_{i+1} = relu(layers[i] h_i + bias), with the
// residual stream s added after odd layers; f = head . h_L + head_stream . s + constant.
// Widths are padded to a multiple of 32 by zeros, which stay zeros.
struct Net {
  Kind kind;
  int64_t width, action, layers;  // layers at least 1
  const void* forward;            // packed matrices, in the layout of the build
  const void* backward;           // the same, transposed
  const float* bias;              // [layers, width]
  const float* w_a;               // [action, width]
  const float* head;              // [width]
  const float* head_stream;       // [width]; null unless kPreActivation
  float constant;
};

// Rows (observation b, sample n), n fastest.
struct Rows {
  int64_t batch, num;
  const float* first;    // [batch, width]
  const float* actions;  // [batch * num, action]
};

// What one evaluation writes; null where not wanted.
struct Values {
  float* f;       // [rows]
  float* grad;    // [rows, action], df/da
  char* saved;    // what the backward pass needs, Build::saved_bytes per row of whole blocks
  float* stream;  // [rows, width], s where head_stream sees it; with saved
};

// Gradients of sum over rows of scale * f. All but `first` are one group's own sums.
struct Grads {
  const float* scale;   // [rows]
  const char* saved;    // null: computed again
  const float* stream;  // with saved
  float* first;         // [batch, width]
  float* layers;        // [layers, width, width], out x in
  float* bias;          // [layers, width, Build::lanes]: sums still to be added up
  float* w_a;           // [action, width, lanes]: the same
  float* head;          // [width]
  float* head_stream;   // [width]
};

// A run of at most Build::block (with `saved`: saved_block) rows of one group; `offset` counts the
// padded rows before it.
struct Block {
  int64_t begin, end, offset;
};

struct Build {
  const char* name;
  const char* precision;  // of products: float32, bfloat16, or bfloat16x3: three products of
                          // bfloat16 parts, so that 16 bits of each factor count
  int64_t block;          // rows
  int64_t saved_block;    // the same, where a backward pass follows
  int64_t align;          // blocks are padded to a multiple of this in `saved`
  int64_t lanes;
  int64_t (*saved_bytes)(const Net&);    // per row; 0: the backward pass computes it again
  int64_t (*scratch_bytes)(const Net&);  // of one thread
  void (*forward)(const Net&, const Rows&, const Values&, const Block&, char* scratch);
  void (*backward)(const Net&, const Rows&, const Grads&, const Block&, char* scratch);
};

#if defined(__x86_64__)
namespace amx {
extern const Build bf16, bf16x3;
}
namespace v4_bf16 {
extern const Build bf16;
}
namespace v4 {
extern const Build f32, rounded;
}
namespace v3 {
extern const Build f32, rounded;
}
#endif
namespace base {
extern const Build f32, rounded;
}

}  // namespace ebm
