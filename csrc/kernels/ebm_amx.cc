// Energy networks on tile registers (AMX): products in bfloat16, sums in float32.
//
// With kParts 1 a factor is rounded to bfloat16. With 2 it is the sum of two bfloat16 numbers, the
// rounded one and what rounding left (16 bits of float32's 24 together), and three products of
// parts take the place of one: high x high, high x low, low x high. The parts of a matrix, or of a
// layer's rows, are stored one after the other.
//
// All matrices are cut in tiles of 16 rows x 64 bytes that are contiguous (512 numbers). With
// "pairs" a tile holds [16][16][2]: two neighbours of the summed index side by side, as the second
// factor of a tile product must be. The forward pass makes C[row, unit] and the backward pass
// C[unit, row], because then each finds its factors as the other one's epilogue can write them:
// nothing is transposed but the masks, and these are bits.
#include <immintrin.h>

#include "ebm.h"

namespace ebm {
namespace amx {
namespace {

using bf16 = uint16_t;
constexpr int64_t kTile = 512;  // numbers in a tile
constexpr int64_t kBlock = 256;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kConfig;

// Layout of one thread's scratch memory, for `rows` rows.
template <int kParts>
struct Scratch {
  bf16* a[2];       // forward: h of one layer, tiles [rows/16][width/32], ping and pong
  bf16* pairs[2];   // backward: g of one layer, pairs of units, tiles [rows/16][width/32]
  bf16* plain;      // backward: g of one layer, tiles [rows/32][width/16] of 16 units x 32 rows
  float* stream;    // forward [rows][width]; backward [rows/32][width][32]
  uint16_t* masks;  // [layers + 1][width/16][rows]: 16 units' h > 0 as bits
  float* lanes;     // [rows][16], whose sum is f
  float* grad;      // [action][rows]
  float* c;         // two blocks of 32 x 32 results
  bf16* h;          // for the backward pass: all h as pairs of rows, tiles
                    // [layers + 1][rows/32][width/16]
  int64_t bytes;

  Scratch(char* p, const Net& net) {
    constexpr int64_t rows = kBlock;
    char* const begin = p;
    auto take = [&p](int64_t bytes) {
      char* q = p;
      p += (bytes + 63) / 64 * 64;
      return q;
    };
    const int64_t unit = rows * net.width;
    for (auto& t : a) t = reinterpret_cast<bf16*>(take(unit * 2 * kParts));
    pairs[0] = a[0];  // the forward pass is over when the backward pass begins
    pairs[1] = a[1];
    plain = reinterpret_cast<bf16*>(take(unit * 2 * kParts));
    stream = reinterpret_cast<float*>(take(unit * 4));
    masks = reinterpret_cast<uint16_t*>(take((net.layers + 1) * unit / 8));
    lanes = reinterpret_cast<float*>(take(rows * 64));
    grad = reinterpret_cast<float*>(take(rows * net.action * 4));
    c = reinterpret_cast<float*>(take(2 * 4096));
    h = reinterpret_cast<bf16*>(take((net.layers + 1) * unit * 2 * kParts));
    bytes = p - begin;
  }
};

int64_t padded(const Block& block) { return (block.end - block.begin + 31) / 32 * 32; }

inline __m512 relu(__m512 v) { return _mm512_max_ps(_mm512_setzero_ps(), v); }  // keeps NaN
inline uint16_t positive(__m512 v) {
  // NaN counts, as in torch's max(0, x)
  return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NLE_UQ);
}
inline __m512i to_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

inline __m512 widen(__m256i v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

// [16 of low | 16 of high], in parts
template <int kParts>
inline void split(__m512 low, __m512 high, __m512i parts[kParts]) {
  parts[0] = to_bf16(low, high);
  if (kParts == 2) {
    low = _mm512_sub_ps(low, widen(_mm512_castsi512_si256(parts[0])));
    high = _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64(parts[0], 1)));
    parts[kParts - 1] = to_bf16(low, high);
  }
}

// [16 of x | 16 of y] -> x0 y0 x1 y1 ...
inline __m512i interleave_halves(__m512i v) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, v);
}

