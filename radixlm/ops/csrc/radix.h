/* What the Python side calls, and the few types the kernels share.
 *
 * Every function is safe to call from any thread; work is spread over the pool of pool.c. Pointers are checked by the
 * caller (radixlm/ops/native.py): shapes, types and contiguity are its promise, indices into the KV pool the plan's.
 */
#ifndef RADIX_H
#define RADIX_H

#include <stdint.h>

enum dtype { F32 = 0, BF16 = 1, F16 = 2 };

/* A task of a parallel region: `index` of `count`, all independent. */
typedef void (*task_fn)(const void *args, long index);

/* Runs fn(args, 0 .. count - 1), spread over the pool and the caller; returns when all are done. */
void rx_parallel(task_fn fn, const void *args, long count);
/* Threads that compute, the caller included. Takes effect at once; at most 256. */
void rx_set_threads(int threads);
int rx_threads(void);
/* Memory of the calling thread, at least `size` bytes, aligned to 64; valid until its next call for the same use. */
enum scratch { SCRATCH_CALL, SCRATCH_PARTIAL, SCRATCH_TASK, SCRATCH_USES };
void *rx_scratch(enum scratch use, long size);

/* A packed matrix [n, k]; see gemm.c. `packed` holds rx_packed_bytes bytes, aligned to 64. */
struct weight {
    const void *packed;
    const float *bias; /* [n] or NULL */
    int64_t n, k;
    int32_t dtype; /* F32 or BF16 */
};

int64_t rx_packed_bytes(int64_t n, int64_t k, int dtype);
/* src [n, k] of dtype, contiguous. */
void rx_pack(const void *src, void *packed, int64_t n, int64_t k, int dtype);
/* x [rows, k] -> out [rows, n], both of the weight's dtype. */
void rx_linear(const struct weight *w, const void *x, void *out, int64_t rows);

/* out = RMSNorm(x + residual) * weight, and residual = x + residual. residual NULL: x alone is normalised.
 * x, residual, out [rows, n], weight [n]. */
void rx_norm(const void *x, void *residual, const void *weight, void *out, int64_t rows, int64_t n, float eps,
             int dtype);
/* gate_up [rows, 2 n] -> out [rows, n]. */
void rx_silu_mul(const void *gate_up, void *out, int64_t rows, int64_t n, int dtype);

struct rope {
    const int32_t *positions; /* [tokens] */
    const float *cos_sin;     /* [context, head_dim] */
    const int32_t *cells;     /* [tokens] */
    void *keys, *values;      /* [cells, kv_heads, head_dim] */
    const void *q_norm, *k_norm; /* [head_dim] or NULL */
    int32_t heads, kv_heads, head_dim, dtype, kv_dtype;
    float eps;
};
/* qkv [tokens, (heads + 2 kv_heads) head_dim] -> q [tokens, heads, head_dim]; k and v go to their cells. */
void rx_rope_write(const struct rope *rope, const void *qkv, void *q, int64_t tokens);

struct attention {
    const int32_t *slots, *starts, *lengths, *offsets; /* radixlm.attention.api.Batch */
    const int32_t *page_table;                         /* [slots, pages] */
    const void *keys, *values;                         /* [cells, kv_heads, head_dim] */
    int64_t chunks, pages, page_size;
    int32_t heads, kv_heads, head_dim, window, dtype, kv_dtype;
    float scale, softcap;
};
/* q [tokens, heads, head_dim] -> out, same shape; rows outside every chunk are zero. */
void rx_attention(const struct attention *a, const void *q, void *out, int64_t tokens);

#endif
