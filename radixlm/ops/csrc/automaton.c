/* A byte automaton with a stack, made deterministic as far as it is walked.
 *
 * The program is a nondeterministic automaton whose states read bytes, move on, or call another state and come back to
 * a third. A place is a state with a stack of states to come back to; a deterministic state is the sorted set of places
 * that read a byte or end the text. Sets and stacks are interned, so each is a small number and every transition is
 * computed once. radixlm/grammar/automaton/lazy.py does the same in Python and is the oracle.
 *
 * Not thread-safe: the caller holds a lock. Places that can never reach the end are dropped, so a state that is not
 * DEAD can always go on to the end of some text.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DEAD (-1)
#define OVER_LIMIT (-2)
#define UNKNOWN (-3)
#define MAX_PLACES (1 << 14) /* of one state: more means that the program is too ambiguous to be walked */
#define MAX_TOKEN_BYTES 65535
#define MAX_PLAIN 32
#define ENDLESS (MAX_PLAIN + 1)

struct program { /* arrays of the caller; they outlive the automaton */
    int32_t num_states, start, num_classes;
    const int32_t *range_offset; /* [num_states + 1] into low, high, target */
    const uint8_t *low, *high;
    const int32_t *target;
    const int32_t *move_offset; /* [num_states + 1] into move_to, move_back */
    const int32_t *move_to, *move_back; /* back -1: a move without reading; else a call */
    const uint8_t *is_end;
    const uint8_t *class_of; /* [256] */
    const uint8_t *byte_of;  /* [num_classes] some byte of each class */
};

struct vocabulary { /* distinct tokens in the order of their bytes */
    int64_t num_tokens;
    const int32_t *offset; /* [num_tokens + 1] into bytes */
    const uint8_t *bytes;
    const uint16_t *shared; /* [num_tokens] bytes in common with the token before */
    const int32_t *id_offset, *ids; /* the ids of each: several tokens may have the same bytes */
    const int32_t *first; /* [257] where the tokens begin that begin with this byte or a later one */
};

struct masked { /* a vocabulary in two: tokens of whole printable characters without quotes or backslashes; the others */
    struct vocabulary all, others;
    const uint32_t *plain; /* [MAX_PLAIN + 1, words] plain tokens of at most so many characters; all of them have at most MAX_PLAIN */
    int64_t words;
};

struct table { /* open addressing: indices + 1, 0 is free */
    int32_t *slots;
    int64_t size, used;
};

struct automaton {
    struct program p;
    uint8_t *live;
    int32_t (*stacks)[2]; /* state to come back to, the rest of the stack; stack 0 is empty */
    int64_t num_stacks, max_stacks;
    struct table stack_table;
    int64_t *places; /* state << 32 | stack, of all sets one after the other */
    int64_t num_places, max_places;
    int64_t *set_offset; /* [num_sets + 1] */
    uint8_t *accepting;
    int8_t *plain_depth; /* -1 unknown */
    int32_t *plain_next; /* see after_plain */
    int64_t num_sets, max_sets, limit;
    struct table set_table;
    int32_t *next; /* [num_sets, num_classes] */
    int64_t *found, *todo; /* scratch of a closure */
    int64_t num_found, num_todo, max_found, max_todo;
    int32_t *seen; /* open addressing over `visited`, cleared by undoing */
    int64_t *visited;
    int64_t num_visited, max_visited, seen_size;
    int failed;
};

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static int grow(struct automaton *a, void **memory, int64_t *capacity, int64_t needed, size_t size) {
    if (needed <= *capacity)
        return 1;
    int64_t wanted = *capacity * 2 > needed ? *capacity * 2 : needed;
    void *moved = realloc(*memory, (size_t)wanted * size);
    if (!moved) {
        a->failed = 1;
        return 0;
    }
    *memory = moved;
    *capacity = wanted;
    return 1;
}

