//! A group of layers: the header's structs, and their way to the room's types and back: what a block holds, and what of
//! the past a token reaches.

use super::config;
use super::kv_config::{unknown, unsupported};
use super::kv_enums::{kavern_kv_group_flag, kavern_kv_group_kind};
use crate::cache::{Content, GroupConfig, GroupDescription, Reach};
use crate::device::{Device, DeviceSlice};
use crate::error::{Error, Result};
use crate::format::{BlockShape, LatentShape, Layout};
use crate::types::Dtype;

use kavern_kv_group_kind::*;

/// One group of layers that share block size and layout.
///
/// A block holds `block_tokens` tokens of all its layers: [layer][key or value][...layout...], or latent rows
/// [layer][token][token_bytes] in a group of kind KAVERN_GROUP_MLA, which has layers and token_bytes. Groups of kind
/// KAVERN_GROUP_OPAQUE and KAVERN_GROUP_STATE have block_bytes instead of layers, heads and dtype; windows and
/// cross-attention may have any of the three. docs/abi.md says what each kind holds, finds and shows in its table.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_group {
    /// sizeof(kavern_kv_group).
    pub struct_size: u32,
    /// A KAVERN_GROUP_ value.
    pub kind: u32,
    /// Layers, 1 to 1024.
    pub layers: u32,
    /// Heads of keys and values, 1 to 1024.
    pub kv_heads: u32,
    /// Channels of a key head and of a value head, 1 to 4096.
    pub head_dim: u32,
    /// A KAVERN_DTYPE value: KAVERN_F32, KAVERN_F16, ...
    pub dtype: u32,
    /// Tokens in a block, 1 to 65536, a multiple of hash_block_tokens.
    pub block_tokens: u32,
    /// KAVERN_NHD or KAVERN_HND.
    pub layout: u32,
    /// Bytes of a block of an opaque group or of a state, a multiple of 16; 0 where layers, heads and dtype or
    /// token_bytes say it.
    pub block_bytes: u64,
    /// Blocks of this group; 0 takes the cache's capacity_blocks.
    pub capacity_blocks: u64,
    /// Device address of memory of yours that holds the blocks, aligned to 256; 0 lets the library allocate.
    pub region_address: u64,
    /// Bytes there, at least capacity_blocks (or max_blocks, if that is more) x bytes of a block, and one block more
    /// where null_block is not -1.
    pub region_bytes: u64,
    /// KAVERN_GROUP_SLIDING: tokens that one attends to, itself among them. KAVERN_GROUP_CHUNKED: tokens of a chunk. 0
    /// in all others.
    pub window_tokens: u32,
    /// Later: formats of slots beside raw ones. 0.
    pub slot_classes: u32,
    /// In a cache with KAVERN_KV_ADAPTIVE_BLOCKS: 1 small, 2 primary, 3 large blocks, no two groups the same; else 0.
    pub size_class: u32,
    /// Zero.
    pub reserved: [u32; 3],
    /// KAVERN_GROUP_MLA, and windows over such rows: bytes of one token in one layer, 1 to 65536; 0 in all others.
    pub token_bytes: u32,
    /// KAVERN_GROUP_CROSS: tokens of the other input, the same for each sequence; 0 in all others.
    pub cross_tokens: u32,
    /// KAVERN_GROUP_STATE: a snapshot may be kept at multiples of so many blocks; 0 takes the lengths at which hits of
    /// all groups can end, with KAVERN_KV_PARTIAL_HITS those at which blocks of all states end. 0 in all others.
    pub snapshot_blocks: u32,
    /// KAVERN_GROUP_ bits of kavern_kv_group_flag.
    pub flags: u32,
}

