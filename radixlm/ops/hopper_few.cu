// Products of few rows for Hopper cards: y [rows, out] = x [rows, in] @ weight [out, in].T, with silu(gate) * up as an option.
//
// The tensor cores take one operand by 64 rows, the other by eights: here that is x, so 144 rows cost as much as 160 where there is a
// kernel for every 32. One warp
// fetches tiles of x and of the weight with the copy engine, each warpgroup multiplies 64 rows of the weight. Mostly the time is
// that of reading the weight, so its first tiles are under way while the kernels before still run (programmatic dependent launch),
// and SPLIT programs of a cluster share the columns of a tile and add up through each other's shared memory.
//
// Compiled at run time by hopper_linear.py. Macros: HALF (1: float16, 0: bfloat16), ROWS (of x at most), TILE_OUT (rows of the weight,
// 64 for each warpgroup), STAGES, SLABS (of 64 columns in a stage), SPLIT, GATED (gate rows of the weight, then as many up).

constexpr int SLAB = 64;  // columns that lie together: 128 bytes a row
constexpr int MULTIPLIERS = 2 * TILE_OUT, OUTPUTS = GATED ? TILE_OUT / 2 : TILE_OUT;  // threads; outputs of a tile
constexpr int X_BYTES = ROWS * 128, WEIGHT_BYTES = TILE_OUT * 128, STAGE_BYTES = SLABS * (X_BYTES + WEIGHT_BYTES);
constexpr int NUM = ROWS / 2, QUADS = ROWS / 8, OWN = QUADS / SPLIT;  // sums of a thread; each four are a quad; those that a program adds up
static_assert(ROWS % (8 * SPLIT) == 0, "each program of a cluster stores as many rows");

struct Barriers {
    u64 full[STAGES], empty[STAGES], shares;
};

struct Arguments {
    u16 *y;
    int rows, fetched, out, blocks, row_tiles, out_tiles;  // fetched: rows of x; out: of y; blocks: stages of all columns; one row tile
};

// ---- fetching

#define EVICT_FIRST 0x12F0000000000000ull  // a cache policy: what is read once should push nothing else out

__device__ inline void fetch_weight(const TensorMap *map, int column, int tile, u32 to, u64 *full) {
#if GATED  // eight gate rows, then the eight that they gate, and so on: a thread then has both
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %3, %4}], [%5], %6;" ::"r"(to),
        "l"(map), "r"(column), "r"(0), "r"(tile * (TILE_OUT / 16)), "r"(shared_address(full)), "l"(EVICT_FIRST) : "memory");
#else
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(map), "r"(column), "r"(tile * TILE_OUT), "r"(shared_address(full)), "l"(EVICT_FIRST) : "memory");
#endif
}

__device__ inline void fetch_x(const TensorMap *map, int column, u32 to, u64 *full) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(map), "r"(column), "r"(0), "r"(shared_address(full)) : "memory");
}

// What this program computes: tiles one after the other, of each the stages begin .. end.
struct Work {
    int tile, step, begin, end;

    __device__ inline Work(const Arguments &a, u32 rank) {
        tile = blockIdx.x / SPLIT, step = gridDim.x / SPLIT;
        begin = a.blocks * rank / SPLIT, end = a.blocks * (rank + 1) / SPLIT;
    }
};

__device__ inline void fetch_weights(const Arguments &a, const TensorMap *map, int tile, int block, u32 to, u64 *full) {
    barrier_expect(full, SLABS * (a.fetched * 128 + WEIGHT_BYTES));
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++)
        fetch_weight(map, (block * SLABS + slab) * SLAB, tile, to + SLABS * X_BYTES + slab * WEIGHT_BYTES, full);
}

