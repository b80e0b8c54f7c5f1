// Blocks of a pool: zeros, patterns, checks, copies. References: src/cache/kernels.rs.
//
// A warp does one chunk of a block at a time, with all of its accesses under way at once: small blocks then keep as
// many bytes in flight as large ones, and no thread divides more than once for 128 bytes.

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

// One chunk of one listed block.
struct Chunk {
    u64 entry;
    u64 first;
    u64 bytes;
};

__device__ __forceinline__ u64 chunks_of(u64 block_bytes) { return (block_bytes + CHUNK - 1) / CHUNK; }

__device__ __forceinline__ Chunk chunk_of(u64 item, u64 chunks, u64 block_bytes) {
    const u64 entry = chunks == 1 ? item : quotient(item, chunks);
    const u64 first = (item - entry * chunks) * CHUNK;
    return {entry, first, least(CHUNK, block_bytes - first)};
}

extern "C" __global__ void __launch_bounds__(1024)
kavern_blocks_zero(u64 pool, u64 pool_bytes, u64 ids, u64 ids_bytes, u64 block_bytes) {
    const u64 chunks = chunks_of(block_bytes);
    const u64 work = ids_bytes / 4 * chunks;
    const u64 blocks = pool_bytes / block_bytes;
    const Warp warp = warp_of_grid();
    for (u64 item = warp.index; item < work; item += warp.count) {
        const Chunk chunk = chunk_of(item, chunks, block_bytes);
        u8 *target = block_at(pool, blocks, ((const i32 *)ids)[chunk.entry], block_bytes) + chunk.first;
        u64 done = 0;
        if (is_aligned((u64)target, 16)) {
            const u32 vectors = (u32)(chunk.bytes / 16);
#pragma unroll 8
            for (u32 i = warp.lane; i < vectors; i += warp.lanes) {
                __stcs((uint4 *)target + i, make_uint4(0, 0, 0, 0));
            }
            done = vectors * 16;
        }
        for (u64 i = done + warp.lane; i < chunk.bytes; i += warp.lanes) {
            target[i] = 0;
        }
    }
}

extern "C" __global__ void __launch_bounds__(1024)
kavern_blocks_fill(u64 pool, u64 pool_bytes, u64 ids, u64 ids_bytes, u64 seeds, u64 seeds_bytes, u64 block_bytes) {
    const u64 chunks = chunks_of(block_bytes);
    const u64 work = least(ids_bytes / 4, seeds_bytes / 8) * chunks;
    const u64 blocks = pool_bytes / block_bytes;
    const Warp warp = warp_of_grid();
    for (u64 item = warp.index; item < work; item += warp.count) {
        const Chunk chunk = chunk_of(item, chunks, block_bytes);
        const u64 seed = ((const u64 *)seeds)[chunk.entry];
        u8 *target = block_at(pool, blocks, ((const i32 *)ids)[chunk.entry], block_bytes) + chunk.first;
        u64 done = 0;
        if (is_aligned((u64)target, 16)) {
            const u32 vectors = (u32)(chunk.bytes / 16);
#pragma unroll 8
            for (u32 i = warp.lane; i < vectors; i += warp.lanes) {
                __stcs((ulonglong2 *)target + i, pattern_pair(seed, chunk.first / 8 + 2 * i));
            }
            done = vectors * 16;
        }
        for (u64 i = done + warp.lane; i < chunk.bytes; i += warp.lanes) {
            target[i] = pattern_byte(seed, chunk.first + i);
        }
    }
}

// What differs between a block and the pattern of its seed, seen by thread `thread` of `threads`.
__device__ __forceinline__ u64 difference_of(const u8 *source, u64 seed, u64 block_bytes, u32 thread, u32 threads) {
    u64 difference = 0;
    u64 done = 0;
    if (is_aligned((u64)source, 16)) {
        const u64 vectors = block_bytes / 16;
#pragma unroll 8
        for (u64 i = thread; i < vectors; i += threads) {
            const ulonglong2 seen = __ldcs((const ulonglong2 *)source + i);
            const ulonglong2 wanted = pattern_pair(seed, 2 * i);
            difference |= (seen.x ^ wanted.x) | (seen.y ^ wanted.y);
        }
        done = vectors * 16;
    }
    for (u64 i = done + thread; i < block_bytes; i += threads) {
        difference |= source[i] ^ pattern_byte(seed, i);
    }
    return difference;
}

