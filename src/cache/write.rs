//! Writes keys and values of new tokens into their slots, for engines that do not do it themselves.

use super::config::Content;
use super::kernels::{APPEND, can_convert};
use super::kv_cache::KvCache;
use crate::device::{Arg, DeviceSlice, Launch, Stream};
use crate::error::{Error, Result, Status};
use crate::types::Dtype;

/// Keys and values of new tokens of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Append {
    /// Group of the layer.
    pub group: u32,
    /// Layer, counted inside the group.
    pub layer: u32,
    /// Type of the given elements; rounded to the cache's.
    pub dtype: Dtype,
    /// Tokens.
    pub tokens: u32,
    /// `[token][head][channel]`.
    pub keys: DeviceSlice,
    /// `[token][head][channel]`; where a group has no values, the same as the keys.
    pub values: DeviceSlice,
    /// Slot of each token, `i64`; below 0 skips it.
    pub slots: DeviceSlice,
}

impl KvCache {
    /// Bytes that `keys` and `values` of an [`Append`] must have.
    pub fn append_bytes(&self, group: u32, dtype: Dtype, tokens: u32) -> Result<u64> {
        match self.group(group)?.content {
            Content::Attention(shape) => {
                Ok(u64::from(tokens) * u64::from(shape.kv_heads) * u64::from(shape.head_dim) * dtype.bytes())
            }
            Content::Latent(shape) if dtype == Dtype::I8 => {
                Ok(u64::from(tokens) * u64::from(shape.token_bytes))
            }
            Content::Latent(_) => {
                let text = "latent rows are written as they are; give their bytes as KAVERN_I8";
                Err(Error::new(Status::Unsupported, text))
            }
            Content::Opaque { .. } => {
                Err(Error::new(Status::Unsupported, "an opaque group has no slots for keys and values"))
            }
        }
    }

    /// Enqueues the writing.
    pub fn append(&self, stream: Stream, append: &Append) -> Result<()> {
        let (pool, _) = self.pool(append.group)?;
        let bytes = self.append_bytes(append.group, append.dtype, append.tokens)?;
        let geometry = *self.group(append.group)?;
        let (layers, heads, channels, dtype) = match geometry.content {
            Content::Attention(shape) => (shape.layers, shape.kv_heads, shape.head_dim, shape.dtype),
            // One row of bytes; keys and values are the same place and the same bytes.
            Content::Latent(shape) => (shape.layers, 1, shape.token_bytes, Dtype::I8),
            Content::Opaque { .. } => return Err(Error::internal("append_bytes refuses opaque groups")),
        };
        if append.layer >= layers {
            return Err(Error::argument(format!("layer {} of a group with {layers} layers", append.layer)));
        }
        if !can_convert(append.dtype, dtype) {
            let text =
                format!("{:?} elements into a cache of {dtype:?}; give the cache's own type", append.dtype);
            return Err(Error::new(Status::Unsupported, text));
        }
        if append.tokens == 0 {
            return Ok(());
        }
        let element = append.dtype.bytes();
        for (name, slice, align) in
            [("keys", append.keys, element), ("values", append.values, element), ("slots", append.slots, 8)]
        {
            // A kernel that reads a misaligned address loses the device.
            if slice.address() % align != 0 {
                let text = format!("{name} at {:#x}; align them to {align} bytes", slice.address());
                return Err(Error::argument(text));
            }
        }
        let strides = geometry.strides;
        let args = [
            Arg::Write(pool),
            Arg::Read(append.keys.part(0, bytes)?),
            Arg::Read(append.values.part(0, bytes)?),
            Arg::Read(append.slots.part(0, 8 * u64::from(append.tokens))?),
            Arg::U64(append.tokens.into()),
            Arg::U64(heads.into()),
            Arg::U64(channels.into()),
            Arg::U64(geometry.block_tokens.into()),
            Arg::U64(strides.block),
            Arg::U64(strides.kv),
            Arg::U64(strides.token),
            Arg::U64(strides.head),
            Arg::U64(u64::from(append.layer) * strides.layer),
            Arg::U64(append.dtype as u64),
            Arg::U64(dtype as u64),
        ];
        self.device()
            .launch(stream, &Launch { kernel: &APPEND, grid: append.tokens, block: 256, args: &args })
    }
}