/// Where and how the blocks of a group lie; all an engine needs to write its slots itself.
///
/// Element address: base_address + block x block_stride + layer x layer_stride + (value ? kv_stride : 0) +
/// token x token_stride + head x head_stride + channel x bytes of the dtype. Strides are in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_description {
    /// sizeof(kavern_kv_description).
    pub struct_size: u32,
    /// A KAVERN_GROUP_ value.
    pub kind: u32,
    /// Layers; 0 if opaque.
    pub layers: u32,
    /// Heads; 0 if opaque.
    pub kv_heads: u32,
    /// Channels of a head; 0 if opaque.
    pub head_dim: u32,
    /// Element type; 0 if opaque.
    pub dtype: u32,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// KAVERN_NHD or KAVERN_HND; 0 if opaque.
    pub layout: u32,
    /// Device address of block 0; 0 in a metadata-only cache.
    pub base_address: u64,
    /// Blocks that may be handed out.
    pub block_count: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// From a block to the next.
    pub block_stride: u64,
    /// From a layer to the next.
    pub layer_stride: u64,
    /// From the keys to the values of a layer.
    pub kv_stride: u64,
    /// From a token to the next.
    pub token_stride: u64,
    /// From a head to the next.
    pub head_stride: u64,
    /// Cells in a row of the block table.
    pub row_cells: u64,
    /// The block that cells show whose block was let go: zeros, never handed out; -1 where nothing is let go early.
    pub null_block: i32,
    /// Tokens of the window or chunk; 0 if there is none.
    pub window_tokens: u32,
    /// Blocks to which the group may grow; the addresses of all are taken.
    pub max_blocks: u64,
}

const KINDS: [kavern_kv_group_kind; 7] = [
    KAVERN_GROUP_FULL,
    KAVERN_GROUP_SLIDING,
    KAVERN_GROUP_CHUNKED,
    KAVERN_GROUP_STATE,
    KAVERN_GROUP_CROSS,
    KAVERN_GROUP_MLA,
    KAVERN_GROUP_OPAQUE,
];

/// What a block holds: exactly one of the three ways to say it.
fn content(group: &kavern_kv_group, kind: kavern_kv_group_kind) -> Result<Content> {
    let heads = [group.kv_heads, group.head_dim, group.dtype, group.layout];
    let wants_bytes = matches!(kind, KAVERN_GROUP_OPAQUE | KAVERN_GROUP_STATE);
    let refuse = |text| Err(Error::argument(text));
    if wants_bytes || (group.block_bytes != 0 && !matches!(kind, KAVERN_GROUP_FULL | KAVERN_GROUP_MLA)) {
        if group.layers != 0 || heads != [0; 4] || group.token_bytes != 0 {
            return refuse("a group with block_bytes leaves layers, heads, dtype, layout and token_bytes 0");
        }
        return Ok(Content::Opaque { block_bytes: group.block_bytes });
    }
    if group.block_bytes != 0 {
        return refuse("block_bytes is for opaque groups and states; this group has layers");
    }
    if kind == KAVERN_GROUP_MLA || (group.token_bytes != 0 && kind != KAVERN_GROUP_FULL) {
        if heads != [0; 4] {
            return refuse("a group with token_bytes leaves heads, dtype and layout 0");
        }
        let (layers, token_bytes, block_tokens) = (group.layers, group.token_bytes, group.block_tokens);
        return Ok(Content::Latent(LatentShape { layers, token_bytes, block_tokens }));
    }
    if group.token_bytes != 0 {
        return refuse("token_bytes is for latent rows; a full group has heads and dtype");
    }
    Ok(Content::Attention(BlockShape {
        layers: group.layers,
        kv_heads: group.kv_heads,
        head_dim: group.head_dim,
        dtype: Dtype::try_from(group.dtype)?,
        block_tokens: group.block_tokens,
        layout: Layout::try_from(group.layout)?,
    }))
}

