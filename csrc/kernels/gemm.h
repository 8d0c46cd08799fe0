// Matrix products for one instruction set, included by impl.cc inside its namespace.
//
// The usual three loops around a small kernel: a block of b is packed in panels of kNR columns,
// one of a in panels of kMR rows, and the kernel keeps kMR x kNR sums in registers. A sum over k
// runs in order, in blocks of kKC, whatever the tile: a result depends neither on the number of
// threads nor on the other rows of the batch.

constexpr int kNR = kVL * kNV;
constexpr int64_t kKC = 256;  // a panel of b: kKC x kNR, most of the first cache at most
constexpr int64_t kNC = 256;  // columns of c that are kept in the second cache
constexpr int64_t kMC = 280;  // a block of a: kMC x kQC, half of the second cache
constexpr int64_t kQC = 1024;
static_assert(kKC * (kNC + kNR) + (kMC + 2 * kMR) * kQC <= kGemmScratch, "scratch is too small");

typedef float Vec4 __attribute__((vector_size(16), aligned(4), may_alias));

// c[R, kNR] = (c +) a b (+ bias) over kc, of packed panels: a [kc, kMR], b [kc, kNR].
template <int R>
__attribute__((noinline)) void tile(int64_t kc, const float* a, const float* b, float* c,
                                    int64_t ldc, bool add, const float* bias) {
  Vec sum[R][kNV];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kNV; ++j) sum[i][j] = Vec{};
  }
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < kNR; j += 16) __builtin_prefetch(c + i * ldc + j, 1);
  }
#pragma GCC unroll 1
  for (int64_t k = 0; k < kc; ++k) {
    Vec row[kNV];
#pragma GCC unroll 4
    for (int j = 0; j < kNV; ++j) row[j] = *reinterpret_cast<const Vec*>(b + k * kNR + j * kVL);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const float s = a[k * kMR + i];
#pragma GCC unroll 4
      for (int j = 0; j < kNV; ++j) sum[i][j] += s * row[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kNV; ++j) {
      Vec* p = reinterpret_cast<Vec*>(c + i * ldc + j * kVL);
      if (bias != nullptr) sum[i][j] += *reinterpret_cast<const Vec*>(bias + j * kVL);
      *p = add ? *p + sum[i][j] : sum[i][j];
    }
  }
}

// A tile of r <= kMR rows.
template <int R>
inline void tile_of(int64_t r, int64_t kc, const float* a, const float* b, float* c, int64_t ldc,
                    bool add, const float* bias) {
  if constexpr (R > 0) {
    if (r == R) return tile<R>(kc, a, b, c, ldc, add, bias);
    tile_of<R - 1>(r, kc, a, b, c, ldc, add, bias);
  }
}

// The same with only n <= kNR columns of c to be written.
inline void edge_tile(int64_t r, int64_t n, int64_t kc, const float* a, const float* b, float* c,
                      int64_t ldc, bool add, const float* bias) {
  if (n == kNR) return tile_of<kMR>(r, kc, a, b, c, ldc, add, bias);
  float part[kMR * kNR];
  tile_of<kMR>(r, kc, a, b, part, kNR, false, nullptr);
  for (int64_t i = 0; i < r; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const float sum = part[i * kNR + j] + (bias != nullptr ? bias[j] : 0.0f);
      c[i * ldc + j] = add ? c[i * ldc + j] + sum : sum;
    }
  }
}

// to[k * stride + r] = from[r * ld + k]
void pack_columns(const float* from, int64_t ld, int64_t rows, int64_t kc, float* to,
                  int64_t stride) {
  int64_t r = 0;
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
  for (; r + 4 <= rows; r += 4) {
    int64_t k = 0;
    for (; k + 4 <= kc; k += 4) {
      const float* s = from + r * ld + k;
      float* d = to + k * stride + r;
      auto load = [s, ld](int i) { return *reinterpret_cast<const Vec4*>(s + i * ld); };
      auto store = [d, stride](int i, Vec4 v) { *reinterpret_cast<Vec4*>(d + i * stride) = v; };
      const Vec4 a = load(0), b = load(1), c = load(2), e = load(3);
      const Vec4 x = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      const Vec4 y = __builtin_shufflevector(c, e, 0, 4, 1, 5);
      const Vec4 z = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Vec4 w = __builtin_shufflevector(c, e, 2, 6, 3, 7);
      store(0, __builtin_shufflevector(x, y, 0, 1, 4, 5));
      store(1, __builtin_shufflevector(x, y, 2, 3, 6, 7));
      store(2, __builtin_shufflevector(z, w, 0, 1, 4, 5));
      store(3, __builtin_shufflevector(z, w, 2, 3, 6, 7));
    }
    for (; k < kc; ++k) {
      for (int64_t i = 0; i < 4; ++i) to[k * stride + r + i] = from[(r + i) * ld + k];
    }
  }
#endif
#endif
  for (; r < rows; ++r) {
    for (int64_t k = 0; k < kc; ++k) to[k * stride + r] = from[r * ld + k];
  }
}

