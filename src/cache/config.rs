//! What a cache is asked to be, and the geometry that follows from it.
//!
//! Pure: nothing is allocated here. Invariants of [`Geometry`]: each group's `block_tokens` is a multiple of
//! `hash_block_tokens`, and `row_cells * block_tokens >= max_sequence_tokens`.

use super::classes::{self, AdaptiveBlocks, Groups};
use super::group::Reach;
use crate::device::DeviceSlice;
use crate::error::{Error, Result, Status};
use crate::format::{BlockShape, LatentShape, Layout, Strides};

/// What the blocks of a group hold.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// Keys and values of full attention.
    Attention(BlockShape),
    /// Latent rows, one for each token and layer.
    Latent(LatentShape),
    /// Bytes that only the engine understands.
    Opaque {
        /// Bytes of a block.
        block_bytes: u64,
    },
}

/// Most groups of a cache.
pub const GROUPS_MAX: usize = 16;

/// One group of layers with a pool of its own.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// What a block holds.
    pub content: Content,
    /// What of the past a token reaches.
    pub reach: Reach,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Blocks; 0 takes the cache's.
    pub capacity_blocks: u64,
    /// Memory of the engine's for the pool.
    pub region: Option<DeviceSlice>,
}

impl GroupConfig {
    /// A group that reaches all of the past, with the cache's number of blocks in memory of the library's.
    pub fn new(content: Content, block_tokens: u32) -> Self {
        Self { content, reach: Reach::All, block_tokens, capacity_blocks: 0, region: None }
    }
}

/// Which hash chains the blocks of a token namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashKind {
    /// Keyed BLAKE3: collision-resistant, compared by key alone.
    Blake3,
    /// XXH3-128 with exact comparison of tokens and ancestry.
    Xxh3,
}

/// When a slot is zeroed before it is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrub {
    /// Never.
    None,
    /// When it held another tenant's bytes.
    TenantChange,
    /// Always.
    Always,
}

/// Indices that a cache keeps beside the one of prefixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexOptions {
    /// A copy of each group's index on the device, for lookups there.
    pub device: bool,
    /// Namespaces may name blocks independently of what comes before them.
    pub chunks: bool,
}

/// What a cache is asked to be.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Name in reports.
    pub name: String,
    /// The groups, 1 to 16.
    pub groups: Vec<GroupConfig>,
    /// Blocks of each group that names none.
    pub capacity_blocks: u64,
    /// Blocks to which a group may grow later; 0: its capacity, in memory that stays.
    pub max_blocks: u64,
    /// Bytes of all pools, where no blocks are named.
    pub capacity_bytes: u64,
    /// Rows of the tables.
    pub max_sequences: u32,
    /// Longest sequence; 0 takes what the smallest pool holds, at most [`DEFAULT_ROW_CELLS`] blocks.
    pub max_sequence_tokens: u64,
    /// Tokens scheduled in one step.
    pub max_batch_tokens: u32,
    /// Leases at a time.
    pub max_leases: u32,
    /// Namespaces at a time.
    pub max_namespaces: u32,
    /// Steps in flight.
    pub steps_in_flight: u32,
    /// Tokens of one link of the hash chain; 0 takes the greatest common divisor of the groups' blocks.
    pub hash_block_tokens: u32,
    /// The hash of the chain.
    pub hash: HashKind,
    /// When slots are zeroed.
    pub scrub: Scrub,
    /// Events kept.
    pub event_capacity: u32,
    /// Name of the eviction policy.
    pub policy: String,
    /// Key of the hash chain.
    pub hash_secret: [u8; 32],
    /// No pool and no device tables.
    pub metadata_only: bool,
    /// Build the ragged form of the tables too.
    pub ragged: bool,
    /// Refuse a namespace without salt.
    pub require_salt: bool,
    /// Indices beside the one of prefixes.
    pub index: IndexOptions,
    /// Hits may end inside a block, whose tokens are then copied.
    pub partial_hits: bool,
    /// Apply the plans of another cache instead of deciding.
    pub worker: bool,
    /// Hand free blocks out in the order in which they were freed, the latest first, instead of in runs.
    pub exact_order: bool,
    /// The groups are size classes, of which each sequence gets one.
    pub adaptive: Option<AdaptiveBlocks>,
    /// Memory is asked for ahead in groups whose bookkeeping takes more bytes; [`SMALL_BYTES`] but in tests.
    pub small_bytes: u64,
}