// The compiler does not know that tile loads read memory.
inline void memory_written() { asm volatile("" ::: "memory"); }

// C (32 x 32) = sum over chunks of a tiles (am apart between the two, ak between chunks) x b tiles;
// the low parts are a_low and b_low further on.
template <int kParts>
inline void product(const bf16* a, int64_t am, int64_t ak, int64_t a_low, const bf16* b, int64_t bn,
                    int64_t bk, int64_t b_low, int64_t chunks) {
  memory_written();
  for (int64_t k = 0; k < chunks; ++k, a += ak, b += bk) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + bn, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + am, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    if (kParts == 1) continue;
    _tile_loadd(6, b + b_low, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + b_low + bn, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(4, a + a_low, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + bn, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + a_low + am, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

inline void store_c(float* c, int64_t stride) {
  _tile_stored(0, c, stride * 4);
  _tile_stored(1, c + 16, stride * 4);
  _tile_stored(2, c + 16 * stride, stride * 4);
  _tile_stored(3, c + 16 * stride + 16, stride * 4);
}

// All 32 x 32 blocks of a [m, k] x b [k, n]: epilogue(m, n, c) for each. The tiles of the next
// block are multiplied while the vector units work on the epilogue of the last.
template <int kParts, bool kOuterN, class Epilogue>
inline void multiply(const bf16* a, int64_t m, const bf16* b, int64_t n, int64_t k, float* c,
                     const Epilogue& epilogue) {
  const int64_t chunks = k / 32, ms = m / 32, ns = n / 32, total = ms * ns;
  int64_t last_m = 0, last_n = 0;
  for (int64_t i = 0; i <= total; ++i) {
    const int64_t outer = i / (kOuterN ? ms : ns), inner = i % (kOuterN ? ms : ns);
    const int64_t im = kOuterN ? inner : outer, in = kOuterN ? outer : inner;
    float* now = c + (i & 1) * 1024;
    if (i < total) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      product<kParts>(a + im * 2 * chunks * kTile, chunks * kTile, kTile, m * k,
                      b + in * 2 * chunks * kTile, chunks * kTile, kTile, n * k, chunks);
      store_c(now, 32);
    }
    if (i > 0) epilogue(last_m, last_n, c + ((i - 1) & 1) * 1024);
    last_m = im;
    last_n = in;
  }
}

// ------------------------------------------------------------------------------- forward

// Where the rows of one layer's output go.
struct Out {
  bf16* a;           // or null
  bf16* saved;       // pairs of rows, or null
  uint16_t* masks;   // or null
  float* stream;     // or null
  const float* dot;  // f += dot . (stream or h), or null
  bool dot_stream;
  float* lanes;
  int64_t rows, width;
};

enum class Skip { kNone, kPre, kOrig, kFirst, kFirstOrig };

// Two neighbouring rows x 32 units, from their values before skip and relu.
template <int kParts, Skip kSkip>
inline void finish(const Out& o, int64_t row, int64_t n, __m512 v[2][2]) {
  __m512i packed[2][kParts];
  const int64_t unit = o.rows * o.width;  // numbers in a part
  for (int q = 0; q < 2; ++q) {
    const int64_t r = row + q;
    __m512 x0 = v[q][0], x1 = v[q][1], h0, h1;
    float* s = o.stream + r * o.width + n * 32;
    if (kSkip == Skip::kPre || kSkip == Skip::kOrig) {
      x0 = _mm512_add_ps(x0, _mm512_load_ps(s));
      x1 = _mm512_add_ps(x1, _mm512_load_ps(s + 16));
    }
    if (kSkip == Skip::kFirstOrig) {
      h0 = x0;
      h1 = x1;
    } else {
      h0 = relu(x0);
      h1 = relu(x1);
    }
    if (kSkip == Skip::kPre || (kSkip == Skip::kFirst && o.stream != nullptr)) {
      _mm512_store_ps(s, x0);
      _mm512_store_ps(s + 16, x1);
    } else if (kSkip == Skip::kOrig || kSkip == Skip::kFirstOrig) {
      _mm512_store_ps(s, h0);
      _mm512_store_ps(s + 16, h1);
    }
    if (o.masks != nullptr) {
      o.masks[2 * n * o.rows + r] = positive(x0);
      o.masks[(2 * n + 1) * o.rows + r] = positive(x1);
    }
    if (o.dot != nullptr) {
      const __m512 d0 = o.dot_stream ? x0 : h0, d1 = o.dot_stream ? x1 : h1;
      __m512 sum = _mm512_load_ps(o.lanes + r * 16);
      sum = _mm512_fmadd_ps(d0, _mm512_loadu_ps(o.dot + n * 32), sum);
      sum = _mm512_fmadd_ps(d1, _mm512_loadu_ps(o.dot + n * 32 + 16), sum);
      _mm512_store_ps(o.lanes + r * 16, sum);
    }
    split<kParts>(h0, h1, packed[q]);
    for (int part = 0; part < kParts && o.a != nullptr; ++part) {
      bf16* to = o.a + part * unit + (r / 16 * (o.width / 32) + n) * kTile + r % 16 * 32;
      _mm512_store_si512(to, packed[q][part]);
    }
  }
  for (int part = 0; part < kParts && o.saved != nullptr; ++part) {
    bf16* to = o.saved + part * unit + (row / 32 * (o.width / 16) + 2 * n) * kTile + row % 32 * 16;
    const __m512i one = packed[0][part], two = packed[1][part];
    const __m512i low = _mm512_inserti64x4(one, _mm512_castsi512_si256(two), 1);
    const __m512i high = _mm512_shuffle_i64x2(one, two, 0xee);
    _mm512_storeu_si512(to, interleave_halves(low));
    _mm512_storeu_si512(to + kTile, interleave_halves(high));
  }
}

template <int kParts, Skip kSkip>
void layer(const bf16* a, const bf16* b, const float* bias, const Out& o, float* c) {
  const auto epilogue = [&](int64_t m, int64_t n, const float* y) {
    const __m512 b0 = _mm512_loadu_ps(bias + n * 32), b1 = _mm512_loadu_ps(bias + n * 32 + 16);
    for (int64_t r = 0; r < 32; r += 2) {
      __m512 v[2][2];
      for (int q = 0; q < 2; ++q) {
        v[q][0] = _mm512_add_ps(b0, _mm512_load_ps(y + (r + q) * 32));
        v[q][1] = _mm512_add_ps(b1, _mm512_load_ps(y + (r + q) * 32 + 16));
      }
      finish<kParts, kSkip>(o, m * 32 + r, n, v);
    }
  };
  multiply<kParts, true>(a, o.rows, b, o.width, o.width, c, epilogue);
}

// x = first[b] + w_a a
template <int kParts, Skip kSkip>
void first_layer(const Net& net, const Rows& rows, const Block& block, const Out& o) {
  const int64_t last = block.end - 1;
  for (int64_t r = 0; r < o.rows; r += 2) {
    const int64_t row0 = block.begin + r < last ? block.begin + r : last;
    const int64_t row1 = row0 + 1 < last ? row0 + 1 : last;  // padding repeats the last row
    const int64_t row[2] = {row0, row1};
    for (int64_t n = 0; n < o.width / 32; ++n) {
      __m512 v[2][2];
      for (int q = 0; q < 2; ++q) {
        const float* base = rows.first + row[q] / rows.num * o.width + n * 32;
        const float* action = rows.actions + row[q] * net.action;
        v[q][0] = _mm512_loadu_ps(base);
        v[q][1] = _mm512_loadu_ps(base + 16);
        for (int64_t i = 0; i < net.action; ++i) {
          const __m512 x = _mm512_set1_ps(action[i]);
          const float* w = net.w_a + i * o.width + n * 32;
          v[q][0] = _mm512_fmadd_ps(x, _mm512_loadu_ps(w), v[q][0]);
          v[q][1] = _mm512_fmadd_ps(x, _mm512_loadu_ps(w + 16), v[q][1]);
        }
      }
      finish<kParts, kSkip>(o, r, n, v);
    }
  }
}

template <int kParts>
void run_layers(const Net& net, const Rows& rows, const Block& block, Scratch<kParts>& s,
                uint16_t* masks, bf16* saved) {
  const int64_t n = padded(block), width = net.width, unit = n * width;
  const bool pre = net.kind == Kind::kPreActivation, orig = net.kind == Kind::kOrig;
  Out o{s.a[0], saved, masks, s.stream, nullptr, false, s.lanes, n, width};
  auto next = [&](int64_t i) {  // the output of layer i - 1 is h_i
    o.a = i == net.layers ? nullptr : s.a[i & 1];
    o.saved = saved ? saved + i * unit * kParts : nullptr;
    o.masks = masks ? masks + i * n * (width / 16) : nullptr;
    o.dot_stream = pre && i == net.layers - 1;
    o.dot = i == net.layers ? net.head : o.dot_stream ? net.head_stream : nullptr;
    o.stream = i > 0 || net.kind != Kind::kMlp ? s.stream : nullptr;
  };
  for (int64_t i = 0; i < n * 16; ++i) s.lanes[i] = 0.0f;
  next(0);
  if (orig) {
    first_layer<kParts, Skip::kFirstOrig>(net, rows, block, o);
  } else {
    first_layer<kParts, Skip::kFirst>(net, rows, block, o);
  }
  const bf16* weights = static_cast<const bf16*>(net.forward);
  for (int64_t i = 0; i < net.layers; ++i) {
    next(i + 1);
    const bf16* w = weights + i * width * width * kParts;
    const float* bias = net.bias + i * width;
    if (pre && i % 2) {
      layer<kParts, Skip::kPre>(s.a[i & 1], w, bias, o, s.c);
    } else if (orig && i % 2) {
      layer<kParts, Skip::kOrig>(s.a[i & 1], w, bias, o, s.c);
    } else {
      layer<kParts, Skip::kNone>(s.a[i & 1], w, bias, o, s.c);
    }
  }
}

// ------------------------------------------------------------------------------- backward

alignas(64) constexpr uint16_t kBits[16] = {1,   2,   4,    8,    16,   32,   64,    128,
                                            256, 512, 1024, 2048, 4096, 8192, 16384, 32768};

// g of 32 units x 32 rows, row by row of C, to where the next products want it.
template <int kParts>
struct Sink {
  bf16 *pairs, *plain;  // plain null: no gradients of parameters wanted
  float* bias;          // [width][16], with plain
  int64_t width, unit;  // unit: numbers in a part

  inline void put(int64_t m, int64_t n, int64_t j, const __m512 low[2],
                  const __m512 high[2]) const {
    // rows j and j + 1 of the block (m, n)
    __m512i parts[2][kParts];
    split<kParts>(low[0], low[1], parts[0]);
    split<kParts>(high[0], high[1], parts[1]);
    for (int part = 0; part < kParts; ++part) {
      bf16* to = pairs + part * unit + (2 * n * (width / 32) + m) * kTile + j * 16;
      _mm512_store_si512(to, interleave_halves(parts[0][part]));
      to += width / 32 * kTile;
      _mm512_store_si512(to, interleave_halves(parts[1][part]));
    }
    if (plain == nullptr) return;
    for (int q = 0; q < 2; ++q) {
      const int64_t row = m * 32 + j + q;
      bf16* line = plain + (n * (width / 16) + row / 16) * kTile + row % 16 * 32;
      split<kParts>(low[q], high[q], parts[0]);
      for (int part = 0; part < kParts; ++part) {
        _mm512_store_si512(line + part * unit, parts[0][part]);
      }
      float* sum = bias + row * 16;
      const __m512 both = _mm512_add_ps(low[q], high[q]);
      _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), both));
    }
  }
};

