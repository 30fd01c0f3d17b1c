/* Random tokens under temperature, top-k, top-p and min-p, a row per task, without a sort. Weights are non-negative floats,
 * so their bits order them; the cut is the smallest bit pattern above which fewer than k weights, or less than p of their
 * sum, lie. Sums are of whole numbers. See radixlm/ops/draw.py, the oracle. */
#include "vec.h"

#define ONE 0x3f800000 /* the bits of 1, the largest weight */
#define COARSE 9       /* halvings after which few weights are left between the bounds */
#define BLOCK 1024

struct part { /* of a row's weights */
    const float *w;
    long n;
};

struct sum {
    int64_t count, total;
};

INLINE int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

INLINE float of_bits(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* The weights with larger bits that are at least `least`. */
static struct sum above(struct part p, int32_t bits, float least, float scale) {
    int64_t count = 0, total = 0;
    for (long i = 0; i < p.n; i++) {
        int64_t keep = (bits_of(p.w[i]) > bits) & (p.w[i] >= least);
        count += keep;
        total += -keep & (int64_t)(p.w[i] * scale);
    }
    return (struct sum){count, total};
}

static long ties_in(struct part p, int32_t bits) {
    long count = 0;
    for (long i = 0; i < p.n; i++) count += bits_of(p.w[i]) == bits;
    return count;
}

/* Lowers *high and raises *low around the smallest bits above which there is less than wanted; `over` is what lies above all
 * of `p`. One halving. */
static void halve(struct part p, struct sum over, int32_t *low, int32_t *high, double wanted, int by_count, float scale) {
    int32_t middle = *low + (*high - *low) / 2;
    struct sum s = above(p, middle, 0, scale);
    double found = by_count ? (double)(s.count + over.count) : (double)(s.total + over.total);
    if (found < wanted)
        *high = middle;
    else
        *low = middle < *high ? middle + 1 : *high;
}

/* The smallest bits >= low above which there is less than wanted, and what lies above them. */
static int32_t find(struct part p, float *packed, int32_t low, double wanted, int by_count, float scale, struct sum *over) {
    int32_t high = ONE;
    for (int i = 0; i < COARSE; i++) halve(p, (struct sum){}, &low, &high, wanted, by_count, scale);
    struct sum larger = above(p, high, 0, scale);
    struct part few = {packed, 0};
    for (long i = 0; i < p.n; i++) {
        int32_t bits = bits_of(p.w[i]);
        packed[few.n] = p.w[i];
        few.n += (bits >= low) & (bits <= high);
    }
    while (low < high) halve(few, larger, &low, &high, wanted, by_count, scale);
    struct sum s = above(few, low, 0, scale);
    *over = (struct sum){s.count + larger.count, s.total + larger.total};
    return low;
}

/* Weights with larger bits than the result are kept, and the first *ties of those with the same. */
static int32_t cut_of(const struct choose *c, long row, struct part p, float *packed, int64_t total, int64_t *ties) {
    float scale = c->scale;
    int32_t cut = 0;
    struct sum over;
    *ties = p.n;
    if (c->top_k[row] < p.n) {
        cut = find(p, packed, 0, c->top_k[row], 1, scale, &over);
        *ties = c->top_k[row] - over.count;
        total = over.total + *ties * (int64_t)(of_bits(cut) * scale);
    }
    if (c->top_p[row] < 1) {
        int32_t least = cut;
        double wanted = c->top_p[row] * (double)total;
        cut = find(p, packed, least, wanted, 0, scale, &over);
        int64_t each = (int64_t)(of_bits(cut) * scale), needed = p.n;
        /* Ties are kept as long as what comes before them is less than wanted; one token always is. */
        if (each > 0) {
            double missing = (wanted - (double)over.total) / (double)each;
            needed = missing > 0 ? (int64_t)fmin(missing, (double)p.n) : 0;
            needed += (double)(over.total + needed * each) < wanted;
        }
        if (!over.count && needed < 1) needed = 1;
        *ties = cut == least && *ties < needed ? *ties : needed;
    }
    return cut;
}

/* What of a block is kept while `left` ties remain; their number is taken off. */
static int64_t kept_in(struct part p, int32_t cut, int64_t *left, float least, float scale) {
    int64_t total = above(p, cut, least, scale).total, ties = *left ? ties_in(p, cut) : 0;
    ties = ties < *left ? ties : *left;
    *left -= ties;
    return of_bits(cut) >= least ? total + ties * (int64_t)(of_bits(cut) * scale) : total;
}

static int64_t walk(const struct choose *c, long row, struct part p, int32_t cut, int64_t ties) {
    float least = c->min_p[row], scale = c->scale;
    int64_t left = ties, kept = kept_in(p, cut, &left, least, scale), reached = 0;
    int64_t wanted = (int64_t)(c->uniform[row] * (double)kept);
    for (long start = 0; start < p.n; start += BLOCK) {
        struct part block = {p.w + start, p.n - start < BLOCK ? p.n - start : BLOCK};
        int64_t before = ties, inside = kept_in(block, cut, &ties, least, scale);
        if (reached + inside > wanted)
            for (long i = 0; i < block.n; i++) {
                struct part one = {block.w + i, 1};
                reached += kept_in(one, cut, &before, least, scale);
                if (reached > wanted) return start + i;
            }
        reached += inside;
    }
    return p.n - 1;
}

static void choose_row(const void *args, long row) {
    const struct choose *c = args;
    float *w = c->logits + row * c->n, *packed = c->packed + row * c->n;
    float peak = c->largest[row], heat = 1 / c->temperature[row];
    for (long i = 0; i < c->n; i += LANES) {
        long count = c->n - i < LANES ? c->n - i : LANES;
        vf weight = exp_((load(w + i, count, F32) - peak) * heat);
        store(w + i, min_(weight, splat(1)), count, F32);
    }
    struct part p = {w, c->n};
    int64_t ties = 0;
    int32_t cut = c->cut ? cut_of(c, row, p, packed, above(p, -1, 0, c->scale).total, &ties) : -1;
    c->tokens[row] = walk(c, row, p, cut, ties);
}

void rx_choose(const struct choose *c, int64_t rows) { rx_parallel(choose_row, c, rows); }
