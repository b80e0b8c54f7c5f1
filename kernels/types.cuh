// What every kernel uses: fixed-width types and the walk over a range of bytes. No headers, so that NVRTC alone
// compiles it.
//
// Launch ABI: kernel.rs turns every slice into two parameters, its address and its bytes, and every number into one;
// all are 64 bits wide. Kernels are right for every grid and block.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

static_assert(sizeof(u64) == 8 && sizeof(u32) == 4 && sizeof(u16) == 2, "widths of the ABI");

// A wrong index ends the context, as a panic of the reference ends the host device: nothing outside the slice is
// touched.
__device__ __forceinline__ void require(bool holds) {
    if (!holds) {
        __trap();
    }
}

__device__ __forceinline__ u64 least(u64 a, u64 b) { return a < b ? a : b; }

__device__ __forceinline__ bool is_aligned(u64 address, u64 bytes) { return (address & (bytes - 1)) == 0; }

// a / b; a 64-bit division takes about a hundred instructions, a 32-bit one twenty.
__device__ __forceinline__ u64 quotient(u64 a, u64 b) { return ((a | b) >> 32) != 0 ? a / b : (u32)a / (u32)b; }

// First byte of a block of a pool with `blocks` blocks.
__device__ __forceinline__ u8 *block_at(u64 pool, u64 blocks, i32 block, u64 block_bytes) {
    require(block >= 0 && (u64)block < blocks);
    return (u8 *)(pool + (u64)block * block_bytes);
}

constexpr u32 WARP = 32;

// Bytes that a warp does at a time: eight 16-byte accesses for each lane.
constexpr u64 CHUNK = 4096;

// Blocks of a pool up to this size are checked by a warp each.
constexpr u64 SMALL_BLOCK = 8192;

// A warp's place among all of the grid; the last one of a block of threads may have fewer lanes.
struct Warp {
    u64 index;
    u64 count;
    u32 lane;
    u32 lanes;
};

__device__ __forceinline__ Warp warp_of_grid() {
    const u64 each = (blockDim.x + WARP - 1) / WARP;
    const u32 in_block = threadIdx.x / WARP;
    const u32 left = blockDim.x - in_block * WARP;
    return {blockIdx.x * each + in_block, gridDim.x * each, threadIdx.x % WARP, left < WARP ? left : WARP};
}
