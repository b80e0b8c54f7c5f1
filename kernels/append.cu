// New tokens of one layer: keys and values into their slots, rounded once. Reference: src/cache/kernels.rs.
//
// Not-a-numbers keep their sign and the high bits of their payload and become quiet, as the reference does; the
// hardware's conversions would give one canonical value.

#include "types.cuh"

// Numbers of src/types.rs.
constexpr u64 F32 = 1, F16 = 2, BF16 = 3;

__device__ __forceinline__ u64 bytes_of(u64 dtype) { return dtype == F32 ? 4 : dtype <= BF16 ? 2 : 1; }

__device__ __forceinline__ u32 f16_to_f32(u16 bits) {
    if ((bits & 0x7fff) > 0x7c00) {
        return (u32)(bits & 0x8000) << 16 | 0x7fc00000u | (u32)(bits & 0x3ff) << 13;
    }
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return __float_as_uint(value);
}

__device__ __forceinline__ u32 bf16_to_f32(u16 bits) {
    return (bits & 0x7fff) > 0x7f80 ? (u32)(bits | 0x0040) << 16 : (u32)bits << 16;
}

__device__ __forceinline__ u16 f32_to_f16(u32 bits) {
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (u16)((bits & 0x80000000u) >> 16 | 0x7e00 | (bits & 0x7fffff) >> 13);
    }
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(__uint_as_float(bits)));
    return half;
}

__device__ __forceinline__ u16 f32_to_bf16(u32 bits) {
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return (u16)(bits >> 16 | 0x0040);
    }
    // To nearest, ties to even; a carry into the exponent is the right next value.
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Elements wider than a byte are copied by bytes where they are not aligned.
template <typename T> __device__ __forceinline__ T load(const u8 *at) {
    if (is_aligned((u64)at, sizeof(T))) {
        return *(const T *)at;
    }
    T value = 0;
    for (u32 i = 0; i < sizeof(T); i++) {
        value |= (T)((T)at[i] << (8 * i));
    }
    return value;
}

template <typename T> __device__ __forceinline__ void store(u8 *at, T value) {
    if (is_aligned((u64)at, sizeof(T))) {
        *(T *)at = value;
        return;
    }
    for (u32 i = 0; i < sizeof(T); i++) {
        at[i] = (u8)(value >> (8 * i));
    }
}

__device__ __forceinline__ void convert(u8 *target, u64 to, const u8 *source, u64 from) {
    const u32 bits = from == F16    ? f16_to_f32(load<u16>(source))
                     : from == BF16 ? bf16_to_f32(load<u16>(source))
                                    : load<u32>(source);
    if (to == F16) {
        store<u16>(target, f32_to_f16(bits));
    } else if (to == BF16) {
        store<u16>(target, f32_to_bf16(bits));
    } else {
        store<u32>(target, bits);
    }
}

extern "C" __global__ void __launch_bounds__(1024)
kavern_kv_append(u64 pool, u64 pool_bytes, u64 keys, u64 keys_bytes, u64 values, u64 values_bytes, u64 slots,
                 u64 slots_bytes, u64 tokens, u64 heads, u64 channels, u64 block_tokens, u64 block_stride,
                 u64 kv_stride, u64 token_stride, u64 head_stride, u64 layer_at, u64 from, u64 to) {
    const u64 source_row = channels * bytes_of(from), row = channels * bytes_of(to);
    require(slots_bytes / 8 >= tokens);
    require(keys_bytes >= tokens * heads * source_row && values_bytes >= tokens * heads * source_row);
    const u64 places = pool | keys | values | block_stride | kv_stride | token_stride | head_stride | layer_at | row;
    const bool is_plain = from == to;
    const bool is_vector = is_plain && is_aligned(places, 16);
    // What one thread does at a time: 16 bytes, an element to convert, or a byte.
    const u64 units = is_vector ? row / 16 : is_plain ? row : channels;
    // Counted in 32 bits, because each step of a thread divides.
    require(2 * heads * units < 1ull << 32);
    const u32 row_units = (u32)units, work = (u32)(2 * heads * units), rows = (u32)heads;
    for (u64 token = blockIdx.x; token < tokens; token += gridDim.x) {
        const i64 slot = ((const i64 *)slots)[token];
        if (slot < 0) {
            continue;
        }
        const u64 at = (u64)slot / block_tokens * block_stride + (u64)slot % block_tokens * token_stride + layer_at;
        // The last byte that this token writes.
        require(at + kv_stride + (heads - 1) * head_stride + row <= pool_bytes);
        for (u32 i = threadIdx.x; i < work; i += blockDim.x) {
            const u32 line = i / row_units;
            const u64 unit = i % row_units;
            const bool is_value = line >= rows;
            const u64 head = is_value ? line - rows : line;
            u8 *target = (u8 *)pool + at + (is_value ? kv_stride : 0) + head * head_stride;
            const u8 *source = (const u8 *)(is_value ? values : keys) + (token * heads + head) * source_row;
            if (is_vector) {
                ((uint4 *)target)[unit] = __ldcs((const uint4 *)source + unit);
            } else if (is_plain) {
                target[unit] = source[unit];
            } else {
                convert(target + unit * bytes_of(to), to, source + unit * bytes_of(from), from);
            }
        }
    }
}
