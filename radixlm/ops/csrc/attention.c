/* Causal attention of ragged chunks over the paged pool, with grouped queries.
 *
 * A tile is a few queries of one chunk and the heads of one KV head: up to 64 rows. Its keys pass in blocks of 64,
 * at fixed positions of the sequence; all rows use a block's keys and values while they are at hand. Small tiles of
 * neighbouring KV heads are one item of work: their keys lie side by side in memory, and are read in one go. Four blocks are
 * a span: softmax runs online inside a span, and spans are merged in order. Because blocks and spans lie at fixed
 * positions and a masked key changes no bit, a row's result does not depend on the tile, the chunk or the batch it is
 * computed in. When there are too few tiles to keep all threads busy, the spans of a tile are tasks of their own,
 * merged by the same arithmetic.
 */
#include "attention_columns.h"
#include "attention_rows.h"
#include <limits.h>

#define SPAN (4 * BLOCK)
#define ROWS 64
#define TASKS_PER_THREAD 8
#define TOGETHER_BYTES 1024 /* of a token's keys: two blocks of keys and values stay in the second-level cache */

/* Rows of one KV head of a tile of so many queries. */
static long rows_of(const struct attention *a, long queries) { return queries * (a->heads / a->kv_heads); }

/* The row's place in q and out, in elements. The rows of a KV head follow those of the one before. */
static long row_place(const struct call *c, const struct item *item, long row) {
    long group = c->a->heads / c->a->kv_heads, rows = rows_of(c->a, item->count), query = row % rows / group;
    long token = c->a->offsets[item->chunk] + item->first + query, head = item->kv_head + row / rows;
    return (token * c->a->heads + head * group + row % group) * c->a->head_dim;
}

/* 16 units of 16 rows of a panel from the queries, less at the edges. */
INLINE void load_square(const struct call *c, const char *const *from, long rows, long count, uint32_t *to, long ld) {
    vu m[LANES] = {};
    if (rows == LANES && count == LANES && c->compute == c->a->dtype) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) memcpy(&m[i], from[i], 64);
        transpose(m);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) memcpy(to + i * ld, &m[i], 64);
        return;
    }
    for (long i = 0; i < rows; i++) {
        if (c->compute == c->a->dtype)
            memcpy(&m[i], from[i], count * 4);
        else
            m[i] = (vu)load(from[i], count, c->a->dtype);
    }
    transpose(m);
    for (long i = 0; i < count; i++) memcpy(to + i * ld, &m[i], 64);
}

static void load_rows(const struct call *c, struct work *w, const struct item *item) {
    long dim = c->a->head_dim;
    for (long r = 0; r < w->count; r++) {
        const char *from = at(c->a->q, row_place(c, item, r), c->a->dtype);
        char *to = (char *)(w->q + r * c->units);
        if (c->compute == c->a->dtype) {
            memcpy(to, from, c->units * 4);
            continue;
        }
        for (long d = 0; d < dim; d += LANES) {
            long count = dim - d < LANES ? dim - d : LANES;
            store(at(to, d, F32), load(at(from, d, c->a->dtype), count, c->a->dtype), count, F32);
        }
    }
}

/* The queries, and what each may see. */
static void load_queries(const struct call *c, struct work *w, const struct item *item) {
    const struct attention *a = c->a;
    int32_t start = a->starts[item->chunk] + item->first, group = a->heads / a->kv_heads;
    for (int32_t r = 0; r < w->lanes; r++) w->positions[r] = r < w->count ? start + r % (int32_t)w->each / group : -1;
    if (w->few) {
        load_rows(c, w, item);
        return;
    }
    for (long begin = 0; begin < w->lanes; begin += LANES) {
        const char *from[LANES];
        long rows = w->count - begin < LANES ? w->count - begin : LANES;
        long step = c->compute == a->dtype ? 64 : LANES * size_of(a->dtype);
        for (long i = 0; i < rows; i++) from[i] = at(a->q, row_place(c, item, begin + i), a->dtype);
        for (long unit = 0; unit < c->units; unit += LANES) {
            long count = c->units - unit < LANES ? c->units - unit : LANES;
            load_square(c, from, rows, count, w->q + unit * w->lanes + begin, w->lanes);
            for (long i = 0; i < rows; i++) from[i] += step;
        }
    }
}