inline __mmask32 unit_mask(const uint16_t* masks, int64_t rows, int64_t unit, int64_t n) {
  const __m512i words = _mm512_loadu_si512(masks + unit / 16 * rows + n * 32);
  return _mm512_test_epi16_mask(words, _mm512_set1_epi16(static_cast<int16_t>(kBits[unit % 16])));
}

// The output unit's part: g of the last layer, and the stream's
template <int kParts>
void start(const Net& net, const uint16_t* masks, const float* scale, int64_t rows, float* stream,
           const Sink<kParts>& sink) {
  const int64_t width = net.width;
  for (int64_t n = 0; n < rows / 32; ++n) {
    const __m512 c0 = _mm512_load_ps(scale + n * 32), c1 = _mm512_load_ps(scale + n * 32 + 16);
    for (int64_t unit = 0; unit < width; unit += 2) {
      __m512 low[2], high[2];
      for (int q = 0; q < 2; ++q) {
        const __mmask32 on = unit_mask(masks, rows, unit + q, n);
        const __m512 head = _mm512_set1_ps(net.head[unit + q]);
        low[q] = _mm512_maskz_mul_ps(static_cast<__mmask16>(on), c0, head);
        high[q] = _mm512_maskz_mul_ps(static_cast<__mmask16>(on >> 16), c1, head);
        float* s = stream + (n * width + unit + q) * 32;
        if (net.kind == Kind::kPreActivation) {
          const __m512 w = _mm512_set1_ps(net.head_stream[unit + q]);
          _mm512_store_ps(s, _mm512_mul_ps(c0, w));
          _mm512_store_ps(s + 16, _mm512_mul_ps(c1, w));
        } else if (net.kind == Kind::kOrig) {
          _mm512_store_ps(s, low[q]);
          _mm512_store_ps(s + 16, high[q]);
        }
      }
      sink.put(unit / 32, n, unit % 32, low, high);
    }
  }
}

