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
enum scratch { SCRATCH_CALL, SCRATCH_PARTIAL, SCRATCH_TASK, SCRATCH_CELLS, SCRATCH_USES };
void *rx_scratch(enum scratch use, long size);

/* A packed matrix [n, k]; see gemm.c. `packed` holds rx_packed_bytes bytes, aligned to 64. */
struct weight {
    const void *packed;
    const float *bias; /* [n] or NULL */
    int64_t n, k;
    int32_t dtype;  /* F32 or BF16 */
    int32_t paired; /* half of the outputs gate the others: their panels lie in pairs */
};

int64_t rx_packed_bytes(int64_t n, int64_t k, int dtype);
/* src [n, k] of dtype, contiguous. `paired`: n is a multiple of 96, there is no bias, and its products are gated. */
void rx_pack(const void *src, void *packed, int64_t n, int64_t k, int dtype, int paired);

/* Operations. Each is a value: it can be carried out now, and kept by a recording to be carried out again (record.c).
 * Row counts may be 0. */
struct linear { /* x [rows, k] -> out [rows, n], both of the weight's dtype */
    const struct weight *weight;
    const void *x;
    void *out;
    int64_t rows;
    void *gated; /* NULL, or [rows, n / 2]: silu(first half of `out`) * second half, and `out` is room */
};

struct take_rows { /* out[i] = x[index[i]] */
    const void *x;
    const int32_t *index; /* [rows] */
    void *out;
    int64_t rows, bytes; /* of a row */
};

struct norm { /* out = RMSNorm(x + residual) * weight, residual = x + residual; residual NULL: x alone */
    const void *x;      /* [rows, n] */
    void *residual;     /* [rows, n] or NULL */
    const void *weight; /* [n] */
    void *out;          /* [rows, n] */
    int64_t rows, n;
    float eps;
    int32_t dtype;
};

struct silu_mul { /* gate_up [rows, 2 n] -> out [rows, n] */
    const void *gate_up;
    void *out;
    int64_t rows, n;
    int32_t dtype;
};

/* qkv [tokens, (heads + 2 kv_heads) head_dim] -> q [tokens, heads, head_dim]; keys and values go to their cells */
struct rope_write {
    const void *qkv;
    void *q;
    const int32_t *positions; /* [tokens] */
    const float *cos_sin;     /* [context, head_dim] */
    const int32_t *cells;     /* [tokens] */
    void *keys, *values;      /* [cells, kv_heads, head_dim] */
    const void *q_norm, *k_norm; /* [head_dim] or NULL */
    int64_t tokens;
    int32_t heads, kv_heads, head_dim, dtype, kv_dtype;
    float eps;
};

struct attention { /* q [tokens, heads, head_dim] -> out, same shape; rows outside every chunk are zero */
    const void *q;
    void *out;
    const int32_t *slots, *starts, *lengths, *offsets; /* radixlm.attention.api.Batch */
    const int32_t *page_table;                         /* [slots, pages] */
    const void *keys, *values;                         /* [cells, kv_heads, head_dim] */
    int64_t tokens, chunks, pages, page_size;
    int32_t heads, kv_heads, head_dim, window, dtype, kv_dtype;
    float scale, softcap;
};

/* What comes after a product: the weight of the next one, and keys and values that the next attention reads: first .. last
 * of the keys in all cells, then the values. */
struct ahead {
    const struct weight *next; /* or NULL */
    const struct attention *kv;
    const int32_t *cell; /* [cells] */
    long cells, first, last;
};

/* `ahead`, or NULL, is fetched meanwhile: products of more than 8 rows wait for arithmetic, attention for memory. */
void rx_linear(const struct linear *op, const struct ahead *ahead);
void rx_take_rows(const struct take_rows *op);
void rx_norm(const struct norm *op);
void rx_silu_mul(const struct silu_mul *op);
void rx_rope_write(const struct rope_write *op);
void rx_attention(const struct attention *op);
/* The cells of all tokens that it reads; valid until the thread's next call. */
struct ahead rx_cells(const struct attention *op);

struct most_likely {
    void *logits;                   /* [rows, n], n > 0; what is not allowed becomes -infinity */
    float *largest;                 /* [rows] */
    int64_t *index;                 /* [rows] the lowest */
    const uint32_t *const *allowed; /* [rows] of each row NULL or `words` words of bits; NULL if all tokens are allowed in all rows */
    int64_t words, n;
};

/* The largest logit of each row. NaN counts as the largest. Not recorded. */
void rx_most_likely(const struct most_likely *op, int64_t rows, int dtype);

struct choose { /* radixlm.ops.api.Choice */
    float *logits;        /* [rows, n], overwritten with weights */
    const float *largest; /* [rows], as all that follow */
    const float *temperature;
    const int32_t *top_k;
    const double *top_p;
    const float *min_p;
    const double *uniform;
    float *packed; /* [rows, n]: room */
    int64_t *tokens;
    int64_t n;
    float scale; /* of weights into whole numbers */
    int32_t cut; /* whether rows use top-k or top-p */
};

/* A random token for each row. Not recorded. */
void rx_choose(const struct choose *op, int64_t rows);

/* The same operations, by number; `op` is the struct above, copied if a recording is being made by this thread. */
enum kind { LINEAR, NORM, SILU_MUL, ROPE_WRITE, ATTENTION, TAKE_ROWS, KINDS };
void rx_do(int kind, const void *op);

/* From here on the calling thread's operations are kept instead of carried out, until rx_record_end, which returns the
 * recording or NULL if memory ran out. Recordings do not nest. An operation has `most` rows, one for each token of a
 * step, or most + 1, one for each token whose output is wanted; a replay takes the first of them. */
void rx_record_begin(int64_t most);
struct recording *rx_record_end(void);
void rx_replay(struct recording *recording, int64_t tokens, int64_t wanted, int64_t chunks);
void rx_record_free(struct recording *recording);

#endif
