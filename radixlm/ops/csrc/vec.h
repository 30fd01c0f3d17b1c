/* Sixteen floats at a time, in the compiler's vector types: AVX-512 where present, else two, four or eight
 * registers. */
#ifndef VEC_H
#define VEC_H

#include "radix.h"
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));

INLINE vf splat(float x) { return (vf){} + x; }
INLINE vf select_(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
#if defined(__AVX512F__)
/* b where either is a NaN. */
INLINE vf max_(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf min_(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vf zero_below(vf x, vf limit, vf y) { /* y, or 0 where x < limit */
    return (vf)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask((__m512)x, (__m512)limit, _CMP_NLT_UQ), (__m512)y);
}
INLINE vf where_bits(uint32_t bits, vf yes, vf no) { /* lane i: bit i */
    return (vf)_mm512_mask_blend_ps((__mmask16)bits, (__m512)no, (__m512)yes);
}
INLINE float sum_lanes(vf x) { return _mm512_reduce_add_ps((__m512)x); }
INLINE float max_lanes(vf x) { return _mm512_reduce_max_ps((__m512)x); }
#else
INLINE vf max_(vf a, vf b) { return select_(a > b, a, b); }
INLINE vf min_(vf a, vf b) { return select_(a < b, a, b); }
INLINE vf zero_below(vf x, vf limit, vf y) { return select_(x < limit, (vf){}, y); }
INLINE vf where_bits(uint32_t bits, vf yes, vf no) {
    const vu each = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return select_((((vu){} + bits) & each) != 0, yes, no);
}

INLINE float sum_lanes(vf x) {
    float s[LANES];
    memcpy(s, &x, sizeof s);
    for (int w = LANES / 2; w; w /= 2)
        for (int i = 0; i < w; i++) s[i] += s[i + w];
    return s[0];
}

INLINE float max_lanes(vf x) {
    float s[LANES];
    memcpy(s, &x, sizeof s);
    for (int w = LANES / 2; w; w /= 2)
        for (int i = 0; i < w; i++) s[i] = s[i] > s[i + w] ? s[i] : s[i + w];
    return s[0];
}
#endif

INLINE vf widen_bf16(vh h) {
#if defined(__AVX512BW__) /* one instruction; gcc 12 makes five of the conversion, and the shift is another */
    static const uint16_t order[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                       0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
    __m512i wide = _mm512_castsi256_si512((__m256i)h);
    return (vf)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_loadu_si512(order), wide);
#else
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

/* Round to nearest even; a NaN stays one. */
INLINE vh narrow_bf16(vf x) {
#if defined(__AVX512BF16__)
    return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
    vu u = (vu)x;
    vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    vu quiet = (u >> 16) | 0x40;
    vu nan = (vu)(x != x);
    return __builtin_convertvector((quiet & nan) | (rounded & ~nan), vh);
#endif
}

INLINE vf widen_f16(vh h) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)h);
#else
    vf x;
    _Float16 e[LANES];
    memcpy(e, &h, sizeof e);
    for (int i = 0; i < LANES; i++) x[i] = (float)e[i];
    return x;
#endif
}

INLINE vh narrow_f16(vf x) {
#if defined(__AVX512F__)
    return (vh)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    vh h;
    _Float16 e[LANES];
    for (int i = 0; i < LANES; i++) e[i] = (_Float16)x[i];
    memcpy(&h, e, sizeof e);
    return h;
#endif
}

INLINE long size_of(int dtype) { return dtype == F32 ? 4 : 2; }

/* `count` (1 to 16) elements of type dtype from p, the other lanes zero. */
INLINE vf load(const void *p, long count, int dtype) {
    if (dtype == F32) {
        vf x = {};
        if (count == LANES)
            memcpy(&x, p, 64);
        else
            memcpy(&x, p, count * 4);
        return x;
    }
    vh h;
    if (count == LANES) {
        memcpy(&h, p, 32);
    } else {
        vh some = {};
        memcpy(&some, p, count * 2);
        h = some;
    }
    return dtype == BF16 ? widen_bf16(h) : widen_f16(h);
}

INLINE void store(void *p, vf x, long count, int dtype) {
    if (dtype == F32) {
        if (count == LANES)
            memcpy(p, &x, 64);
        else
            memcpy(p, &x, count * 4);
        return;
    }
    vh h = dtype == BF16 ? narrow_bf16(x) : narrow_f16(x);
    if (count == LANES)
        memcpy(p, &h, 32);
    else
        memcpy(p, &h, count * 2);
}

