/* Causal attention of ragged chunks over the paged pool, with grouped queries.
 *
 * A tile is a few queries of one chunk and the heads of one KV head: up to 64 rows. Its keys pass in blocks of 64, at fixed
 * positions of the sequence; a block's keys and values are gathered from their cells and packed once (tile.h), all rows
 * use them. Four blocks are a span: softmax runs online inside a span, and spans are merged in order. Because blocks and
 * spans lie at fixed positions and a masked key changes no bit, a row's result does not depend on the tile, the chunk or
 * the batch it is computed in. When there are too few tiles to keep all threads busy, the spans of a tile are tasks of
 * their own, merged by the same arithmetic.
 */
#include "tile.h"
#include <limits.h>

#define BLOCK 64
#define SPAN (4 * BLOCK)
#define ROWS 64
#define NV 4 /* vectors of a full panel: BLOCK keys, or 64 elements of a head */
#define TASKS_PER_THREAD 8

struct item {
    int32_t chunk, first, count; /* queries first .. first + count of the chunk */
    int32_t span, spans;         /* spans span .. spans of the sequence */
    int32_t partial;             /* -1: the item writes its output; else its place among the partial results */
};

struct call {
    const struct attention *a;
    const struct item *items;
    long *merges; /* the first item of every tile that was split */
    float *partials;
    long tasks;
    long rows, padded_dim, units; /* rows of a tile; head_dim in full vectors; 4-byte units of a key */
    int compute;                  /* F32 or BF16: type of the products' inputs */
};

/* Softmax state of a tile's rows: running maximum, sum, and weighted values (not yet divided by the sum). */
struct state {
    float *max, *sum, *values; /* [rows], [rows], [rows, padded_dim] */
};

struct work {
    char *q;              /* [rows, head_dim], compute type */
    float *scores;        /* [rows, BLOCK]; F32: also the weights */
    char *weights;        /* [rows, BLOCK], compute type */
    uint32_t *keys;       /* panel [units, BLOCK] */
    uint32_t *value;      /* panels of up to NV vectors, [BLOCK or BLOCK / 2, padded_dim] */
    float *wide;          /* [2, BLOCK, head_dim]: keys and values that must be converted first */
    struct state span, all;
    int now;
    long places[2][BLOCK]; /* of the rows of this and the next block: bytes from the first key, or the first value */
    const char *rows[2][BLOCK]; /* keys, values of this block */
};

static char *take(char **memory, long bytes) {
    char *p = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return p;
}

static struct state take_state(char **memory, long rows, long padded_dim) {
    struct state s;
    s.max = (float *)take(memory, rows * 4);
    s.sum = (float *)take(memory, rows * 4);
    s.values = (float *)take(memory, rows * padded_dim * 4);
    return s;
}

static struct work *take_work(const struct call *c) {
    long dim = c->a->head_dim, rows = c->rows, pad = c->padded_dim;
    long size = sizeof(struct work) + rows * (dim * 4 + BLOCK * 8 + pad * 8 + 16) + BLOCK * (c->units + pad + 2 * dim) * 4;
    char *memory = rx_scratch(SCRATCH_TASK, size + 1024);
    struct work *w = (struct work *)take(&memory, sizeof *w);
    w->q = take(&memory, rows * dim * 4);
    w->scores = (float *)take(&memory, rows * BLOCK * 4);
    w->weights = c->compute == F32 ? (char *)w->scores : take(&memory, rows * BLOCK * 2);
    w->keys = (uint32_t *)take(&memory, BLOCK * c->units * 4);
    w->value = (uint32_t *)take(&memory, BLOCK * pad * 4);
    w->wide = (float *)take(&memory, 2 * BLOCK * dim * 4);
    w->span = take_state(&memory, rows, pad);
    w->all = take_state(&memory, rows, pad);
    return w;
}

static void clear(struct state *s, long rows, long padded_dim) {
    for (long r = 0; r < rows; r++) {
        s->max[r] = -INFINITY;
        s->sum[r] = 0;
    }
    memset(s->values, 0, rows * padded_dim * 4);
}

