// Products for Hopper cards: y [rows, out] = x [rows, in] @ weight [out, in].T, with silu(gate) * up as an option.
//
// One warp fetches tiles of x and of the weight with the copy engine, two warpgroups multiply. With few rows the time is that of
// reading the weight, so its first tiles are under way while the kernels before still run (programmatic dependent launch),
// and SPLIT programs of a cluster share the columns of a tile and add up through each other's shared memory. With many rows the
// time is arithmetic: MULTICAST programs of a cluster compute neighbouring rows and share each tile of the weight.
//
// Compiled at run time by hopper_linear.py. Macros: HALF (1: float16, 0: bfloat16), TILE_ROWS (64 or 128 of x), TILE_OUT (64, 96,
// 128 or 256 of the weight), STAGES, SLABS (of 64 columns in a stage), SPLIT, MULTICAST, GATED (gate rows of the weight, then as many up).

constexpr int SLAB = 64;                                                   // columns that lie together: 128 bytes a row
constexpr int GROUP_OUT = TILE_ROWS == 64 ? TILE_OUT / 2 : TILE_OUT;       // weight rows that one warpgroup multiplies
constexpr int PART = GATED || MULTICAST > 1 ? GROUP_OUT / 2 : TILE_OUT, PARTS = TILE_OUT / PART;  // weight rows that are fetched at once
constexpr int NUM = GROUP_OUT / 2;                                         // sums of one thread
constexpr int X_BYTES = TILE_ROWS * 128, WEIGHT_BYTES = TILE_OUT * 128, STAGE_BYTES = SLABS * (X_BYTES + WEIGHT_BYTES);
constexpr int CLUSTER = SPLIT * MULTICAST, OUTPUTS = GATED ? TILE_OUT / 2 : TILE_OUT;  // outputs of a tile
constexpr int QUADS = GATED ? NUM / 8 : NUM / 4;                           // results of one thread, four at a time
constexpr int OWN = QUADS / SPLIT, SHARE = NUM / 4 / SPLIT;                // of a tile split in a cluster: results and sums a program adds up

struct Barriers {
    u64 full[STAGES], empty[STAGES], shares;
};

struct Arguments {
    u16 *y;
    int rows, fetched, out, blocks, row_tiles, out_tiles;  // fetched: rows of x in a tile; out: of y; blocks: stages of all columns
};

__device__ inline void barrier_expect(u64 *barrier, u32 bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

// In a program of the cluster, which may be this one. Nothing was written, so nothing need be made visible (which would cost much).
__device__ inline void barrier_arrive_at(u64 *barrier, u32 program) {
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(shared_address(barrier)), "r"(program) : "memory");
}

__device__ inline void barrier_wait(u64 *barrier, u32 parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra AGAIN; }" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

// Makes nothing visible: what programs of a cluster tell each other goes through barriers in shared memory.
__device__ inline void cluster_sync() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

__device__ inline u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// ---- fetching

#define EVICT_FIRST 0x12F0000000000000ull  // a cache policy: what is read once should push nothing else out
#define EVICT_NORMAL 0x1000000000000000ull

__device__ inline void fetch(const TensorMap *map, int column, int row, u32 to, u64 *full, u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(full)), "l"(policy) : "memory");
}

__device__ inline void fetch_for_all(const TensorMap *map, int column, int row, u32 to, u64 *full) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(full)), "h"((u16)((1 << MULTICAST) - 1)) : "memory");
}

// What this program computes: tiles one after the other, of each the stages begin .. end.
struct Work {
    int tile, step, tiles, begin, end, row_pairs;

    __device__ inline Work(const Arguments &a, u32 rank) {
        const int split = SPLIT > 1 ? rank : 0;
        tile = blockIdx.x / CLUSTER, step = gridDim.x / CLUSTER;
        row_pairs = (a.row_tiles + MULTICAST - 1) / MULTICAST;
        tiles = row_pairs * a.out_tiles;
        begin = a.blocks * split / SPLIT, end = a.blocks * (split + 1) / SPLIT;
    }
    __device__ inline int out_tile() const { return tile / row_pairs; }
    __device__ inline int row_tile(u32 rank) const { return tile % row_pairs * MULTICAST + (MULTICAST > 1 ? rank : 0); }
};

