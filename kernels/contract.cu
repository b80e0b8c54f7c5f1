// Kernels of the contract tests. References: tests/contracts/.

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

// Ends the context.
extern "C" __global__ void contract_fail() { __trap(); }
