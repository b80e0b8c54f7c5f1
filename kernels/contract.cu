// Kernels of the contract tests and of examples/gpu_figures.rs. References: tests/contracts/.

#include "types.cuh"

// out[i] = a[i] + b[i] * factor, one thread an element.
extern "C" __global__ void contract_add(u64 out, u64 out_bytes, u64 a, u64 a_bytes, u64 b, u64 b_bytes, u64 factor) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < out_bytes / 4) {
        require(i < a_bytes / 4 && i < b_bytes / 4);
        ((i32 *)out)[i] = (i32)((u32)((const i32 *)a)[i] + (u32)((const i32 *)b)[i] * (u32)factor);
    }
}

// out[i] = ~in[i].
extern "C" __global__ void contract_negate(u64 out, u64 out_bytes, u64 in, u64 in_bytes) {
    const u64 all = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < least(out_bytes, in_bytes); i += all) {
        ((u8 *)out)[i] = (u8) ~((const u8 *)in)[i];
    }
}

// Reads everything and keeps nothing: what reading costs at least, to compare a check with.
extern "C" __global__ void __launch_bounds__(1024) contract_read(u64 out, u64 out_bytes, u64 in, u64 in_bytes) {
    const uint4 *source = (const uint4 *)in;
    const u64 all = (u64)gridDim.x * blockDim.x, vectors = in_bytes / 16;
    u32 mixed = 0;
#pragma unroll 8
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < vectors; i += all) {
        const uint4 seen = __ldcs(source + i);
        mixed |= seen.x ^ seen.y ^ seen.z ^ seen.w;
    }
    // Never so for the patterns that are read; without it the compiler would drop the loads.
    if (mixed == 0 && out_bytes >= 4) {
        *(u32 *)out = 1;
    }
}

// One sector of 32 bytes for each hash, at the place that the hash names, and one word out: what a lookup reads and writes
// at least, to compare it with. The table has a power of two of cells of 16 bytes.
extern "C" __global__ void __launch_bounds__(1024)
contract_gather(u64 out, u64 out_bytes, u64 table, u64 table_bytes, u64 hashes, u64 hashes_bytes) {
    const uint4 *cells = (const uint4 *)table, *list = (const uint4 *)hashes;
    const u32 mask = (u32)(table_bytes / 16 - 1);
    const u64 all = (u64)gridDim.x * blockDim.x, count = least(out_bytes / 4, hashes_bytes / 16);
#pragma unroll 4
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += all) {
        const u32 at = __ldcs(list + i).x & mask & ~1u;
        const uint4 one = cells[at], two = cells[at | 1];
        __stcs((u32 *)out + i, one.x ^ one.w ^ two.x ^ two.w);
    }
}

// Ends the context.
extern "C" __global__ void contract_fail() { __trap(); }
