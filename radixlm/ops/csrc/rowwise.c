/* The ops that touch each element once: norm, rotary embedding with the write to the KV pool, gated activation.
 *
 * They compute in float32 and round once, to the type of their input, as radixlm/ops/torch.py does.
 */
#include "vec.h"

#define TASK_ELEMENTS 16384 /* of one task: a few microseconds, several times what waking a thread costs */

static long rows_per_task(long row_elements) {
    long rows = TASK_ELEMENTS / (row_elements ? row_elements : 1);
    return rows ? rows : 1;
}

INLINE long lanes_left(long i, long n) { return n - i < LANES ? n - i : LANES; }

struct norm {
    const char *x, *weight;
    char *residual, *out;
    long rows, n, task_rows;
    float eps;
};

/* x[n] -> out[n] = x / rms(x) * weight; residual as in rx_norm. out may be x. */
INLINE void norm_row(const char *x, char *residual, const char *weight, char *out, long n, float eps, int dtype) {
    vf squares = {};
    for (long i = 0; i < n; i += LANES) {
        long count = lanes_left(i, n);
        vf v = load(at(x, i, dtype), count, dtype);
        if (residual) {
            v = rounded(v + load(at(residual, i, dtype), count, dtype), dtype);
            store(at(residual, i, dtype), v, count, dtype);
        }
        squares += v * v;
    }
    float scale = 1.0f / sqrtf(sum_lanes(squares) / (float)n + eps);
    for (long i = 0; i < n; i += LANES) {
        long count = lanes_left(i, n);
        vf v = load(at(residual ? residual : x, i, dtype), count, dtype);
        store(at(out, i, dtype), v * scale * load(at(weight, i, dtype), count, dtype), count, dtype);
    }
}

INLINE void norm_rows(const struct norm *a, long task, int dtype) {
    long end = (task + 1) * a->task_rows < a->rows ? (task + 1) * a->task_rows : a->rows;
    for (long r = task * a->task_rows; r < end; r++) {
        char *residual = a->residual ? at(a->residual, r * a->n, dtype) : NULL;
        norm_row(at(a->x, r * a->n, dtype), residual, a->weight, at(a->out, r * a->n, dtype), a->n, a->eps, dtype);
    }
}

static void norm_f32(const void *args, long task) { norm_rows(args, task, F32); }
static void norm_bf16(const void *args, long task) { norm_rows(args, task, BF16); }
static void norm_f16(const void *args, long task) { norm_rows(args, task, F16); }

void rx_norm(const void *x, void *residual, const void *weight, void *out, int64_t rows, int64_t n, float eps,
             int dtype) {
    static const task_fn by_dtype[] = {norm_f32, norm_bf16, norm_f16};
    struct norm a = {x, weight, residual, out, rows, n, rows_per_task(n), eps};
    rx_parallel(by_dtype[dtype], &a, (rows + a.task_rows - 1) / a.task_rows);
}

struct silu {
    const char *gate_up;
    char *out;
    long rows, n, task_rows;
};

INLINE void silu_rows(const struct silu *a, long task, int dtype) {
    long end = (task + 1) * a->task_rows < a->rows ? (task + 1) * a->task_rows : a->rows;
    for (long r = task * a->task_rows; r < end; r++) {
        const char *gate = at(a->gate_up, 2 * r * a->n, dtype), *up = at(gate, a->n, dtype);
        for (long i = 0; i < a->n; i += LANES) {
            long count = lanes_left(i, a->n);
            vf g = load(at(gate, i, dtype), count, dtype), u = load(at(up, i, dtype), count, dtype);
            store(at(a->out, r * a->n + i, dtype), g / (exp_(-g) + 1.0f) * u, count, dtype);
        }
    }
}

static void silu_f32(const void *args, long task) { silu_rows(args, task, F32); }
static void silu_bf16(const void *args, long task) { silu_rows(args, task, BF16); }
static void silu_f16(const void *args, long task) { silu_rows(args, task, F16); }