/* One product of a block: c [rows, columns] (+)= a [rows, steps] x b [steps, columns], 4-byte units. */
struct product {
    const char *a;
    const uint32_t *b;
    float *c;
    long rows, steps, lda, ldb, ldc; /* lda in bytes, ldb and ldc in elements */
    int add;
};

/* nv vectors of columns, in tiles of up to 6 rows. */
INLINE void product_nv(int dtype, int nv, const struct product *p) {
#define CASE(n) \
    case n: tile(dtype, n, nv, p->add, a, p->lda, (const char *)p->b, p->ldb * 4, p->steps, c, p->ldc, 0, NULL, 0); break;
    const int most = TILE_ROWS < 6 ? TILE_ROWS : 6;
    long tiles = (p->rows + most - 1) / most;
    for (long t = 0; t < tiles; t++) {
        long begin = p->rows * t / tiles, count = p->rows * (t + 1) / tiles - begin;
        const char *a = p->a + begin * p->lda;
        float *c = p->c + begin * p->ldc;
        switch (count) {
            CASE(1)
            CASE(2)
#if TILE_ROWS == 8
            CASE(3)
            CASE(4)
            CASE(5)
            CASE(6)
#endif
        }
    }
#undef CASE
}

static void wide_bf16(const struct product *p) { product_nv(BF16, NV, p); }
static void wide_f32(const struct product *p) { product_nv(F32, NV, p); }
static void narrow_bf16_(const struct product *p) { product_nv(BF16, 1, p); }
static void narrow_f32(const struct product *p) { product_nv(F32, 1, p); }

static void multiply(int compute, int wide, struct product p) {
    if (wide)
        (compute == F32 ? wide_f32 : wide_bf16)(&p);
    else
        (compute == F32 ? narrow_f32 : narrow_bf16_)(&p);
}

/* Where the keys and values of the block at `base` lie. The last one, before `end`, stands for those behind it, which are
 * masked. */
static void find_rows(const struct call *c, const struct item *item, long kv_head, long base, long end, long *places) {
    const struct attention *a = c->a;
    const int32_t *table = a->page_table + a->slots[item->chunk] * a->pages;
    long bytes = a->head_dim * size_of(a->kv_dtype), stride = a->kv_heads * bytes;
    long count = end - base < BLOCK ? end - base : BLOCK, page = base / a->page_size, offset = base % a->page_size;
    for (long i = 0; i < count; i++) {
        places[i] = (table[page] * a->page_size + offset) * stride + kv_head * bytes;
        offset = offset + 1 == a->page_size ? 0 : offset + 1;
        page += !offset;
    }
    for (long i = count; i < BLOCK; i++) places[i] = places[count - 1];
}

/* Asks for `count` rows of the next block. Spread over the work on this one: a burst would fill the queue and stall it. */
INLINE void fetch(const void *from, const long *places, int count, long bytes) {
    for (int i = 0; i < count; i++)
        for (long b = 0; b < bytes; b += 64) __builtin_prefetch((const char *)from + places[i] + b, 0, 3);
}

static void point_at(const struct attention *a, const long *places, const char *rows[2][BLOCK]) {
    for (int i = 0; i < BLOCK; i++) {
        rows[0][i] = (const char *)a->keys + places[i];
        rows[1][i] = (const char *)a->values + places[i];
    }
}

/* Converts the block's rows to float32 in `wide` and points at the copies. */
static void widen(const struct call *c, struct work *w, const char *rows[2][BLOCK]) {
    long dim = c->a->head_dim;
    for (long kind = 0; kind < 2; kind++)
        for (long i = 0; i < BLOCK; i++) {
            float *to = w->wide + (kind * BLOCK + i) * dim;
            for (long d = 0; d < dim; d += LANES) {
                long count = dim - d < LANES ? dim - d : LANES;
                store(to + d, load(at(rows[kind][i], d, c->a->kv_dtype), count, c->a->kv_dtype), count, F32);
            }
            rows[kind][i] = (char *)to;
        }
}