// to[k * stride + c] = from[k * ld + c], c < width
template <int kWidth>
void pack_rows(const float* from, int64_t ld, int64_t width, int64_t kc, float* to) {
  if (width == kWidth) {
    for (int64_t k = 0; k < kc; ++k) __builtin_memcpy(to + k * kWidth, from + k * ld, kWidth * 4);
    return;
  }
  for (int64_t k = 0; k < kc; ++k) {
    for (int64_t i = 0; i < width; ++i) to[k * kWidth + i] = from[k * ld + i];
  }
}

// Columns [j, j + n) of op(b), rows [k, k + kc), as [kc, kNR]; columns beyond n are zeros.
void pack_b(const Gemm& g, int64_t j, int64_t n, int64_t k, int64_t kc, float* to) {
  if (n < kNR) {
    for (int64_t i = 0; i < kc * kNR; ++i) to[i] = 0.0f;
  }
  if (g.tb)
    pack_columns(g.b + j * g.ldb + k, g.ldb, n, kc, to, kNR);
  else
    pack_rows<kNR>(g.b + k * g.ldb + j, g.ldb, n, kc, to);
}

// The same for all panels of [j0, j0 + nc), one after the other in `to`. Rows of b are read from
// end to end, since jumps from row to row would wait for memory at each.
void pack_block(const Gemm& g, int64_t j0, int64_t nc, int64_t k, int64_t kc, float* to) {
  const int64_t whole = g.tb ? 0 : nc / kNR * kNR;
  for (int64_t i = 0; whole > 0 && i < kc; ++i) {
    const float* from = g.b + (k + i) * g.ldb + j0;
    for (int64_t j = 0; j < whole; j += kNR) {
      __builtin_memcpy(to + j * kc + i * kNR, from + j, kNR * sizeof(float));
    }
  }
  for (int64_t j = whole; j < nc; j += kNR) {
    pack_b(g, j0 + j, nc - j < kNR ? nc - j : kNR, k, kc, to + j * kc);
  }
}

constexpr int kFew = 4;              // rows that are not worth packing b
constexpr int64_t kFewWidth = 1024;  // columns whose sums and rows of b stay in the first cache

// sum[i, j] += a[i, 0] b[0, j] + ... + a[i, kRows - 1] b[kRows - 1, j], in this order, i < kM
template <int kM, int kRows>
void add_rows(const float* a, int64_t a_i, int64_t a_k, const float* b, int64_t ldb, int64_t n,
              float* sum) {
  float s[kM][kRows];
  for (int i = 0; i < kM; ++i) {
    for (int k = 0; k < kRows; ++k) s[i][k] = a[i * a_i + k * a_k];
  }
  int64_t j = 0;
  for (; j + kVL <= n; j += kVL) {
    Vec row[kRows];
#pragma GCC unroll 8
    for (int k = 0; k < kRows; ++k) row[k] = *reinterpret_cast<const Vec*>(b + k * ldb + j);
#pragma GCC unroll 4
    for (int i = 0; i < kM; ++i) {
      Vec* const to = reinterpret_cast<Vec*>(sum + i * kFewWidth + j);
      Vec total = *to;
#pragma GCC unroll 8
      for (int k = 0; k < kRows; ++k) total += s[i][k] * row[k];
      *to = total;
    }
  }
  for (; j < n; ++j) {
    for (int i = 0; i < kM; ++i) {
      for (int k = 0; k < kRows; ++k) sum[i * kFewWidth + j] += s[i][k] * b[k * ldb + j];
    }
  }
}

// The same with m <= kM rows of a, and all k rows of b.
template <int kM>
void add_all(const Gemm& g, int64_t j0, int64_t n, float* sum) {
  if constexpr (kM > 0) {
    if (g.m < kM) return add_all<kM - 1>(g, j0, n, sum);
    constexpr int kRows = 8;
    const int64_t a_i = g.ta ? 1 : g.lda, a_k = g.ta ? g.lda : 1, whole = g.k / kRows * kRows;
    for (int64_t k = 0; k < whole; k += kRows) {
      add_rows<kM, kRows>(g.a + k * a_k, a_i, a_k, g.b + k * g.ldb + j0, g.ldb, n, sum);
    }
    for (int64_t k = whole; k < g.k; ++k) {
      add_rows<kM, 1>(g.a + k * a_k, a_i, a_k, g.b + k * g.ldb + j0, g.ldb, n, sum);
    }
  }
}

