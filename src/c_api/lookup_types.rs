//! Structs of lookups beside kavern_kv_match: chunks, and the index on the device.

/// What kavern_kv_match_chunks says of one key in one group.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kavern_kv_chunk_hit {
    /// Tokens by which the block's place in the new prompt lies behind the one where it was stored: rotate its keys by
    /// this much. 0 if nothing was found.
    pub shift: i64,
    /// The block, -1 if nothing was found.
    pub block: i32,
    /// Zero.
    pub reserved: u32,
}

/// A batch of lookups by hashes that are in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_lookup_args {
    /// sizeof(kavern_kv_lookup_args).
    pub struct_size: u32,
    /// Whose blocks.
    pub group: u32,
    /// A KAVERN_LOOKUP_ value.
    pub mode: u32,
    /// Rows, one for each prompt.
    pub rows: u32,
    /// Hashes of a row.
    pub row_hashes: u32,
    /// Zero.
    pub reserved: u32,
    /// Device address of the hashes, u64 [rows][row_hashes][2] as kavern_kv_block_hashes gives them; aligned to 16.
    pub hashes: u64,
    /// Device address of how many hashes of each row count, i32 [rows]; 0: all. The others are misses.
    pub counts: u64,
    /// Device address that receives the block ids, i32 [rows][row_hashes]; -1 is a miss.
    pub block_ids: u64,
}
