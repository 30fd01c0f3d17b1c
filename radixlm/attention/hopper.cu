// Attention of long chunks for Hopper cards: one warpgroup fetches keys and values, two multiply.
//
// Each multiplying warpgroup owns 64 rows (tokens times the heads of a group) of a tile. While the tensor cores work for one of
// them the other exponentiates, and within one the scores of the next keys run beside the values of the last ones (the
// schedule of FlashAttention-3, Shah et al., 2024). Keys are gathered cell by cell, so any page size is served; where 32 of
// them lie in a row, as those of a prompt mostly do, the copy engine fetches them at once. A program takes its next item when it
// has fetched the last one, those of prompts begun before first (they are the longest mostly), so that all end together.
//
// Compiled at run time by hopper.py, which also says what the arguments are. Macros: KV_HEADS, GROUP (query heads per KV head),
// HALF (1: float16, 0: bfloat16).

constexpr int DIM = 128, ROWS = 128, BLOCK = 128, STAGES = 2, FIELDS = 16;
constexpr int TILE_BYTES = BLOCK * DIM * 2, HALF_BYTES = BLOCK * 128;  // a tile is two halves of 64 dimensions, 128 bytes a row
constexpr int QUERY_HALF_BYTES = 64 * 128;                             // the same for the 64 rows of one warpgroup
constexpr float LOWEST = -1.0e30f;  // finite, so that its difference to a hidden score of -inf is no NaN
constexpr float GROWTH = 8;         // sums are rescaled where a score is 2^GROWTH times what weights are relative to: almost never
#define NEVER __int_as_float(0xff800000)  // minus infinity

struct Barriers {
    u64 query_full, query_empty;
    u64 key_full[STAGES], key_empty[STAGES], value_full[STAGES], value_empty[STAGES];
};

struct Item {
    int index, slot, first_token, tokens, position, low, high, splits, part, first;
    __device__ inline int head() const { return index % KV_HEADS; }
};

// What the fetching warpgroup tells: the item to compute (index -1: none is left), and to itself, which comes next.
struct Claims {
    Item item;
    int next[2];
};

struct Arguments {
    const u16 *q, *keys, *values;
    u16 *out;
    const int *table;
    u64 table_stride;
    const int *records, *count;
    float *sums, *stats;
    int *counters, *taken;
    float scale;
    int page_size, window;
};

// Arrives when all copies that this thread has started are complete.
__device__ inline void barrier_arrive_copied(u64 *barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ inline void copy16(u32 to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ inline void fence_for_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline int load_fresh(const int *pointer) {  // past the L1 cache
    int value;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(value) : "l"(pointer) : "memory");
    return value;
}

__device__ inline Item load_item(const Arguments &a, int index) {
    const int *record = a.records + (u64)(index / KV_HEADS) * FIELDS;
    Item item;
    item.index = index;
    item.slot = load_fresh(record), item.first_token = load_fresh(record + 1), item.tokens = load_fresh(record + 2);
    item.position = load_fresh(record + 3), item.low = load_fresh(record + 4), item.high = load_fresh(record + 5);
    item.splits = load_fresh(record + 6), item.part = load_fresh(record + 7), item.first = load_fresh(record + 8);
    return item;
}

// At least one: of a split without keys all are hidden.
__device__ inline int num_blocks(const Item &item) { return max(1, (item.high - item.low + BLOCK - 1) / BLOCK); }

// The byte of 16-byte column `column` of a row within a half, in the 128-byte swizzle that the tensor cores read.
__device__ inline u32 swizzled(int row, int column) { return row * 128 + ((column ^ (row & 7)) << 4); }

// ---- fetching

__device__ inline void fetch_queries(const Arguments &a, const Item &item, int head, u32 to, int thread) {
    const int column = thread & 15;
#pragma unroll 4
    for (int row = thread >> 4; row < ROWS; row += 8) {
        const int token = item.first_token + min(row / GROUP, item.tokens - 1);
        const u16 *from = a.q + (((u64)token * KV_HEADS + head) * GROUP + row % GROUP) * DIM + column * 8;
        copy16(to + (row >> 6) * 2 * QUERY_HALF_BYTES + (column >> 3) * QUERY_HALF_BYTES + swizzled(row & 63, column & 7), from);
    }
}

// One tile: each warp fetches 32 keys. `cell` is that of the lane's key.
struct Fetcher {
    u32 columns[4];  // the lane's places in the first eight rows of its warp
    u32 first_row;
    int lane;

    __device__ inline Fetcher(int thread) : first_row((thread >> 5) * 32 * 128), lane(thread & 31) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            columns[i] = first_row + (lane >> 3 & 1) * HALF_BYTES + swizzled(2 * i + (lane >> 4), lane & 7) - i * 256;
    }

    __device__ inline void fetch(const u16 *from, const TensorMap *map, int cell, int head, u32 to, u64 *full) const {
        if (__all_sync(0xffffffff, cell == __shfl_sync(0xffffffff, cell, 0) + lane))
            fetch_run(map, cell, head, to + first_row, full);
        else
            gather(from, cell, head, to, full);
    }

    __device__ inline void fetch_run(const TensorMap *map, int cell, int head, u32 to, u64 *full) const {
        if (lane) return barrier_arrive(full);
        barrier_expect(full, 8192);
#pragma unroll
        for (int half = 0; half < 2; half++)
            asm volatile(
                "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
                    to + half * HALF_BYTES),
                "l"(map), "r"(half * 64), "r"(head), "r"(cell), "r"(shared_address(full)) : "memory");
    }

    // Two keys at a time. Eight copies know where they come from before the first of them starts.
    __device__ inline void gather(const u16 *from, int cell, int head, u32 to, u64 *full) const {
        const u16 *base = from + head * DIM + (lane & 15) * 8;
#pragma unroll
        for (int first = 0; first < 16; first += 8) {
            int where[8];
#pragma unroll
            for (int i = 0; i < 8; i++) where[i] = __shfl_sync(0xffffffff, cell, 2 * (first + i) + (lane >> 4));
#pragma unroll
            for (int i = 0; i < 8; i++) copy16(to + columns[i & 3] + (first + i) * 256, base + (u64)where[i] * (KV_HEADS * DIM));
        }
        barrier_arrive_copied(full);
    }
};

