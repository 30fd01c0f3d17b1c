/* A byte automaton with a stack, made deterministic as far as it is walked.
 *
 * The program is a nondeterministic automaton whose states read bytes, move on, or call another state and come back to
 * a third. A place is a state with the ways back that may lie below it; a deterministic state is the sorted set of places
 * that read a byte or end the text. Ways back are shared: a stack is the set of its tops, each a state to come back to
 * with the stack below, and places in one state are one place with the tops of all. So what can be read in many ways, as
 * alternatives that call themselves, stays small at any depth. Sets and stacks are interned, so each is a small number
 * and every transition is computed once. radixlm/grammar/automaton/lazy.py does it in Python, stack by stack, and is the oracle.
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
#define MIXED (-4)           /* what follows depends on the character */
#define NO_STACK 0           /* the stack whose only top is BOTTOM */
#define BOTTOM ((int64_t)-1) /* nothing to come back to; sorted before every other top */
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

/* A vocabulary in three: plain tokens are whole printable characters without quotes or backslashes, at most MAX_PLAIN; some of
 * them are marked, they have ASCII punctuation. */
struct masked {
    struct vocabulary all, others, marked;
    const uint32_t *plain, *unmarked; /* [MAX_PLAIN + 1, words] plain tokens of at most so many characters; those not marked */
    int64_t words;
};

struct list {
    int64_t *items, num, max;
};

struct sets { /* distinct sorted lists of numbers, each known by its own number */
    struct list items, offset; /* those of set i lie at offset[i] .. offset[i + 1] */
    int32_t *slots; /* open addressing: numbers + 1, 0 is free */
    int64_t num, size;
};

struct state {
    uint8_t accepting;
    uint8_t marks;  /* punctuation goes elsewhere than other plain characters, here or further on */
    int8_t depth;   /* see plain_depth; UNKNOWN */
    int32_t plain_next; /* see after_plain; UNKNOWN */
};

struct automaton {
    struct program p;
    uint8_t *live;
    struct sets stacks; /* of tops: state to come back to << 32 | the stack below */
    struct sets sets;   /* of places: state << 32 | stack */
    struct state *states;
    int32_t *next; /* [states, num_classes] */
    int64_t max_states, limit;
    struct list found, todo, tops; /* scratch of a closure */
    struct list visited;
    int32_t *seen; /* open addressing over `visited`, cleared by undoing */
    int64_t seen_size;
    int failed;
};

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Room for `more` items; 0 if there is no memory. */
static int reserve(struct list *l, int64_t more) {
    if (l->num + more <= l->max)
        return 1;
    int64_t max = l->max * 2 > l->num + more ? l->max * 2 : l->num + more + 16;
    int64_t *items = realloc(l->items, (size_t)max * sizeof *items);
    if (!items)
        return 0;
    l->items = items;
    l->max = max;
    return 1;
}

static void append(struct automaton *a, struct list *l, int64_t item) {
    if (reserve(l, 1))
        l->items[l->num++] = item;
    else
        a->failed = 1;
}

static int by_value(const void *x, const void *y) {
    int64_t a = *(const int64_t *)x, b = *(const int64_t *)y;
    return (a > b) - (a < b);
}

static void sort(struct list *l) {
    if (l->num > 1)
        qsort(l->items, (size_t)l->num, sizeof *l->items, by_value);
}

static uint64_t hash(const int64_t *items, int64_t n) {
    uint64_t h = (uint64_t)n;
    for (int64_t i = 0; i < n; i++)
        h = mix(h ^ (uint64_t)items[i]);
    return h;
}

static const int64_t *items_of(const struct sets *s, int64_t set, int64_t *n) {
    *n = s->offset.items[set + 1] - s->offset.items[set];
    return s->items.items + s->offset.items[set];
}

static int rehash(struct sets *s) {
    int64_t size = s->size ? s->size * 2 : 256, n;
    int32_t *slots = calloc((size_t)size, sizeof *slots);
    if (!slots)
        return 0;
    for (int64_t i = 0; i < s->num; i++) {
        const int64_t *items = items_of(s, i, &n);
        uint64_t at = hash(items, n);
        while (slots[at & (uint64_t)(size - 1)])
            at++;
        slots[at & (uint64_t)(size - 1)] = (int32_t)i + 1;
    }
    free(s->slots);
    s->slots = slots;
    s->size = size;
    return 1;
}