static void write_columns(const struct call *c, const struct work *w, const struct item *item,
                          const struct state *s) {
    const struct attention *a = c->a;
    for (long begin = 0; begin < w->lanes; begin += LANES) {
        vf scale = 1.0f / load(s->sum + begin, LANES, F32);
        char *to[LANES];
        for (long i = 0; i < LANES && begin + i < w->count; i++)
            to[i] = at(a->out, row_place(c, item, begin + i), a->dtype);
        for (long d = 0; d < a->head_dim; d += LANES) {
            vu m[LANES];
#pragma GCC unroll 16
            for (long i = 0; i < LANES; i++)
                m[i] = (vu)(load(s->values + (d + i) * w->lanes + begin, LANES, F32) * scale);
            transpose(m);
            long count = a->head_dim - d < LANES ? a->head_dim - d : LANES;
            for (long i = 0; i < LANES && begin + i < w->count; i++)
                store(at(to[i], d, a->dtype), (vf)m[i], count, a->dtype);
        }
    }
}

static void write_rows(const struct call *c, const struct work *w, const struct item *item,
                       const struct state *s) {
    const struct attention *a = c->a;
    for (long r = 0; r < w->count; r++) {
        char *to = at(a->out, row_place(c, item, r), a->dtype);
        float scale = 1.0f / s->sum[r];
        for (long d = 0; d < a->head_dim; d += LANES) {
            long count = a->head_dim - d < LANES ? a->head_dim - d : LANES;
            store(at(to, d, a->dtype), load(s->values + r * c->padded_dim + d, LANES, F32) * scale, count, a->dtype);
        }
    }
}

static void merge(const struct call *c, struct work *w, const struct state *span) {
    if (w->few)
        merge_rows(&w->all, span, w->count, c->padded_dim);
    else
        merge_columns(&w->all, span, w->lanes, c->padded_dim);
}

static void write_output(const struct call *c, const struct work *w, const struct item *item,
                         const struct state *s) {
    (w->few ? write_rows : write_columns)(c, w, item, s);
}

static struct work *start_work(const struct call *c, const struct item *item) {
    struct work *w = take_work(c);
    w->each = rows_of(c->a, item->count);
    w->count = w->each * item->kv_heads;
    w->lanes = (w->count + LANES - 1) / LANES * LANES;
    w->few = w->each <= FEW;
    return w;
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
    long base, end; /* end: of the span */
};

static struct cursor span_start(const struct call *c, const struct item *item, long span) {
    long begin = key_begin(c->a, item), end = key_end(c->a, item);
    return (struct cursor){item, span * SPAN > begin ? span * SPAN : begin,
                           (span + 1) * SPAN < end ? (span + 1) * SPAN : end};
}

/* The block after `now`, in the next item if it ends this one: most likely the same thread computes that. */
static struct cursor block_after(const struct call *c, struct cursor now, long span) {
    if (now.base + BLOCK < now.end) return (struct cursor){now.item, now.base + BLOCK, now.end};
    if (span + 1 < now.item->spans) return span_start(c, now.item, span + 1);
    if (now.item + 1 == c->items + c->num_items) return now;
    return span_start(c, now.item + 1, now.item[1].span);
}

static long partial_floats(const struct call *c) { return c->lanes * (c->padded_dim + 2); }

/* The block of one KV head. */
static void attend_head(const struct call *c, struct work *w, const struct block *b) {
    move_rows(&w->own, &w->rows[w->now], b->head * head_bytes(c));
    if (c->compute != c->a->kv_dtype) {
        widen(c, w->own.keys, w->wide);
        widen(c, w->own.values, w->wide + BLOCK * c->a->head_dim);
    }
    if (w->few) {
        attend_rows(c, w, b);
        return;
    }
    score_all_columns(c, w, b);
    weigh_columns(c, w, b->base, b->count);
    pack_values(c, w, b);
    add_all_columns(c, w, b->count);
}

/* A span into w->span. w->rows[w->now] are the rows of its first block, later those of the next. */
static void attend_span(const struct call *c, struct work *w, struct cursor at, long span) {
    clear(&w->span, w->lanes, c->padded_dim);
    for (; at.base < at.end; at.base += BLOCK, w->now ^= 1) {
        struct rows *next = &w->rows[!w->now];
        struct cursor after = block_after(c, at, span);
        long count = at.end - at.base < BLOCK ? at.end - at.base : BLOCK, heads = at.item->kv_heads;
        find_rows(c, after.item, after.base, after.end, next);
        for (long head = 0; head < heads; head++)
            attend_head(c, w, &(struct block){&w->own, next, at.base, count, head, heads});
    }
}

static struct state partial_state(const struct call *c, long partial) {
    float *p = c->partials + partial * partial_floats(c);
    return (struct state){p, p + c->lanes, p + 2 * c->lanes};
}