#if defined(__AVX512F__)
/* One step of a 16 x 16 transposition: exchanges the odd groups of `s` lanes of row i with the even ones of row i + s. */
#define EXCHANGE(s, low, high)                                                                      \
    for (int i = 0; i < LANES; i++)                                                                 \
        if (!(i & s)) {                                                                             \
            vu x = m[i], y = m[i + s];                                                              \
            m[i] = (vu)_mm512_permutex2var_epi32((__m512i)x, (__m512i)low, (__m512i)y);             \
            m[i + s] = (vu)_mm512_permutex2var_epi32((__m512i)x, (__m512i)high, (__m512i)y);        \
        }

INLINE vu exchange_lanes(int s, int high) {
    vu index;
    for (int i = 0; i < LANES; i++) index[i] = high ? (i & s ? 16 + i : i + s) : (i & s ? 16 + i - s : i);
    return index;
}

static void transpose16(const char *const *rows, long unit, uint32_t *out) {
    vu m[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) memcpy(&m[i], rows[i] + unit * 4, 64);
#pragma GCC unroll 16
    EXCHANGE(1, exchange_lanes(1, 0), exchange_lanes(1, 1))
#pragma GCC unroll 16
    EXCHANGE(2, exchange_lanes(2, 0), exchange_lanes(2, 1))
#pragma GCC unroll 16
    EXCHANGE(4, exchange_lanes(4, 0), exchange_lanes(4, 1))
#pragma GCC unroll 16
    EXCHANGE(8, exchange_lanes(8, 0), exchange_lanes(8, 1))
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) memcpy(out + (unit + i) * BLOCK, &m[i], 64);
}
#endif

/* Keys, a row each, into a panel [units, BLOCK]. */
static void pack_keys(const struct call *c, const char *const *rows, long count, uint32_t *panel, const long *next) {
    long bytes = c->a->head_dim * size_of(c->a->kv_dtype), packed = 0;
#if defined(__AVX512F__)
    packed = c->units / LANES * LANES;
    for (int i = 0; i < BLOCK; i += LANES) {
        for (long unit = 0; unit < packed && i < count; unit += LANES) transpose16(rows + i, unit, panel + i);
        fetch(c->a->keys, next + i, LANES, bytes);
    }
#else
    fetch(c->a->keys, next, BLOCK, bytes);
#endif
    for (int i = 0; i < count; i++)
        for (long unit = packed; unit < c->units; unit++) memcpy(panel + unit * BLOCK + i, rows[i] + unit * 4, 4);
}

/* Values of elements d .. d + 16 into columns of a panel of width `width`: bf16 in pairs of keys, float32 as they are. */
INLINE void pack_column(const struct call *c, const char *const *rows, long d, uint32_t *panel, long width) {
    long count = c->a->head_dim - d < LANES ? c->a->head_dim - d : LANES;
    if (c->compute == F32) {
        for (int i = 0; i < BLOCK; i++) store(panel + i * width, load(at(rows[i], d, F32), count, F32), LANES, F32);
        return;
    }
    for (int i = 0; i < BLOCK; i += 2) {
        vf even = load(at(rows[i], d, BF16), count, BF16), odd = load(at(rows[i + 1], d, BF16), count, BF16);
        vu pair = ((vu)even >> 16) | (vu)odd;
        memcpy(panel + i / 2 * width, &pair, 64);
    }
}

#if defined(__AVX512BW__)
#define INTERLEAVED 1
/* 64 bf16 values of each key, pairs in the order in which one instruction makes them; `restore_order` undoes it. */
static void interleave(const char *const *rows, long count, long d, uint32_t *panel, const char *values,
                       const long *next) {
    for (int i = 0; i < BLOCK; i += 2, panel += BLOCK) {
        fetch(values + 2 * d, next + i, 2, 2 * BLOCK);
        if (i >= count) continue;
        for (int v = 0; v < 2; v++) {
            __m512i even = _mm512_loadu_si512(rows[i] + 2 * d + 64 * v);
            __m512i odd = _mm512_loadu_si512(rows[i + 1] + 2 * d + 64 * v);
            _mm512_storeu_si512(panel + 32 * v, _mm512_unpacklo_epi16(even, odd));
            _mm512_storeu_si512(panel + 32 * v + 16, _mm512_unpackhi_epi16(even, odd));
        }
    }
}

