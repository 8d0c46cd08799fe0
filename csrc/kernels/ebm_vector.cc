// Energy networks on vector registers: compiled once per instruction set (EBM_ISA), for three kinds
// of numbers in the products: float32; bfloat16 by the CPU's own instruction (EBM_BF16); and
// float32 rounded to bfloat16, for CPUs without it.
//
// Matrices are packed in panels of 16 columns, [columns/16][summed index][16]. A unit is what one
// broadcast takes: a float32, or two bfloat16 that are neighbours in the summed index.
// Nothing from the standard library with external linkage may be used here, or the linker could
// pick a copy that the running CPU cannot execute.
#include "ebm.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#define EBM_BF16 1
#endif

#ifndef EBM_ISA
#define EBM_ISA base
#endif
#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)
#define UNROLL _Pragma("GCC unroll 16")
#define SIMD _Pragma("omp simd")

namespace ebm {
namespace EBM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kVectors = 2, kMaxRows = 14;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kVectors = 2, kMaxRows = 6;
#else
constexpr int kLanes = 4, kVectors = 4, kMaxRows = 2;
#endif
constexpr int kColumns = kLanes * kVectors;
constexpr int64_t kBlock = 4 * 14, kSavedBlock = 8 * 14;  // rows; multiples of kMaxRows on AVX-512

typedef float Vec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec relu(Vec v) { return v < 0.0f ? Vec{} : v; }  // keeps NaN

// ------------------------------------------------------------------------------- numbers

struct Float {
  static constexpr const char* kPrecision = "float32";
  static constexpr int kPack = 1;  // numbers in a unit
  using Number = float;
  using Unit = float;
  using Sum = Vec;
  static Vec get(const float* p) { return load(p); }
  static void put(float* p, Vec v) { store(p, v); }
  static Vec fma(Unit a, const Unit* b, Vec sum) { return sum + a * load(b); }
};

// nearest bfloat16, ties to even; NaN stays one
inline Vec round_bf16(Vec v) {
  const Bits bits = reinterpret_cast<Bits&>(v);
  Bits rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) & 0xffff0000U;
  return v == v ? reinterpret_cast<Vec&>(rounded) : v;
}

struct Rounded : Float {
  static constexpr const char* kPrecision = "bfloat16";
  static void put(float* p, Vec v) { store(p, round_bf16(v)); }
};

#if defined(EBM_BF16)
struct Bf16 {
  static constexpr const char* kPrecision = "bfloat16";
  static constexpr int kPack = 2;
  using Number = uint16_t;
  using Unit = uint32_t;
  static Vec get(const Number* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
  }
  static void put(Number* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
  }
  // The intrinsic's own type: sums of type Vec would go through memory at every step (GCC 12)
  using Sum = __m512;
  static Sum fma(Unit a, const Unit* b, Sum sum) {
    const __m512i x = _mm512_set1_epi32(static_cast<int>(a)), y = _mm512_loadu_si512(b);
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
  }
};
#endif

// ------------------------------------------------------------------------------- products

// Strides of the two factors, in units: a (row, k), b (k, and from 16 columns to the next 16).
struct Strides {
  int64_t a_row, a_k, b_k, b_panel;
};

template <class T, int kRows>
inline void product(const typename T::Unit* a, const typename T::Unit* b, const Strides& s,
                    int64_t k_units, typename T::Sum (&c)[kRows][kVectors]) {
  UNROLL for (int m = 0; m < kRows; ++m) {
    UNROLL for (int v = 0; v < kVectors; ++v) c[m][v] = typename T::Sum{};
  }
  for (int64_t k = 0; k < k_units; ++k, a += s.a_k, b += s.b_k) {
    UNROLL for (int m = 0; m < kRows; ++m) {
      const typename T::Unit x = a[m * s.a_row];
      UNROLL for (int v = 0; v < kVectors; ++v) {
        const int column = v * kLanes;
        c[m][v] = T::fma(x, b + column / 16 * s.b_panel + column % 16, c[m][v]);
      }
    }
  }
}

template <class T, int kRows, class Epilogue>
inline void tile(const typename T::Unit* a, const typename T::Unit* b, const Strides& s,
                 int64_t k_units, int64_t row, int64_t column, const Epilogue& epilogue) {
  typename T::Sum c[kRows][kVectors];
  product<T, kRows>(a + row * s.a_row, b, s, k_units, c);
  UNROLL for (int v = 0; v < kVectors; ++v) {
    UNROLL for (int m = 0; m < kRows; ++m) epilogue(row + m, column + v * kLanes, c[m][v]);
  }
}

