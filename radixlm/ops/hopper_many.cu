// Gated products of many rows for Hopper cards: y [rows, out] = silu(x @ gates.T) * (x @ ups.T), with x [rows, in] and a weight
// [2 * out, in] of gates and as many ups. (Plain ones the library multiplies as fast, and adds the residual.)
//
// The time is arithmetic. One warp fetches tiles of x and of the weight with the copy engine, two warpgroups multiply 64 rows of
// x each, and two programs of a cluster compute neighbouring rows and share each tile of the weight.
//
// Compiled at run time by hopper_linear.py. Macros: HALF (1: float16, 0: bfloat16), STAGES (of 64 columns, at least two).

constexpr int SLAB = 64, TILE_ROWS = 128, TILE_OUT = 256, CLUSTER = 2;  // columns of a stage, 128 bytes a row; rows of x; of the weight
constexpr int OUTPUTS = TILE_OUT / 2, NUM = TILE_OUT / 2;               // gates, or ups, which a program fetches for both; a thread's sums
constexpr int X_BYTES = TILE_ROWS * 128, WEIGHT_BYTES = TILE_OUT * 128, STAGE_BYTES = X_BYTES + WEIGHT_BYTES;
constexpr int QUADS = NUM / 8;                                          // results of one thread, four at a time
constexpr int BAND = 8;  // pairs of row tiles for which the weight is read once: 8,192 rows in one take 3 % longer

struct Barriers {
    u64 full[STAGES], empty[STAGES];
};

struct Arguments {
    u16 *y;
    int rows, fetched, out, blocks, row_tiles, out_tiles;  // fetched: rows of x in a tile; out: of y; blocks: stages of all columns
};

// ---- fetching

__device__ inline void fetch(const TensorMap *map, int column, int row, u32 to, u64 *full) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(full)) : "memory");
}

__device__ inline void fetch_for_both(const TensorMap *map, int column, int row, u32 to, u64 *full) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(full)), "h"((u16)3) : "memory");
}

// What this program computes: tiles one after the other, of a few rows for the whole weight, then of the next ones.
struct Work {
    int tile, step, tiles, row_pairs, band;

    __device__ inline Work(const Arguments &a) {
        tile = blockIdx.x / CLUSTER, step = gridDim.x / CLUSTER;
        row_pairs = (a.row_tiles + CLUSTER - 1) / CLUSTER;
        tiles = row_pairs * a.out_tiles, band = BAND * a.out_tiles;
    }
    __device__ inline int first_pair() const { return tile / band * BAND; }
    __device__ inline int pairs() const { return min(BAND, row_pairs - first_pair()); }  // of this tile's rows
    __device__ inline int out_tile() const { return tile % band / pairs(); }
    __device__ inline int row_tile(u32 rank) const { return (first_pair() + tile % band % pairs()) * CLUSTER + rank; }
};

__device__ inline void fetch_weight(const Arguments &a, const TensorMap *map, int out_tile, int block, u32 to, u64 *full, u32 rank) {
    barrier_expect(full, a.fetched * 128 + WEIGHT_BYTES);
    fetch_for_both(map, block * SLAB, out_tile * OUTPUTS + rank * a.out, to + X_BYTES + rank * OUTPUTS * 128, full);
}

__device__ inline void fetch_all(
    const Arguments &a, const TensorMap *x_map, const TensorMap *weight_map, u32 stages, Barriers *barriers, u32 rank) {
    u32 turn = 0;
    bool waited = false;
    for (Work work(a); work.tile < work.tiles; work.tile += work.step) {
        const int early = waited ? 0 : min(a.blocks, STAGES);
        for (int i = 0; i < early; i++)
            fetch_weight(a, weight_map, work.out_tile(), i, stages + i * STAGE_BYTES, &barriers->full[i], rank);
        if (!waited) asm volatile("griddepcontrol.wait;" ::: "memory");
        waited = true;
        for (int i = 0; i < a.blocks; i++, turn++) {
            const u32 stage = turn % STAGES, to = stages + stage * STAGE_BYTES;
            if (i >= early) {
                barrier_wait(&barriers->empty[stage], (turn / STAGES & 1) ^ 1);
                fetch_weight(a, weight_map, work.out_tile(), i, to, &barriers->full[stage], rank);
            }
            fetch(x_map, i * SLAB, work.row_tile(rank) * TILE_ROWS, to, &barriers->full[stage]);
        }
    }
}