// Where a key lies. The page is on its way when this returns, so that nothing waits for it before it is used.
struct Place {
    int page, inside;
};

__device__ inline Place find(const Arguments &a, const Item &item, int key) {
    const int place = min(key, item.high - 1);  // keys past the last repeat it; their scores are hidden
    const int page = a.page_size == 1 ? place : place / a.page_size;
    return {load_fresh(a.table + (u64)item.slot * a.table_stride + page), place - page * a.page_size};
}

__device__ inline void fetchers_sync() { asm volatile("bar.sync 5, 128;" ::: "memory"); }

__device__ inline void fetch_all(
    const Arguments &a, const TensorMap *key_map, const TensorMap *value_map, int total, u32 tiles, Barriers *barriers, Claims *claims, int thread) {
    const u32 queries = tiles, keys = tiles + TILE_BYTES, values = keys + STAGES * TILE_BYTES;
    const Fetcher fetcher(thread);
    u32 turn = 0, round = 0;
    for (int index = blockIdx.x; index < total; round++) {
        const Item item = load_item(a, index);
        const int head = item.head(), blocks = num_blocks(item);
        Place next = find(a, item, item.low + (blocks - 1) * BLOCK + thread);
        barrier_wait(&barriers->query_empty, (round & 1) ^ 1);
        if (thread == 0) {
            claims->item = item;
            barrier_arrive(&barriers->query_full);
        }
        fetch_queries(a, item, head, queries, thread);
        barrier_arrive_copied(&barriers->query_full);
        int taken;
        for (int block = blocks - 1; block >= 0; block--, turn++) {
            if (block == 0 && thread == 0) taken = atomicAdd(a.taken, 1);
            const u32 stage = turn % STAGES, parity = (turn / STAGES & 1) ^ 1;
            const int cell = next.page * a.page_size + next.inside;
            if (block) next = find(a, item, item.low + (block - 1) * BLOCK + thread);
            barrier_wait(&barriers->key_empty[stage], parity);
            fetcher.fetch(a.keys, key_map, cell, head, keys + stage * TILE_BYTES, &barriers->key_full[stage]);
            barrier_wait(&barriers->value_empty[stage], parity);
            fetcher.fetch(a.values, value_map, cell, head, values + stage * TILE_BYTES, &barriers->value_full[stage]);
        }
        if (thread == 0) {
            claims->next[round & 1] = gridDim.x + taken;
            if (taken == total - 1) *a.taken = 0;  // one was asked for after each item, so this is the last of all
        }
        fetchers_sync();
        index = claims->next[round & 1];
    }
    barrier_wait(&barriers->query_empty, (round & 1) ^ 1);
    if (thread == 0) {
        claims->item.index = -1;
        barrier_arrive(&barriers->query_full);
    }
    barrier_arrive(&barriers->query_full);
}

