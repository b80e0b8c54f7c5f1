// Tables of a step: spreads one packed upload over them. Reference: src/cache/kernels.rs.

#include "types.cuh"

// Words of a run that one block of threads does by itself; the rest of a longer run is shared by all.
constexpr u32 OWN_WORDS = 2048;

// The head of the packed words: segments, their first word, changes, their first word. A segment is target, source and
// words; a change is target and value. No two of them name one target.
extern "C" __global__ void __launch_bounds__(1024)
kavern_tables_upload(u64 tables, u64 tables_bytes, u64 packed, u64 packed_bytes) {
    i32 *out = (i32 *)tables;
    const i32 *in = (const i32 *)packed;
    const u64 out_words = tables_bytes / 4, in_words = packed_bytes / 4;
    require(in_words >= 4);
    const u32 segments = (u32)in[0], segments_at = (u32)in[1], changes = (u32)in[2], changes_at = (u32)in[3];
    require(segments_at + 3ull * segments <= in_words && changes_at + 2ull * changes <= in_words);
    const u64 all = (u64)gridDim.x * blockDim.x;
    for (u32 s = blockIdx.x; s < segments; s += gridDim.x) {
        const i32 *segment = in + segments_at + 3ull * s;
        const u64 target = (u32)segment[0], source = (u32)segment[1], words = (u32)segment[2];
        require(target + words <= out_words && source + words <= in_words);
        for (u64 i = threadIdx.x; i < least(words, OWN_WORDS); i += blockDim.x) {
            out[target + i] = in[source + i];
        }
    }
    for (u32 s = 0; s < segments; s++) {
        const i32 *segment = in + segments_at + 3ull * s;
        const u64 words = (u32)segment[2];
        if (words <= OWN_WORDS) {
            continue;
        }
        const u64 target = (u32)segment[0], source = (u32)segment[1];
        require(target + words <= out_words && source + words <= in_words);
        for (u64 i = OWN_WORDS + (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += all) {
            out[target + i] = in[source + i];
        }
    }
    for (u64 c = (u64)blockIdx.x * blockDim.x + threadIdx.x; c < changes; c += all) {
        const i32 *change = in + changes_at + 2 * c;
        require((u64)(u32)change[0] < out_words);
        out[(u32)change[0]] = change[1];
    }
}
