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

// Eight sums of a product of the tensor cores.
#define D8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

// A descriptor of shared memory is a low word, address / 16 and the distance of column blocks, and a constant high word: 128-byte
// swizzle, 1024 bytes between groups of eight rows. `shift` goes from one step of 16 to the next without leaving uniform registers.
#define DESCRIBE(name, word, shift) ".reg .b32 " name "w; add.u32 " name "w, " word ", " shift "; .reg .b64 " name "; mov.b64 " name ", {" name "w, 1073741888};\n"

// Low words of descriptors are the same for all lanes. This one is of a tile that is read along its rows.
__device__ inline u32 uniform(u32 x) { return __shfl_sync(0xffffffff, x, 0); }
__device__ inline u32 along_rows(u32 address) { return uniform(1 << 16 | address >> 4); }
