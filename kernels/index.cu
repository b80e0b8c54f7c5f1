// The index on the device: cells from the host, and batches of lookups. References: src/cache/index_kernels.rs.
//
// A cell is 16 bytes: three words of a hash, then the block + 1 or 0. A search starts at an even cell, so it reads the
// two cells of one sector of 32 bytes at a time, and at half load it seldom needs a third sector. A thread has EACH
// searches under way, because each waits for memory at an address that nobody could ask for earlier.

#include "types.cuh"

constexpr u32 CHANGE_WORDS = 5;
constexpr u64 PREFIX = 2;
constexpr u32 EACH = 4;

extern "C" __global__ void __launch_bounds__(1024)
kavern_index_update(u64 table, u64 table_bytes, u64 changes, u64 changes_bytes) {
    const u64 cells = table_bytes / 16, count = changes_bytes / (4 * CHANGE_WORDS);
    const u64 all = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += all) {
        const u32 *change = (const u32 *)changes + CHANGE_WORDS * i;
        require(change[0] < cells);
        ((uint4 *)table)[change[0]] = make_uint4(change[1], change[2], change[3], change[4]);
    }
}

__device__ __forceinline__ bool holds(uint4 cell, uint4 hash) {
    return cell.x == hash.x && cell.y == hash.y && cell.z == hash.z;
}

// Ends a search if one of the two cells of a sector does; `found` is then the block or -1.
__device__ __forceinline__ bool ends(uint4 first, uint4 second, uint4 hash, i32 &found) {
    if (first.w == 0 || holds(first, hash)) {
        found = (i32)first.w - 1;
        return true;
    }
    if (second.w == 0 || holds(second, hash)) {
        found = (i32)second.w - 1;
        return true;
    }
    return false;
}

// EACH searches, sector by sector, with all of their reads under way at once. Those without a bit in `open` answer -1.
__device__ __forceinline__ void search(const uint4 *table, u32 mask, const uint4 (&hash)[EACH], u32 open,
                                       i32 (&found)[EACH]) {
#pragma unroll
    for (u32 k = 0; k < EACH; k++) {
        found[k] = -1;
    }
    for (u32 seen = 0; open != 0 && seen <= mask; seen += 2) {
        uint4 one[EACH], two[EACH];
#pragma unroll
        for (u32 k = 0; k < EACH; k++) {
            if (open >> k & 1) {
                const u32 at = ((hash[k].x & ~1u) + seen) & mask;
                one[k] = table[at];
                two[k] = table[at + 1];
            }
        }
#pragma unroll
        for (u32 k = 0; k < EACH; k++) {
            if ((open >> k & 1) && ends(one[k], two[k], hash[k], found[k])) {
                open &= ~(1u << k);
            }
        }
    }
}

// One block of threads does a row: what its threads reach in one go, until something is missing.
__device__ __forceinline__ void prefix_row(i32 *out, const uint4 *table, u32 mask, const uint4 *hashes, u64 each,
                                           u64 count) {
    __shared__ u64 missing;
    u64 first = 0;
    bool is_over = false;
    for (; !is_over && first < count; first += EACH * blockDim.x) {
        __syncthreads();
        if (threadIdx.x == 0) {
            missing = ~0ull;
        }
        __syncthreads();
        const u64 mine = first + threadIdx.x;
        uint4 hash[EACH];
        i32 found[EACH];
        u32 open = 0;
#pragma unroll
        for (u32 k = 0; k < EACH; k++) {
            const u64 at = mine + k * blockDim.x;
            if (at < count) {
                hash[k] = __ldcs(hashes + at);
                open |= 1u << k;
            }
        }
        search(table, mask, hash, open, found);
#pragma unroll
        for (u32 k = EACH; k-- > 0;) {
            if ((open >> k & 1) && found[k] < 0) {
                atomicMin(&missing, mine + k * blockDim.x);
            }
        }
        __syncthreads();
        const u64 end = missing;
        is_over = end != ~0ull;
#pragma unroll
        for (u32 k = 0; k < EACH; k++) {
            const u64 at = mine + k * blockDim.x;
            if (open >> k & 1) {
                out[at] = at < end ? found[k] : -1;
            }
        }
    }
    // What follows the piece with the first miss, and the count.
    for (u64 at = least(first, count) + threadIdx.x; at < each; at += blockDim.x) {
        out[at] = -1;
    }
}

__device__ __forceinline__ u64 count_of(const i32 *counts, u64 row, u64 each) {
    if (counts == nullptr) {
        return each;
    }
    return counts[row] < 0 ? 0 : least(counts[row], each);
}

extern "C" __global__ void __launch_bounds__(1024)
kavern_index_lookup(u64 blocks, u64 blocks_bytes, u64 table, u64 table_bytes, u64 hashes, u64 hashes_bytes, u64 counts,
                    u64 counts_bytes, u64 rows, u64 each, u64 mode, u64 has_counts) {
    const u64 cells = table_bytes / 16, total = rows * each;
    require(blocks_bytes / 4 >= total && hashes_bytes / 16 >= total);
    require((has_counts == 0 || counts_bytes / 4 >= rows) && cells >= 2 && cells <= 1u << 31 && (cells & (cells - 1)) == 0);
    const uint4 *in = (const uint4 *)hashes, *index = (const uint4 *)table;
    const i32 *given = has_counts != 0 ? (const i32 *)counts : nullptr;
    const u32 mask = (u32)(cells - 1);
    i32 *out = (i32 *)blocks;
    if (mode == PREFIX) {
        for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
            prefix_row(out + row * each, index, mask, in + row * each, each, count_of(given, row, each));
        }
        return;
    }
    const u64 all = (u64)gridDim.x * blockDim.x;
    for (u64 first = (u64)blockIdx.x * blockDim.x + threadIdx.x; first < total; first += EACH * all) {
        uint4 hash[EACH];
        i32 found[EACH];
        u32 open = 0;
#pragma unroll
        for (u32 k = 0; k < EACH; k++) {
            const u64 at = first + k * all;
            if (at < total && (given == nullptr || at % each < count_of(given, at / each, each))) {
                hash[k] = __ldcs(in + at);
                open |= 1u << k;
            }
        }
        search(index, mask, hash, open, found);
#pragma unroll
        for (u32 k = 0; k < EACH; k++) {
            const u64 at = first + k * all;
            if (at < total) {
                __stcs(out + at, found[k]);
            }
        }
    }
}