enum class Back { kMask, kPre, kOrig, kOrigFirst };

// from d = W^T g (in y, rows j of the block (m, n)) to the next g
template <Back kBack>
inline void pull(const uint16_t* masks, int64_t rows, int64_t width, float* stream, int64_t unit,
                 int64_t n, const float* y, __m512& low, __m512& high) {
  low = _mm512_load_ps(y);
  high = _mm512_load_ps(y + 16);
  __mmask32 on = 0xffffffffU;
  if (kBack != Back::kOrigFirst) on = unit_mask(masks, rows, unit, n);
  const __mmask16 on0 = static_cast<__mmask16>(on), on1 = static_cast<__mmask16>(on >> 16);
  if (kBack == Back::kMask) {
    low = _mm512_maskz_mov_ps(on0, low);
    high = _mm512_maskz_mov_ps(on1, high);
    return;
  }
  float* s = stream + (n * width + unit) * 32;
  const __m512 s0 = _mm512_load_ps(s), s1 = _mm512_load_ps(s + 16);
  if (kBack == Back::kPre) {
    low = _mm512_mask_add_ps(s0, on0, s0, low);
    high = _mm512_mask_add_ps(s1, on1, s1, high);
  } else {
    low = _mm512_maskz_add_ps(on0, s0, low);
    high = _mm512_maskz_add_ps(on1, s1, high);
  }
  _mm512_store_ps(s, low);
  _mm512_store_ps(s + 16, high);
}

