// What all sources for Hopper cards begin with. HALF: 1: float16, 0: bfloat16.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

struct alignas(64) TensorMap {  // CUtensorMap
    u64 opaque[16];
};

__device__ inline u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }

__device__ inline void barrier_init(u64 *barrier, u32 count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count));
}

__device__ inline void barrier_arrive(u64 *barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier)) : "memory");
}

// In a program of the cluster, which may be this one. Nothing was written, so nothing need be made visible (which would cost much).
__device__ inline void barrier_arrive_at(u64 *barrier, u32 program) {
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(shared_address(barrier)), "r"(program) : "memory");
}

__device__ inline void barrier_expect(u64 *barrier, u32 bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
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

#if HALF
#define TYPE "f16"
#else
#define TYPE "bf16"
#endif

__device__ inline u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
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

// So many sums of a product of the tensor cores, as operands and by their numbers.
#define D8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define D16(d, i) D8(d, i), D8(d, i + 8)
#define D32(d, i) D16(d, i), D16(d, i + 16)
#define D64(d, i) D32(d, i), D32(d, i + 32)
#define N16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define N32 N16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define N48 N32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define N64 N48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define N80 N64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define N96 N80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define N112 N96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define N128 N112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// A descriptor of shared memory is a low word, address / 16 and the distance of column blocks, and a constant high word: 128-byte
// swizzle, 1024 bytes between groups of eight rows. `shift` goes from one step of 16 to the next without leaving uniform registers.
#define DESCRIBE(name, word, shift) ".reg .b32 " name "w; add.u32 " name "w, " word ", " shift "; .reg .b64 " name "; mov.b64 " name ", {" name "w, 1073741888};\n"

// Low words of descriptors are the same for all lanes. This one is of a tile that is read along its rows.
__device__ inline u32 uniform(u32 x) { return __shfl_sync(0xffffffff, x, 0); }
__device__ inline u32 along_rows(u32 address) { return uniform(1 << 16 | address >> 4); }

// ---- products of matrices

// The sums are complete from here on, and nothing that uses them is moved before.
template <int NUM> __device__ inline void settle(float (&d)[NUM]) {
#pragma unroll
    for (int i = 0; i < NUM; i += 8) asm volatile("" : D8(d, i)::"memory");
}

template <int NUM> __device__ inline float4 quad(const float (&acc)[NUM], int i) {
    return make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]);
}

// Sums over a tile's columns, stage by stage: `multiply(turn, i)` waits for the tile's stage `i` and starts its product. Once that
// runs, the stage before is done with: all programs of a cluster (PROGRAMS), into which others may have fetched it, are told.
template <int RING, int PROGRAMS, int NUM, class Multiply>
__device__ inline void sum_stages(float (&acc)[NUM], u64 *empty, int lane, int count, u32 &turn, const Multiply &multiply) {
    const auto release = [&](u32 stage) {
        if (lane >= PROGRAMS) return;
        if (PROGRAMS > 1)
            barrier_arrive_at(&empty[stage], lane);
        else
            barrier_arrive(&empty[stage]);
    };
    for (int i = 0; i < count; i++, turn++) {
        multiply(turn, i);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        if (i) {
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            release((turn - 1) % RING);
        }
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    settle(acc);
    release((turn - 1) % RING);
}