/* 32 floats whose groups of 4 lie in the order 0 2 4 6 1 3 5 7. */
INLINE void restore_order(float *x) {
    __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    _mm512_storeu_ps(x, _mm512_permutex2var_ps(low, first, high));
    _mm512_storeu_ps(x + 16, _mm512_permutex2var_ps(low, second, high));
}
#else
#define INTERLEAVED 0
static void interleave(const char *const *rows, long count, long d, uint32_t *panel, const char *values,
                       const long *next) {
    (void)rows, (void)count, (void)d, (void)panel, (void)values, (void)next;
}
INLINE void restore_order(float *x) { (void)x; }
#endif

static long full_panels(const struct call *c) { return c->a->head_dim / BLOCK * BLOCK; }

/* Panels of 64 columns first, then one vector each: the order in which `add_values` reads them. */
static void pack_values(const struct call *c, const char *const *rows, long count, uint32_t *panel, const long *next) {
    long steps = c->compute == F32 ? BLOCK : BLOCK / 2, full = full_panels(c);
    for (long d = 0; d < full; d += BLOCK) {
        if (INTERLEAVED && c->compute == BF16)
            interleave(rows, count, d, panel + d * steps, c->a->values, next);
        else
            for (long v = 0; v < BLOCK; v += LANES) pack_column(c, rows, d + v, panel + d * steps + v, BLOCK);
    }
    for (long d = full; d < c->padded_dim; d += LANES) pack_column(c, rows, d, panel + d * steps, LANES);
}

/* Scores of the block's first `count` keys. Short blocks, as the last of a context, cost what they hold. */
static void score(const struct call *c, const struct work *w, long rows, long count) {
    struct product p = {w->q, w->keys, w->scores, rows, c->units, c->units * 4, BLOCK, BLOCK, 0};
    if (count > BLOCK - LANES) {
        multiply(c->compute, 1, p);
        return;
    }
    for (long i = 0; i < count; i += LANES, p.b += LANES, p.c += LANES) multiply(c->compute, 0, p);
}

static void add_values(const struct call *c, const struct work *w, long rows, long count) {
    long height = c->compute == F32 ? BLOCK : BLOCK / 2, steps = c->compute == F32 ? count : (count + 1) / 2;
    for (long d = 0; d < c->padded_dim;) {
        int wide = d < full_panels(c);
        long width = wide ? BLOCK : LANES;
        float *to = w->span.values + d;
        multiply(c->compute, wide,
                 (struct product){w->weights, w->value + d * height, to, rows, steps, height * 4, width, c->padded_dim, 1});
        d += width;
    }
}

INLINE vf capped(vf x, float cap) { /* cap * tanh(x / cap) */
    return cap - 2.0f * cap / (exp_(x * (2.0f / cap)) + 1.0f);
}

static void scale_values(float *values, float by, long n) {
    for (long d = 0; d < n; d += LANES) store(values + d, load(values + d, LANES, F32) * by, LANES, F32);
}

/* Scores of row r to weights. The row sees keys low .. high (inclusive, relative to the block). */
INLINE void weigh_row(const struct call *c, struct work *w, long r, long low, long high, int compute) {
    static const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vf s[BLOCK / LANES], top = splat(-INFINITY), sum = {};
    float *scores = w->scores + r * BLOCK;
#pragma GCC unroll 4
    for (int v = 0; v < BLOCK / LANES; v++) {
        s[v] = load(scores + v * LANES, LANES, F32) * c->a->scale;
        if (c->a->softcap != 0) s[v] = capped(s[v], c->a->softcap);
        if (low > 0 || high < BLOCK - 1) {
            vi key = lane + v * LANES;
            s[v] = select_((key >= (int)low) & (key <= (int)high), s[v], splat(-INFINITY));
        }
        top = max_(top, s[v]);
    }
    float before = w->span.max[r], now = max_lanes(top);
    now = now > before ? now : before;
    if (now > before) {
        float shrink = before == -INFINITY ? 0 : exp_(splat(before - now))[0];
        w->span.max[r] = now;
        w->span.sum[r] *= shrink;
        scale_values(w->span.values + r * c->padded_dim, shrink, c->padded_dim);
    }
#pragma GCC unroll 4
    for (int v = 0; v < BLOCK / LANES; v++) {
        vf p = exp_(s[v] - now);
        sum += p;
        store(at(w->weights, r * BLOCK + v * LANES, compute), p, LANES, compute);
    }
    w->span.sum[r] += sum_lanes(sum);
}