template <int kParts, Back kBack>
void back_layer(const Net& net, const bf16* w, const bf16* g, int64_t rows, const uint16_t* masks,
                float* stream, const Sink<kParts>& sink, float* c) {
  const int64_t width = net.width;
  const auto epilogue = [&](int64_t m, int64_t n, const float* y) {
    for (int64_t j = 0; j < 32; j += 2) {
      __m512 low[2], high[2];
      for (int q = 0; q < 2; ++q) {
        pull<kBack>(masks, rows, width, stream, m * 32 + j + q, n, y + (j + q) * 32, low[q],
                    high[q]);
      }
      sink.put(m, n, j, low, high);
    }
  };
  multiply<kParts, false>(w, width, g, rows, width, c, epilogue);
}

// The gradients that end at x: of actions, or of first and w_a. Works on gx [32 units][32 rows].
struct Ends {
  const Net& net;
  const Rows& rows;
  const Block& block;
  float* grad;           // [action][padded rows], or null
  const Grads* params;   // or null
  const float* actions;  // [action][padded rows], with params
  int64_t padded;

  inline void operator()(int64_t m, int64_t n, const float* gx) const {
    for (int64_t i = 0; grad != nullptr && i < net.action; ++i) {
      float* to = grad + i * padded + n * 32;
      __m512 low = _mm512_load_ps(to), high = _mm512_load_ps(to + 16);
      const float* w = net.w_a + i * net.width + m * 32;
      for (int64_t j = 0; j < 32; ++j) {
        const __m512 x = _mm512_set1_ps(w[j]);
        low = _mm512_fmadd_ps(x, _mm512_load_ps(gx + j * 32), low);
        high = _mm512_fmadd_ps(x, _mm512_load_ps(gx + j * 32 + 16), high);
      }
      _mm512_store_ps(to, low);
      _mm512_store_ps(to + 16, high);
    }
    if (params == nullptr) return;
    for (int64_t i = 0; i < net.action; ++i) {
      const __m512 a0 = _mm512_load_ps(actions + i * padded + n * 32);
      const __m512 a1 = _mm512_load_ps(actions + i * padded + n * 32 + 16);
      float* to = params->w_a + (i * net.width + m * 32) * 16;
      for (int64_t j = 0; j < 32; ++j, to += 16) {
        __m512 sum = _mm512_loadu_ps(to);
        sum = _mm512_fmadd_ps(a0, _mm512_load_ps(gx + j * 32), sum);
        sum = _mm512_fmadd_ps(a1, _mm512_load_ps(gx + j * 32 + 16), sum);
        _mm512_storeu_ps(to, sum);
      }
    }
    // rows of one observation are neighbours
    const int64_t from = block.begin + n * 32;
    const int64_t to = from + 32 < block.end ? from + 32 : block.end;
    for (int64_t row = from; row < to;) {
      const int64_t b = row / rows.num;
      const int64_t stop = (b + 1) * rows.num < to ? (b + 1) * rows.num : to;
      const uint64_t bits = ((1ULL << (stop - from)) - 1) & ~((1ULL << (row - from)) - 1);
      const __mmask16 low = static_cast<__mmask16>(bits);
      const __mmask16 high = static_cast<__mmask16>(bits >> 16);
      float* sums = params->first + b * net.width + m * 32;
      for (int64_t j = 0; j < 32; ++j) {
        const __m512 part = _mm512_add_ps(_mm512_maskz_loadu_ps(low, gx + j * 32),
                                          _mm512_maskz_loadu_ps(high, gx + j * 32 + 16));
        sums[j] += _mm512_reduce_add_ps(part);
      }
      row = stop;
    }
  }
};