static int32_t push(struct automaton *a, int32_t back, int32_t rest) {
    struct table *t = &a->stack_table;
    if (t->used * 2 >= t->size) {
        int64_t size = t->size ? t->size * 2 : 256;
        int32_t *slots = calloc((size_t)size, sizeof *slots);
        if (!slots)
            return a->failed = 1, 0;
        for (int64_t i = 1; i < a->num_stacks; i++) {
            uint64_t at = mix((uint64_t)a->stacks[i][0] << 32 | (uint32_t)a->stacks[i][1]);
            while (slots[at & (uint64_t)(size - 1)])
                at++;
            slots[at & (uint64_t)(size - 1)] = (int32_t)i + 1;
        }
        free(t->slots);
        t->slots = slots;
        t->size = size;
    }
    uint64_t at = mix((uint64_t)back << 32 | (uint32_t)rest), mask = (uint64_t)(t->size - 1);
    for (; t->slots[at & mask]; at++) {
        int32_t i = t->slots[at & mask] - 1;
        if (a->stacks[i][0] == back && a->stacks[i][1] == rest)
            return i;
    }
    if (!grow(a, (void **)&a->stacks, &a->max_stacks, a->num_stacks + 1, sizeof *a->stacks))
        return 0;
    a->stacks[a->num_stacks][0] = back;
    a->stacks[a->num_stacks][1] = rest;
    t->slots[at & mask] = (int32_t)a->num_stacks + 1;
    t->used++;
    return (int32_t)a->num_stacks++;
}

/* Whether a place is new to this closure. */
static int visit(struct automaton *a, int64_t place) {
    if (a->num_visited * 2 >= a->seen_size) {
        int64_t size = a->seen_size ? a->seen_size * 2 : 64;
        int32_t *seen = calloc((size_t)size, sizeof *seen);
        if (!seen)
            return a->failed = 1, 0;
        for (int64_t i = 0; i < a->num_visited; i++) {
            uint64_t at = mix((uint64_t)a->visited[i]);
            while (seen[at & (uint64_t)(size - 1)])
                at++;
            seen[at & (uint64_t)(size - 1)] = (int32_t)i + 1;
        }
        free(a->seen);
        a->seen = seen;
        a->seen_size = size;
    }
    uint64_t at = mix((uint64_t)place), mask = (uint64_t)(a->seen_size - 1);
    for (; a->seen[at & mask]; at++)
        if (a->visited[a->seen[at & mask] - 1] == place)
            return 0;
    if (!grow(a, (void **)&a->visited, &a->max_visited, a->num_visited + 1, sizeof *a->visited))
        return 0;
    a->visited[a->num_visited++] = place;
    a->seen[at & mask] = (int32_t)a->num_visited;
    return 1;
}

static void forget_visits(struct automaton *a) {
    if (a->num_visited * 8 > a->seen_size) {
        memset(a->seen, 0, (size_t)a->seen_size * sizeof *a->seen);
    } else {
        uint64_t mask = (uint64_t)(a->seen_size - 1);
        for (int64_t i = a->num_visited; i-- > 0;) { /* last first, so that no search crosses a gap */
            uint64_t at = mix((uint64_t)a->visited[i]);
            while (a->seen[at & mask] != i + 1)
                at++;
            a->seen[at & mask] = 0;
        }
    }
    a->num_visited = a->num_found = 0;
}

static void add_todo(struct automaton *a, int32_t state, int32_t stack) {
    if (a->live[state] && grow(a, (void **)&a->todo, &a->max_todo, a->num_todo + 1, sizeof *a->todo))
        a->todo[a->num_todo++] = (int64_t)state << 32 | (uint32_t)stack;
}

/* All places that `state` with `stack` reaches without reading, into `found`. */
static void close_over(struct automaton *a, int32_t state, int32_t stack) {
    const struct program *p = &a->p;
    add_todo(a, state, stack);
    while (a->num_todo && !a->failed) {
        int64_t place = a->todo[--a->num_todo];
        int32_t s = (int32_t)(place >> 32), k = (int32_t)place;
        if (!visit(a, place))
            continue;
        if (a->num_visited > MAX_PLACES * 4) {
            a->failed = 1;
            return;
        }
        if (p->range_offset[s] < p->range_offset[s + 1] || (p->is_end[s] && !k)) {
            if (!grow(a, (void **)&a->found, &a->max_found, a->num_found + 1, sizeof *a->found))
                return;
            a->found[a->num_found++] = place;
        }
        if (p->is_end[s] && k)
            add_todo(a, a->stacks[k][0], a->stacks[k][1]);
        for (int32_t i = p->move_offset[s]; i < p->move_offset[s + 1]; i++) {
            int32_t back = p->move_back[i];
            if (back < 0)
                add_todo(a, p->move_to[i], k);
            else if (a->live[back] && a->live[p->move_to[i]])
                add_todo(a, p->move_to[i], push(a, back, k));
        }
    }
}