// A few rows of a: the time goes into reading b from memory, once and from end to end. (Columns of
// b, a panel at a time, would be read with a jump per row.)
void gemm_few(const Gemm& g, float* sum) {
  const int64_t a_i = g.ta ? 1 : g.lda, a_k = g.ta ? g.lda : 1;
  if (g.tb) {
    for (int64_t j = 0; j < g.n; ++j) {
      const float* b = g.b + j * g.ldb;
      for (int64_t i = 0; i < g.m; ++i) {
        const float* a = g.a + i * a_i;
        float total = g.bias != nullptr ? g.bias[j] : 0.0f;
        if (g.ta) {
          for (int64_t k = 0; k < g.k; ++k) total += a[k * a_k] * b[k];
        } else {
          SIMD_SUM(total) for (int64_t k = 0; k < g.k; ++k) total += a[k] * b[k];
        }
        g.c[i * g.ldc + j] = g.add ? g.c[i * g.ldc + j] + total : total;
      }
    }
    return;
  }
  for (int64_t j0 = 0; j0 < g.n; j0 += kFewWidth) {
    const int64_t n = g.n - j0 < kFewWidth ? g.n - j0 : kFewWidth;
    for (int64_t i = 0; i < g.m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        sum[i * kFewWidth + j] = g.bias != nullptr ? g.bias[j0 + j] : 0.0f;
      }
    }
    add_all<kFew>(g, j0, n, sum);
    for (int64_t i = 0; i < g.m; ++i) {
      float* c = g.c + i * g.ldc + j0;
      const float* from = sum + i * kFewWidth;
      for (int64_t j = 0; j < n; ++j) c[j] = g.add ? c[j] + from[j] : from[j];
    }
  }
}

// Rows [i0, i0 + rows) of op(a), columns [k0, k0 + kc), in panels of kMR rows.
void pack_a(const Gemm& g, int64_t i0, int64_t rows, int64_t k0, int64_t kc, float* to) {
  for (int64_t i = 0; i < rows; i += kMR) {
    const int64_t r = rows - i < kMR ? rows - i : kMR;
    if (g.ta)
      pack_rows<kMR>(g.a + k0 * g.lda + i0 + i, g.lda, r, kc, to + i * kc);
    else
      pack_columns(g.a + (i0 + i) * g.lda + k0, g.lda, r, kc, to + i * kc, kMR);
  }
}

void gemm(const Gemm& g, float* scratch) {
  if (g.m <= kFew) return gemm_few(g, scratch);
  float* const packed_b = scratch;
  float* const packed_a = scratch + kKC * (kNC + kNR);
  const int64_t a_blocks = (g.m + kMC - 1) / kMC;
  const int64_t mc = ((g.m + a_blocks - 1) / a_blocks + kMR - 1) / kMR * kMR;
  for (int64_t i0 = 0; i0 < g.m; i0 += mc) {
    const int64_t rows = g.m - i0 < mc ? g.m - i0 : mc;
    for (int64_t q0 = 0; q0 < g.k; q0 += kQC) {
      const int64_t qc = g.k - q0 < kQC ? g.k - q0 : kQC;
      for (int64_t k0 = 0; k0 < qc; k0 += kKC) {
        pack_a(g, i0, rows, q0 + k0, qc - k0 < kKC ? qc - k0 : kKC, packed_a + k0 * (kMC + kMR));
      }
      for (int64_t j0 = 0; j0 < g.n; j0 += kNC) {
        const int64_t nc = g.n - j0 < kNC ? g.n - j0 : kNC;
        for (int64_t k0 = 0; k0 < qc; k0 += kKC) {
          const int64_t kc = qc - k0 < kKC ? qc - k0 : kKC;
          const float* panels = packed_a + k0 * (kMC + kMR);
          const bool add = g.add || q0 + k0 > 0;
          pack_block(g, j0, nc, q0 + k0, kc, packed_b);
          for (int64_t j = 0; j < nc; j += kNR) {
            const int64_t n = nc - j < kNR ? nc - j : kNR;
            for (int64_t i = 0; i < rows; i += kMR) {
              const int64_t r = rows - i < kMR ? rows - i : kMR;
              edge_tile(r, n, kc, panels + i * kc, packed_b + j * kc,
                        g.c + (i0 + i) * g.ldc + j0 + j, g.ldc, add,
                        g.bias != nullptr && !add ? g.bias + j0 + j : nullptr);
            }
          }
        }
      }
    }
  }
}