/// Bookkeeping of so many bytes is in the second-level cache of most processors.
pub const SMALL_BYTES: u64 = 2 << 20;

/// Cells of a table row where the caller names no longest sequence: bounds the tables of a very large pool.
pub const DEFAULT_ROW_CELLS: u64 = 32_768;
/// Most blocks of one group: a block id is 28 bits beside the slot class.
const BLOCKS_MAX: u64 = 1 << 28;

/// What follows from the configuration for one group.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupGeometry {
    pub(super) content: Content,
    pub(super) reach: Reach,
    pub(super) strides: Strides,
    pub(super) block_tokens: u32,
    /// The most that there can be.
    pub(super) blocks: u32,
    /// At the beginning.
    pub(super) first_blocks: u32,
    /// The library's pool gets and gives memory as the count changes.
    pub(super) is_elastic: bool,
    pub(super) block_bytes: u64,
    pub(super) row_cells: u32,
    /// State: a snapshot is kept at multiples of so many tokens.
    pub(super) snapshot_tokens: u64,
}

impl GroupGeometry {
    pub(super) fn has_slots(&self) -> bool {
        !matches!(self.content, Content::Opaque { .. }) && self.reach.is_by_token()
    }

    /// The block that stands for those that a row has let go: one behind those that are handed out.
    pub(super) fn null_block(&self) -> Option<u32> {
        self.reach.has_holes().then_some(self.blocks)
    }

    /// Blocks of the pool, the null block among them.
    pub(super) fn pool_blocks(&self) -> u64 {
        u64::from(self.blocks) + u64::from(self.reach.has_holes())
    }

    /// Bytes of the parts of a block in which its tokens lie one after the other, evenly.
    pub(super) fn plane_bytes(&self) -> u64 {
        match self.content {
            Content::Attention(BlockShape { layout: Layout::Nhd, .. }) => self.strides.kv,
            Content::Attention(BlockShape { layout: Layout::Hnd, .. }) => self.strides.head,
            Content::Latent(_) => self.strides.layer,
            Content::Opaque { block_bytes } => block_bytes,
        }
    }
}

/// What follows from the configuration for the cache.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub(super) groups: Vec<GroupGeometry>,
    pub(super) hash_block_tokens: u32,
    pub(super) max_sequence_tokens: u64,
    /// The group whose chain of blocks proves the ancestry of what the groups without such a chain hold.
    pub(super) anchor: Option<usize>,
    /// Classes of which each sequence has one, smallest blocks first.
    pub(super) classes: Vec<Groups>,
}

impl Geometry {
    /// Whether sequences differ in the size of their blocks.
    pub(super) fn is_adaptive(&self) -> bool {
        self.classes.len() > 1
    }

    /// Whether memory moves between size classes, so that a scheduler tells its workers the sizes.
    pub(super) fn tells_sizes(&self) -> bool {
        self.is_adaptive() && self.groups.iter().all(|group| group.is_elastic)
    }

    /// Links that the largest block has behind its first one, where a hit may end behind that one.
    pub(super) fn links_beyond(&self, finds_partial: bool) -> usize {
        let by_token = self.groups.iter().filter(|group| finds_partial && group.reach.is_by_token());
        let links = by_token.map(|group| group.block_tokens / self.hash_block_tokens - 1).max();
        if self.is_plain() { 0 } else { links.unwrap_or(0) as usize }
    }