// ---- multiplying

template <int SHIFT> __device__ inline void multiply(float (&d)[NUM], u32 x, u32 weight, int add) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %130, 0;\n" DESCRIBE("a", "%128", "%131") DESCRIBE("b", "%129", "%131")
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {" N128 "}, a, b, p, 1, 1, 0, 0; }"
        : D64(d, 0), D64(d, 64) : "r"(x), "r"(weight), "r"(add), "n"(SHIFT));
}

// A thread's place in its tile: rows `row` and `row` + 8, and of each eight columns the two at `column`.
struct Place {
    int group, row, column;

    __device__ inline Place(int thread) {
        group = thread / 128;
        row = thread / 32 * 16 + thread % 32 / 4;
        column = thread % 4 * 2;
    }
    __device__ inline bool any(int rows) const { return row / 16 * 16 < rows; }  // the same for a whole warp
};

// Two neighbouring results of one row, of the sums at `i` of each four.
template <int i> __device__ inline u32 result(const float4 &sum, const float4 &up) {
    return i ? gate(sum.z, sum.w, up.z, up.w) : gate(sum.x, sum.y, up.x, up.y);
}

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
        for (int j = 0; j < 4; j++) x[j] = result<r>(quad(acc, i + j), quad(acc, i + j + QUADS));
        transpose(x, lane);
        if (row < a.rows) *(uint4 *)(a.y + (u64)row * a.out + column + 8 * (i + (lane & 3))) = make_uint4(x[0], x[1], x[2], x[3]);
    }
}

__device__ inline void store_tile(const Arguments &a, int row, int column, const float (&acc)[NUM], int lane) {
    store_row<0>(a, row, column - lane % 4 * 2, acc, lane);
    store_row<1>(a, row + 8, column - lane % 4 * 2, acc, lane);
}

// One warpgroup is a stage ahead of the other, so that one still multiplies while the other stores: 1 % of a step of 2,048
// tokens. Takes two stages.
__device__ inline void multiply_tile(float (&acc)[NUM], u32 stages, Barriers *barriers, int group, int lane, int blocks, u32 &turn) {
    sum_stages<STAGES, CLUSTER>(acc, barriers->empty, lane, blocks, turn, [&](u32 turn, int i) {
        if (turn == 1 - group) asm volatile("bar.sync 1, 256;" ::: "memory");
        const u32 stage = turn % STAGES, at = stages + stage * STAGE_BYTES;
        const u32 x = along_rows(at + group * 64 * 128), weight = along_rows(at + X_BYTES);
        barrier_wait(&barriers->full[stage], turn / STAGES & 1);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        multiply<0>(acc, x, weight, i);
        multiply<2>(acc, x, weight, 1);  // 32 bytes on, in units of 16
        multiply<4>(acc, x, weight, 1);
        multiply<6>(acc, x, weight, 1);
    });
}

extern "C" __global__ void __launch_bounds__(288, 1) multiply_tiles(
    const __grid_constant__ Arguments a, const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap weight_map) {
    extern __shared__ unsigned char shared[];
    const u32 stages = (shared_address(shared) + 1023) & ~1023u, rank = cluster_rank();
    Barriers *barriers = (Barriers *)(shared + (stages - shared_address(shared)) + STAGES * STAGE_BYTES);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) barrier_init(&barriers->full[stage], 1), barrier_init(&barriers->empty[stage], 8 * CLUSTER);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    if (threadIdx.x >= 256) {
        if (threadIdx.x == 256) fetch_all(a, &x_map, &weight_map, stages, barriers, rank);
        __syncwarp();
    } else {
        const Place place(threadIdx.x);
        u32 turn = 0;
        float acc[NUM];
        for (Work work(a); work.tile < work.tiles; work.tile += work.step) {
            multiply_tile(acc, stages, barriers, place.group, threadIdx.x & 31, a.blocks, turn);
            asm volatile("griddepcontrol.launch_dependents;" ::: "memory");  // not before: what the next kernel reads would delay this
            const int first = work.row_tile(rank) * TILE_ROWS;
            if (place.any(a.rows - first)) store_tile(a, first + place.row, work.out_tile() * OUTPUTS + place.column, acc, threadIdx.x & 31);
        }
    }
    cluster_sync();  // nobody leaves while others write here
}