template <int kParts, Back kBack>
void last_layer(const Net& net, const bf16* w, const bf16* g, int64_t rows, const uint16_t* masks,
                float* stream, float* c, const Ends& ends) {
  const auto epilogue = [&](int64_t m, int64_t n, float* y) {
    for (int64_t j = 0; j < 32; ++j) {
      __m512 low, high;
      pull<kBack>(masks, rows, net.width, stream, m * 32 + j, n, y + j * 32, low, high);
      _mm512_store_ps(y + j * 32, low);
      _mm512_store_ps(y + j * 32 + 16, high);
    }
    ends(m, n, y);
  };
  multiply<kParts, false>(w, net.width, g, rows, net.width, c, epilogue);
}

// dw [out, in] += g [out, rows] h [rows, in]
template <int kParts>
void weight_grad(const bf16* g, const bf16* h, int64_t rows, int64_t width, float* dw) {
  const int64_t step = width / 16 * kTile;
  for (int64_t o = 0; o < width / 32; ++o) {
    for (int64_t i = 0; i < width / 32; ++i) {
      float* c = dw + o * 32 * width + i * 32;
      memory_written();
      _tile_loadd(0, c, width * 4);
      _tile_loadd(1, c + 16, width * 4);
      _tile_loadd(2, c + 16 * width, width * 4);
      _tile_loadd(3, c + 16 * width + 16, width * 4);
      product<kParts>(g + 2 * o * kTile, kTile, step, rows * width, h + 2 * i * kTile, kTile, step,
                      rows * width, rows / 32);
      store_c(c, width);
    }
  }
}