    /// Whether every group is of full attention that nothing trims: the short paths of a step serve it.
    pub(super) fn is_plain(&self) -> bool {
        self.groups.iter().all(|group| group.reach == Reach::All)
    }
}

fn within(name: &str, value: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::argument(format!("{name} is {value}; it must be {least} to {most}")))
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

fn block_bytes(group: &GroupConfig) -> Result<(u64, Strides)> {
    match &group.content {
        Content::Attention(shape) => {
            let strides = shape.strides()?;
            Ok((strides.block, strides))
        }
        Content::Latent(shape) => {
            let strides = shape.strides()?;
            Ok((strides.block, strides))
        }
        Content::Opaque { block_bytes } => {
            within("block_bytes", *block_bytes, 16, 1 << 40)?;
            if block_bytes % 16 != 0 {
                return Err(Error::argument(format!("block_bytes is {block_bytes}; use a multiple of 16")));
            }
            Ok((*block_bytes, Strides { block: *block_bytes, ..Strides::default() }))
        }
    }
}

/// Where hits of the groups by token can end, and each state's blocks too: a common multiple of their blocks, or of the
/// states' alone where hits end inside the others.
fn snapshot_tokens(groups: &[GroupGeometry], finds_partial: bool) -> u64 {
    let is_end = |group: &&GroupGeometry| match group.reach {
        Reach::Cross { .. } => false,
        Reach::State { .. } => true,
        _ => !finds_partial,
    };
    groups.iter().filter(is_end).fold(1u64, |common, group| {
        let each = u64::from(group.block_tokens);
        let (mut a, mut b) = (common, each);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        (common / a).saturating_mul(each)
    })
}

impl CacheConfig {
    /// Modest limits and the plainest of each choice; who wants another one names it. The hash chain has no secret: a
    /// cache that strangers ask gets a random one, or they could work out keys of others.
    pub fn new(groups: Vec<GroupConfig>, capacity_blocks: u64) -> Self {
        Self {
            name: "kv".to_owned(),
            groups,
            capacity_blocks,
            max_blocks: 0,
            capacity_bytes: 0,
            max_sequences: 8,
            max_sequence_tokens: 512,
            max_batch_tokens: 1024,
            max_leases: 8,
            max_namespaces: 16,
            steps_in_flight: 4,
            hash_block_tokens: 0,
            hash: HashKind::Blake3,
            scrub: Scrub::None,
            event_capacity: 0,
            policy: "lru".to_owned(),
            hash_secret: [0; 32],
            metadata_only: false,
            ragged: false,
            require_salt: false,
            index: IndexOptions::default(),
            partial_hits: false,
            worker: false,
            exact_order: true,
            adaptive: None,
            small_bytes: SMALL_BYTES,
        }
    }