__device__ inline void fetch_weight(const Arguments &a, const TensorMap *map, int out_tile, int block, u32 to, u64 *full, u32 rank) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        if (MULTICAST > 1 && part % MULTICAST != rank) continue;
        const int row = GATED ? part % 2 * a.out + out_tile * OUTPUTS + part / 2 * PART : out_tile * OUTPUTS + part * PART;
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++) {
            const u32 place = to + SLABS * X_BYTES + slab * WEIGHT_BYTES + part * PART * 128;
            if (MULTICAST > 1)
                fetch_for_all(map, (block * SLABS + slab) * SLAB, row, place, full);
            else
                fetch(map, (block * SLABS + slab) * SLAB, row, place, full, EVICT_FIRST);
        }
    }
}

__device__ inline void fetch_x(const TensorMap *map, int row_tile, int block, u32 to, u64 *full) {
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++)
        fetch(map, (block * SLABS + slab) * SLAB, row_tile * TILE_ROWS, to + slab * X_BYTES, full, EVICT_NORMAL);
}

__device__ inline void fetch_all(
    const Arguments &a, const TensorMap *x_map, const TensorMap *weight_map, u32 stages, Barriers *barriers, u32 rank) {
    u32 turn = 0;
    bool waited = false;
    for (Work work(a, rank); work.tile < work.tiles; work.tile += work.step) {
        const int count = work.end - work.begin, early = waited ? 0 : min(count, STAGES);
        const u32 bytes = SLABS * (a.fetched * 128 + WEIGHT_BYTES);
        for (int i = 0; i < early; i++) {
            barrier_expect(&barriers->full[i], bytes);
            fetch_weight(a, weight_map, work.out_tile(), work.begin + i, stages + i * STAGE_BYTES, &barriers->full[i], rank);
        }
        if (!waited) asm volatile("griddepcontrol.wait;" ::: "memory");
        waited = true;
        for (int i = 0; i < count; i++, turn++) {
            const u32 stage = turn % STAGES, to = stages + stage * STAGE_BYTES;
            if (i >= early) {
                barrier_wait(&barriers->empty[stage], (turn / STAGES & 1) ^ 1);
                barrier_expect(&barriers->full[stage], bytes);
                fetch_weight(a, weight_map, work.out_tile(), work.begin + i, to, &barriers->full[stage], rank);
            }
            fetch_x(x_map, work.row_tile(rank), work.begin + i, to, &barriers->full[stage]);
        }
    }
}

// ---- multiplying

#define D32(d, i) D8(d, i), D8(d, i + 8), D8(d, i + 16), D8(d, i + 24)
#define N32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define N64 N32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define N128 N64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

#define N16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define D16(d, i) D8(d, i), D8(d, i + 8)
#define N24 N16 ",%16,%17,%18,%19,%20,%21,%22,%23"

#define MULTIPLY(shape, outputs, a, b, add, shift) \
    "{ .reg .pred p; setp.ne.b32 p, " add ", 0;\n" DESCRIBE("a", a, shift) DESCRIBE("b", b, shift) \
    "wgmma.mma_async.sync.aligned.m64n" shape "k16.f32." TYPE "." TYPE " {" outputs "}, a, b, p, 1, 1, 0, 0; }"

template <int SHIFT> __device__ inline void multiply(float (&d)[128], u32 a, u32 b, int add) {
    asm volatile(MULTIPLY("256", N128, "%128", "%129", "%130", "%131")
                 : D32(d, 0), D32(d, 32), D32(d, 64), D32(d, 96) : "r"(a), "r"(b), "r"(add), "n"(SHIFT));
}
template <int SHIFT> __device__ inline void multiply(float (&d)[64], u32 a, u32 b, int add) {
    asm volatile(MULTIPLY("128", N64, "%64", "%65", "%66", "%67") : D32(d, 0), D32(d, 32) : "r"(a), "r"(b), "r"(add), "n"(SHIFT));
}
template <int SHIFT> __device__ inline void multiply(float (&d)[32], u32 a, u32 b, int add) {
    asm volatile(MULTIPLY("64", N32, "%32", "%33", "%34", "%35") : D32(d, 0) : "r"(a), "r"(b), "r"(add), "n"(SHIFT));
}
template <int SHIFT> __device__ inline void multiply(float (&d)[24], u32 a, u32 b, int add) {
    asm volatile(MULTIPLY("48", N24, "%24", "%25", "%26", "%27") : D16(d, 0), D8(d, 16) : "r"(a), "r"(b), "r"(add), "n"(SHIFT));
}
template <int SHIFT> __device__ inline void multiply(float (&d)[16], u32 a, u32 b, int add) {
    asm volatile(MULTIPLY("32", N16, "%16", "%17", "%18", "%19") : D16(d, 0) : "r"(a), "r"(b), "r"(add), "n"(SHIFT));
}