template <class T, class Epilogue, int kRows = kMaxRows>
inline void tile_of(int64_t rows, const typename T::Unit* a, const typename T::Unit* b,
                    const Strides& s, int64_t k_units, int64_t row, int64_t column,
                    const Epilogue& epilogue) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return tile_of<T, Epilogue, kRows - 1>(rows, a, b, s, k_units, row, column, epilogue);
    }
  }
  tile<T, kRows>(a, b, s, k_units, row, column, epilogue);
}

// epilogue(row, column, vector) for all of a [rows, k] x b [k, columns]
template <class T, class Epilogue>
void multiply(const typename T::Unit* a, int64_t rows, const typename T::Unit* b, int64_t columns,
              int64_t k_units, const Strides& s, const Epilogue& epilogue) {
  const int64_t tiles = (rows + kMaxRows - 1) / kMaxRows;
  for (int64_t column = 0; column < columns; column += kColumns) {
    const typename T::Unit* panel = b + column / 16 * s.b_panel + column % 16;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = rows * t / tiles, size = rows * (t + 1) / tiles - row;
      tile_of<T>(size, a, panel, s, k_units, row, column, epilogue);
    }
  }
}

template <class T>
const typename T::Unit* units(const typename T::Number* p) {
  return reinterpret_cast<const typename T::Unit*>(p);
}

// a [rows, width] row by row x a packed matrix
template <class T, class Epilogue>
void through(const Net& net, const void* packed, int64_t layer, const typename T::Number* a,
             int64_t rows, const Epilogue& epilogue) {
  const int64_t k = net.width / T::kPack;
  const auto* b = static_cast<const typename T::Unit*>(packed) + layer * net.width * k;
  multiply<T>(units<T>(a), rows, b, net.width, k, {k, 1, 16, k * 16}, epilogue);
}

// ------------------------------------------------------------------------------- passes

template <class T>
struct Scratch {
  using Number = typename T::Number;
  Number* h;         // [layers + 1][rows][width], where nothing is saved
  Number* g[2];      // [rows][width], ping and pong
  Number* pairs[2];  // the same with two rows in a unit, for kPack 2
  float* stream;     // [rows][width]
  float* scale;      // [rows]
  int64_t bytes;

  Scratch(char* p, const Net& net, int64_t rows) {
    char* const begin = p;
    auto take = [&p](int64_t size) {
      char* q = p;
      p += (size + 63) / 64 * 64;
      return q;
    };
    const int64_t unit = (rows + 1) * net.width;
    const int64_t size = unit * static_cast<int64_t>(sizeof(Number));
    h = reinterpret_cast<Number*>(take((net.layers + 1) * size));
    for (auto& x : g) x = reinterpret_cast<Number*>(take(size));
    for (auto& x : pairs) x = T::kPack == 1 ? nullptr : reinterpret_cast<Number*>(take(size));
    stream = reinterpret_cast<float*>(take(unit * 4));
    scale = reinterpret_cast<float*>(take(rows * 4));
    bytes = p - begin;
  }
};

template <class T>
int64_t scratch_bytes(const Net& net) {
  return Scratch<T>(nullptr, net, kSavedBlock).bytes;
}

template <class T>
int64_t saved_bytes(const Net& net) {
  return (net.layers + 1) * net.width * static_cast<int64_t>(sizeof(typename T::Number));
}