template <int kParts>
void pull_back(const Net& net, const uint16_t* masks, int64_t rows, const float* scale,
               Scratch<kParts>& s, const Grads* params, const bf16* saved, const Ends& ends) {
  const int64_t width = net.width, unit = rows * width;
  const bool pre = net.kind == Kind::kPreActivation, orig = net.kind == Kind::kOrig;
  const bf16* weights = static_cast<const bf16*>(net.backward);
  auto sink = [&](int64_t i) {  // of g of layer i
    return Sink<kParts>{s.pairs[i & 1], params ? s.plain : nullptr,
                        params ? params->bias + i * width * 16 : nullptr, width, unit};
  };
  const int64_t last = net.layers - 1;
  start(net, masks + net.layers * rows * (width / 16), scale, rows, s.stream, sink(last));
  for (int64_t i = last; i >= 0; --i) {
    if (params != nullptr) {
      weight_grad<kParts>(s.plain, saved + i * unit * kParts, rows, width,
                          params->layers + i * width * width);
    }
    const bf16 *w = weights + i * width * width * kParts, *g = s.pairs[i & 1];
    const uint16_t* mask = masks + i * rows * (width / 16);
    const bool even = i % 2 == 0;
    if (i > 0) {
      if (pre && even) {
        back_layer<kParts, Back::kPre>(net, w, g, rows, mask, s.stream, sink(i - 1), s.c);
      } else if (orig && even) {
        back_layer<kParts, Back::kOrig>(net, w, g, rows, mask, s.stream, sink(i - 1), s.c);
      } else {
        back_layer<kParts, Back::kMask>(net, w, g, rows, mask, s.stream, sink(i - 1), s.c);
      }
    } else if (pre) {
      last_layer<kParts, Back::kPre>(net, w, g, rows, mask, s.stream, s.c, ends);
    } else if (orig) {
      last_layer<kParts, Back::kOrigFirst>(net, w, g, rows, mask, s.stream, s.c, ends);
    } else {
      last_layer<kParts, Back::kMask>(net, w, g, rows, mask, s.stream, s.c, ends);
    }
  }
}

// dhead += sum over rows of scale h, h as pairs of rows
void head_grad(const bf16* h, const float* scale, int64_t rows, int64_t width, float* dhead) {
  const __m512i high_half = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  for (int64_t t = 0; t < width / 16; ++t) {
    __m512 even = _mm512_loadu_ps(dhead + t * 16), odd = _mm512_setzero_ps();
    for (int64_t n = 0; n < rows / 32; ++n) {
      const bf16* tile = h + (n * (width / 16) + t) * kTile;
      for (int64_t r = 0; r < 32; r += 2) {
        const __m512i both = _mm512_loadu_si512(tile + r * 16);
        const __m512 x0 = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        const __m512 x1 = _mm512_castsi512_ps(_mm512_and_si512(both, high_half));
        even = _mm512_fmadd_ps(_mm512_set1_ps(scale[n * 32 + r]), x0, even);
        odd = _mm512_fmadd_ps(_mm512_set1_ps(scale[n * 32 + r + 1]), x1, odd);
      }
    }
    _mm512_storeu_ps(dhead + t * 16, _mm512_add_ps(even, odd));
  }
}

