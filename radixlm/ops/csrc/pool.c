/* The thread pool: one parallel region at a time, a share of the tasks per thread, leftovers taken by whoever is
 * free.
 *
 * A waiting thread spins for a short time, because regions follow each other within microseconds, and then sleeps,
 * so that an idle engine uses no CPU. The caller never waits for a thread that has not woken up yet: it takes over
 * that thread's tasks. A second caller at the same time, or a child after fork, computes alone.
 */
#include "radix.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#define MAX_THREADS 256
#define SPINS_WORKER 20000 /* about 200 us */
#define SPINS_CALLER 5000

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

struct share {
    _Alignas(64) atomic_long next;
    long end;
};

static struct {
    pthread_mutex_t region; /* held by the caller of the running region */
    pthread_mutex_t sleep;
    pthread_cond_t wake;
    int threads, workers; /* wanted, the caller included; started */
    task_fn fn;
    const void *args;
    int shares;
    _Alignas(64) atomic_long open; /* number of the running region, 0: none */
    _Alignas(64) atomic_int active; /* workers that may look at the region */
    _Alignas(64) atomic_int sleepers;
    long regions;
    struct share share[MAX_THREADS];
} pool = {.region = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER,
          .threads = 1};

static void work(int self) {
    for (int i = 0; i < pool.shares; i++) {
        struct share *share = &pool.share[(self + i) % pool.shares];
        while (atomic_load_explicit(&share->next, memory_order_relaxed) < share->end) {
            long index = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed);
            if (index >= share->end) break;
            pool.fn(pool.args, index);
        }
    }
}

static void sleep_until_open(void) {
    pthread_mutex_lock(&pool.sleep);
    atomic_fetch_add(&pool.sleepers, 1);
    while (!atomic_load(&pool.open)) pthread_cond_wait(&pool.wake, &pool.sleep);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.sleep);
}

static void *worker(void *number) {
    long seen = 0;
    for (int spins = 0;; spins++) {
        long open = atomic_load_explicit(&pool.open, memory_order_relaxed);
        if (open && open != seen) {
            atomic_fetch_add(&pool.active, 1);
            seen = atomic_load(&pool.open); /* the region cannot end between here and the subtraction */
            if (seen && (int)(long)number < pool.shares) work((int)(long)number);
            atomic_fetch_sub(&pool.active, 1);
            spins = 0;
        } else if (spins > SPINS_WORKER) {
            if (!open) sleep_until_open();
            spins = 0;
        }
        PAUSE();
    }
    return NULL;
}

static void forget_workers(void) { /* in the child of a fork, where only the caller lives */
    pthread_mutex_init(&pool.region, NULL);
    pthread_mutex_init(&pool.sleep, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.workers = 0;
    pool.open = 0;
    pool.active = 0;
    pool.sleepers = 0;
}

static void start_workers(void) {
    static int registered;
    if (!registered) registered = !pthread_atfork(NULL, NULL, forget_workers);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    while (pool.workers < pool.threads - 1) {
        pthread_t thread;
        if (pthread_create(&thread, &detached, worker, (void *)(long)(pool.workers + 1))) break;
        pool.workers++;
    }
    pthread_attr_destroy(&detached);
}

static void run_region(task_fn fn, const void *args, long count) {
    if (pool.workers < pool.threads - 1) start_workers();
    int shares = pool.threads < count ? pool.threads : (int)count;
    pool.fn = fn;
    pool.args = args;
    pool.shares = shares;
    for (int i = 0; i < shares; i++) {
        atomic_store_explicit(&pool.share[i].next, count * i / shares, memory_order_relaxed);
        pool.share[i].end = count * (i + 1) / shares;
    }
    atomic_store(&pool.open, ++pool.regions);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep);
    }
    work(0);
    atomic_store(&pool.open, 0);
    for (int spins = 0; atomic_load(&pool.active); spins++) {
        PAUSE();
        if (spins > SPINS_CALLER) sched_yield(); /* the core of a worker was taken away: let it have this one */
    }
}

void rx_parallel(task_fn fn, const void *args, long count) {
    if (count > 1 && pool.threads > 1 && !pthread_mutex_trylock(&pool.region)) {
        run_region(fn, args, count);
        pthread_mutex_unlock(&pool.region);
        return;
    }
    for (long i = 0; i < count; i++) fn(args, i);
}

void rx_set_threads(int threads) {
    pthread_mutex_lock(&pool.region);
    pool.threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    pthread_mutex_unlock(&pool.region);
}

int rx_threads(void) { return pool.threads; }

struct scratch_memory {
    void *memory[SCRATCH_USES];
    long capacity[SCRATCH_USES];
};
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void free_scratch(void *value) {
    struct scratch_memory *own = value;
    for (int use = 0; use < SCRATCH_USES; use++) free(own->memory[use]);
    free(own);
}

static void make_scratch_key(void) { pthread_key_create(&scratch_key, free_scratch); }

static struct scratch_memory *own_scratch(void) {
    static _Thread_local struct scratch_memory *own;
    if (!own) {
        pthread_once(&scratch_once, make_scratch_key);
        own = calloc(1, sizeof *own);
        if (!own) abort(); /* without these few bytes the process is beyond help */
        pthread_setspecific(scratch_key, own);
    }
    return own;
}

void *rx_scratch(enum scratch use, long size) {
    struct scratch_memory *own = own_scratch();
    if (size > own->capacity[use]) {
        free(own->memory[use]);
        own->capacity[use] = (size + 65535) / 65536 * 65536;
        own->memory[use] = aligned_alloc(64, own->capacity[use]);
        if (!own->memory[use]) abort();
    }
    return own->memory[use];
}