static void attend(const void *args, long index) {
    const struct call *c = args;
    const struct item *item = &c->items[index];
    struct work *w = start_work(c, item);
    struct cursor first = span_start(c, item, item->span);
    w->now = 0;
    find_rows(c, item, first.base, first.end, &w->rows[0]);
    load_queries(c, w, item);
    if (item->partial >= 0) w->span = partial_state(c, item->partial);
    int several = item->partial < 0 && item->spans - item->span > 1; /* merging one changes nothing */
    if (several) clear(&w->all, w->lanes, c->padded_dim);
    for (long span = item->span; span < item->spans; span++) {
        attend_span(c, w, span_start(c, item, span), span);
        if (several) merge(c, w, &w->span);
    }
    if (item->partial < 0) write_output(c, w, item, several ? &w->all : &w->span);
}

/* The spans of one split tile, in order. */
static void merge_tile(const void *args, long index) {
    const struct call *c = args;
    const struct item *item = &c->items[c->merges[index]];
    long spans = (key_end(c->a, item) + SPAN - 1) / SPAN - item->span;
    struct work *w = start_work(c, item);
    clear(&w->all, w->lanes, c->padded_dim);
    for (long i = 0; i < spans; i++) {
        struct state part = partial_state(c, item->partial + i);
        merge(c, w, &part);
    }
    write_output(c, w, item, &w->all);
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
    struct item item = {(int32_t)chunk, (int32_t)first, (int32_t)(left < queries ? left : queries), 0, 0, -1, 0, 1};
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

/* `together`: KV heads that small tiles compute in one item. */
static void fill_list(const struct attention *a, struct list *list, long total, int32_t together) {
    long limit = rx_threads() > 1 ? total / (rx_threads() * TASKS_PER_THREAD) : LONG_MAX;
    EACH_TILE(a, chunk, first) {
        struct item item = make_item(a, chunk, first);
        int32_t heads = rows_of(a, item.count) <= FEW ? together : 1;
        for (; item.kv_head < a->kv_heads; item.kv_head += heads) {
            item.kv_heads = a->kv_heads - item.kv_head < heads ? a->kv_heads - item.kv_head : heads;
            add_tile(list, item, cost(a, &item) > limit);
        }
    }
}

/* KV heads that lie within TOGETHER_BYTES, if there are then still tiles enough for all threads. */
static int32_t heads_together(const struct attention *a, long tiles) {
    long heads = TOGETHER_BYTES / (a->head_dim * size_of(a->kv_dtype));
    if (tiles < TASKS_PER_THREAD * rx_threads() || heads < 1) return 1;
    return (int32_t)(heads < a->kv_heads ? heads : a->kv_heads);
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
        most_items += (item.spans - item.span) * a->kv_heads;
        total += cost(a, &item);
        tiles++;
    }
    zero_padding(a);
    if (!tiles) return;
    struct call c = {.a = a, .compute = a->dtype == BF16 && a->kv_dtype == BF16 ? BF16 : F32};
    c.lanes = (tile_queries(a) * (a->heads / a->kv_heads) + LANES - 1) / LANES * LANES;
    c.padded_dim = (a->head_dim + LANES - 1) / LANES * LANES;
    c.units = c.compute == F32 ? a->head_dim : a->head_dim / 2;
    char *memory = rx_scratch(SCRATCH_CALL, most_items * (sizeof(struct item) + sizeof(long)) + 256);
    struct list list = {.items = (struct item *)take(&memory, most_items * sizeof(struct item))};
    list.merges = (long *)memory;
    fill_list(a, &list, total, heads_together(a, tiles));
    c.items = list.items;
    c.merges = list.merges;
    c.partials = rx_scratch(SCRATCH_PARTIAL, list.num_partials * partial_floats(&c) * 4);
    c.num_items = list.num_items;
    rx_parallel(attend, &c, list.num_items);
    rx_parallel(merge_tile, &c, list.num_merges);
}

struct ahead rx_cells(const struct attention *a) {
    long count = 0, done = 0;
    for (long chunk = 0; chunk < a->chunks; chunk++) count += a->starts[chunk] + a->lengths[chunk];
    int32_t *cells = rx_scratch(SCRATCH_CELLS, count * 4);
    for (long chunk = 0; chunk < a->chunks; chunk++) {
        const int32_t *table = a->page_table + a->slots[chunk] * a->pages;
        long end = a->starts[chunk] + a->lengths[chunk], size = a->page_size;
        for (long i = 0; i < end; i++) cells[done++] = size == 1 ? table[i] : table[i / size] * size + i % size;
    }
    return (struct ahead){.kv = a, .cell = cells, .cells = count};
}