// ---- multiplying

// d [64 rows, 128] = or += a @ b.T, both in shared memory with 64 dimensions per row.
template <int A_SHIFT, int B_SHIFT, int ADD> __device__ inline void multiply_shared(float (&d)[64], u32 a, u32 b) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n" DESCRIBE("a", "%64", "%67") DESCRIBE("b", "%65", "%68")
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" N64 "}, a, b, p, 1, 1, 0, 0; }"
        : D64(d, 0) : "r"(a), "r"(b), "n"(ADD), "n"(A_SHIFT), "n"(B_SHIFT));
}

// d [64 rows, 128] += a @ b, a in registers, b [16 keys, 128] in shared memory.
template <int B_SHIFT> __device__ inline void multiply_registers(float (&d)[64], const u32 *a, u32 b, int add) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %69, 0;\n" DESCRIBE("b", "%68", "%70")
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" N64 "}, {%64,%65,%66,%67}, b, p, 1, 1, 1; }"
        : D64(d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(add), "n"(B_SHIFT));
}

__device__ inline void multiply_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> __device__ inline void multiply_wait(float (&d)[64]) {
    asm volatile("wgmma.wait_group.sync.aligned %64;" : D64(d, 0) : "n"(LEFT) : "memory");
}

// Whatever leads to this sum comes before what follows: the assembler would gladly do it after the next wait. No sum is below 0.
__device__ inline void settle(float sum) {
    asm volatile("{ .reg .pred p; setp.lt.f32 p, %0, 0f00000000; @p nanosleep.u32 1; }" ::"f"(sum) : "memory");
}

// The low word of a descriptor of a tile read across its rows, where its halves are apart.
__device__ inline u32 across_rows(u32 address) { return uniform(HALF_BYTES >> 4 << 16 | address >> 4); }

template <int STEP = 0> __device__ inline void score(float (&scores)[64], u32 query, u32 key) {
    constexpr int half = STEP / 4, inside = STEP % 4 * 2;  // 32 bytes on, in units of 16
    multiply_shared<half * (QUERY_HALF_BYTES >> 4) + inside, half * (HALF_BYTES >> 4) + inside, (STEP > 0)>(scores, query, key);
    if constexpr (STEP < 7)
        score<STEP + 1>(scores, query, key);
    else
        multiply_commit();
}

template <int STEP = 0> __device__ inline void weigh(float (&acc)[64], const u32 (&weights)[32], u32 value, int add) {
    multiply_registers<STEP * (16 * 128 >> 4)>(acc, weights + 4 * STEP, value, add | STEP);
    if constexpr (STEP < 7)
        weigh<STEP + 1>(acc, weights, value, add);
    else
        multiply_commit();
}

__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// The running softmax of the two rows that a thread holds a quarter of.
struct Softmax {
    float peak[2], total[2];
};

// Hides what a row must not see: keys before `from[r]` and after `upto[r]`.
__device__ inline void hide(float (&scores)[64], int first_key, const int (&from)[2], const int (&upto)[2]) {
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int key = first_key + (i >> 2) * 8 + (i & 1), r = i >> 1 & 1;
        if (key < from[r] || key > upto[r]) scores[i] = NEVER;
    }
}

// Turns scores into weights, and gives the factor of everything summed up before.
__device__ inline void exponentiate(float (&scores)[64], Softmax &softmax, float scale, float (&decay)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = NEVER;
#pragma unroll
        for (int i = 0; i < 32; i++) top = fmaxf(top, scores[(i >> 1) * 4 + r * 2 + (i & 1)]);
        top = quad_max(top) * scale;
        const float peak = top > softmax.peak[r] + GROWTH ? top : softmax.peak[r];
        decay[r] = power_of_two(softmax.peak[r] - peak);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float &x = scores[(i >> 1) * 4 + r * 2 + (i & 1)];
            x = power_of_two(__fmaf_rn(x, scale, -peak));
            sum += x;
        }
        softmax.peak[r] = peak;
        softmax.total[r] = softmax.total[r] * decay[r] + sum;
    }
}

__device__ inline void pack_weights(u32 (&weights)[32], const float (&scores)[64]) {
#pragma unroll
    for (int i = 0; i < 32; i++) weights[i] = pack(scores[2 * i], scores[2 * i + 1]);
}