    /// Checks everything that needs no device and works out the sizes.
    pub(super) fn geometry(&self) -> Result<Geometry> {
        if self.worker && self.metadata_only {
            return Err(Error::argument("a worker's cache owns memory; it cannot be metadata-only"));
        }
        within("group_count", self.groups.len() as u64, 1, GROUPS_MAX as u64)?;
        within("max_sequences", self.max_sequences.into(), 1, 1 << 20)?;
        within("max_batch_tokens", self.max_batch_tokens.into(), 1, 1 << 28)?;
        within("max_leases", self.max_leases.into(), 1, 1 << 20)?;
        within("max_namespaces", self.max_namespaces.into(), 1, 1 << 20)?;
        within("steps_in_flight", self.steps_in_flight.into(), 1, 64)?;
        within("event_capacity", self.event_capacity.into(), 0, 1 << 24)?;
        let mut divisor = 0;
        let mut bytes_of_one_each = 0u64;
        for group in &self.groups {
            within("block_tokens", group.block_tokens.into(), 1, 65_536)?;
            if !matches!(group.reach, Reach::Cross { .. }) {
                divisor = greatest_common_divisor(divisor, group.block_tokens);
            }
            bytes_of_one_each += block_bytes(group)?.0;
        }
        if divisor == 0 {
            return Err(Error::argument(
                "a cache of cross-attention alone has no sequence; add its decoder's group",
            ));
        }
        let link = if self.hash_block_tokens == 0 { divisor } else { self.hash_block_tokens };
        if divisor % link != 0 {
            return Err(Error::argument(format!(
                "hash_block_tokens is {link}; the block_tokens of every group must be a multiple of it"
            )));
        }
        if self.index.device && self.metadata_only {
            let text = "a metadata-only cache has no device for KAVERN_KV_DEVICE_INDEX";
            return Err(Error::new(Status::Unsupported, text));
        }
        let is_uneven = |group: &GroupConfig| group.block_tokens != link || group.reach != Reach::All;
        if self.index.chunks && self.groups.iter().any(is_uneven) {
            let text =
                "KAVERN_KV_CHUNK_INDEX needs full groups whose block_tokens all equal hash_block_tokens";
            return Err(Error::new(Status::Unsupported, text));
        }
        let mut groups = Vec::with_capacity(self.groups.len());
        for (index, group) in self.groups.iter().enumerate() {
            let shared_blocks = match (self.capacity_blocks, &self.adaptive) {
                (0, None) => self.capacity_bytes / bytes_of_one_each,
                // Classes begin with equal shares of the bytes.
                (0, Some(_)) => self.capacity_bytes / self.groups.len() as u64 / block_bytes(group)?.0,
                (blocks, _) => blocks,
            };
            groups.push(
                self.group_geometry(group, shared_blocks)
                    .map_err(|e| e.context(&format!("group {index}")))?,
            );
        }
        let classes = classes::classes(self, &groups)?;
        let pool_tokens = |g: &GroupGeometry| u64::from(g.blocks) * u64::from(g.block_tokens);
        // A window's pool or a state's bounds how many sequences run, not how long one is.
        let bounding = groups.iter().filter(|group| group.reach.is_prefix());
        let most = match self.adaptive {
            // A sequence is in one class: the largest pool bounds it.
            Some(_) => bounding.map(pool_tokens).max(),
            None => bounding.map(pool_tokens).min(),
        };
        let most = most.unwrap_or(u64::MAX);
        let default = |g: &GroupGeometry| DEFAULT_ROW_CELLS * u64::from(g.block_tokens);
        let by_token = groups.iter().filter(|group| !matches!(group.reach, Reach::Cross { .. }));
        let longest = match self.max_sequence_tokens {
            0 => by_token.map(default).min().unwrap_or(0).min(most),
            tokens => tokens,
        };
        within("max_sequence_tokens", longest, 1, i32::MAX as u64)?;
        let snapshot_tokens = snapshot_tokens(&groups, self.partial_hits);
        for group in &mut groups {
            group.row_cells = group.reach.row_cells(group.block_tokens, longest);
            group.snapshot_tokens = match group.reach {
                Reach::State { snapshot_blocks: 0 } => snapshot_tokens,
                Reach::State { snapshot_blocks } => {
                    u64::from(group.block_tokens) * u64::from(snapshot_blocks)
                }
                _ => 0,
            };
            let cells = u64::from(group.row_cells) * u64::from(self.max_sequences.max(self.max_leases));
            within("max_sequences x cells of a row", cells, 1, 1 << 31)?;
        }
        let can_copy = |group: &GroupGeometry| !group.reach.is_by_token() || group.has_slots();
        if self.partial_hits && !groups.iter().all(can_copy) {
            return Err(Error::argument(
                "hits inside a block need slots for the tokens of opaque groups too",
            ));
        }
        let anchor = self.anchor(&groups)?;
        Ok(Geometry { groups, hash_block_tokens: link, max_sequence_tokens: longest, anchor, classes })
    }

