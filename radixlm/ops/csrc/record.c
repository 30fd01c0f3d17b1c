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
    case LINEAR: rx_linear(op); break;
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

void rx_replay(const struct recording *recording) {
    for (long i = 0; i < recording->count; i++) carry_out(recording->steps[i].kind, &recording->steps[i].op);
}

void rx_record_free(struct recording *recording) {
    free(recording->steps);
    free(recording);
}
