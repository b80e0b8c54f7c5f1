// Runs of tokens from slots to slots of one pool. Reference: src/cache/kernels.rs.
//
// A warp does one chunk of one plane of one run at a time.

#include "types.cuh"

// A run as the tables carry it: group and row are the engine's.
struct Run {
    u32 group;
    i32 row;
    u64 source;
    u64 target;
    u32 tokens;
    i32 shift;
};

static_assert(sizeof(Run) == 32, "four words of 64 bits");

extern "C" __global__ void __launch_bounds__(1024)
kavern_tokens_copy(u64 pool, u64 pool_bytes, u64 runs, u64 runs_bytes, u64 block_tokens, u64 block_bytes,
                   u64 plane_bytes) {
    const u64 planes = quotient(block_bytes, plane_bytes);
    const u64 chunks = (plane_bytes + CHUNK - 1) / CHUNK;
    const u64 each = planes * chunks;
    const u64 work = runs_bytes / sizeof(Run) * each;
    const u64 blocks = pool_bytes / block_bytes;
    const u64 token_bytes = quotient(plane_bytes, block_tokens);
    const Warp warp = warp_of_grid();
    for (u64 item = warp.index; item < work; item += warp.count) {
        const u64 entry = each == 1 ? item : quotient(item, each);
        const u64 plane = quotient(item - entry * each, chunks);
        const u64 first = (item - entry * each - plane * chunks) * CHUNK;
        const Run run = ((const Run *)runs)[entry];
        const u64 whole = run.tokens == block_tokens ? plane_bytes : run.tokens * token_bytes;
        const u64 source_block = quotient(run.source, block_tokens);
        const u64 target_block = quotient(run.target, block_tokens);
        const u64 source_offset = run.source - source_block * block_tokens;
        const u64 target_offset = run.target - target_block * block_tokens;
        require(source_block < blocks && target_block < blocks);
        require(source_offset + run.tokens <= block_tokens && target_offset + run.tokens <= block_tokens);
        if (first >= whole) {
            continue;
        }
        const u64 bytes = least(CHUNK, whole - first);
        const u64 at = plane * plane_bytes + first;
        const u8 *source = (const u8 *)(pool + source_block * block_bytes + source_offset * token_bytes + at);
        u8 *target = (u8 *)(pool + target_block * block_bytes + target_offset * token_bytes + at);
        u64 done = 0;
        if (is_aligned((u64)source | (u64)target, 16)) {
            const u32 vectors = (u32)(bytes / 16);
#pragma unroll 8
            for (u32 i = warp.lane; i < vectors; i += warp.lanes) {
                __stcs((uint4 *)target + i, __ldcs((const uint4 *)source + i));
            }
            done = vectors * 16;
        }
        for (u64 i = done + warp.lane; i < bytes; i += warp.lanes) {
            target[i] = source[i];
        }
    }
}