INLINE void weigh(const struct call *c, struct work *w, const struct item *item, long base, int compute) {
    long group = c->a->heads / c->a->kv_heads, window = c->a->window;
    long position = c->a->starts[item->chunk] + item->first - base; /* of the first query, relative to the block */
    for (long i = 0; i < item->count; i++, position++) {
        long low = window && position - window + 1 > 0 ? position - window + 1 : 0;
        long high = position < BLOCK - 1 ? position : BLOCK - 1;
        for (long r = i * group; r < (i + 1) * group; r++) {
            if (low <= high)
                weigh_row(c, w, r, low, high, compute);
            else
                memset(at(w->weights, r * BLOCK, compute), 0, BLOCK * size_of(compute));
        }
    }
}

static void weigh_bf16(const struct call *c, struct work *w, const struct item *item, long base) {
    weigh(c, w, item, base, BF16);
}
static void weigh_f32(const struct call *c, struct work *w, const struct item *item, long base) {
    weigh(c, w, item, base, F32);
}

/* Adds a span's state to the state of all spans before it. */
static void merge(const struct call *c, struct state *all, const struct state *span, long rows) {
    for (long r = 0; r < rows; r++) {
        float top = all->max[r] > span->max[r] ? all->max[r] : span->max[r];
        float keep = all->max[r] == -INFINITY ? 0 : exp_(splat(all->max[r] - top))[0];
        float add = span->max[r] == -INFINITY ? 0 : exp_(splat(span->max[r] - top))[0];
        float *to = all->values + r * c->padded_dim, *from = span->values + r * c->padded_dim;
        for (long d = 0; d < c->padded_dim; d += LANES)
            store(to + d, load(to + d, LANES, F32) * keep + load(from + d, LANES, F32) * add, LANES, F32);
        all->sum[r] = all->sum[r] * keep + span->sum[r] * add;
        all->max[r] = top;
    }
}

static void copy_queries(const struct call *c, const struct item *item, long kv_head, char *to) {
    const struct attention *a = c->a;
    long group = a->heads / a->kv_heads, token = a->offsets[item->chunk] + item->first, n = group * a->head_dim;
    for (long i = 0; i < item->count; i++, to = at(to, n, c->compute)) {
        const char *from = at(a->q, ((token + i) * a->heads + kv_head * group) * a->head_dim, a->dtype);
        if (c->compute == a->dtype) {
            memcpy(to, from, n * size_of(a->dtype));
            continue;
        }
        for (long d = 0; d < n; d += LANES) {
            long count = n - d < LANES ? n - d : LANES;
            store(at(to, d, F32), load(at(from, d, a->dtype), count, a->dtype), count, F32);
        }
    }
}

static void write_output(const struct call *c, const struct item *item, long kv_head, const struct state *s) {
    const struct attention *a = c->a;
    long mixed = INTERLEAVED && c->compute == BF16 ? full_panels(c) : 0;
    long group = a->heads / a->kv_heads, token = a->offsets[item->chunk] + item->first;
    for (long r = 0; r < item->count * group; r++) {
        long head = (token + r / group) * a->heads + kv_head * group + r % group;
        float scale = 1.0f / s->sum[r];
        for (long d = 0; d < mixed; d += 2 * LANES) restore_order(s->values + r * c->padded_dim + d);
        for (long d = 0; d < a->head_dim; d += LANES) {
            long count = a->head_dim - d < LANES ? a->head_dim - d : LANES;
            vf x = load(s->values + r * c->padded_dim + d, LANES, F32) * scale;
            store(at(a->out, head * a->head_dim + d, a->dtype), x, count, a->dtype);
        }
    }
}

static long key_begin(const struct attention *a, const struct item *item) { /* the first block that a query sees */
    long position = a->starts[item->chunk] + item->first;
    return a->window && position >= a->window ? (position - a->window + 1) / BLOCK * BLOCK : 0;
}

