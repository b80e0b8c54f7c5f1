// Blocks of a pool: zeros, patterns, checks, copies. References: src/cache/kernels.rs.

#include "types.cuh"

__device__ __forceinline__ u64 pattern_word(u64 seed, u64 index) {
    u64 word = seed ^ (index * 0x9e3779b97f4a7c15ull);
    word ^= word >> 32;
    return word * 0xd6e8feb86659fd93ull;
}

// Byte `at` of the pattern, counted from the start of the block.
__device__ __forceinline__ u8 pattern_byte(u64 seed, u64 at) {
    return (u8)(pattern_word(seed, at / 8) >> (8 * (at % 8)));
}

__device__ __forceinline__ ulonglong2 pattern_pair(u64 seed, u64 index) {
    return make_ulonglong2(pattern_word(seed, index), pattern_word(seed, index + 1));
}

// Pieces of a block, and the part of it that is piece `piece`.
__device__ __forceinline__ u64 pieces_of(u64 block_bytes) { return (block_bytes + PIECE - 1) / PIECE; }

extern "C" __global__ void __launch_bounds__(1024)
kavern_blocks_zero(u64 pool, u64 pool_bytes, u64 ids, u64 ids_bytes, u64 block_bytes) {
    const u64 pieces = pieces_of(block_bytes);
    const u64 work = ids_bytes / 4 * pieces;
    for (u64 item = blockIdx.x; item < work; item += gridDim.x) {
        u8 *block = block_of(pool, pool_bytes, ((const i32 *)ids)[item / pieces], block_bytes);
        const u64 first = item % pieces * PIECE;
        const u64 bytes = least(PIECE, block_bytes - first);
        u8 *target = block + first;
        u64 done = 0;
        if (is_aligned((u64)target, 16)) {
            const u64 vectors = bytes / 16;
#pragma unroll 4
            for (u64 i = threadIdx.x; i < vectors; i += blockDim.x) {
                ((uint4 *)target)[i] = make_uint4(0, 0, 0, 0);
            }
            done = vectors * 16;
        }
        for (u64 i = done + threadIdx.x; i < bytes; i += blockDim.x) {
            target[i] = 0;
        }
    }
}

extern "C" __global__ void __launch_bounds__(1024)
kavern_blocks_fill(u64 pool, u64 pool_bytes, u64 ids, u64 ids_bytes, u64 seeds, u64 seeds_bytes, u64 block_bytes) {
    const u64 pieces = pieces_of(block_bytes);
    const u64 work = least(ids_bytes / 4, seeds_bytes / 8) * pieces;
    for (u64 item = blockIdx.x; item < work; item += gridDim.x) {
        const u64 entry = item / pieces;
        u8 *block = block_of(pool, pool_bytes, ((const i32 *)ids)[entry], block_bytes);
        const u64 seed = ((const u64 *)seeds)[entry];
        const u64 first = item % pieces * PIECE;
        const u64 bytes = least(PIECE, block_bytes - first);
        u8 *target = block + first;
        u64 done = 0;
        if (is_aligned((u64)target, 16)) {
            const u64 vectors = bytes / 16;
#pragma unroll 4
            for (u64 i = threadIdx.x; i < vectors; i += blockDim.x) {
                ((ulonglong2 *)target)[i] = pattern_pair(seed, first / 8 + 2 * i);
            }
            done = vectors * 16;
        }
        for (u64 i = done + threadIdx.x; i < bytes; i += blockDim.x) {
            target[i] = pattern_byte(seed, first + i);
        }
    }
}

// One block of threads checks a whole block of the pool, so that each is counted once.
extern "C" __global__ void __launch_bounds__(1024)
kavern_blocks_check(u64 counters, u64 counters_bytes, u64 pool, u64 pool_bytes, u64 ids, u64 ids_bytes, u64 seeds,
                    u64 seeds_bytes, u64 block_bytes) {
    const u64 count = least(ids_bytes / 4, seeds_bytes / 8);
    u64 *sums = (u64 *)counters;
    require(counters_bytes >= 24);
    for (u64 entry = blockIdx.x; entry < count; entry += gridDim.x) {
        const i32 id = ((const i32 *)ids)[entry];
        const u8 *source = block_of(pool, pool_bytes, id, block_bytes);
        const u64 seed = ((const u64 *)seeds)[entry];
        u64 difference = 0;
        u64 done = 0;
        if (is_aligned((u64)source, 16)) {
            const u64 vectors = block_bytes / 16;
#pragma unroll 8
            for (u64 i = threadIdx.x; i < vectors; i += blockDim.x) {
                const ulonglong2 seen = __ldcs((const ulonglong2 *)source + i);
                const ulonglong2 wanted = pattern_pair(seed, 2 * i);
                difference |= (seen.x ^ wanted.x) | (seen.y ^ wanted.y);
            }
            done = vectors * 16;
        }
        for (u64 i = done + threadIdx.x; i < block_bytes; i += blockDim.x) {
            difference |= source[i] ^ pattern_byte(seed, i);
        }
        const int differs = __syncthreads_or(difference != 0);
        if (threadIdx.x == 0) {
            atomicAdd(&sums[0], 1ull);
            if (differs) {
                atomicAdd(&sums[1], 1ull);
                atomicMax(&sums[2], (u64)id + 1);
            }
        }
    }
}

// Pairs [source, target]; no target is named twice or is a source.
extern "C" __global__ void __launch_bounds__(1024)
kavern_blocks_copy(u64 pool, u64 pool_bytes, u64 pairs, u64 pairs_bytes, u64 block_bytes) {
    const u64 pieces = pieces_of(block_bytes);
    const u64 work = pairs_bytes / 8 * pieces;
    for (u64 item = blockIdx.x; item < work; item += gridDim.x) {
        const i32 *pair = (const i32 *)pairs + 2 * (item / pieces);
        const u64 first = item % pieces * PIECE;
        const u64 bytes = least(PIECE, block_bytes - first);
        const u8 *source = block_of(pool, pool_bytes, pair[0], block_bytes) + first;
        u8 *target = block_of(pool, pool_bytes, pair[1], block_bytes) + first;
        u64 done = 0;
        if (is_aligned((u64)source | (u64)target, 16)) {
            const u64 vectors = bytes / 16;
            const uint4 *from = (const uint4 *)source;
            uint4 *to = (uint4 *)target;
            u64 i = threadIdx.x;
            // Four loads are under way before the first store, which the compiler may not arrange by itself.
            for (; i + 3 * blockDim.x < vectors; i += 4 * blockDim.x) {
                const uint4 a = __ldcs(from + i), b = __ldcs(from + i + blockDim.x);
                const uint4 c = __ldcs(from + i + 2 * blockDim.x), d = __ldcs(from + i + 3 * blockDim.x);
                to[i] = a;
                to[i + blockDim.x] = b;
                to[i + 2 * blockDim.x] = c;
                to[i + 3 * blockDim.x] = d;
            }
            for (; i < vectors; i += blockDim.x) {
                to[i] = from[i];
            }
            done = vectors * 16;
        }
        for (u64 i = done + threadIdx.x; i < bytes; i += blockDim.x) {
            target[i] = source[i];
        }
    }
}