void rx_silu_mul(const void *gate_up, void *out, int64_t rows, int64_t n, int dtype) {
    static const task_fn by_dtype[] = {silu_f32, silu_bf16, silu_f16};
    struct silu a = {gate_up, out, rows, n, rows_per_task(2 * n)};
    rx_parallel(by_dtype[dtype], &a, (rows + a.task_rows - 1) / a.task_rows);
}

struct rope_call {
    const struct rope *rope;
    const char *qkv;
    char *q;
    long tokens, task_tokens;
};

/* Rotates one head: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 its halves. */
INLINE void rotate(const char *x, char *out, const float *cos_sin, long half, int dtype, int out_dtype) {
    for (long i = 0; i < half; i += LANES) {
        long count = lanes_left(i, half);
        vf c = load(cos_sin + i, count, F32), s = load(cos_sin + half + i, count, F32);
        vf a = load(at(x, i, dtype), count, dtype), b = load(at(x, half + i, dtype), count, dtype);
        store(at(out, i, out_dtype), rounded(a * c - b * s, dtype), count, out_dtype);
        store(at(out, half + i, out_dtype), rounded(b * c + a * s, dtype), count, out_dtype);
    }
}

INLINE void rope_heads(const struct rope *r, const char *x, char *out, const void *norm, long heads, long token,
                       int dtype, int out_dtype) {
    const float *cos_sin = r->cos_sin + (long)r->positions[token] * r->head_dim;
    float normed[512];
    for (long h = 0; h < heads; h++, x = at(x, r->head_dim, dtype), out = at(out, r->head_dim, out_dtype)) {
        if (norm) norm_row(x, NULL, norm, (char *)normed, r->head_dim, r->eps, dtype);
        rotate(norm ? (char *)normed : x, out, cos_sin, r->head_dim / 2, dtype, out_dtype);
    }
}

INLINE void copy_row(const char *x, char *out, long n, int dtype, int out_dtype) {
    if (dtype == out_dtype) {
        memcpy(out, x, n * size_of(dtype));
        return;
    }
    for (long i = 0; i < n; i += LANES) {
        long count = lanes_left(i, n);
        store(at(out, i, out_dtype), load(at(x, i, dtype), count, dtype), count, out_dtype);
    }
}

INLINE void rope_tokens(const struct rope_call *a, long task, int dtype, int kv_dtype) {
    const struct rope *r = a->rope;
    long end = (task + 1) * a->task_tokens < a->tokens ? (task + 1) * a->task_tokens : a->tokens;
    long nq = (long)r->heads * r->head_dim, nkv = (long)r->kv_heads * r->head_dim;
    for (long t = task * a->task_tokens; t < end; t++) {
        const char *x = at(a->qkv, t * (nq + 2 * nkv), dtype);
        long cell = r->cells[t] * nkv;
        rope_heads(r, x, at(a->q, t * nq, dtype), r->q_norm, r->heads, t, dtype, dtype);
        rope_heads(r, at(x, nq, dtype), at(r->keys, cell, kv_dtype), r->k_norm, r->kv_heads, t, dtype, kv_dtype);
        copy_row(at(x, nq + nkv, dtype), at(r->values, cell, kv_dtype), nkv, dtype, kv_dtype);
    }
}

static void rope_f32(const void *args, long task) { rope_tokens(args, task, F32, F32); }
static void rope_bf16(const void *args, long task) { rope_tokens(args, task, BF16, BF16); }
static void rope_any(const void *args, long task) {
    const struct rope *r = ((const struct rope_call *)args)->rope;
    rope_tokens(args, task, r->dtype, r->kv_dtype);
}

void rx_rope_write(const struct rope *rope, const void *qkv, void *q, int64_t tokens) {
    long width = (long)(rope->heads + 2 * rope->kv_heads) * rope->head_dim;
    struct rope_call a = {rope, qkv, q, tokens, rows_per_task(width)};
    task_fn fn = rope->dtype != rope->kv_dtype || rope->dtype == F16 ? rope_any : rope->dtype == BF16 ? rope_bf16 : rope_f32;
    rx_parallel(fn, &a, (tokens + a.task_tokens - 1) / a.task_tokens);
}