static int by_value(const void *x, const void *y) {
    int64_t a = *(const int64_t *)x, b = *(const int64_t *)y;
    return (a > b) - (a < b);
}

static uint64_t hash_places(const int64_t *places, int64_t n) {
    uint64_t h = (uint64_t)n;
    for (int64_t i = 0; i < n; i++)
        h = mix(h ^ (uint64_t)places[i]);
    return h;
}

static int room_for_set(struct automaton *a, int64_t count) {
    struct table *t = &a->set_table;
    if (a->num_sets >= a->limit || count > MAX_PLACES)
        return 0;
    if (t->used * 2 >= t->size) {
        int64_t size = t->size ? t->size * 2 : 256;
        int32_t *slots = calloc((size_t)size, sizeof *slots);
        if (!slots)
            return 0;
        for (int64_t i = 0; i < a->num_sets; i++) {
            int64_t from = a->set_offset[i];
            uint64_t at = hash_places(a->places + from, a->set_offset[i + 1] - from);
            while (slots[at & (uint64_t)(size - 1)])
                at++;
            slots[at & (uint64_t)(size - 1)] = (int32_t)i + 1;
        }
        free(t->slots);
        t->slots = slots;
        t->size = size;
    }
    int64_t sets = a->max_sets;
    if (a->num_sets + 2 > sets) {
        sets = sets * 2 > 64 ? sets * 2 : 64;
        void *offset = realloc(a->set_offset, (size_t)(sets + 1) * sizeof *a->set_offset);
        if (offset)
            a->set_offset = offset;
        void *accepting = realloc(a->accepting, (size_t)sets);
        if (accepting)
            a->accepting = accepting;
        void *depth = realloc(a->plain_depth, (size_t)sets);
        if (depth)
            a->plain_depth = depth;
        void *plain = realloc(a->plain_next, (size_t)sets * sizeof *a->plain_next);
        if (plain)
            a->plain_next = plain;
        void *next = realloc(a->next, (size_t)(sets * a->p.num_classes) * sizeof *a->next);
        if (next)
            a->next = next;
        if (!offset || !accepting || !depth || !plain || !next)
            return 0;
        a->max_sets = sets;
    }
    return grow(a, (void **)&a->places, &a->max_places, a->num_places + count, sizeof *a->places);
}

/* The state of the places in `found`: an old one, a new one, DEAD or OVER_LIMIT. */
static int32_t intern_found(struct automaton *a) {
    int64_t n = a->num_found;
    if (a->failed)
        return OVER_LIMIT;
    if (!n)
        return DEAD;
    if (n > 1)
        qsort(a->found, (size_t)n, sizeof *a->found, by_value);
    if (!room_for_set(a, n))
        return OVER_LIMIT;
    uint64_t at = hash_places(a->found, n), mask = (uint64_t)(a->set_table.size - 1);
    for (; a->set_table.slots[at & mask]; at++) {
        int64_t i = a->set_table.slots[at & mask] - 1, from = a->set_offset[i];
        if (a->set_offset[i + 1] - from == n && !memcmp(a->places + from, a->found, (size_t)n * sizeof *a->found))
            return (int32_t)i;
    }
    int64_t set = a->num_sets++;
    a->set_table.slots[at & mask] = (int32_t)set + 1;
    a->set_table.used++;
    memcpy(a->places + a->num_places, a->found, (size_t)n * sizeof *a->found);
    a->set_offset[set] = a->num_places;
    a->num_places += n;
    a->set_offset[set + 1] = a->num_places;
    a->accepting[set] = 0;
    for (int64_t i = 0; i < n; i++)
        a->accepting[set] |= a->p.is_end[a->found[i] >> 32] && !(int32_t)a->found[i];
    a->plain_depth[set] = -1;
    a->plain_next[set] = UNKNOWN;
    for (int32_t c = 0; c < a->p.num_classes; c++)
        a->next[set * a->p.num_classes + c] = UNKNOWN;
    return (int32_t)set;
}