inline float sum_of(Vec v) {
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// x = first[b] + w_a a into the stream, and h_0
template <class T>
void first_layer(const Net& net, const Rows& rows, const Block& block, float* stream,
                 typename T::Number* h) {
  const bool rectify = net.kind != Kind::kOrig;
  for (int64_t row = block.begin; row < block.end; ++row, stream += net.width, h += net.width) {
    const float* base = rows.first + row / rows.num * net.width;
    const float* action = rows.actions + row * net.action;
    for (int64_t n = 0; n < net.width; n += kLanes) {
      Vec x = load(base + n);
      for (int64_t i = 0; i < net.action; ++i) x += action[i] * load(net.w_a + i * net.width + n);
      store(stream + n, x);
      T::put(h + n, rectify ? relu(x) : x);
    }
  }
}

// h_0..h_L [layers + 1][rows][width], and the stream
template <class T>
void run_layers(const Net& net, const Rows& rows, const Block& block, float* stream,
                typename T::Number* h) {
  const int64_t n = block.end - block.begin, width = net.width;
  first_layer<T>(net, rows, block, stream, h);
  for (int64_t i = 0; i < net.layers; ++i, h += n * width) {
    typename T::Number* out = h + n * width;
    const float* bias = net.bias + i * width;
    const bool skip = i % 2 && net.kind != Kind::kMlp;
    if (skip && net.kind == Kind::kPreActivation) {
      through<T>(net, net.forward, i, h, n, [=](int64_t row, int64_t col, Vec y) {
        float* s = stream + row * width + col;
        y += load(bias + col) + load(s);
        store(s, y);
        T::put(out + row * width + col, relu(y));
      });
    } else if (skip) {
      through<T>(net, net.forward, i, h, n, [=](int64_t row, int64_t col, Vec y) {
        float* s = stream + row * width + col;
        y = relu(y + load(bias + col) + load(s));
        store(s, y);
        T::put(out + row * width + col, y);
      });
    } else {
      through<T>(net, net.forward, i, h, n, [=](int64_t row, int64_t col, Vec y) {
        T::put(out + row * width + col, relu(y + load(bias + col)));
      });
    }
  }
}

template <class T>
inline Vec masked(Vec v, const typename T::Number* h) {
  return T::get(h) <= 0.0f ? Vec{} : v;
}

// g of the last layer, and the stream's gradient
template <class T>
void start(const Net& net, const typename T::Number* h, int64_t rows, const float* scale,
           float* stream, typename T::Number* g) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < net.width; n += kLanes) {
      const int64_t at = r * net.width + n;
      const Vec head = masked<T>(scale[r] * load(net.head + n), h + at);
      T::put(g + at, head);
      if (net.kind == Kind::kPreActivation) {
        store(stream + at, scale[r] * load(net.head_stream + n));
      } else {
        store(stream + at, head);
      }
    }
  }
}

template <class T>
void interleave_rows(const typename T::Number* from, int64_t rows, int64_t width,
                     typename T::Number* to) {
  for (int64_t r = 0; r < rows; r += 2) {
    const auto *a = from + r * width, *b = a + width;
    auto* out = to + r * width;
    if (r + 1 < rows) {
      SIMD for (int64_t i = 0; i < width; ++i) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
      }
    } else {
      SIMD for (int64_t i = 0; i < width; ++i) {
        out[2 * i] = a[i];
        out[2 * i + 1] = 0;
      }
    }
  }
}

// dw [out, in] += g^T h, db [out] += g summed over rows
template <class T>
void weight_grad(const Net& net, const typename T::Number* g, const typename T::Number* h,
                 int64_t rows, Scratch<T>& s, float* dw, float* db) {
  const int64_t width = net.width;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < width; n += kLanes) {
      store(db + n, load(db + n) + T::get(g + r * width + n));
    }
  }
  if (T::kPack == 2) {
    interleave_rows<T>(g, rows, width, s.pairs[0]);
    interleave_rows<T>(h, rows, width, s.pairs[1]);
    g = s.pairs[0];
    h = s.pairs[1];
  }
  const int64_t k = (rows + T::kPack - 1) / T::kPack;
  multiply<T>(units<T>(g), width, units<T>(h), width, k, {1, width, width, 16},
              [=](int64_t out, int64_t in, Vec c) {
                float* to = dw + out * width + in;
                store(to, load(to) + c);
              });
}

// The stream holds dx [rows, width] in the end.
template <class T>
void pull_back(const Net& net, const typename T::Number* h, int64_t rows, Scratch<T>& s,
               const Grads* params) {
  const int64_t width = net.width, unit = rows * width;
  float* stream = s.stream;
  const int64_t last = net.layers - 1;
  start<T>(net, h + net.layers * unit, rows, s.scale, stream, s.g[last & 1]);
  for (int64_t i = last; i >= 0; --i) {
    const typename T::Number *g = s.g[i & 1], *mask = h + i * unit;
    typename T::Number* next = s.g[(i & 1) ^ 1];
    if (params != nullptr) {
      weight_grad<T>(net, g, mask, rows, s, params->layers + i * width * width,
                     params->bias + i * width);
    }
    const bool even = i % 2 == 0, first = i == 0;
    if (even && net.kind == Kind::kPreActivation) {
      through<T>(net, net.backward, i, g, rows, [=](int64_t row, int64_t col, Vec d) {
        const int64_t at = row * width + col;
        d = load(stream + at) + masked<T>(d, mask + at);
        store(stream + at, d);
        T::put(next + at, d);
      });
    } else if (even && net.kind == Kind::kOrig) {
      through<T>(net, net.backward, i, g, rows, [=](int64_t row, int64_t col, Vec d) {
        const int64_t at = row * width + col;
        d += load(stream + at);
        if (!first) d = masked<T>(d, mask + at);
        store(stream + at, d);
        T::put(next + at, d);
      });
    } else if (first) {
      through<T>(net, net.backward, i, g, rows, [=](int64_t row, int64_t col, Vec d) {
        store(stream + row * width + col, masked<T>(d, mask + row * width + col));
      });
    } else {
      through<T>(net, net.backward, i, g, rows, [=](int64_t row, int64_t col, Vec d) {
        T::put(next + row * width + col, masked<T>(d, mask + row * width + col));
      });
    }
  }
}

