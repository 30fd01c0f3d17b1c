/* The linear op. Weights are packed in panels of 48 outputs (see tile.h), each read once, in order, for all rows
 * at hand.
 *
 * One kernel serves every number of rows, so a row's result is the same bits alone and in any batch.
 */
#include "tile.h"

#define NV 3
#define PANEL (NV * LANES)

/* Up to 8 rows the op waits for memory: fetch this far ahead, some 100 ns. With more rows it computes several
 * tiles per panel, and fetches the whole next panel meanwhile, at the end the first one of the next product: that
 * product would wait 5 us for it. Measured on Zen 5, one core: 40 GB/s at 1 to 8 rows (all that a core can read),
 * 450 of 516 GFLOP/s at 24 rows and more. */
#define AHEAD 8192
#define BLOCK_BYTES (256 << 10) /* of x: what stays in the second-level cache while the panels pass */

static long steps_of(int64_t k, int dtype) { return dtype == F32 ? k : (k + 1) / 2; }
static long panel_bytes(int64_t k, int dtype) { return steps_of(k, dtype) * PANEL * 4; }
static long panels_of(int64_t n) { return (n + PANEL - 1) / PANEL; }

/* What a task reads: a panel, or a panel of gates and the one of what they gate. */
static long items_of(const struct weight *w) { return panels_of(w->n) / (w->paired ? 2 : 1); }
static long item_bytes(const struct weight *w) { return panel_bytes(w->k, w->dtype) * (w->paired ? 2 : 1); }

int64_t rx_packed_bytes(int64_t n, int64_t k, int dtype) { return panels_of(n) * panel_bytes(k, dtype); }

struct pack {
    const void *src;
    char *packed;
    int64_t n, k;
    int dtype, paired;
};

static void pack_panel(const void *args, long to) {
    const struct pack *p = args;
    long panel = p->paired ? to % 2 * (panels_of(p->n) / 2) + to / 2 : to;
    uint32_t *out = (uint32_t *)(p->packed + to * panel_bytes(p->k, p->dtype));
    long steps = steps_of(p->k, p->dtype);
    memset(out, 0, panel_bytes(p->k, p->dtype));
    for (long column = 0; column < PANEL && panel * PANEL + column < p->n; column++) {
        const char *row = at(p->src, (panel * PANEL + column) * p->k, p->dtype);
        for (long i = 0; i < steps; i++) {
            long left = p->k * size_of(p->dtype) - i * 4;
            memcpy(out + i * PANEL + column, row + i * 4, left < 4 ? left : 4);
        }
    }
}

void rx_pack(const void *src, void *packed, int64_t n, int64_t k, int dtype, int paired) {
    struct pack p = {src, packed, n, k, dtype, paired};
    rx_parallel(pack_panel, &p, panels_of(n));
}

struct product {
    const struct weight *w;
    const struct ahead *ahead;
    const char *x;
    char *out, *gated;
    int64_t rows, block_rows;
    long ldx; /* bytes */
};

/* A tile of up to TILE_ROWS rows by one panel. */
struct place {
    const char *panel;
    long row, column;
    const char *fetch;
    long fetch_step;
    struct ask ask;
};

/* silu(gate) * up, both rounded first as if they had been written. */
INLINE void write_gated(const struct product *l, int dtype, int rows, vf gate[TILE_ROWS][4], vf up[TILE_ROWS][4],
                        struct place p) {
    long half = l->w->n / 2;
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 3
        for (int v = 0; v < NV; v++) {
            char *to = at(l->gated, (p.row + m) * half + p.column + v * LANES, dtype);
            store(to, silu(rounded(gate[m][v], dtype), dtype) * rounded(up[m][v], dtype), LANES, dtype);
        }
}

/* The last panel may have fewer columns. */
INLINE void write_tile(const struct product *l, int dtype, int rows, vf acc[TILE_ROWS][4], struct place p) {
    const struct weight *w = l->w;
    int whole = p.column + PANEL <= w->n;
#pragma GCC unroll 3
    for (int v = 0; v < NV; v++) {
        long column = p.column + v * LANES, count = whole ? LANES : w->n - column;
        if (count <= 0) break;
        if (count > LANES) count = LANES;
        vf bias = w->bias ? load(w->bias + column, count, F32) : (vf){};
#pragma GCC unroll 8
        for (int m = 0; m < rows; m++) {
            char *to = at(l->out, (p.row + m) * w->n + column, dtype);
            if (w->bias) acc[m][v] += bias;
            if (whole)
                store(to, acc[m][v], LANES, dtype);
            else
                store(to, acc[m][v], count, dtype);
        }
    }
}

INLINE void add_products(const struct product *l, int dtype, int rows, int level, vf acc[TILE_ROWS][4], const struct place *p) {
    sum_tile(dtype, rows, NV, acc, l->x + p->row * l->ldx, l->ldx, p->panel, PANEL * 4, steps_of(l->w->k, dtype), level,
             p->fetch, p->fetch_step, &p->ask);
}

INLINE void linear_tile(const struct product *l, int dtype, int rows, int level, struct place p) {
    vf acc[TILE_ROWS][4] = {};
    add_products(l, dtype, rows, level, acc, &p);
    write_tile(l, dtype, rows, acc, p);
}