static int32_t compute_step(struct automaton *a, int32_t state, int32_t class) {
    const struct program *p = &a->p;
    uint8_t byte = p->byte_of[class];
    for (int64_t i = a->set_offset[state]; i < a->set_offset[state + 1]; i++) {
        int32_t s = (int32_t)(a->places[i] >> 32), k = (int32_t)a->places[i];
        for (int32_t r = p->range_offset[s]; r < p->range_offset[s + 1]; r++)
            if (p->low[r] <= byte && byte <= p->high[r])
                close_over(a, p->target[r], k);
    }
    int32_t to = intern_found(a);
    forget_visits(a);
    a->num_todo = 0;
    if (to == OVER_LIMIT) {
        a->failed = 0; /* the states so far remain usable */
        return to;
    }
    return a->next[(int64_t)state * p->num_classes + class] = to;
}

static inline int32_t step(struct automaton *a, int32_t state, uint8_t byte) {
    int32_t class = a->p.class_of[byte], to = a->next[(int64_t)state * a->p.num_classes + class];
    return to == UNKNOWN ? compute_step(a, state, class) : to;
}

static int leads_on(const struct automaton *a, int32_t s) {
    const struct program *p = &a->p;
    int live = p->is_end[s];
    for (int32_t r = p->range_offset[s]; !live && r < p->range_offset[s + 1]; r++)
        live = a->live[p->target[r]];
    for (int32_t m = p->move_offset[s]; !live && m < p->move_offset[s + 1]; m++)
        live = a->live[p->move_to[m]] && (p->move_back[m] < 0 || a->live[p->move_back[m]]);
    return live;
}

/* live: the end of the piece can be reached, so that no walk strays into a place without a way out. Chains of states lie
 * in either order: passes go up and down in turn. */
static void find_live(struct automaton *a) {
    int32_t n = a->p.num_states;
    for (int changed = 1, up = 0; changed; up = !up) {
        changed = 0;
        for (int32_t i = 0; i < n; i++) {
            int32_t s = up ? i : n - 1 - i;
            if (!a->live[s] && leads_on(a, s))
                a->live[s] = 1, changed = 1;
        }
    }
}

void rx_automaton_free(struct automaton *a) {
    free(a->live), free(a->stacks), free(a->stack_table.slots), free(a->places), free(a->set_offset);
    free(a->accepting), free(a->plain_depth), free(a->plain_next), free(a->set_table.slots), free(a->next), free(a->found);
    free(a->todo), free(a->seen), free(a->visited), free(a);
}

/* At most `limit` states. NULL: no memory. */
struct automaton *rx_automaton_new(const struct program *program, int64_t limit) {
    struct automaton *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->p = *program;
    a->limit = limit;
    a->live = calloc((size_t)program->num_states + 1, 1);
    if (!a->live || !grow(a, (void **)&a->stacks, &a->max_stacks, 16, sizeof *a->stacks)) {
        rx_automaton_free(a);
        return NULL;
    }
    a->num_stacks = 1;
    find_live(a);
    return a;
}

/* The first state; DEAD if no text matches. */
int32_t rx_automaton_start(struct automaton *a) {
    close_over(a, a->p.start, 0);
    int32_t state = intern_found(a);
    forget_visits(a);
    a->num_todo = 0;
    return state;
}

int32_t rx_automaton_run(struct automaton *a, int32_t state, const uint8_t *bytes, int64_t n) {
    for (int64_t i = 0; i < n && state >= 0; i++)
        state = step(a, state, bytes[i]);
    return state;
}

int64_t rx_automaton_states(const struct automaton *a) { return a->num_sets; }

