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

// First byte of a block of a pool.
__device__ __forceinline__ u8 *block_of(u64 pool, u64 pool_bytes, i32 block, u64 block_bytes) {
    require(block >= 0 && (u64)block < pool_bytes / block_bytes);
    return (u8 *)(pool + (u64)block * block_bytes);
}

// Bytes that one block of threads does at a time: four 16-byte accesses for each of 256 threads.
constexpr u64 PIECE = 16384;