__device__ inline void turn_wait(int group) { asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory"); }
__device__ inline void turn_pass(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory"); }
__device__ inline void group_sync(int group) { asm volatile("bar.sync %0, 128;" ::"r"(3 + group) : "memory"); }

__device__ inline void store_rows(const Arguments &a, const Item &item, int head, int row, int column, const float (&acc)[64], const float (&total)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int at = row + 8 * r;
        if (at >= item.tokens * GROUP) continue;
        u16 *to = a.out + (((u64)(item.first_token + at / GROUP) * KV_HEADS + head) * GROUP + at % GROUP) * DIM + column;
        const float factor = 1.0f / total[r];
#pragma unroll
        for (int i = 0; i < 16; i++) *(u32 *)(to + 8 * i) = pack(acc[4 * i + 2 * r] * factor, acc[4 * i + 2 * r + 1] * factor);
    }
}

__device__ inline void store_part(const Arguments &a, const Item &item, int head, int row, int column, const float (&acc)[64], const Softmax &softmax) {
    const u64 mine = (u64)item.part * KV_HEADS + head;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int at = row + 8 * r;
        if (at >= item.tokens * GROUP) continue;
        float *to = a.sums + (mine * ROWS + at) * DIM + column;
#pragma unroll
        for (int i = 0; i < 16; i++) *(float2 *)(to + 8 * i) = make_float2(acc[4 * i + 2 * r], acc[4 * i + 2 * r + 1]);
        a.stats[mine * 2 * ROWS + at] = softmax.peak[r];
        a.stats[mine * 2 * ROWS + ROWS + at] = softmax.total[r];
    }
}

// The softmax over all splits of a tile, in their order.
__device__ inline void add_parts(const Arguments &a, const Item &item, int head, int row, int column, float (&acc)[64], float (&total)[2]) {
#pragma unroll
    for (int i = 0; i < 64; i++) acc[i] = 0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int at = row + 8 * r;
        float peak = LOWEST;
        total[r] = at < item.tokens * GROUP ? 0 : 1;
        if (at >= item.tokens * GROUP) continue;
        for (int split = 0; split < item.splits; split++) {
            const u64 part = (u64)(item.first + split) * KV_HEADS + head;
            const float theirs = __ldcg(a.stats + part * 2 * ROWS + at), top = fmaxf(peak, theirs);
            const float decay = power_of_two(peak - top), weight = power_of_two(theirs - top);
            const float *from = a.sums + (part * ROWS + at) * DIM + column;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                const float2 two = __ldcg((const float2 *)(from + 8 * i));
                float &x = acc[4 * i + 2 * r], &y = acc[4 * i + 2 * r + 1];
                x = x * decay + two.x * weight, y = y * decay + two.y * weight;
            }
            total[r] = total[r] * decay + __ldcg(a.stats + part * 2 * ROWS + ROWS + at) * weight;
            peak = top;
        }
    }
}

// Whether this warpgroup is the last of a tile's splits to finish its rows.
__device__ inline bool last_of_parts(const Arguments &a, const Item &item, int head, int group, int thread, int *flag) {
    int *counter = a.counters + ((u64)item.first * KV_HEADS + head) * 2 + group;
    __threadfence();
    group_sync(group);
    if (thread == 0) {
        *flag = atomicAdd(counter, 1) == item.splits - 1;
        if (*flag) *counter = 0;
        __threadfence();
    }
    group_sync(group);
    return *(volatile int *)flag;
}