__device__ inline void fetch_all(
    const Arguments &a, const TensorMap *x_map, const TensorMap *weight_map, u32 stages, Barriers *barriers, u32 rank) {
    u32 turn = 0;
    bool waited = false;
    for (Work work(a, rank); work.tile < a.out_tiles; work.tile += work.step) {
        const int count = work.end - work.begin, early = waited ? 0 : min(count, STAGES);
        for (int i = 0; i < early; i++)
            fetch_weights(a, weight_map, work.tile, work.begin + i, stages + i * STAGE_BYTES, &barriers->full[i]);
        if (!waited) asm volatile("griddepcontrol.wait;" ::: "memory");
        waited = true;
        for (int i = 0; i < count; i++, turn++) {
            const u32 stage = turn % STAGES, to = stages + stage * STAGE_BYTES;
            if (i >= early) {
                barrier_wait(&barriers->empty[stage], (turn / STAGES & 1) ^ 1);
                fetch_weights(a, weight_map, work.tile, work.begin + i, to, &barriers->full[stage]);
            }
#pragma unroll
            for (int slab = 0; slab < SLABS; slab++)
                fetch_x(x_map, ((work.begin + i) * SLABS + slab) * SLAB, to + slab * X_BYTES, &barriers->full[stage]);
        }
    }
}

// ---- multiplying

#define PRODUCT(num, rows, weight_word, x_word, add_word, shift_word, ...)                                                   \
    template <int SHIFT> __device__ inline void multiply(float (&d)[num], u32 weight, u32 x, int add) {                      \
        asm volatile(                                                                                                        \
            "{ .reg .pred p; setp.ne.b32 p, " add_word ", 0;\n" DESCRIBE("a", weight_word, shift_word) DESCRIBE("b", x_word, shift_word) \
            "wgmma.mma_async.sync.aligned.m64n" rows "k16.f32." TYPE "." TYPE " {" N##num "}, a, b, p, 1, 1, 0, 0; }"         \
            : __VA_ARGS__ : "r"(weight), "r"(x), "r"(add), "n"(SHIFT));                                                      \
    }
PRODUCT(16, "32", "%16", "%17", "%18", "%19", D16(d, 0))
PRODUCT(32, "64", "%32", "%33", "%34", "%35", D32(d, 0))
PRODUCT(48, "96", "%48", "%49", "%50", "%51", D32(d, 0), D16(d, 32))
PRODUCT(64, "128", "%64", "%65", "%66", "%67", D64(d, 0))
PRODUCT(80, "160", "%80", "%81", "%82", "%83", D64(d, 0), D16(d, 64))
PRODUCT(96, "192", "%96", "%97", "%98", "%99", D64(d, 0), D32(d, 64))
PRODUCT(112, "224", "%112", "%113", "%114", "%115", D64(d, 0), D32(d, 64), D16(d, 96))
PRODUCT(128, "256", "%128", "%129", "%130", "%131", D64(d, 0), D64(d, 64))

__device__ inline void multiply_tile(float (&acc)[NUM], u32 stages, Barriers *barriers, int group, int lane, int count, u32 &turn) {
    sum_stages<STAGES, 1>(acc, barriers->empty, lane, count, turn, [&](u32 turn, int i) {
        const u32 stage = turn % STAGES, at = stages + stage * STAGE_BYTES;
        u32 x = along_rows(at), weight = along_rows(at + SLABS * X_BYTES + group * 64 * 128);
        barrier_wait(&barriers->full[stage], turn / STAGES & 1);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++, x += X_BYTES >> 4, weight += WEIGHT_BYTES >> 4) {
            multiply<0>(acc, weight, x, i | slab);
            multiply<2>(acc, weight, x, 1);  // 32 bytes on, in units of 16
            multiply<4>(acc, weight, x, 1);
            multiply<6>(acc, weight, x, 1);
        }
    });
}

// ---- storing. A quad is of two neighbouring rows of x and two rows of the weight, eight apart.

