/* What both ways of computing attention share: a tile's memory, where a block's rows lie, its values packed. See
 * attention.c. */
#ifndef ATTENTION_BLOCK_H
#define ATTENTION_BLOCK_H

#include "tile.h"

#define BLOCK 64

struct item {
    int32_t chunk, first, count; /* queries first .. first + count of the chunk */
    int32_t span, spans;         /* spans span .. spans of the sequence */
    int32_t partial;             /* -1: the item writes its output; else its place among the partial results */
    int32_t kv_head, kv_heads;   /* the first and how many; more than one only if they have few rows each */
};

struct call {
    const struct attention *a;
    const struct item *items;
    long *merges; /* the first item of every tile that was split */
    float *partials;
    long num_items;
    long lanes, padded_dim, units; /* rows of a tile and head_dim in full vectors; 4-byte units of a key */
    int compute;                   /* F32 or BF16: type of the products' inputs */
};

/* Softmax state of a tile's rows: running maximum (of log2), sum, and values (not yet divided by the sum). */
struct state {
    float *max, *sum, *values; /* [lanes], [lanes], [padded_dim, lanes]; few: [rows, padded_dim] */
};

struct rows { /* of a block, in the pool or widened */
    const char *keys[BLOCK], *values[BLOCK];
};

struct block { /* as one KV head sees it */
    const struct rows *rows, *next; /* next: those of the block to come, of the item's first KV head */
    long base, count;
    long head, heads; /* of the item */
};

struct work {
    int few;            /* whether this tile is computed by attention_rows.h, else by attention_columns.h */
    long each;          /* rows of a KV head */
    long count, lanes;  /* rows of this item; in full vectors */
    uint32_t *q;        /* panel [units, lanes]; few: [rows, units] */
    float *scores;      /* [BLOCK, lanes], then the weights, BF16: [BLOCK / 2, lanes] pairs; few: [rows, BLOCK] */
    char *weights;      /* few: [rows, BLOCK], compute type */
    uint32_t *keys;     /* few: panel [units, BLOCK] */
    uint32_t *value;    /* panel [BLOCK or BLOCK / 2, padded_dim] */
    float *wide;        /* [2, BLOCK, head_dim]: keys and values that must be converted first */
    int32_t *positions; /* [lanes]: the last key that a row sees; -1 where there is no row */
    struct state span, all;
    struct rows rows[2]; /* of this and the next block, of the item's first KV head */
    struct rows own;     /* of the KV head being computed */
    int now;
};

static char *take(char **memory, long bytes) {
    char *p = *memory;
    *memory += (bytes + 63) / 64 * 64;
    return p;
}

static struct state take_state(char **memory, const struct call *c) {
    struct state s;
    s.max = (float *)take(memory, c->lanes * 4);
    s.sum = (float *)take(memory, c->lanes * 4);
    s.values = (float *)take(memory, c->lanes * c->padded_dim * 4);
    return s;
}

static struct work *take_work(const struct call *c) {
    long dim = c->a->head_dim, pad = c->padded_dim, rounding = 1024;
    long per_lane = (c->units + 2 * BLOCK + 2 * pad + 5) * 4, per_key = (c->units + pad + 2 * dim) * 4;
    char *memory = rx_scratch(SCRATCH_TASK, sizeof(struct work) + c->lanes * per_lane + BLOCK * per_key + rounding);
    struct work *w = (struct work *)take(&memory, sizeof *w);
    w->q = (uint32_t *)take(&memory, c->lanes * c->units * 4);
    w->scores = (float *)take(&memory, c->lanes * BLOCK * 4);
    w->weights = take(&memory, c->lanes * BLOCK * 4);
    w->keys = (uint32_t *)take(&memory, BLOCK * c->units * 4);
    w->value = (uint32_t *)take(&memory, BLOCK * pad * 4);
    w->wide = (float *)take(&memory, 2 * BLOCK * dim * 4);
    w->positions = (int32_t *)take(&memory, c->lanes * 4);
    w->span = take_state(&memory, c);
    w->all = take_state(&memory, c);
    return w;
}

static void clear(struct state *s, long lanes, long padded_dim) {
    for (long r = 0; r < lanes; r++) {
        s->max[r] = -INFINITY;
        s->sum[r] = 0;
    }
    memset(s->values, 0, lanes * padded_dim * 4);
}

/* Where the keys and values of the block at `base` lie. The last one, before `end`, stands for those behind it,
 * which are masked. */
