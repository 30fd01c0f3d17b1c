/* Causal attention of ragged chunks over the paged pool, with grouped queries.
 *
 * A tile is a few queries of one chunk and the heads of one KV head: up to 64 rows. Its keys pass in blocks of 64,
 * at fixed positions of the sequence; a block's keys and values are gathered from their cells and packed once
 * (tile.h), all rows use them. Four blocks are a span: softmax runs online inside a span, and spans are merged in
 * order. Because blocks and spans lie at fixed positions and a masked key changes no bit, a row's result does not
 * depend on the tile, the chunk or the batch it is computed in. When there are too few tiles to keep all threads
 * busy, the spans of a tile are tasks of their own, merged by the same arithmetic.
 */
#include "attention_block.h"
#include <limits.h>

#define SPAN (4 * BLOCK)
#define ROWS 64
#define TASKS_PER_THREAD 8

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

/* A span of task `index` into w->span. w->places[w->now] are the places of its first block, later those of the
 * next. */
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
    struct list list = {.items = (struct item *)take(&memory, most_items * sizeof(struct item))};
    list.merges = (long *)memory;
    fill_list(a, &list, total);
    c.items = list.items;
    c.merges = list.merges;
    c.partials = rx_scratch(SCRATCH_PARTIAL, list.num_partials * a->kv_heads * partial_floats(&c) * 4);
    c.tasks = list.num_items * a->kv_heads;
    rx_parallel(attend, &c, c.tasks);
    rx_parallel(merge_tile, &c, list.num_merges * a->kv_heads);
}