/* The same rows by a panel of gates and the one behind it, of what they gate. */
INLINE void gated_tile(const struct product *l, int dtype, int rows, int level, struct place p) {
    vf gate[TILE_ROWS][4] = {}, up[TILE_ROWS][4] = {};
    add_products(l, dtype, rows, level, gate, &p);
    long steps = steps_of(l->w->k, dtype);
    struct place other = {p.panel + steps * PANEL * 4, p.row, p.column, p.fetch + steps * p.fetch_step, p.fetch_step};
    add_products(l, dtype, rows, level, up, &other);
    write_gated(l, dtype, rows, gate, up, p);
}

INLINE void linear_rows(const struct product *l, int dtype, int rows, int level, struct place p) {
#define CASE(n)                                                                              \
    case n:                                                                                  \
        l->gated ? gated_tile(l, dtype, n, level, p) : linear_tile(l, dtype, n, level, p);   \
        break;
    switch (rows) {
#if TILE_ROWS == 8
        CASE(8)
        CASE(7)
        CASE(6)
        CASE(5)
        CASE(4)
        CASE(3)
#endif
        CASE(2)
        CASE(1)
    }
#undef CASE
}

/* What tile `tile` of `tiles` of the whole product asks for. */
static struct ask share_of(const struct ahead *ahead, long tile, long tiles) {
    if (!ahead || ahead->first == ahead->last) return (struct ask){};
    const struct attention *kv = ahead->kv;
    long wanted = ahead->last - ahead->first, begin = ahead->first + wanted * tile / tiles;
    long end = ahead->first + wanted * (tile + 1) / tiles, half = ahead->cells;
    long stride = (long)kv->kv_heads * kv->head_dim * size_of(kv->kv_dtype);
    if (begin < half && end > half) end = half;
    return (struct ask){begin < half ? kv->keys : kv->values, ahead->cell + begin % half, end - begin, stride,
                        (stride + 63) / 64};
}

struct fetch {
    const char *from;
    long bytes;
};

/* What a thread reads after item `item`: the next one, or the first of its share of the next product. */
static struct fetch read_after(const struct product *l, long item) {
    const struct weight *w = l->w;
    long items = items_of(w), threads = rx_threads(), share = 0;
    while (share + 1 < threads && items * (share + 1) / threads <= item) share++;
    if (l->ahead && l->ahead->next && item + 1 == items * (share + 1) / threads) {
        w = l->ahead->next;
        item = items_of(w) * share / threads - 1;
    }
    return (struct fetch){(const char *)w->packed + (item + 1) * item_bytes(w), item_bytes(w)};
}

INLINE void linear_item(const struct product *l, long index, int dtype) {
    const struct weight *w = l->w;
    long items = items_of(w), item = index % items, first = index / items * l->block_rows;
    long rows = l->rows - first < l->block_rows ? l->rows - first : l->block_rows;
    long tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    const char *b = (const char *)w->packed + item * item_bytes(w);
    if (tiles == 1) {
        linear_rows(l, dtype, (int)rows, 1, (struct place){b, first, item * PANEL, b + AHEAD, PANEL * 4});
        return;
    }
    struct fetch after = read_after(l, item);
    long step = PANEL * 4 * after.bytes / item_bytes(w) / tiles;
    if (step > PANEL * 4) step = PANEL * 4;
    for (long t = 0; t < tiles; t++) { /* tiles differ by one row at most: a tile of one row would waste the units */
        long begin = rows * t / tiles, end = rows * (t + 1) / tiles;
        struct place p = {b, first + begin, item * PANEL, after.from + after.bytes * t / tiles, step,
                          share_of(l->ahead, index * tiles + t, items * tiles)};
        linear_rows(l, dtype, (int)(end - begin), 2, p);
    }
}

static void linear_bf16(const void *args, long index) { linear_item(args, index, BF16); }
static void linear_f32(const void *args, long index) { linear_item(args, index, F32); }

/* Rows of an odd number of 16-bit elements do not end on a pair: copies them with a zero behind. */
static const char *padded(const void *x, int64_t rows, int64_t k, long ldx) {
    char *copy = rx_scratch(SCRATCH_CALL, rows * ldx);
    for (int64_t r = 0; r < rows; r++) {
        memcpy(copy + r * ldx, (const char *)x + r * k * 2, k * 2);
        memset(copy + r * ldx + k * 2, 0, 2);
    }
    return copy;
}

void rx_linear(const struct linear *op, const struct ahead *ahead) {
    const struct weight *w = op->weight;
    struct product l = {.w = w, .ahead = ahead, .x = op->x, .out = op->out, .rows = op->rows, .ldx = steps_of(w->k, w->dtype) * 4};
    if (!l.rows) return;
    if (w->paired) l.gated = op->gated;
    if (w->dtype == BF16 && w->k % 2) l.x = padded(op->x, l.rows, w->k, l.ldx);
    long blocks = (l.rows * l.ldx + BLOCK_BYTES - 1) / BLOCK_BYTES;
    l.block_rows = ((l.rows + blocks - 1) / blocks + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    blocks = (l.rows + l.block_rows - 1) / l.block_rows;
    if (blocks > 1) l.ahead = NULL;
    rx_parallel(w->dtype == BF16 ? linear_bf16 : linear_f32, &l, blocks * items_of(w));
    if (op->gated && !w->paired) rx_silu_mul(&(struct silu_mul){op->out, op->gated, l.rows, w->n / 2, w->dtype});
}
