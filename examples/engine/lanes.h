// Sixteen floats at a time, and the sums over them in one fixed order.
// Does not know matrices or attention. The order of every sum here is the same whatever the processor's registers
// hold, so results do not depend on whether a vector is one register or four; only whether multiply-add rounds once
// (AVX-512) or twice does.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace engine {

// 16 bits that are the upper half of a float.
struct Bf16 {
    uint16_t bits;
};

// Rounds to the nearest, ties to even; a NaN stays one.
inline Bf16 to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

using Floats = float __attribute__((vector_size(64)));
using Floats8 = float __attribute__((vector_size(32)));
using Floats4 = float __attribute__((vector_size(16)));
using Ints = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));
using Bytes = uint8_t __attribute__((vector_size(16)));
using SignedBytes = int8_t __attribute__((vector_size(16)));

constexpr size_t LANES = 16;

inline Floats load(const float *from) {
    Floats lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline Floats load(const Bf16 *from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    const Words words = __builtin_convertvector(halves, Words) << 16;
    Floats lanes;
    std::memcpy(&lanes, &words, sizeof lanes);
    return lanes;
}

inline void store(float *to, Floats lanes) { std::memcpy(to, &lanes, sizeof lanes); }

inline Floats all(float value) { return value - Floats{}; }

// a * b + c, rounded once with AVX-512.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

// The sum of all lanes, as a tree: halves, quarters, pairs.
inline float sum(Floats lanes) {
    Floats8 halves[2];
    std::memcpy(halves, &lanes, sizeof lanes);
    const Floats8 eight = halves[0] + halves[1];
    Floats4 quarters[2];
    std::memcpy(quarters, &eight, sizeof eight);
    const Floats4 four = quarters[0] + quarters[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// e to the power of each lane, for lanes of at most 88; relative error below 2e-7, and 0 gives 1 exactly.
inline Floats exponential(Floats x) {
    const Floats low = all(-87.0f);
    x = x < low ? low : x;
    // Adding 1.5 * 2^23 rounds to an integer that stands in the lower bits.
    const Floats magic = all(12582912.0f);
    const Floats shifted = multiply_add(x, all(1.44269504f), magic);
    const Floats n = shifted - magic;
    Floats r = multiply_add(n, all(-0.693359375f), x);
    r = multiply_add(n, all(2.12194440e-4f), r);
    Floats p = all(1.9875691500e-4f);
    p = multiply_add(p, r, all(1.3981999507e-3f));
    p = multiply_add(p, r, all(8.3334519073e-3f));
    p = multiply_add(p, r, all(4.1665795894e-2f));
    p = multiply_add(p, r, all(1.6666665459e-1f));
    p = multiply_add(p, r, all(5.0000001201e-1f));
    p = multiply_add(p, r * r, r) + all(1.0f);
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    Floats scale;
    std::memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

}  // namespace engine