INLINE void *at(const void *p, long index, int dtype) { return (char *)p + index * size_of(dtype); }

/* x rounded as storing it would. */
INLINE vf rounded(vf x, int dtype) {
    return dtype == F32 ? x : dtype == BF16 ? widen_bf16(narrow_bf16(x)) : widen_f16(narrow_f16(x));
}

/* e^x within 2 units in the last place; below -87 it is 0, above 88 it is e^88, and a NaN stays one. */
INLINE vf exp_(vf x) {
    vf y = min_(splat(88.0f), max_(splat(-87.0f), x));
    vf n = y * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer in the low bits */
    vi exponent = (vi)n << 23;            /* the high bits of 1.5 * 2^23 are shifted out */
    n -= 12582912.0f;
    vf r = y - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return zero_below(x, splat(-87.0f), (vf)((vi)p + exponent) + (x - x));
}

/* 2^x for x up to 8, exactly 0 below -126 and 1 at 0; a NaN stays one. Relative error: 3e-6, or 1e-7 if `precise`. */
INLINE vf exp2_(vf x, int precise) {
#if defined(__AVX512F__)
    vf y = max_(splat(-200.0f), x); /* else -infinity would become a NaN */
    vf n = (vf)_mm512_roundscale_ps((__m512)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = y - n;
#else
    vf y = max_(splat(-126.0f), x);
    vf shifted = y + 12582912.0f, n = shifted - 12582912.0f, r = y - n;
#endif
    vf p;
    if (precise) {
        p = r * 1.5353362e-4f + 1.3398875e-3f;
        p = p * r + 9.6184369e-3f;
        p = p * r + 5.5503323e-2f;
        p = p * r + 2.4022648e-1f;
        p = p * r + 6.9314718e-1f;
    } else {
        p = r * 9.5828520e-3f + 5.5906426e-2f;
        p = p * r + 2.4024099e-1f;
        p = p * r + 6.9312418e-1f;
    }
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return zero_below(x, splat(-126.0f), (vf)((vi)p + ((vi)shifted << 23)) + (x - x));
#endif
}

/* x / (1 + e^-x). 16-bit results need no more than 3e-6 of relative error, which halves the time. */
INLINE vf silu(vf x, int dtype) {
#if defined(__AVX512F__)
    if (dtype != F32) {
        vf below = exp2_(x * -1.44269504f, 0) + 1.0f, guess = (vf)_mm512_rcp14_ps((__m512)below);
        return zero_below(x, splat(-88.0f), x * (guess * (2.0f - below * guess)));
    }
#endif
    return zero_below(x, splat(-88.0f), x / (exp_(-x) + 1.0f)); /* exp_ ends at e^88 */
}

#if defined(__AVX512F__)
/* One step of a transposition: exchanges the odd groups of `s` lanes of row i with the even ones of row i + s. */
#define EXCHANGE(s, low, high)                                                                   \
    for (int i = 0; i < LANES; i++)                                                              \
        if (!(i & s)) {                                                                          \
            vu x = m[i], y = m[i + s];                                                           \
            m[i] = (vu)_mm512_permutex2var_epi32((__m512i)x, (__m512i)low, (__m512i)y);          \
            m[i + s] = (vu)_mm512_permutex2var_epi32((__m512i)x, (__m512i)high, (__m512i)y);     \
        }

INLINE vu exchange_lanes(int s, int high) {
    vu index;
    for (int i = 0; i < LANES; i++) index[i] = high ? (i & s ? 16 + i : i + s) : (i & s ? 16 + i - s : i);
    return index;
}

INLINE void transpose(vu m[LANES]) {
#pragma GCC unroll 16
    EXCHANGE(1, exchange_lanes(1, 0), exchange_lanes(1, 1))
#pragma GCC unroll 16
    EXCHANGE(2, exchange_lanes(2, 0), exchange_lanes(2, 1))
#pragma GCC unroll 16
    EXCHANGE(4, exchange_lanes(4, 0), exchange_lanes(4, 1))
#pragma GCC unroll 16
    EXCHANGE(8, exchange_lanes(8, 0), exchange_lanes(8, 1))
}
#undef EXCHANGE
#else
INLINE void transpose(vu m[LANES]) {
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            uint32_t x = m[i][j];
            m[i][j] = m[j][i];
            m[j][i] = x;
        }
}
#endif

#endif