fn reach(group: &kavern_kv_group, kind: kavern_kv_group_kind) -> Result<Reach> {
    let is_window = matches!(kind, KAVERN_GROUP_SLIDING | KAVERN_GROUP_CHUNKED);
    let only_for = |field: u32, is_for: bool, text| match field != 0 && !is_for {
        true => Err(Error::argument(text)),
        false => Ok(()),
    };
    only_for(group.window_tokens, is_window, "window_tokens is for sliding and chunked groups; leave it 0")?;
    only_for(group.snapshot_blocks, kind == KAVERN_GROUP_STATE, "snapshot_blocks is for states; leave it 0")?;
    only_for(
        group.cross_tokens,
        kind == KAVERN_GROUP_CROSS,
        "cross_tokens is for cross-attention; leave it 0",
    )?;
    let trimmable = kavern_kv_group_flag::KAVERN_GROUP_TRIMMABLE as u32;
    config::check_flags(group.flags, trimmable, "kavern_kv_group")?;
    Ok(match kind {
        KAVERN_GROUP_SLIDING => Reach::Sliding { window_tokens: group.window_tokens },
        KAVERN_GROUP_CHUNKED => Reach::Chunked { chunk_tokens: group.window_tokens },
        KAVERN_GROUP_STATE | KAVERN_GROUP_CROSS if group.flags != 0 => {
            return Err(Error::argument("a state or another input cannot be trimmed; leave flags 0"));
        }
        KAVERN_GROUP_STATE => Reach::State { snapshot_blocks: group.snapshot_blocks },
        KAVERN_GROUP_CROSS => Reach::Cross { tokens: group.cross_tokens },
        _ if group.flags & trimmable != 0 => Reach::Untrimmed,
        _ => Reach::All,
    })
}

/// Reads one group.
pub(super) fn read(group: &kavern_kv_group, device: &dyn Device) -> Result<GroupConfig> {
    config::check_reserved(&group.reserved.map(u64::from), "kavern_kv_group")?;
    if group.slot_classes != 0 {
        return Err(unsupported("slot_classes is for later versions; leave it 0"));
    }
    let kind = KINDS.into_iter().find(|&kind| kind as u32 == group.kind);
    let kind = kind.ok_or_else(|| unknown("group kind", group.kind))?;
    let region = match (group.region_address, group.region_bytes) {
        (0, 0) => None,
        // SAFETY: the header makes the caller vouch for memory of the cache's device that outlives the cache.
        (address, bytes) => Some(unsafe { DeviceSlice::from_foreign(device.key(), address, bytes) }?),
    };
    Ok(GroupConfig {
        content: content(group, kind)?,
        reach: reach(group, kind)?,
        block_tokens: group.block_tokens,
        capacity_blocks: group.capacity_blocks,
        region,
    })
}

/// What the header tells of a group.
pub(super) fn describe(group: &GroupDescription) -> kavern_kv_description {
    let mut description = kavern_kv_description {
        block_tokens: group.block_tokens,
        base_address: group.base_address,
        block_count: group.blocks.into(),
        max_blocks: group.max_blocks.into(),
        block_bytes: group.block_bytes,
        block_stride: group.strides.block,
        layer_stride: group.strides.layer,
        kv_stride: group.strides.kv,
        token_stride: group.strides.token,
        head_stride: group.strides.head,
        row_cells: group.row_cells.into(),
        null_block: group.null_block.map_or(-1, |block| block as i32),
        ..config::zeroed()
    };
    let kind_of_content = match group.content {
        Content::Attention(shape) => {
            description.layers = shape.layers;
            description.kv_heads = shape.kv_heads;
            description.head_dim = shape.head_dim;
            description.dtype = shape.dtype as u32;
            description.layout = shape.layout as u32;
            KAVERN_GROUP_FULL
        }
        Content::Latent(shape) => {
            description.layers = shape.layers;
            KAVERN_GROUP_MLA
        }
        Content::Opaque { .. } => KAVERN_GROUP_OPAQUE,
    };
    let (kind, window_tokens) = match group.reach {
        Reach::All | Reach::Untrimmed => (kind_of_content, 0),
        Reach::Sliding { window_tokens } => (KAVERN_GROUP_SLIDING, window_tokens),
        Reach::Chunked { chunk_tokens } => (KAVERN_GROUP_CHUNKED, chunk_tokens),
        Reach::State { .. } => (KAVERN_GROUP_STATE, 0),
        Reach::Cross { .. } => (KAVERN_GROUP_CROSS, 0),
    };
    (description.kind, description.window_tokens) = (kind as u32, window_tokens);
    description
}