/* The number of a sorted list; a new one, s->num before, if it is met for the first time. OVER_LIMIT: no memory. */
static int32_t intern(struct sets *s, const struct list *l) {
    if (s->num * 2 >= s->size && !rehash(s))
        return OVER_LIMIT;
    uint64_t at = hash(l->items, l->num), mask = (uint64_t)(s->size - 1);
    for (; s->slots[at & mask]; at++) {
        int32_t i = s->slots[at & mask] - 1;
        int64_t n;
        const int64_t *items = items_of(s, i, &n);
        if (n == l->num && !memcmp(items, l->items, (size_t)n * sizeof *items))
            return i;
    }
    if (!reserve(&s->items, l->num) || !reserve(&s->offset, 2))
        return OVER_LIMIT;
    memcpy(s->items.items + s->items.num, l->items, (size_t)l->num * sizeof *l->items);
    s->offset.items[0] = 0;
    s->items.num += l->num;
    s->offset.items[++s->offset.num] = s->items.num;
    s->slots[at & mask] = (int32_t)s->num + 1;
    return (int32_t)s->num++;
}

/* The stack with these tops, which are overwritten. */
static int32_t stack_of(struct automaton *a, struct list *tops) {
    int64_t kept = 0;
    sort(tops);
    for (int64_t i = 0; i < tops->num; i++)
        if (!i || tops->items[i] != tops->items[i - 1])
            tops->items[kept++] = tops->items[i];
    tops->num = kept;
    int32_t stack = intern(&a->stacks, tops);
    tops->num = 0;
    a->failed |= stack < 0;
    return stack < 0 ? NO_STACK : stack;
}

static int64_t pair(int32_t high, int32_t low) { return (int64_t)high << 32 | (uint32_t)low; }

static int32_t push(struct automaton *a, int32_t back, int32_t rest) {
    append(a, &a->tops, pair(back, rest));
    return stack_of(a, &a->tops);
}

/* Whether the text may end where a piece of program on this stack ends. */
static int may_be_empty(const struct automaton *a, int32_t stack) {
    int64_t n;
    return items_of(&a->stacks, stack, &n)[0] == BOTTOM;
}

