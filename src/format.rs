//! Block layouts: shape to bytes, strides and offsets. Pure arithmetic, checked for overflow.
//!
//! A block holds its tokens for all layers in one piece, `[layer][key, value][...]`, so that moving a block is one
//! copy; only the innermost order differs: NHD is `[token][head][channel]`, HND is `[head][token][channel]`.
//! Source of the idea: cross-layer blocks of vLLM 0.12, which made its offload copies 4 to 5 times faster.

use crate::error::{Error, Result};
use crate::types::Dtype;

/// Order of the elements inside one layer of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Layout {
    /// `[token][head][channel]`.
    Nhd = 1,
    /// `[head][token][channel]`.
    Hnd = 2,
}

impl TryFrom<u32> for Layout {
    type Error = Error;

    fn try_from(value: u32) -> Result<Self> {
        match value {
            1 => Ok(Self::Nhd),
            2 => Ok(Self::Hnd),
            _ => Err(Error::argument(format!("layout {value} is unknown; use KAVERN_NHD or KAVERN_HND"))),
        }
    }
}

/// Shape of a block of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Layers.
    pub layers: u32,
    /// Heads of keys and values.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Element type.
    pub dtype: Dtype,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Innermost order.
    pub layout: Layout,
}

/// Shape of a block of latent rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Layers.
    pub layers: u32,
    /// Bytes of one token in one layer.
    pub token_bytes: u32,
    /// Tokens in a block.
    pub block_tokens: u32,
}

/// Distances in bytes between neighbours of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strides {
    /// From a block to the next; the bytes of a block.
    pub block: u64,
    /// From a layer to the next.
    pub layer: u64,
    /// From keys to values.
    pub kv: u64,
    /// From a token to the next.
    pub token: u64,
    /// From a head to the next.
    pub head: u64,
}

impl BlockShape {
    /// Strides of the shape, or why it is no shape.
    pub fn strides(&self) -> Result<Strides> {
        let limits = [
            ("layers", self.layers, 1024),
            ("kv_heads", self.kv_heads, 1024),
            ("head_dim", self.head_dim, 4096),
            ("block_tokens", self.block_tokens, 65_536),
        ];
        for (name, value, most) in limits {
            if value == 0 || value > most {
                return Err(Error::argument(format!("{name} is {value}; it must be 1 to {most}")));
            }
        }
        // At most 2^10 * 2^10 * 2^12 * 2^16 * 8 bytes = 2^51: no product below can wrap.
        let (heads, tokens) = (u64::from(self.kv_heads), u64::from(self.block_tokens));
        let row = u64::from(self.head_dim) * self.dtype.bytes();
        let (token, head) = match self.layout {
            Layout::Nhd => (heads * row, row),
            Layout::Hnd => (row, tokens * row),
        };
        let kv = heads * tokens * row;
        let layer = 2 * kv;
        Ok(Strides { block: layer * u64::from(self.layers), layer, kv, token, head })
    }
}

impl LatentShape {
    /// Strides of `[layer][token][byte]`, or why it is no shape.
    pub fn strides(&self) -> Result<Strides> {
        let limits = [
            ("layers", self.layers, 1024),
            ("token_bytes", self.token_bytes, 65_536),
            ("block_tokens", self.block_tokens, 65_536),
        ];
        for (name, value, most) in limits {
            if value == 0 || value > most {
                return Err(Error::argument(format!("{name} is {value}; it must be 1 to {most}")));
            }
        }
        let token = u64::from(self.token_bytes);
        let layer = token * u64::from(self.block_tokens);
        Ok(Strides { block: layer * u64::from(self.layers), layer, token, ..Strides::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_address_every_element_of_a_block_exactly_once() {
        for layout in [Layout::Nhd, Layout::Hnd] {
            let shape = BlockShape {
                layers: 3,
                kv_heads: 2,
                head_dim: 5,
                dtype: Dtype::F16,
                block_tokens: 7,
                layout,
            };
            let s = shape.strides().unwrap();
            let mut seen = vec![false; s.block as usize / 2];
            for (layer, kv, token, head, channel) in (0..3)
                .flat_map(|l| (0..2).map(move |k| (l, k)))
                .flat_map(|(l, k)| (0..7).map(move |t| (l, k, t)))
                .flat_map(|(l, k, t)| (0..2).map(move |h| (l, k, t, h)))
                .flat_map(|(l, k, t, h)| (0..5).map(move |c| (l, k, t, h, c)))
            {
                let at = layer * s.layer + kv * s.kv + token * s.token + head * s.head + channel * 2;
                assert!(!std::mem::replace(&mut seen[at as usize / 2], true));
            }
            assert!(seen.iter().all(|&hit| hit));
        }
    }

    #[test]
    fn a_shape_without_extent_is_refused() {
        let shape = BlockShape {
            layers: 0,
            kv_heads: 1,
            head_dim: 1,
            dtype: Dtype::F32,
            block_tokens: 1,
            layout: Layout::Nhd,
        };
        assert!(shape.strides().unwrap_err().text.contains("layers is 0"));
    }
}
