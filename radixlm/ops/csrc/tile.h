/* The inner product kernel that the linear op and attention share: c [rows, NV * 16] (+)= a [rows, k] x b [k, NV *
 * 16].
 *
 * b is a packed panel. F32: k rows of NV * 16 floats. BF16: ceil(k / 2) rows of NV * 16 pairs, a pair being the
 * elements 2 i and 2 i + 1 of one column, zero where k is odd. Every element of c is one chain of additions in the
 * order of k, so it does not depend on how many rows are computed together.
 */
#ifndef TILE_H
#define TILE_H

#include "vec.h"

#if defined(__AVX512F__)
#define TILE_ROWS 8 /* 8 x 3 accumulators and 3 columns of b fit the 32 registers */
#else
#define TILE_ROWS 2
#endif

/* One step of k (F32) or two (BF16). a is one element or one pair. */
INLINE vf multiply_add(vf acc, const char *a, vu b, int dtype) {
    uint32_t bits;
    memcpy(&bits, a, 4);
#if defined(__AVX512BF16__)
    if (dtype == BF16) return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32((int)bits), (__m512bh)b);
#endif
    if (dtype == BF16) {
        uint32_t low = bits << 16, high = bits & 0xffff0000u;
        float a0, a1;
        memcpy(&a0, &low, 4);
        memcpy(&a1, &high, 4);
        acc += (vf)(b << 16) * a0;
        return acc + (vf)(b & 0xffff0000u) * a1;
    }
    float value;
    memcpy(&value, &bits, 4);
    return acc + (vf)b * value;
}

/* Rows of memory that are needed later, for another operation: base + cells[i] * stride, of so many cache lines. */
struct ask {
    const char *base;
    const int32_t *cells;
    long count, stride, lines;
};

/* One row of b: acc += a x b. `fetch` points to memory that is needed soon; `level` is 1 or 2, the cache it goes to, or 0:
 * nothing is fetched. */
INLINE void add_step(int dtype, int rows, int nv, vf acc[TILE_ROWS][4], const char *a, long lda, const char *b,
                     int level, const char *fetch) {
    vu column[4];
#pragma GCC unroll 4
    for (int n = 0; n < nv; n++) {
        memcpy(&column[n], b + n * 64, 64);
        if (level == 1) __builtin_prefetch(fetch + n * 64, 0, 3);
        if (level == 2) __builtin_prefetch(fetch + n * 64, 0, 2);
    }
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < nv; n++) acc[m][n] = multiply_add(acc[m][n], a + m * lda, column[n], dtype);
}

/* acc += `steps` rows of b, ldb bytes apart; a advances 4 bytes per step and lda bytes per row, `fetch` fetch_step. A line
 * of what is asked for is fetched with each step, as far as they go. */
INLINE void sum_tile(int dtype, int rows, int nv, vf acc[TILE_ROWS][4], const char *a, long lda, const char *b,
                     long ldb, long steps, int level, const char *fetch, long fetch_step, const struct ask *ask) {
    const char *end = b + steps * ldb;
    for (long t = 0; b < end; t++) {
        const char *row = fetch, *stop = end; /* fetched twice where nothing is asked for: a second loop has no registers */
        if (level == 2 && t < ask->count) {
            row = ask->base + ask->cells[t] * ask->stride;
            if (b + ask->lines * ldb < end) stop = b + ask->lines * ldb;
        }
        for (; b < stop; a += 4, b += ldb, fetch += fetch_step, row += 64) {
            if (level == 2) __builtin_prefetch(row, 0, 2);
            add_step(dtype, rows, nv, acc, a, lda, b, level, fetch);
        }
    }
}

/* c (+)= a x b; ldc in floats. */
INLINE void tile(int dtype, int rows, int nv, int add, const char *a, long lda, const char *b, long ldb, long steps,
                 float *c, long ldc) {
    vf acc[TILE_ROWS][4];
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < nv; n++) {
            if (add)
                memcpy(&acc[m][n], c + m * ldc + n * LANES, 64);
            else
                acc[m][n] = (vf){};
        }
    sum_tile(dtype, rows, nv, acc, a, lda, b, ldb, steps, 0, NULL, 0, NULL);
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < nv; n++) memcpy(c + m * ldc + n * LANES, &acc[m][n], 64);
}

#endif