/* The only way on from a state: a byte, -1 if there is none or several, OVER_LIMIT. */
static int32_t only_byte(struct automaton *a, int32_t state) {
    int32_t only = -1, bytes_of[256] = {0};
    for (int b = 0; b < 256; b++)
        bytes_of[a->p.class_of[b]]++;
    for (int32_t c = 0; c < a->p.num_classes; c++) {
        int32_t to = step(a, state, a->p.byte_of[c]);
        if (to == OVER_LIMIT)
            return to;
        if (to == DEAD)
            continue;
        if (only >= 0 || bytes_of[c] > 1)
            return -1;
        only = a->p.byte_of[c];
    }
    return only;
}

/* The bytes that must follow, at most `max`, into out; how many there are. */
int64_t rx_automaton_forced(struct automaton *a, int32_t state, uint8_t *out, int64_t max) {
    int64_t n = 0;
    while (n < max && !a->accepting[state]) {
        int32_t byte = only_byte(a, state);
        if (byte < 0)
            break;
        out[n++] = (uint8_t)byte;
        state = step(a, state, (uint8_t)byte);
    }
    return n;
}

/* 0: the text may not end in a state, 1: it may, 2: it must; OVER_LIMIT. */
int rx_automaton_ending(struct automaton *a, int32_t state) {
    for (int32_t c = 0; a->accepting[state] && c < a->p.num_classes; c++) {
        int32_t to = step(a, state, a->p.byte_of[c]);
        if (to != DEAD)
            return to == OVER_LIMIT ? OVER_LIMIT : 1;
    }
    return a->accepting[state] ? 2 : 0;
}

/* The same stack in another automaton of the same program. */
static int32_t move_stack(const struct automaton *from, int32_t stack, struct automaton *to) {
    int64_t depth = 0;
    for (int32_t k = stack; k; k = from->stacks[k][1])
        depth++;
    int32_t *backs = malloc((size_t)(depth + 1) * sizeof *backs), moved = 0;
    if (!backs)
        return to->failed = 1, 0;
    for (int32_t k = stack, i = 0; k; k = from->stacks[k][1])
        backs[i++] = from->stacks[k][0];
    while (depth-- > 0)
        moved = push(to, backs[depth], moved);
    free(backs);
    return moved;
}

/* A state of one automaton as a state of another of the same program; OVER_LIMIT. */
int32_t rx_automaton_move(const struct automaton *from, int32_t state, struct automaton *to) {
    to->num_found = 0;
    for (int64_t i = from->set_offset[state]; i < from->set_offset[state + 1]; i++) {
        int64_t place = from->places[i] & ~(int64_t)0xffffffff;
        place |= (uint32_t)move_stack(from, (int32_t)from->places[i], to);
        if (grow(to, (void **)&to->found, &to->max_found, to->num_found + 1, sizeof *to->found))
            to->found[to->num_found++] = place;
    }
    int32_t moved = intern_found(to);
    to->num_found = to->failed = 0;
    return moved;
}

/* The state that every printable character but quote and backslash leads to, DEAD if they differ or one is refused. */
static int32_t after_plain(struct automaton *a, int32_t state) {
    static const struct {
        uint8_t leads[2], second[2], others;
    } sequences[] = {{{0xc2, 0xdf}, {0x80, 0xbf}, 0}, {{0xe0, 0xe0}, {0xa0, 0xbf}, 1}, {{0xe1, 0xec}, {0x80, 0xbf}, 1},
                     {{0xed, 0xed}, {0x80, 0x9f}, 1}, {{0xee, 0xef}, {0x80, 0xbf}, 1}, {{0xf0, 0xf0}, {0x90, 0xbf}, 2},
                     {{0xf1, 0xf3}, {0x80, 0xbf}, 2}, {{0xf4, 0xf4}, {0x80, 0x8f}, 2}};
    int32_t to = step(a, state, ' ');
    for (int b = ' '; b < 0x80 && to >= 0; b++)
        if (b != '"' && b != '\\' && step(a, state, (uint8_t)b) != to)
            return DEAD;
    for (size_t i = 0; i < sizeof sequences / sizeof *sequences && to >= 0; i++)
        for (int lead = sequences[i].leads[0]; lead <= sequences[i].leads[1]; lead++) {
            int32_t middle = step(a, state, (uint8_t)lead);
            if (middle < 0)
                return DEAD;
            if (lead > sequences[i].leads[0] && middle == step(a, state, (uint8_t)(lead - 1)))
                continue; /* as the lead before */
            for (int b = sequences[i].second[0]; b <= sequences[i].second[1]; b++) {
                int32_t last = step(a, middle, (uint8_t)b);
                for (int more = 0; more < sequences[i].others; more++) {
                    int32_t at = last;
                    if (at < 0)
                        return DEAD;
                    last = step(a, at, 0x80);
                    for (int c = 0x81; c < 0xc0; c++)
                        if (step(a, at, (uint8_t)c) != last)
                            return DEAD;
                }
                if (last != to)
                    return DEAD;
            }
        }
    return to;
}