// The sums are complete from here on, and nothing that uses them is moved before.
__device__ inline void settle(float (&d)[NUM]) {
#pragma unroll
    for (int i = 0; i < NUM; i += 8) asm volatile("" : D8(d, i)::"memory");
}

__device__ inline float2 unpack(u32 both) {
#if HALF
    float2 two;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(two.x), "=f"(two.y) : "r"(both));
    return two;
#else
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000));
#endif
}

__device__ inline float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// Two neighbouring results, rounded before and after the activation as if the product were stored in between.
__device__ inline u32 gate(float gate0, float gate1, float up0, float up1) {
    const float2 g = unpack(pack(gate0, gate1)), u = unpack(pack(up0, up1));
    return pack(silu(g.x) * u.x, silu(g.y) * u.y);
}

// A thread's place in its tile: rows `row` and `row` + 8, and of each eight columns the two at `column`.
struct Place {
    int group, row, column;

    __device__ inline Place(int thread) {
        group = thread / 128;
        row = (TILE_ROWS == 128 ? group * 64 : 0) + thread % 128 / 32 * 16 + thread % 32 / 4;
        column = (TILE_ROWS == 128 ? 0 : group * (OUTPUTS / 2)) + thread % 4 * 2;
    }
    __device__ inline bool any(int rows) const { return row / 16 * 16 < rows; }  // the same for a whole warp
};

// Two neighbouring results of one row, of the sums at `i` of each four.
template <int i> __device__ inline u32 result(const float4 &sum, const float4 &up) {
    const float s0 = i ? sum.z : sum.x, s1 = i ? sum.w : sum.y;
    return GATED ? gate(s0, s1, i ? up.z : up.x, i ? up.w : up.y) : pack(s0, s1);
}

// Stores a thread's results of eight columns: two columns in two rows.
__device__ inline void store(const Arguments &a, int row, int column, const float4 &sum, const float4 &up) {
    u16 *to = a.y + (u64)row * a.out + column;
    if (row < a.rows) *(u32 *)to = result<0>(sum, up);
    if (row + 8 < a.rows) *(u32 *)(to + 8 * (u64)a.out) = result<1>(sum, up);
}

__device__ inline float4 quad(const float (&acc)[NUM], int i) { return make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]); }

// Four lanes hold two columns each of four groups of eight; afterwards each holds one group whole, in order.
__device__ inline void transpose(u32 (&x)[4], int lane) {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (!(i & bit)) {
                const bool high = lane & bit;
                const u32 theirs = __shfl_xor_sync(0xffffffff, high ? x[i] : x[i | bit], bit);
                (high ? x[i] : x[i | bit]) = theirs;
            }
}

template <int r> __device__ inline void store_row(const Arguments &a, int row, int column, const float (&acc)[NUM], int lane) {
#pragma unroll
    for (int i = 0; i < QUADS; i += 4) {
        u32 x[4];
#pragma unroll
        for (int j = 0; j < 4; j++) x[j] = result<r>(quad(acc, i + j), quad(acc, GATED ? i + j + QUADS : i + j));
        transpose(x, lane);
        if (row < a.rows) *(uint4 *)(a.y + (u64)row * a.out + column + 8 * (i + (lane & 3))) = make_uint4(x[0], x[1], x[2], x[3]);
    }
}

__device__ inline void store_tile(const Arguments &a, int row, int column, const float (&acc)[NUM], int lane) {
    store_row<0>(a, row, column - lane % 4 * 2, acc, lane);
    store_row<1>(a, row + 8, column - lane % 4 * 2, acc, lane);
}

