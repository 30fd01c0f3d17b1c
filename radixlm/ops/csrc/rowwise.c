/* The ops that touch each element once: norm, rotary embedding with the write to the KV pool, gated activation, rows.
 *
 * They compute in float32 and round once, to the type of their input, as radixlm/ops/torch.py does.
 */
#include "vec.h"

#define TASK_ELEMENTS 16384 /* of one task, at most */
#define ALONE_ELEMENTS 8192 /* so few are not shared: the other thread would fetch them from this one's cache first */

struct range {
    long begin, end;
};

/* An even number, so that two threads have half of them each. */
static long tasks_for(long rows, long width) {
    long pairs = (rows * width + 2 * TASK_ELEMENTS - 1) / (2 * TASK_ELEMENTS);
    return rows * width <= ALONE_ELEMENTS ? 1 : 2 * pairs < rows ? 2 * pairs : rows;
}

static struct range rows_of(long task, long rows, long width) {
    long tasks = tasks_for(rows, width);
    return (struct range){rows * task / tasks, rows * (task + 1) / tasks};
}

INLINE long lanes_left(long i, long n) { return n - i < LANES ? n - i : LANES; }

/* x[n] -> out[n] = x / rms(x) * weight; residual as in rx_norm. out may be x. */
INLINE void norm_row(const char *x, char *residual, const char *weight, char *out, long n, float eps, int dtype) {
    vf squares = {};
    for (long i = 0; i < n; i += LANES) {
        long count = lanes_left(i, n);
        vf v = load(at(x, i, dtype), count, dtype);
        if (residual) {
            v += load(at(residual, i, dtype), count, dtype);
            store(at(residual, i, dtype), v, count, dtype);
            v = rounded(v, dtype);
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
    struct range range = rows_of(task, a->rows, a->n);
    for (long r = range.begin; r < range.end; r++) {
        char *residual = a->residual ? at(a->residual, r * a->n, dtype) : NULL;
        norm_row(at(a->x, r * a->n, dtype), residual, a->weight, at(a->out, r * a->n, dtype), a->n, a->eps, dtype);
    }
}

static void norm_f32(const void *args, long task) { norm_rows(args, task, F32); }
static void norm_bf16(const void *args, long task) { norm_rows(args, task, BF16); }
static void norm_f16(const void *args, long task) { norm_rows(args, task, F16); }

void rx_norm(const struct norm *op) {
    static const task_fn by_dtype[] = {norm_f32, norm_bf16, norm_f16};
    rx_parallel(by_dtype[op->dtype], op, tasks_for(op->rows, op->n));
}

INLINE void silu_rows(const struct silu_mul *a, long task, int dtype) {
    struct range range = rows_of(task, a->rows, 2 * a->n);
    for (long r = range.begin; r < range.end; r++) {
        const char *gate = at(a->gate_up, 2 * r * a->n, dtype), *up = at(gate, a->n, dtype);
        for (long i = 0; i < a->n; i += LANES) {
            long count = lanes_left(i, a->n);
            vf g = load(at(gate, i, dtype), count, dtype), u = load(at(up, i, dtype), count, dtype);
            store(at(a->out, r * a->n + i, dtype), silu(g, dtype) * u, count, dtype);
        }
    }
}

static void silu_f32(const void *args, long task) { silu_rows(args, task, F32); }
static void silu_bf16(const void *args, long task) { silu_rows(args, task, BF16); }
static void silu_f16(const void *args, long task) { silu_rows(args, task, F16); }

void rx_silu_mul(const struct silu_mul *op) {
    static const task_fn by_dtype[] = {silu_f32, silu_bf16, silu_f16};
    rx_parallel(by_dtype[op->dtype], op, tasks_for(op->rows, 2 * op->n));
}

/* Rotates one head: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 its halves. */
INLINE void rotate(const char *x, char *out, const float *cos_sin, long half, int dtype, int out_dtype) {
    for (long i = 0; i < half; i += LANES) {
        long count = lanes_left(i, half);
        vf c = load(cos_sin + i, count, F32), s = load(cos_sin + half + i, count, F32);
        vf a = load(at(x, i, dtype), count, dtype), b = load(at(x, half + i, dtype), count, dtype);
        vf low = a * c - b * s, high = b * c + a * s;
        store(at(out, i, out_dtype), dtype == out_dtype ? low : rounded(low, dtype), count, out_dtype);
        store(at(out, half + i, out_dtype), dtype == out_dtype ? high : rounded(high, dtype), count, out_dtype);
    }
}

INLINE void rope_heads(const struct rope_write *r, const char *x, char *out, const void *norm, long heads, long token,
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

INLINE void rope_tokens(const struct rope_write *r, long task, int dtype, int kv_dtype) {
    long nq = (long)r->heads * r->head_dim, nkv = (long)r->kv_heads * r->head_dim;
    struct range range = rows_of(task, r->tokens, nq + 2 * nkv);
    for (long t = range.begin; t < range.end; t++) {
        const char *x = at(r->qkv, t * (nq + 2 * nkv), dtype);
        long cell = r->cells[t] * nkv;
        rope_heads(r, x, at(r->q, t * nq, dtype), r->q_norm, r->heads, t, dtype, dtype);
        rope_heads(r, at(x, nq, dtype), at(r->keys, cell, kv_dtype), r->k_norm, r->kv_heads, t, dtype, kv_dtype);
        copy_row(at(x, nq + nkv, dtype), at(r->values, cell, kv_dtype), nkv, dtype, kv_dtype);
    }
}

static void rope_f32(const void *args, long task) { rope_tokens(args, task, F32, F32); }
static void rope_bf16(const void *args, long task) { rope_tokens(args, task, BF16, BF16); }
static void rope_any(const void *args, long task) {
    const struct rope_write *r = args;
    rope_tokens(r, task, r->dtype, r->kv_dtype);
}

void rx_rope_write(const struct rope_write *op) {
    long width = (long)(op->heads + 2 * op->kv_heads) * op->head_dim;
    int same = op->dtype == op->kv_dtype;
    task_fn fn = same && op->dtype == BF16 ? rope_bf16 : same && op->dtype == F32 ? rope_f32 : rope_any;
    rx_parallel(fn, op, tasks_for(op->tokens, width));
}

/* The lowest index of `value`, which is there; a NaN is any NaN. */
INLINE long first_equal(const char *x, long n, float value, int dtype) {
    long i = 0;
    for (; i + LANES <= n; i += LANES) {
        vf v = load(at(x, i, dtype), LANES, dtype);
        vi found = value != value ? v != v : v == value;
        long long any = 0, part[8];
        memcpy(part, &found, 64);
        for (int p = 0; p < 8; p++) any |= part[p];
        if (any) break;
    }
    for (; i < n; i++) {
        float v = load(at(x, i, dtype), 1, dtype)[0];
        if (value != value ? v != v : v == value) break;
    }
    return i;
}

/* Sixteen logits, those that are not allowed -infinity, in place too. */
INLINE vf permitted(const struct most_likely *l, const uint32_t *allowed, char *x, long i, long count, int dtype) {
    uint32_t bits = i / 32 < l->words ? allowed[i / 32] >> i % 32 & 0xffff : 0;
    vf v = where_bits(bits, load(x, count, dtype), splat(-INFINITY));
    store(x, v, count, dtype);
    return v;
}

INLINE float largest_of(const struct most_likely *l, const uint32_t *allowed, char *x, int dtype) {
    vf top = splat(-INFINITY);
    vi bad = {};
    for (long i = 0; i < l->n; i += LANES) {
        long count = l->n - i < LANES ? l->n - i : LANES;
        vf v = allowed ? permitted(l, allowed, at(x, i, dtype), i, count, dtype) : load(at(x, i, dtype), count, dtype);
        if (count < LANES) {
            float e[LANES];
            memcpy(e, &v, sizeof e);
            for (long lane = count; lane < LANES; lane++) e[lane] = -INFINITY;
            memcpy(&v, e, sizeof e);
        }
        bad |= v != v;
        top = max_(top, v);
    }
    int any_bad = 0;
    for (int lane = 0; lane < LANES; lane++) any_bad |= bad[lane] != 0;
    return any_bad ? NAN : max_lanes(top);
}

INLINE void most_likely_row(const struct most_likely *l, long row, int dtype) {
    char *x = at(l->logits, row * l->n, dtype);
    const uint32_t *allowed = l->allowed ? l->allowed[row] : NULL;
    float most = allowed ? largest_of(l, allowed, x, dtype) : largest_of(l, NULL, x, dtype);
    l->largest[row] = most;
    l->index[row] = first_equal(x, l->n, most, dtype);
}

static void most_likely_f32(const void *args, long row) { most_likely_row(args, row, F32); }
static void most_likely_bf16(const void *args, long row) { most_likely_row(args, row, BF16); }
static void most_likely_f16(const void *args, long row) { most_likely_row(args, row, F16); }

void rx_most_likely(const struct most_likely *op, int64_t rows, int dtype) {
    static const task_fn by_dtype[] = {most_likely_f32, most_likely_bf16, most_likely_f16};
    rx_parallel(by_dtype[dtype], op, rows);
}

static void take_some(const void *args, long task) {
    const struct take_rows *t = args;
    struct range range = rows_of(task, t->rows, t->bytes);
    for (long r = range.begin; r < range.end; r++)
        memcpy((char *)t->out + r * t->bytes, (const char *)t->x + t->index[r] * t->bytes, t->bytes);
}

void rx_take_rows(const struct take_rows *op) { rx_parallel(take_some, op, tasks_for(op->rows, op->bytes)); }