// ------------------------------------------------------------------------------- blocks

template <int kParts>
void forward(const Net& net, const Rows& rows, const Values& out, const Block& block,
             char* memory) {
  _tile_loadconfig(&kConfig);
  const int64_t n = padded(block), count = block.end - block.begin;
  Scratch<kParts> s(memory, net);
  run_layers(net, rows, block, s, out.grad != nullptr ? s.masks : nullptr, nullptr);
  for (int64_t r = 0; r < count; ++r) {
    const __m512 sum = _mm512_load_ps(s.lanes + r * 16);
    out.f[block.begin + r] = _mm512_reduce_add_ps(sum) + net.constant;
  }
  if (out.grad != nullptr) {
    float* ones = s.lanes;
    for (int64_t i = 0; i < n; ++i) ones[i] = 1.0f;
    for (int64_t i = 0; i < n * net.action; ++i) s.grad[i] = 0.0f;
    const Ends ends{net, rows, block, s.grad, nullptr, nullptr, n};
    pull_back(net, s.masks, n, ones, s, nullptr, nullptr, ends);
    for (int64_t r = 0; r < count; ++r) {
      float* to = out.grad + (block.begin + r) * net.action;
      for (int64_t i = 0; i < net.action; ++i) to[i] = s.grad[i * n + r];
    }
  }
  _tile_release();
}

// Memory is slower than tiles: the forward pass is done again, its results stay in the cache.
template <int kParts>
void backward(const Net& net, const Rows& rows, const Grads& grads, const Block& block,
              char* memory) {
  _tile_loadconfig(&kConfig);
  const int64_t n = padded(block), count = block.end - block.begin, width = net.width;
  Scratch<kParts> s(memory, net);
  run_layers(net, rows, block, s, s.masks, s.h);
  float* scale = s.lanes;  // padding has no weight
  for (int64_t r = 0; r < n; ++r) scale[r] = r < count ? grads.scale[block.begin + r] : 0.0f;
  for (int64_t i = 0; i < net.action; ++i) {
    for (int64_t r = 0; r < n; ++r) {
      const int64_t row = block.begin + (r < count ? r : count - 1);
      s.grad[i * n + r] = rows.actions[row * net.action + i];
    }
  }
  for (int part = 0; part < kParts; ++part) {
    const bf16* h = s.h + (net.layers * kParts + part) * n * width;
    head_grad(h, scale, n, width, grads.head);
  }
  for (int64_t r = 0; net.head_stream != nullptr && r < count; ++r) {
    const float *x = s.stream + r * width, weight = scale[r];
    for (int64_t i = 0; i < width; ++i) grads.head_stream[i] += weight * x[i];
  }
  const Ends ends{net, rows, block, nullptr, &grads, s.grad, n};
  pull_back(net, s.masks, n, scale, s, &grads, s.h, ends);
  _tile_release();
}

int64_t saved_bytes(const Net&) { return 0; }
template <int kParts>
int64_t scratch_bytes(const Net& net) {
  return Scratch<kParts>(nullptr, net).bytes;
}

}  // namespace

const Build bf16{"amx",        "bfloat16",        kBlock,      kBlock,      32, 16,
                 &saved_bytes, &scratch_bytes<1>, &forward<1>, &backward<1>};
const Build bf16x3{"amx_x3",     "bfloat16x3",      kBlock,      kBlock,      32, 16,
                   &saved_bytes, &scratch_bytes<2>, &forward<2>, &backward<2>};

}  // namespace amx
}  // namespace ebm