__device__ inline void multiply_all(
    const Arguments &a, u32 tiles, Barriers *barriers, const Claims *claims, int group, int thread, int *flag) {
    const int lane = thread & 31;
    const int row = group * 64 + (thread >> 5) * 16 + (lane >> 2), column = (lane & 3) * 2;
    const u32 keys = tiles + TILE_BYTES, values = keys + STAGES * TILE_BYTES;
    const u32 query = along_rows(tiles + group * 2 * QUERY_HALF_BYTES);
    if (group == 1) turn_pass(1);  // group 0 goes first
    u32 turn = 0;
    for (u32 round = 0;; round++) {
        barrier_wait(&barriers->query_full, round & 1);
        const Item item = claims->item;
        if (item.index < 0) break;
        const int head = item.head(), blocks = num_blocks(item);
        const int at[2] = {item.position + row / GROUP, item.position + (row + 8) / GROUP};
        const int from[2] = {at[0] - a.window + 1, at[1] - a.window + 1};
        const int upto[2] = {min(at[0], item.high - 1), min(at[1], item.high - 1)};
        Softmax softmax = {{LOWEST, LOWEST}, {0, 0}};
        float acc[64], scores[64], decay[2];
        u32 weights[32];

        // The last block of keys, the only one that every row sees partly.
        barrier_wait(&barriers->key_full[turn % STAGES], turn / STAGES & 1);
        fence_for_tensor_cores();
        multiply_begin();
        score(scores, query, along_rows(keys + turn % STAGES * TILE_BYTES));
        multiply_wait<0>(scores);
        if (lane == 0) barrier_arrive(&barriers->key_empty[turn % STAGES]);
        int first_key = item.low + (blocks - 1) * BLOCK;
        hide(scores, first_key + column, from, upto);
        exponentiate(scores, softmax, a.scale, decay);
        pack_weights(weights, scores);

        for (int block = 1; block < blocks; block++, turn++) {
            const u32 next = (turn + 1) % STAGES, stage = turn % STAGES;
            const u32 key = along_rows(keys + next * TILE_BYTES), value = across_rows(values + stage * TILE_BYTES);
            barrier_wait(&barriers->key_full[next], (turn + 1) / STAGES & 1);
            fence_for_tensor_cores();
            turn_wait(group);
            multiply_begin();
            score(scores, query, key);
            barrier_wait(&barriers->value_full[stage], turn / STAGES & 1);
            fence_for_tensor_cores();
            weigh(acc, weights, value, block > 1);
            turn_pass(group);
            multiply_wait<1>(scores);
            if (lane == 0) barrier_arrive(&barriers->key_empty[next]);
            first_key -= BLOCK;
            if (first_key + BLOCK > item.position + 1 || first_key < item.position + item.tokens - a.window)
                hide(scores, first_key + column, from, upto);
            exponentiate(scores, softmax, a.scale, decay);
            settle(softmax.total[0] + softmax.total[1]);
            multiply_wait<0>(acc);
            if (lane == 0) barrier_arrive(&barriers->value_empty[stage]);
            pack_weights(weights, scores);
            const bool grown = __any_sync(0xffffffff, decay[0] != 1 || decay[1] != 1);
#pragma unroll
            for (int i = 0; i < 64; i++)
                if (grown) acc[i] *= decay[i >> 1 & 1];
        }
        if (lane == 0) barrier_arrive(&barriers->query_empty);
        barrier_wait(&barriers->value_full[turn % STAGES], turn / STAGES & 1);
        fence_for_tensor_cores();
        multiply_begin();
        weigh(acc, weights, across_rows(values + turn % STAGES * TILE_BYTES), blocks > 1);
        multiply_wait<0>(acc);
        if (lane == 0) barrier_arrive(&barriers->value_empty[turn % STAGES]);
        turn++;

        softmax.total[0] = quad_sum(softmax.total[0]), softmax.total[1] = quad_sum(softmax.total[1]);
        if (item.splits > 1) {
            store_part(a, item, head, row, column, acc, softmax);
            if (!last_of_parts(a, item, head, group, thread, flag + group)) continue;
            add_parts(a, item, head, row, column, acc, softmax.total);
        }
        store_rows(a, item, head, row, column, acc, softmax.total);
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) attend(
    const __grid_constant__ Arguments a, const __grid_constant__ TensorMap key_map, const __grid_constant__ TensorMap value_map) {
    extern __shared__ unsigned char shared[];
    __shared__ int flags[2];
    __shared__ Claims claims;
    const u32 tiles = (shared_address(shared) + 1023) & ~1023u;
    Barriers *barriers = (Barriers *)(shared + (tiles - shared_address(shared)) + (1 + 2 * STAGES) * TILE_BYTES);
    if (threadIdx.x == 0) {
        barrier_init(&barriers->query_full, 129), barrier_init(&barriers->query_empty, 8);
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_init(&barriers->key_full[stage], 128), barrier_init(&barriers->key_empty[stage], 8);
            barrier_init(&barriers->value_full[stage], 128), barrier_init(&barriers->value_empty[stage], 8);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");  // short chunks, which fill what this leaves
    const int total = load_fresh(a.count) * KV_HEADS, group = threadIdx.x / 128;
    if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
        fetch_all(a, &key_map, &value_map, total, tiles, barriers, &claims, threadIdx.x - 256);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
        multiply_all(a, tiles, barriers, &claims, group, threadIdx.x % 128, flags);
    }
}