static long key_end(const struct attention *a, const struct item *item) {
    return (long)a->starts[item->chunk] + item->first + item->count;
}

/* One block at a time: where it is, and which comes after it. */
struct cursor {
    const struct item *item;
    long kv_head, base, end; /* end: of the span */
};

static struct cursor span_start(const struct call *c, const struct item *item, long kv_head, long span) {
    long begin = key_begin(c->a, item), end = key_end(c->a, item);
    return (struct cursor){item, kv_head, span * SPAN > begin ? span * SPAN : begin,
                           (span + 1) * SPAN < end ? (span + 1) * SPAN : end};
}

/* The block after `now`, in the next task if it ends this one: most likely the same thread computes that. */
static struct cursor block_after(const struct call *c, struct cursor now, long span, long index) {
    long kv_heads = c->a->kv_heads;
    if (now.base + BLOCK < now.end) return (struct cursor){now.item, now.kv_head, now.base + BLOCK, now.end};
    if (span + 1 < now.item->spans) return span_start(c, now.item, now.kv_head, span + 1);
    if (index + 1 == c->tasks) return now;
    const struct item *item = &c->items[(index + 1) / kv_heads];
    return span_start(c, item, (index + 1) % kv_heads, item->span);
}

/* A span of task `index` into w->span. w->places[w->now] are the places of its first block, later those of the next. */
static void attend_span(const struct call *c, struct work *w, struct cursor at, long span, long index) {
    long rows = at.item->count * (c->a->heads / c->a->kv_heads);
    clear(&w->span, rows, c->padded_dim);
    for (; at.base < at.end; at.base += BLOCK, w->now ^= 1) {
        long *next = w->places[!w->now], count = at.end - at.base < BLOCK ? at.end - at.base : BLOCK;
        struct cursor after = block_after(c, at, span, index);
        find_rows(c, after.item, after.kv_head, after.base, after.end, next);
        point_at(c->a, w->places[w->now], w->rows);
        if (c->compute != c->a->kv_dtype) widen(c, w, w->rows);
        pack_keys(c, w->rows[0], count, w->keys, next);
        score(c, w, rows, count);
        (c->compute == F32 ? weigh_f32 : weigh_bf16)(c, w, at.item, at.base);
        pack_values(c, w->rows[1], count, w->value, next);
        add_values(c, w, rows, count);
    }
}

static long partial_floats(const struct call *c) { return c->rows * (c->padded_dim + 2); }

static struct state partial_state(const struct call *c, long partial, long kv_head) {
    float *p = c->partials + (partial * c->a->kv_heads + kv_head) * partial_floats(c);
    return (struct state){p, p + c->rows, p + 2 * c->rows};
}

static void attend(const void *args, long index) {
    const struct call *c = args;
    const struct item *item = &c->items[index / c->a->kv_heads];
    long kv_head = index % c->a->kv_heads, rows = item->count * (c->a->heads / c->a->kv_heads);
    struct work *w = take_work(c);
    struct cursor first = span_start(c, item, kv_head, item->span);
    w->now = 0;
    find_rows(c, item, kv_head, first.base, first.end, w->places[0]);
    copy_queries(c, item, kv_head, w->q);
    if (item->partial >= 0) w->span = partial_state(c, item->partial, kv_head);
    if (item->partial < 0) clear(&w->all, rows, c->padded_dim);
    for (long span = item->span; span < item->spans; span++) {
        attend_span(c, w, span_start(c, item, kv_head, span), span, index);
        if (item->partial < 0) merge(c, &w->all, &w->span, rows);
    }
    if (item->partial < 0) write_output(c, item, kv_head, &w->all);
}

/* The spans of one split tile, in order. */
static void merge_tile(const void *args, long index) {
    const struct call *c = args;
    const struct item *item = &c->items[c->merges[index / c->a->kv_heads]];
    long kv_head = index % c->a->kv_heads, rows = item->count * (c->a->heads / c->a->kv_heads);
    long spans = (key_end(c->a, item) + SPAN - 1) / SPAN - item->span;
    struct work *w = take_work(c);
    clear(&w->all, rows, c->padded_dim);
    for (long i = 0; i < spans; i++) {
        struct state part = partial_state(c, item->partial + i, kv_head);
        merge(c, &w->all, &part, rows);
    }
    write_output(c, item, kv_head, &w->all);
}