/* Whether a state takes no plain character at all. */
static int closed(struct automaton *a, int32_t state) {
    for (int b = ' '; b < 0xf5; b++)
        if (b != '"' && b != '\\' && (b < 0x80 || b > 0xc1) && step(a, state, (uint8_t)b) != DEAD)
            return 0;
    return 1;
}

/* How many plain characters, and no more, a state takes whatever they are; from MAX_PLAIN on: that many or more.
 * 0 also if it depends on the characters. */
static int plain_depth(struct automaton *a, int32_t state) {
    int32_t path[MAX_PLAIN], n = 0, depth = -1;
    while (n < MAX_PLAIN && (depth = a->plain_depth[state]) < 0) {
        path[n++] = state;
        int32_t to = a->plain_next[state]; /* kept: the states ahead are looked at again from the next one */
        if (to == UNKNOWN) {
            to = after_plain(a, state);
            a->plain_next[state] = to;
        }
        if (to < 0 || to == state) {
            depth = to < 0 ? 0 : ENDLESS;
            int counts = to >= 0 || closed(a, state);
            while (n-- > 0) {
                a->plain_depth[path[n]] = (int8_t)depth;
                depth = counts && depth < MAX_PLAIN ? depth + 1 : depth;
            }
            return a->plain_depth[path[0]];
        }
        state = to;
    }
    if (depth < 0)
        return a->plain_depth[path[0]] = MAX_PLAIN;
    int open = !depth && !closed(a, state);
    while (n-- > 0)
        a->plain_depth[path[n]] = (int8_t)(depth = open || depth >= MAX_PLAIN ? depth : depth + 1);
    return depth;
}

static int allow(struct automaton *a, int32_t start, const struct vocabulary *v, uint32_t *out) {
    int32_t states[MAX_TOKEN_BYTES + 1];
    states[0] = start;
    for (int64_t i = 0; i < v->num_tokens;) {
        int32_t depth = v->shared[i], length = v->offset[i + 1] - v->offset[i], state = states[depth];
        const uint8_t *bytes = v->bytes + v->offset[i];
        while (depth < length) {
            int32_t to = a->next[(int64_t)state * a->p.num_classes + a->p.class_of[bytes[depth]]];
            if (to == UNKNOWN)
                to = compute_step(a, state, a->p.class_of[bytes[depth]]);
            if (to < 0) {
                if (to == OVER_LIMIT)
                    return OVER_LIMIT;
                break;
            }
            states[++depth] = state = to;
        }
        if (depth == length) {
            for (int32_t j = v->id_offset[i]; j < v->id_offset[i + 1]; j++)
                out[v->ids[j] >> 5] |= 1u << (v->ids[j] & 31);
            i++;
        } else if (!depth) {
            i = v->first[bytes[0] + 1];
        } else {
            for (i++; i < v->num_tokens && v->shared[i] > depth; i++)
                ;
        }
    }
    return 0;
}

/* The tokens that may follow a state, as bits of out [words]; 0 or OVER_LIMIT. */
int rx_automaton_mask(struct automaton *a, int32_t state, const struct masked *v, uint32_t *out) {
    int depth = plain_depth(a, state);
    if (!depth) {
        memset(out, 0, (size_t)v->words * sizeof *out);
        return allow(a, state, &v->all, out);
    }
    memcpy(out, v->plain + (depth < MAX_PLAIN ? depth : MAX_PLAIN) * v->words, (size_t)v->words * sizeof *out);
    return allow(a, state, &v->others, out);
}
