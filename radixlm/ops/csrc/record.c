/* Recordings: the operations of one computation, kept as values, to be carried out again in one call.
 *
 * Indices and lengths live behind pointers, so a replay computes with what the memory holds then: one recording of
 * a step of n tokens serves every step of n tokens.
 */
#include "radix.h"
#include <stdlib.h>
#include <string.h>

union operation {
    struct linear linear;
    struct norm norm;
    struct silu_mul silu_mul;
    struct rope_write rope_write;
    struct attention attention;
};

struct step {
    int kind;
    union operation op;
};

struct recording {
    struct step *steps;
    long count, capacity;
    int failed;
};

static _Thread_local struct recording *current;

static const long sizes[KINDS] = {sizeof(struct linear),     sizeof(struct norm),      sizeof(struct silu_mul),
                                  sizeof(struct rope_write), sizeof(struct attention)};

static void carry_out(int kind, const void *op) {
    switch (kind) {
    case LINEAR: rx_linear(op, NULL); break;
    case NORM: rx_norm(op); break;
    case SILU_MUL: rx_silu_mul(op); break;
    case ROPE_WRITE: rx_rope_write(op); break;
    case ATTENTION: rx_attention(op); break;
    }
}

static void keep(struct recording *r, int kind, const void *op) {
    if (r->count == r->capacity) {
        long capacity = r->capacity ? 2 * r->capacity : 64;
        struct step *steps = realloc(r->steps, capacity * sizeof *steps);
        if (!steps) {
            r->failed = 1;
            return;
        }
        r->steps = steps;
        r->capacity = capacity;
    }
    r->steps[r->count].kind = kind;
    memcpy(&r->steps[r->count++].op, op, sizes[kind]);
}

void rx_do(int kind, const void *op) {
    if (current) keep(current, kind, op);
    carry_out(kind, op);
}

void rx_record_begin(void) { current = calloc(1, sizeof *current); }

struct recording *rx_record_end(void) {
    struct recording *made = current;
    current = NULL;
    if (made && made->failed) {
        rx_record_free(made);
        made = NULL;
    }
    return made;
}

/* Multiplications of the products from step i to the next attention, whose place is `*next`; 0: there is none. */
static double work_until_attention(const struct recording *r, long i, long *next) {
    double work = 0;
    for (; i < r->count && r->steps[i].kind != ATTENTION; i++)
        if (r->steps[i].kind == LINEAR) work += (double)r->steps[i].op.linear.weight->n * r->steps[i].op.linear.weight->k;
    *next = i;
    return i < r->count ? work : 0;
}

void rx_replay(const struct recording *r) {
    struct ahead ahead = {};
    double work = 0, done = 0;
    for (long i = 0, next = -1; i < r->count; i++) {
        const struct step *s = &r->steps[i];
        if (i > next) {
            work = work_until_attention(r, i, &next);
            done = 0;
            if (work && !ahead.cells) ahead = rx_cells(&r->steps[next].op.attention);
            if (work) ahead.kv = &r->steps[next].op.attention;
        }
        if (s->kind != LINEAR || !work || !ahead.cells) {
            carry_out(s->kind, &s->op);
            continue;
        }
        ahead.first = (long)(2 * ahead.cells * done / work);
        done += (double)s->op.linear.weight->n * s->op.linear.weight->k;
        ahead.last = (long)(2 * ahead.cells * done / work);
        rx_linear(&s->op.linear, &ahead);
    }
}

void rx_record_free(struct recording *recording) {
    free(recording->steps);
    free(recording);
}