/* The work list of a call: tiles, split into spans where one is a large part of the whole. */
struct list {
    struct item *items;
    long *merges;
    long num_items, num_merges, num_partials;
};

static long tile_queries(const struct attention *a) {
    long queries = ROWS / (a->heads / a->kv_heads);
    return queries ? queries : 1;
}

static long block_cost(const struct attention *a, long queries) { /* packing costs about as much as 8 rows */
    return 8 + queries * (a->heads / a->kv_heads);
}

static struct item make_item(const struct attention *a, long chunk, long first) {
    long queries = tile_queries(a), left = a->lengths[chunk] - first;
    struct item item = {(int32_t)chunk, (int32_t)first, (int32_t)(left < queries ? left : queries), 0, 0, -1};
    item.span = (int32_t)(key_begin(a, &item) / SPAN);
    item.spans = (int32_t)((key_end(a, &item) + SPAN - 1) / SPAN);
    return item;
}

static long cost(const struct attention *a, const struct item *item) {
    return (key_end(a, item) - key_begin(a, item) + BLOCK - 1) / BLOCK * block_cost(a, item->count);
}

static void add_tile(struct list *list, struct item item, int split) {
    if (!split || item.spans - item.span < 2) {
        list->items[list->num_items++] = item;
        return;
    }
    list->merges[list->num_merges++] = list->num_items;
    for (int32_t span = item.span; span < item.spans; span++) {
        struct item part = item;
        part.span = span;
        part.spans = span + 1;
        part.partial = (int32_t)list->num_partials++;
        list->items[list->num_items++] = part;
    }
}

#define EACH_TILE(a, chunk, first)                                \
    for (long chunk = 0; chunk < (a)->chunks; chunk++)            \
        for (long first = 0; first < (a)->lengths[chunk]; first += tile_queries(a))

static void fill_list(const struct attention *a, struct list *list, long total) {
    long limit = rx_threads() > 1 ? total / (rx_threads() * TASKS_PER_THREAD) : LONG_MAX;
    EACH_TILE(a, chunk, first) {
        struct item item = make_item(a, chunk, first);
        add_tile(list, item, cost(a, &item) > limit);
    }
}

static void zero_padding(const struct attention *a) {
    long used = a->chunks ? a->offsets[a->chunks] : 0, width = (long)a->heads * a->head_dim;
    if (used < a->tokens)
        memset(at(a->out, used * width, a->dtype), 0, (a->tokens - used) * width * size_of(a->dtype));
}

void rx_attention(const struct attention *a) {
    long most_items = 0, tiles = 0, total = 0;
    EACH_TILE(a, chunk, first) {
        struct item item = make_item(a, chunk, first);
        most_items += item.spans - item.span;
        total += cost(a, &item);
        tiles++;
    }
    zero_padding(a);
    if (!tiles) return;
    struct call c = {.a = a, .compute = a->dtype == BF16 && a->kv_dtype == BF16 ? BF16 : F32};
    c.rows = tile_queries(a) * (a->heads / a->kv_heads);
    c.padded_dim = (a->head_dim + LANES - 1) / LANES * LANES;
    c.units = c.compute == F32 ? a->head_dim : a->head_dim / 2;
    char *memory = rx_scratch(SCRATCH_CALL, most_items * (sizeof(struct item) + sizeof(long)) + 256);
    struct list list = {.items = (struct item *)take(&memory, most_items * sizeof(struct item)), .merges = (long *)memory};
    fill_list(a, &list, total);
    c.items = list.items;
    c.merges = list.merges;
    c.partials = rx_scratch(SCRATCH_PARTIAL, list.num_partials * a->kv_heads * partial_floats(&c) * 4);
    c.tasks = list.num_items * a->kv_heads;
    rx_parallel(attend, &c, c.tasks);
    rx_parallel(merge_tile, &c, list.num_merges * a->kv_heads);
}