template <class T>
void forward(const Net& net, const Rows& rows, const Values& out, const Block& block,
             char* memory) {
  const int64_t n = block.end - block.begin, width = net.width;
  Scratch<T> s(memory, net, kSavedBlock);
  auto* h =
      out.saved == nullptr
          ? s.h
          : reinterpret_cast<typename T::Number*>(out.saved + block.offset * saved_bytes<T>(net));
  run_layers<T>(net, rows, block, s.stream, h);
  const auto* last = h + net.layers * n * width;
  for (int64_t r = 0; r < n; ++r) {
    Vec sum{};
    for (int64_t i = 0; i < width; i += kLanes) {
      sum += load(net.head + i) * T::get(last + r * width + i);
      if (net.head_stream != nullptr) {
        sum += load(net.head_stream + i) * load(s.stream + r * width + i);
      }
    }
    out.f[block.begin + r] = sum_of(sum) + net.constant;
  }
  if (out.stream != nullptr) {
    __builtin_memcpy(out.stream + block.begin * width, s.stream, n * width * 4);
  }
  if (out.grad == nullptr) return;
  for (int64_t r = 0; r < n; ++r) s.scale[r] = 1.0f;
  pull_back<T>(net, h, n, s, nullptr);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t a = 0; a < net.action; ++a) {
      Vec sum{};
      for (int64_t i = 0; i < width; i += kLanes) {
        sum += load(net.w_a + a * width + i) * load(s.stream + r * width + i);
      }
      out.grad[(block.begin + r) * net.action + a] = sum_of(sum);
    }
  }
}

template <class T>
void backward(const Net& net, const Rows& rows, const Grads& grads, const Block& block,
              char* memory) {
  const int64_t n = block.end - block.begin, width = net.width;
  Scratch<T> s(memory, net, kSavedBlock);
  const auto* h =
      reinterpret_cast<const typename T::Number*>(grads.saved + block.offset * saved_bytes<T>(net));
  for (int64_t r = 0; r < n; ++r) s.scale[r] = grads.scale[block.begin + r];
  pull_back<T>(net, h, n, s, &grads);
  const auto* last = h + net.layers * n * width;
  for (int64_t r = 0; r < n; ++r) {
    const int64_t row = block.begin + r;
    const float* action = rows.actions + row * net.action;
    float* first = grads.first + row / rows.num * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const Vec dx = load(s.stream + r * width + i);
      store(first + i, load(first + i) + dx);
      if (net.head_stream != nullptr) {
        const Vec x = load(grads.stream + row * width + i);
        store(grads.head_stream + i, load(grads.head_stream + i) + s.scale[r] * x);
      }
      store(grads.head + i, load(grads.head + i) + s.scale[r] * T::get(last + r * width + i));
      for (int64_t a = 0; a < net.action; ++a) {
        float* to = grads.w_a + a * width + i;
        store(to, load(to) + action[a] * dx);
      }
    }
  }
}

template <class T>
constexpr Build make(const char* name) {
  return {name,        T::kPrecision, kBlock, kSavedBlock, 1, 1, &saved_bytes<T>, &scratch_bytes<T>,
          &forward<T>, &backward<T>};
}

}  // namespace

#if defined(EBM_BF16)
extern const Build bf16;
const Build bf16 = make<Bf16>(STRINGIFY(EBM_ISA));
#else
extern const Build f32, rounded;
const Build f32 = make<Float>(STRINGIFY(EBM_ISA)),
            rounded = make<Rounded>(STRINGIFY(EBM_ISA) "_rounded");
#endif

}  // namespace EBM_ISA
}  // namespace ebm