__device__ __forceinline__ void count_check(u64 *sums, bool differs, i32 id) {
    if (differs) {
        atomicAdd(&sums[1], 1ull);
        atomicMax(&sums[2], (u64)id + 1);
    }
}

// Each block is counted once: small ones are checked by a warp, large ones by a block of threads.
extern "C" __global__ void __launch_bounds__(1024)
kavern_blocks_check(u64 counters, u64 counters_bytes, u64 pool, u64 pool_bytes, u64 ids, u64 ids_bytes, u64 seeds,
                    u64 seeds_bytes, u64 block_bytes) {
    const u64 count = least(ids_bytes / 4, seeds_bytes / 8);
    const u64 blocks = pool_bytes / block_bytes;
    u64 *sums = (u64 *)counters;
    require(counters_bytes >= 24);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        atomicAdd(&sums[0], count);
    }
    if (block_bytes <= SMALL_BLOCK) {
        const Warp warp = warp_of_grid();
        for (u64 entry = warp.index; entry < count; entry += warp.count) {
            const i32 id = ((const i32 *)ids)[entry];
            const u8 *source = block_at(pool, blocks, id, block_bytes);
            const u64 difference = difference_of(source, ((const u64 *)seeds)[entry], block_bytes, warp.lane, warp.lanes);
            const u32 lanes = warp.lanes == WARP ? 0xffffffffu : (1u << warp.lanes) - 1;
            const bool differs = __any_sync(lanes, difference != 0);
            if (warp.lane == 0) {
                count_check(sums, differs, id);
            }
        }
        return;
    }
    for (u64 entry = blockIdx.x; entry < count; entry += gridDim.x) {
        const i32 id = ((const i32 *)ids)[entry];
        const u8 *source = block_at(pool, blocks, id, block_bytes);
        const u64 seed = ((const u64 *)seeds)[entry];
        const u64 difference = difference_of(source, seed, block_bytes, threadIdx.x, blockDim.x);
        const int differs = __syncthreads_or(difference != 0);
        if (threadIdx.x == 0) {
            count_check(sums, differs, id);
        }
    }
}

// Pairs [source, target]; no target is named twice or is a source.
extern "C" __global__ void __launch_bounds__(1024)
kavern_blocks_copy(u64 pool, u64 pool_bytes, u64 pairs, u64 pairs_bytes, u64 block_bytes) {
    const u64 chunks = chunks_of(block_bytes);
    const u64 work = pairs_bytes / 8 * chunks;
    const u64 blocks = pool_bytes / block_bytes;
    const Warp warp = warp_of_grid();
    for (u64 item = warp.index; item < work; item += warp.count) {
        const Chunk chunk = chunk_of(item, chunks, block_bytes);
        const i32 *pair = (const i32 *)pairs + 2 * chunk.entry;
        const u8 *source = block_at(pool, blocks, pair[0], block_bytes) + chunk.first;
        u8 *target = block_at(pool, blocks, pair[1], block_bytes) + chunk.first;
        if (chunk.bytes == CHUNK && warp.lanes == WARP && is_aligned((u64)source | (u64)target, 16)) {
            // All loads are under way before the first store, which the compiler does not arrange by itself.
            constexpr u32 EACH = CHUNK / 16 / WARP;
            uint4 held[EACH];
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) {
                held[i] = __ldcs((const uint4 *)source + warp.lane + i * WARP);
            }
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) {
                __stcs((uint4 *)target + warp.lane + i * WARP, held[i]);
            }
            continue;
        }
        u64 done = 0;
        if (is_aligned((u64)source | (u64)target, 16)) {
            const u32 vectors = (u32)(chunk.bytes / 16);
            for (u32 i = warp.lane; i < vectors; i += warp.lanes) {
                ((uint4 *)target)[i] = ((const uint4 *)source)[i];
            }
            done = vectors * 16;
        }
        for (u64 i = done + warp.lane; i < chunk.bytes; i += warp.lanes) {
            target[i] = source[i];
        }
    }
}