static void find_rows(const struct call *c, const struct item *item, long base, long end, struct rows *rows) {
    const struct attention *a = c->a;
    const int32_t *table = a->page_table + a->slots[item->chunk] * a->pages;
    long bytes = a->head_dim * size_of(a->kv_dtype), stride = a->kv_heads * bytes, size = a->page_size;
    long count = end - base < BLOCK ? end - base : BLOCK, page = base / size, offset = base % size;
    long first = item->kv_head * bytes;
    const char *keys = (const char *)a->keys + first, *values = (const char *)a->values + first;
    long cells[BLOCK];
    for (long i = 0; size == 1 && i < count; i++) cells[i] = table[base + i];
    for (long i = 0; size > 1 && i < count; i++) {
        cells[i] = table[page] * size + offset;
        offset = offset + 1 == size ? 0 : offset + 1;
        page += !offset;
    }
    for (long i = count; i < BLOCK; i++) cells[i] = cells[count - 1];
    for (long i = 0; i < BLOCK; i++) {
        rows->keys[i] = keys + cells[i] * stride;
        rows->values[i] = values + cells[i] * stride;
    }
}

static long head_bytes(const struct call *c) { return c->a->head_dim * size_of(c->a->kv_dtype); }

/* The same rows of another KV head, so many bytes further on. */
static void move_rows(struct rows *to, const struct rows *from, long bytes) {
    for (long i = 0; i < BLOCK; i++) {
        to->keys[i] = from->keys[i] + bytes;
        to->values[i] = from->values[i] + bytes;
    }
}

/* Asks for keys and values `from` .. from + count of the next block, of the same KV head. Spread over the work on this
 * block, half of them over the scores and half over the values: a burst would fill the queue and stall it. */
INLINE void fetch(const struct block *b, long from, long count, long bytes) {
    for (long i = from; i < from + count; i++)
        for (long at = b->head * bytes; at < (b->head + 1) * bytes; at += 64) {
            __builtin_prefetch(b->next->keys[i] + at, 0, 2);
            __builtin_prefetch(b->next->values[i] + at, 0, 2);
        }
}

/* Converts the block's rows to float32 in `wide` and points at the copies. */
static void widen(const struct call *c, const char **rows, float *to) {
    long dim = c->a->head_dim;
    for (long i = 0; i < BLOCK; i++, to += dim) {
        for (long d = 0; d < dim; d += LANES) {
            long count = dim - d < LANES ? dim - d : LANES;
            store(to + d, load(at(rows[i], d, c->a->kv_dtype), count, c->a->kv_dtype), count, F32);
        }
        rows[i] = (char *)to;
    }
}

#if defined(__AVX512BW__)
/* 32 elements of two keys in pairs. */
INLINE void interleave(const char *even, const char *odd, uint32_t *to) {
    static const uint16_t order[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    __m512i low = _mm512_loadu_si512(order), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, low, b));
    _mm512_storeu_si512(to + LANES, _mm512_permutex2var_epi16(a, high, b));
}
#else
INLINE void interleave(const char *even, const char *odd, uint32_t *to) {
    for (int d = 0; d < 2 * LANES; d += LANES) {
        vu pair = ((vu)load(at(even, d, BF16), LANES, BF16) >> 16) | (vu)load(at(odd, d, BF16), LANES, BF16);
        memcpy(to + d, &pair, 64);
    }
}
#endif

/* Values into a panel: bf16 in pairs of keys, float32 as they are. Asks for those of the next block meanwhile. */
static void pack_values(const struct call *c, const struct work *w, const struct block *b) {
    long dim = c->a->head_dim, pad = c->padded_dim;
    uint32_t *to = w->value;
    for (long i = 0; i < BLOCK; i += 2) {
        fetch(b, (BLOCK + i) / 2, 1, head_bytes(c));
        if (i >= b->count) continue;
        const char *even = b->rows->values[i], *odd = b->rows->values[i + 1];
        long d = 0;
        for (; c->compute == BF16 && d + 2 * LANES <= dim; d += 2 * LANES)
            interleave(at(even, d, BF16), at(odd, d, BF16), to + d);
        for (; d < pad; d += LANES) {
            long n = dim - d < LANES ? dim - d : LANES;
            if (c->compute == F32) {
                store(to + d, load(at(even, d, F32), n, F32), LANES, F32);
                store(to + pad + d, load(at(odd, d, F32), n, F32), LANES, F32);
            } else {
                vu pair = ((vu)load(at(even, d, BF16), n, BF16) >> 16) | (vu)load(at(odd, d, BF16), n, BF16);
                memcpy(to + d, &pair, 64);
            }
        }
        to += c->compute == F32 ? 2 * pad : pad;
    }
}

#endif