/* Whether a place is new to this closure. */
static int visit(struct automaton *a, int64_t place) {
    if (a->visited.num * 2 >= a->seen_size) {
        int64_t size = a->seen_size ? a->seen_size * 2 : 64;
        int32_t *seen = calloc((size_t)size, sizeof *seen);
        if (!seen)
            return a->failed = 1, 0;
        for (int64_t i = 0; i < a->visited.num; i++) {
            uint64_t at = mix((uint64_t)a->visited.items[i]);
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
        if (a->visited.items[a->seen[at & mask] - 1] == place)
            return 0;
    append(a, &a->visited, place);
    a->seen[at & mask] = (int32_t)a->visited.num;
    return !a->failed;
}

static void forget_visits(struct automaton *a) {
    if (a->visited.num * 8 > a->seen_size) {
        memset(a->seen, 0, (size_t)a->seen_size * sizeof *a->seen);
    } else {
        uint64_t mask = (uint64_t)(a->seen_size - 1);
        for (int64_t i = a->visited.num; i-- > 0;) { /* last first, so that no search crosses a gap */
            uint64_t at = mix((uint64_t)a->visited.items[i]);
            while (a->seen[at & mask] != i + 1)
                at++;
            a->seen[at & mask] = 0;
        }
    }
    a->visited.num = a->found.num = a->todo.num = 0;
}

static void add_todo(struct automaton *a, int32_t state, int32_t stack) {
    if (a->live[state])
        append(a, &a->todo, pair(state, stack));
}

/* All places that `state` with `stack` reaches without reading, into `found`. */
static void close_over(struct automaton *a, int32_t state, int32_t stack) {
    const struct program *p = &a->p;
    add_todo(a, state, stack);
    while (a->todo.num && !a->failed) {
        int64_t place = a->todo.items[--a->todo.num], n;
        int32_t s = (int32_t)(place >> 32), k = (int32_t)place;
        if (!visit(a, place))
            continue;
        a->failed |= a->visited.num > MAX_PLACES * 4;
        if (p->range_offset[s] < p->range_offset[s + 1])
            append(a, &a->found, place);
        else if (p->is_end[s] && may_be_empty(a, k))
            append(a, &a->found, pair(s, NO_STACK));
        const int64_t *tops = items_of(&a->stacks, k, &n);
        for (int64_t i = tops[0] == BOTTOM; p->is_end[s] && i < n; i++)
            add_todo(a, (int32_t)(tops[i] >> 32), (int32_t)tops[i]);
        for (int32_t i = p->move_offset[s]; i < p->move_offset[s + 1]; i++) {
            int32_t back = p->move_back[i];
            if (back < 0)
                add_todo(a, p->move_to[i], k);
            else if (a->live[back] && a->live[p->move_to[i]])
                add_todo(a, p->move_to[i], push(a, back, k));
        }
    }
}

/* Places of one state become one, with the tops of all. */
static void join_found(struct automaton *a) {
    struct list *f = &a->found;
    int64_t kept = 0, n;
    sort(f);
    for (int64_t i = 0, next; i < f->num; i = next) {
        for (next = i + 1; next < f->num && f->items[next] >> 32 == f->items[i] >> 32; next++)
            ;
        int32_t stack = (int32_t)f->items[i];
        if (next > i + 1) {
            for (int64_t j = i; j < next; j++) {
                const int64_t *tops = items_of(&a->stacks, (int32_t)f->items[j], &n);
                while (n-- > 0)
                    append(a, &a->tops, *tops++);
            }
            stack = stack_of(a, &a->tops);
        }
        f->items[kept++] = pair((int32_t)(f->items[i] >> 32), stack);
    }
    f->num = kept;
}

static int room_for_state(struct automaton *a) {
    if (a->sets.num < a->max_states)
        return 1;
    int64_t max = a->max_states ? a->max_states * 2 : 64;
    void *states = realloc(a->states, (size_t)max * sizeof *a->states);
    if (states)
        a->states = states;
    void *next = realloc(a->next, (size_t)(max * a->p.num_classes) * sizeof *a->next);
    if (next)
        a->next = next;
    if (!states || !next)
        return 0;
    a->max_states = max;
    return 1;
}

/* The state of the places in `found`: an old one, a new one, DEAD or OVER_LIMIT. */
static int32_t intern_found(struct automaton *a) {
    join_found(a);
    int64_t known = a->sets.num;
    if (!a->found.num && !a->failed)
        return DEAD;
    if (a->failed || known >= a->limit || a->found.num > MAX_PLACES || !room_for_state(a))
        return OVER_LIMIT;
    int32_t set = intern(&a->sets, &a->found);
    if (set < known)
        return set;
    struct state *s = &a->states[set];
    *s = (struct state){.depth = UNKNOWN, .plain_next = UNKNOWN};
    for (int64_t i = 0; i < a->found.num; i++) {
        int64_t place = a->found.items[i];
        s->accepting |= a->p.is_end[place >> 32] && may_be_empty(a, (int32_t)place);
    }
    for (int32_t c = 0; c < a->p.num_classes; c++)
        a->next[(int64_t)set * a->p.num_classes + c] = UNKNOWN;
    return set;
}

static int32_t compute_step(struct automaton *a, int32_t state, int32_t class) {
    const struct program *p = &a->p;
    uint8_t byte = p->byte_of[class];
    int64_t n;
    const int64_t *places = items_of(&a->sets, state, &n);
    for (int64_t i = 0; i < n; i++) {
        int32_t s = (int32_t)(places[i] >> 32), k = (int32_t)places[i];
        for (int32_t r = p->range_offset[s]; r < p->range_offset[s + 1]; r++)
            if (p->low[r] <= byte && byte <= p->high[r])
                close_over(a, p->target[r], k);
    }
    int32_t to = intern_found(a);
    forget_visits(a);
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
    struct sets *sets[] = {&a->stacks, &a->sets};
    for (int i = 0; i < 2; i++)
        free(sets[i]->items.items), free(sets[i]->offset.items), free(sets[i]->slots);
    free(a->live), free(a->states), free(a->next), free(a->found.items), free(a->todo.items), free(a->tops.items);
    free(a->visited.items), free(a->seen), free(a);
}

/* At most `limit` states. NULL: no memory. */
struct automaton *rx_automaton_new(const struct program *program, int64_t limit) {
    struct automaton *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->p = *program;
    a->limit = limit;
    a->live = calloc((size_t)program->num_states + 1, 1);
    append(a, &a->tops, BOTTOM);
    if (!a->live || a->failed || stack_of(a, &a->tops) != NO_STACK || a->failed) {
        rx_automaton_free(a);
        return NULL;
    }
    find_live(a);
    return a;
}

/* The first state; DEAD if no text matches. */
int32_t rx_automaton_start(struct automaton *a) {
    close_over(a, a->p.start, NO_STACK);
    int32_t state = intern_found(a);
    forget_visits(a);
    return state;
}

int32_t rx_automaton_run(struct automaton *a, int32_t state, const uint8_t *bytes, int64_t n) {
    for (int64_t i = 0; i < n && state >= 0; i++)
        state = step(a, state, bytes[i]);
    return state;
}

int64_t rx_automaton_states(const struct automaton *a) { return a->sets.num; }

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
    while (n < max && !a->states[state].accepting) {
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
    for (int32_t c = 0; a->states[state].accepting && c < a->p.num_classes; c++) {
        int32_t to = step(a, state, a->p.byte_of[c]);
        if (to != DEAD)
            return to == OVER_LIMIT ? OVER_LIMIT : 1;
    }
    return a->states[state].accepting ? 2 : 0;
}

/* The stacks of one automaton that are wanted (map[k] is UNKNOWN) as stacks of another of the same program, into map. */
static void move_stacks(const struct automaton *from, struct automaton *to, int32_t *map) {
    int64_t n;
    for (int64_t k = from->stacks.num - 1; k > 0; k--) { /* what lies below is older */
        const int64_t *tops = items_of(&from->stacks, k, &n);
        for (int64_t i = 0; map[k] == UNKNOWN && i < n; i++)
            if (tops[i] != BOTTOM && (int32_t)tops[i] != NO_STACK)
                map[(int32_t)tops[i]] = UNKNOWN;
    }
    for (int64_t k = 1; k < from->stacks.num; k++) {
        const int64_t *tops = items_of(&from->stacks, k, &n);
        for (int64_t i = 0; map[k] == UNKNOWN && i < n; i++)
            append(to, &to->tops, tops[i] == BOTTOM ? BOTTOM : pair((int32_t)(tops[i] >> 32), map[(int32_t)tops[i]]));
        if (map[k] == UNKNOWN)
            map[k] = stack_of(to, &to->tops);
    }
}

/* States of one automaton become, in place, states of another of the same program; 0 or OVER_LIMIT. */
int rx_automaton_move(const struct automaton *from, struct automaton *to, int32_t *states, int64_t n) {
    int32_t *map = calloc((size_t)from->stacks.num, sizeof *map);
    int64_t num;
    if (!map)
        return OVER_LIMIT;
    for (int64_t i = 0; i < n; i++) {
        const int64_t *places = items_of(&from->sets, states[i], &num);
        for (int64_t j = 0; j < num; j++)
            if ((int32_t)places[j] != NO_STACK)
                map[(int32_t)places[j]] = UNKNOWN;
    }
    move_stacks(from, to, map);
    int moved = 0;
    for (int64_t i = 0; i < n && moved >= 0; i++) {
        const int64_t *places = items_of(&from->sets, states[i], &num);
        for (int64_t j = 0; j < num; j++)
            append(to, &to->found, pair((int32_t)(places[j] >> 32), map[(int32_t)places[j]]));
        moved = states[i] = intern_found(to);
        to->found.num = 0;
    }
    free(map);
    to->failed = 0;
    return moved < 0 ? moved : 0;
}

static int is_mark(int b) { /* ASCII punctuation but quote and backslash */
    return (b > ' ' && b < '0') || (b > '9' && b < 'A') || (b > 'Z' && b < 'a') || (b > 'z' && b < 0x7f);
}

/* The state that every character of several bytes leads to, if it is `to`, else MIXED. */
static int32_t after_wide(struct automaton *a, int32_t state, int32_t to) {
    static const struct {
        uint8_t leads[2], second[2], others;
    } sequences[] = {{{0xc2, 0xdf}, {0x80, 0xbf}, 0}, {{0xe0, 0xe0}, {0xa0, 0xbf}, 1}, {{0xe1, 0xec}, {0x80, 0xbf}, 1},
                     {{0xed, 0xed}, {0x80, 0x9f}, 1}, {{0xee, 0xef}, {0x80, 0xbf}, 1}, {{0xf0, 0xf0}, {0x90, 0xbf}, 2},
                     {{0xf1, 0xf3}, {0x80, 0xbf}, 2}, {{0xf4, 0xf4}, {0x80, 0x8f}, 2}};
    for (size_t i = 0; i < sizeof sequences / sizeof *sequences; i++)
        for (int lead = sequences[i].leads[0]; lead <= sequences[i].leads[1]; lead++) {
            int32_t middle = step(a, state, (uint8_t)lead);
            if (middle < 0 || to < 0) {
                if (middle != to)
                    return MIXED;
                continue;
            }
            if (lead > sequences[i].leads[0] && middle == step(a, state, (uint8_t)(lead - 1)))
                continue; /* as the lead before */
            for (int b = sequences[i].second[0]; b <= sequences[i].second[1]; b++) {
                int32_t last = step(a, middle, (uint8_t)b);
                for (int more = 0; more < sequences[i].others; more++) {
                    int32_t at = last;
                    if (at < 0)
                        return MIXED;
                    last = step(a, at, 0x80);
                    for (int c = 0x81; c < 0xc0; c++)
                        if (step(a, at, (uint8_t)c) != last)
                            return MIXED;
                }
                if (last != to)
                    return MIXED;
            }
        }
    return to;
}

/* The state, or DEAD, that every printable character leads to, marks and quote and backslash left out; MIXED if they differ.
 * Notes whether a mark leads elsewhere. */
static int32_t after_plain(struct automaton *a, int32_t state) {
    int32_t to = step(a, state, ' ');
    uint8_t marks = 0;
    for (int b = ' '; b < 0x80; b++) {
        if (b == '"' || b == '\\' || step(a, state, (uint8_t)b) == to)
            continue;
        if (!is_mark(b))
            return MIXED;
        marks = 1;
    }
    a->states[state].marks = marks;
    return to == OVER_LIMIT ? MIXED : after_wide(a, state, to);
}

/* How many plain characters, and no more, a state takes whatever they are; from MAX_PLAIN on: that many or more. MIXED if
 * that depends on them, marks left out if `marks` is set. */
static int plain_depth(struct automaton *a, int32_t state) {
    int32_t path[MAX_PLAIN], n = 0, depth = UNKNOWN, first = state, marks = 0;
    while (n < MAX_PLAIN && (depth = a->states[state].depth) == UNKNOWN) {
        if (a->states[state].plain_next == UNKNOWN) { /* kept: the states ahead are looked at again from the next one */
            int32_t next = after_plain(a, state);
            a->states[state].plain_next = next;
        }
        int32_t to = a->states[state].plain_next;
        if (to < 0 || to == state) {
            depth = a->states[state].depth = (int8_t)(to == MIXED ? MIXED : to == DEAD ? 0 : ENDLESS);
            break;
        }
        path[n++] = state;
        state = to;
    }
    if (depth == UNKNOWN) { /* deep: what the first ones say is enough */
        while (n-- > 0)
            marks |= a->states[path[n]].marks;
        a->states[first].marks = (uint8_t)marks;
        return a->states[first].depth = MAX_PLAIN;
    }
    marks = a->states[state].marks;
    while (n-- > 0) {
        a->states[path[n]].marks = (uint8_t)(marks |= a->states[path[n]].marks);
        a->states[path[n]].depth = (int8_t)(depth = depth == MIXED || depth >= MAX_PLAIN ? depth : depth + 1);
    }
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
    int depth = plain_depth(a, state), marks = a->states[state].marks;
    if (depth == MIXED) {
        memset(out, 0, (size_t)v->words * sizeof *out);
        return allow(a, state, &v->all, out);
    }
    int64_t row = depth < MAX_PLAIN ? depth : MAX_PLAIN;
    memcpy(out, (marks ? v->unmarked : v->plain) + row * v->words, (size_t)v->words * sizeof *out);
    int over = marks ? allow(a, state, &v->marked, out) : 0;
    return over ? over : allow(a, state, &v->others, out);
}