__device__ inline u32 transposed(u32 x) {  // of a warp's eight by eight, two neighbours of a row in each lane
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// The quads of a warp that belong to eight rows of x. Afterwards a lane holds two neighbouring outputs of one row.
__device__ inline void store(const Arguments &a, int row, int column, const float4 &sum) {
    u16 *to = a.y + (u64)row * a.out + column;
    const u32 low = transposed(GATED ? gate(sum.x, sum.y, sum.z, sum.w) : pack(sum.x, sum.y));
    const u32 high = GATED ? 0 : transposed(pack(sum.z, sum.w));
    if (row >= a.rows) return;
    *(u32 *)to = low;
    if (!GATED) *(u32 *)(to + 8) = high;
}

// ---- adding up the columns' shares of a cluster: each program gets from all what belongs to the rows that it stores

__device__ inline void send(u32 to, u64 *arrived, u32 program, float4 x) {
    asm volatile(
        "{ .reg .b32 there, done; mapa.shared::cluster.u32 there, %0, %2; mapa.shared::cluster.u32 done, %1, %2;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%3, %4, %5, %6}, [done]; }" ::"r"(to),
        "r"(shared_address(arrived)), "r"(program), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}

// Quad `index` of those that a program adds up, from program `from`.
__device__ inline u32 share_address(u32 shares, u32 from, int index, int thread) { return shares + ((from * OWN + index) * MULTIPLIERS + thread) * 16; }

__device__ inline float4 add_shares(u32 shares, int index, int thread) {
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (u32 from = 0; from < SPLIT; from++) {
        float4 x;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(share_address(shares, from, index, thread)) : "memory");
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    return sum;
}

// Of a program's quads those with rows.
__device__ inline int owned(int rows, int program) { return max(0, min(OWN, (rows + 7) / 8 - program * OWN)); }

extern "C" __global__ void __launch_bounds__(MULTIPLIERS + 32, 1) multiply_tiles(
    const __grid_constant__ Arguments a, const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap weight_map) {
    extern __shared__ unsigned char shared[];
    const u32 stages = (shared_address(shared) + 1023) & ~1023u, rank = SPLIT > 1 ? cluster_rank() : 0;
    Barriers *barriers = (Barriers *)(shared + (stages - shared_address(shared)) + STAGES * STAGE_BYTES);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) barrier_init(&barriers->full[stage], 1), barrier_init(&barriers->empty[stage], MULTIPLIERS / 32);
        barrier_init(&barriers->shares, 1);
        if (SPLIT > 1) barrier_expect(&barriers->shares, owned(a.rows, rank) * SPLIT * MULTIPLIERS * 16);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (SPLIT > 1)
        cluster_sync();
    else
        __syncthreads();
    if (threadIdx.x >= MULTIPLIERS) {
        if (threadIdx.x == MULTIPLIERS) fetch_all(a, &x_map, &weight_map, stages, barriers, rank);
        __syncwarp();
        if (SPLIT > 1) cluster_sync();
    } else {
        const int thread = threadIdx.x, lane = thread & 31;
        const int row = lane / 4, column = (GATED ? 8 : 16) * (thread / 32) + lane % 4 * 2;
        u32 turn = 0;
        float acc[NUM];
        for (Work work(a, rank); work.tile < a.out_tiles; work.tile += work.step) {
            multiply_tile(acc, stages, barriers, thread / 128, lane, work.end - work.begin, turn);
            asm volatile("griddepcontrol.launch_dependents;" ::: "memory");  // not before: what the next kernel reads would delay this
            const int first = work.tile * OUTPUTS + column;
            if (SPLIT == 1) {
#pragma unroll
                for (int i = 0; i < QUADS; i++)
                    if (8 * i < a.rows) store(a, 8 * i + row, first, quad(acc, i));
            } else {  // one tile per program: the stages are free in all of the cluster now
                cluster_sync();
#pragma unroll
                for (int i = 0; i < QUADS; i++)
                    if (8 * i < a.rows) send(share_address(stages, rank, i % OWN, thread), &barriers->shares, i / OWN, quad(acc, i));
                barrier_wait(&barriers->shares, 0);
                for (int i = 0; i < owned(a.rows, rank); i++) store(a, 8 * (rank * OWN + i) + row, first, add_shares(stages, i, thread));
            }
        }
    }
}