__device__ inline void multiply_stage(float (&acc)[NUM], u32 x, u32 weight, int add) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++, x += X_BYTES >> 4, weight += WEIGHT_BYTES >> 4) {
        multiply<0>(acc, x, weight, add | slab);
        multiply<2>(acc, x, weight, 1);  // 32 bytes on, in units of 16
        multiply<4>(acc, x, weight, 1);
        multiply<6>(acc, x, weight, 1);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ inline void release(Barriers *barriers, u32 stage, int lane) {
    if (lane < MULTICAST) barrier_arrive_at(&barriers->empty[stage], MULTICAST > 1 ? lane : cluster_rank());
}

// Sums of the tile's columns that are this program's, [rows, GROUP_OUT] of each warpgroup. With many rows one warpgroup is a
// stage ahead of the other, so that one still multiplies while the other stores: 1 % of a step of 2,048 tokens. Takes two stages.
__device__ inline void multiply_tile(float (&acc)[NUM], u32 stages, Barriers *barriers, int group, int lane, int count, u32 &turn) {
    for (int i = 0; i < count; i++, turn++) {
        if (MULTICAST > 1 && turn == 1 - group) asm volatile("bar.sync 1, 256;" ::: "memory");
        const u32 stage = turn % STAGES, at = stages + stage * STAGE_BYTES;
        const u32 x = along_rows(at + (TILE_ROWS == 128 ? group * 64 * 128 : 0));
        const u32 weight = along_rows(at + SLABS * X_BYTES + (TILE_ROWS == 128 ? 0 : group * GROUP_OUT * 128));
        barrier_wait(&barriers->full[stage], turn / STAGES & 1);
        multiply_stage(acc, x, weight, i);
        if (i) {
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            release(barriers, (turn - 1) % STAGES, lane);
        }
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    settle(acc);
    release(barriers, (turn - 1) % STAGES, lane);
}

// ---- adding up the columns' shares of a cluster: each program gets from all what belongs to the results that it stores

__device__ inline void send(u32 to, u64 *arrived, u32 program, float4 x) {
    asm volatile(
        "{ .reg .b32 there, done; mapa.shared::cluster.u32 there, %0, %2; mapa.shared::cluster.u32 done, %1, %2;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%3, %4, %5, %6}, [done]; }" ::"r"(to),
        "r"(shared_address(arrived)), "r"(program), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}

// Sum `index` of those that a program adds up, from program `from`.
__device__ inline u32 share_address(u32 shares, u32 from, int index, int thread) { return shares + ((from * SHARE + index) * 256 + thread) * 16; }

__device__ inline void send_shares(const float (&acc)[NUM], u32 shares, u64 *arrived, int thread, u32 rank) {
#pragma unroll
    for (int i = 0; i < NUM / 4; i++)  // of results that need two sums the second ones come last
        send(share_address(shares, rank, i % QUADS % OWN + i / QUADS * OWN, thread), arrived, i % QUADS / OWN, quad(acc, i));
}

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

// Bytes that come to each program: of all warps with rows.
__device__ inline u32 share_bytes(int rows) { return (min(rows, TILE_ROWS) + 15) / 16 * (TILE_ROWS == 64 ? 2 : 1) * 32 * NUM * 4; }

__device__ inline void store_shares(const Arguments &a, int row, int column, u32 shares, int thread, u32 rank) {
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const float4 sum = add_shares(shares, i, thread);
        store(a, row, column + 8 * (rank * OWN + i), sum, GATED ? add_shares(shares, OWN + i, thread) : sum);
    }
}

extern "C" __global__ void __launch_bounds__(288, 1) multiply_tiles(
    const __grid_constant__ Arguments a, const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap weight_map) {
    extern __shared__ unsigned char shared[];
    const u32 stages = (shared_address(shared) + 1023) & ~1023u, rank = CLUSTER > 1 ? cluster_rank() : 0;
    Barriers *barriers = (Barriers *)(shared + (stages - shared_address(shared)) + STAGES * STAGE_BYTES);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) barrier_init(&barriers->full[stage], 1), barrier_init(&barriers->empty[stage], 8 * MULTICAST);
        barrier_init(&barriers->shares, 1);
        if (SPLIT > 1) barrier_expect(&barriers->shares, share_bytes(a.rows));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (CLUSTER > 1)
        cluster_sync();
    else
        __syncthreads();
    if (threadIdx.x >= 256) {
        if (threadIdx.x == 256) fetch_all(a, &x_map, &weight_map, stages, barriers, rank);
        __syncwarp();
        if (SPLIT > 1) cluster_sync();
    } else {
        const Place place(threadIdx.x);
        u32 turn = 0;
        float acc[NUM];
        for (Work work(a, rank); work.tile < work.tiles; work.tile += work.step) {
            multiply_tile(acc, stages, barriers, place.group, threadIdx.x & 31, work.end - work.begin, turn);
            asm volatile("griddepcontrol.launch_dependents;" ::: "memory");  // not before: what the next kernel reads would delay this
            const int row = work.row_tile(rank) * TILE_ROWS + place.row, column = work.out_tile() * OUTPUTS + place.column;
            if (SPLIT == 1) {
                if (place.any(a.rows - work.row_tile(rank) * TILE_ROWS)) store_tile(a, row, column, acc, threadIdx.x & 31);
            } else {  // one tile per program: the stages are free in all of the cluster now
                cluster_sync();
                if (!place.any(a.rows)) continue;
                send_shares(acc, stages, &barriers->shares, threadIdx.x, rank);
                barrier_wait(&barriers->shares, 0);
                store_shares(a, row, column, stages, threadIdx.x, rank);
            }
        }
    }
    if (MULTICAST > 1) cluster_sync();  // nobody leaves while others write here
}