    /// XXH3 proves content by tokens and ancestors. A group that lets go of ancestors borrows the proof of one that
    /// does not, at the ends of blocks that the two have in common.
    fn anchor(&self, groups: &[GroupGeometry]) -> Result<Option<usize>> {
        let follows = |group: &&GroupGeometry| group.reach.is_window() || group.snapshot_tokens > 0;
        let proves = |anchor: &&GroupGeometry| {
            anchor.reach == Reach::All
                && groups.iter().filter(follows).all(|g| g.block_tokens % anchor.block_tokens == 0)
        };
        let anchor = groups.iter().position(|group| proves(&group));
        if self.hash == HashKind::Xxh3 && anchor.is_none() && groups.iter().any(|group| follows(&group)) {
            let text = "XXH3 proves windows and states by a full group whose block_tokens divides theirs; there \
                        is none, use BLAKE3";
            return Err(Error::argument(text));
        }
        Ok(anchor)
    }

    fn group_geometry(&self, group: &GroupConfig, shared_blocks: u64) -> Result<GroupGeometry> {
        let (block_bytes, strides) = block_bytes(group)?;
        match group.reach {
            Reach::All | Reach::Untrimmed => {}
            Reach::Sliding { window_tokens: tokens } => within("window_tokens", tokens.into(), 1, 1 << 30)?,
            Reach::Chunked { chunk_tokens: tokens } => within("window_tokens", tokens.into(), 1, 1 << 30)?,
            Reach::State { snapshot_blocks } => {
                within("snapshot_blocks", snapshot_blocks.into(), 0, 1 << 14)?
            }
            Reach::Cross { tokens } => within("cross_tokens", tokens.into(), 1, 1 << 24)?,
        }
        let blocks = if group.capacity_blocks == 0 { shared_blocks } else { group.capacity_blocks };
        within("capacity in blocks", blocks, 1, BLOCKS_MAX)?;
        within("max_blocks", self.max_blocks, 0, BLOCKS_MAX)?;
        // Classes may grow to equally many tokens: the number is that of the smallest blocks.
        let smallest = self.groups.iter().map(|group| group.block_tokens).min().unwrap_or(1);
        let max_blocks = match self.adaptive {
            Some(_) => self.max_blocks * u64::from(smallest) / u64::from(group.block_tokens),
            None => self.max_blocks,
        };
        let most = blocks.max(max_blocks);
        // A worker is told the sizes of classes alone: in other groups all that it maps is there from the beginning.
        let is_fixed = self.worker && self.adaptive.is_none();
        let is_elastic = self.max_blocks > 0 && group.region.is_none() && !is_fixed;
        let (first_blocks, blocks) = (if is_fixed { most } else { blocks }, most);
        if blocks.checked_mul(block_bytes).is_none_or(|bytes| bytes > 1 << 60) {
            return Err(Error::argument(format!(
                "{blocks} blocks of {block_bytes} bytes are more than can be"
            )));
        }
        let pool_blocks = blocks + u64::from(group.reach.has_holes());
        if let Some(region) = group.region {
            if self.metadata_only {
                return Err(Error::argument("a metadata-only cache takes no region"));
            }
            if region.bytes() < pool_blocks * block_bytes || region.address() % 256 != 0 {
                let text = format!(
                    "region of {} bytes at {:#x}; {pool_blocks} blocks of {block_bytes} bytes need {} bytes \
                     aligned to 256",
                    region.bytes(),
                    region.address(),
                    pool_blocks * block_bytes
                );
                return Err(Error::new(Status::InvalidArgument, text));
            }
        }
        Ok(GroupGeometry {
            content: group.content,
            reach: group.reach,
            strides,
            block_tokens: group.block_tokens,
            blocks: blocks as u32,
            first_blocks: first_blocks as u32,
            is_elastic,
            block_bytes,
            row_cells: 0,
            snapshot_tokens: 0,
        })
    }
}
