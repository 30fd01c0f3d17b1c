/* Recordings: the operations of one computation, kept as values, to be carried out in one call.
 *
 * Indices and lengths live behind pointers, so a replay computes with what the memory holds then, and how many rows it
 * computes is an argument: one recording serves every step.
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
    struct take_rows take_rows;
};

struct step {
    int kind, wanted; /* whether its rows are those of wanted tokens */
    union operation op;
};

struct recording {
    struct step *steps;
    int64_t most;
    long count, capacity;
    int failed;
};

static _Thread_local struct recording *current;

static const long sizes[KINDS] = {sizeof(struct linear),     sizeof(struct norm),      sizeof(struct silu_mul),
                                  sizeof(struct rope_write), sizeof(struct attention), sizeof(struct take_rows)};

static void carry_out(int kind, const void *op) {
    switch (kind) {
    case LINEAR: rx_linear(op, NULL); break;
    case NORM: rx_norm(op); break;
    case SILU_MUL: rx_silu_mul(op); break;
    case ROPE_WRITE: rx_rope_write(op); break;
    case ATTENTION: rx_attention(op); break;
    case TAKE_ROWS: rx_take_rows(op); break;
    }
}

static int64_t *rows_of(struct step *s) {
    switch (s->kind) {
    case LINEAR: return &s->op.linear.rows;
    case NORM: return &s->op.norm.rows;
    case SILU_MUL: return &s->op.silu_mul.rows;
    case ROPE_WRITE: return &s->op.rope_write.tokens;
    case ATTENTION: return &s->op.attention.tokens;
    default: return &s->op.take_rows.rows;
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
    struct step *s = &r->steps[r->count++];
    s->kind = kind;
    memcpy(&s->op, op, sizes[kind]);
    s->wanted = *rows_of(s) > r->most;
}

void rx_do(int kind, const void *op) {
    if (current)
        keep(current, kind, op);
    else
        carry_out(kind, op);
}

void rx_record_begin(int64_t most) {
    current = calloc(1, sizeof *current);
    if (current) current->most = most;
}

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

/* Of the first product after step i; NULL: there is none. */
static const struct weight *weight_after(const struct recording *r, long i) {
    for (i++; i < r->count; i++)
        if (r->steps[i].kind == LINEAR) return r->steps[i].op.linear.weight;
    return NULL;
}

void rx_replay(struct recording *r, int64_t tokens, int64_t wanted, int64_t chunks) {
    for (long i = 0; i < r->count; i++) {
        struct step *s = &r->steps[i];
        *rows_of(s) = s->wanted ? wanted : tokens;
        if (s->kind == ATTENTION) s->op.attention.chunks = chunks;
    }
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
        if (s->kind != LINEAR) {
            carry_out(s->kind, &s->op);
            continue;
        }
        ahead.next = weight_after(r, i);
        ahead.first = work ? (long)(2 * ahead.cells * done / work) : 0;
        done += (double)s->op.linear.weight->n * s->op.linear.weight->k;
        ahead.last = work ? (long)(2 * ahead.cells * done / work) : 0;
        rx_linear(&s->op.linear, &ahead);
    }
}

void rx_record_free(struct recording *recording) {
    free(recording->steps);
    free(recording);
}
