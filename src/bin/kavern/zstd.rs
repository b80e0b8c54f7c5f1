//! Reads zstd files as a stream of bytes: any number of frames, skippable ones too.
//!
//! It never holds more than a frame's window. A file that ends inside a frame, or whose checksum is wrong, is an error
//! and never a short read, so that half a trace is not mistaken for a trace.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// First bytes of a zstd frame.
pub(crate) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The content of all frames of `source`.
pub(crate) struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    is_in_frame: bool,
}

impl<R: BufRead> Frames<R> {
    /// Reads nothing yet.
    pub(crate) fn new(source: R) -> Frames<R> {
        Frames { source, decoder: FrameDecoder::new(), is_in_frame: false }
    }

    /// Begins the next frame; false at the end of the file.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let wanted = u64::from(length);
                    if io::copy(&mut (&mut self.source).take(wanted), &mut io::sink())? != wanted {
                        return Err(damaged("it ends inside a skippable frame"));
                    }
                }
                Err(error) => return Err(damaged(error)),
            }
        }
    }

    /// Compares the frame's checksum, where it has one.
    fn finish(&self) -> io::Result<()> {
        match (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum()) {
            (Some(stored), Some(computed)) if stored != computed => Err(damaged("its checksum differs")),
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while !target.is_empty() {
            if !self.is_in_frame && !self.begin()? {
                return Ok(0);
            }
            self.is_in_frame = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(damaged)?;
            }
            let bytes = self.decoder.read(target)?;
            if bytes > 0 {
                return Ok(bytes);
            }
            self.finish()?;
            self.is_in_frame = false;
        }
        Ok(0)
    }
}

fn damaged(reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the zstd data is cut off or damaged: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Frames::new(packed).read_to_end(&mut content).map(|_| content)
    }

    #[test]
    fn frames_follow_each_other_and_skippable_ones_are_skipped() {
        let mut packed = compress_to_vec(&b"one,"[..], CompressionLevel::Fastest);
        packed.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9]);
        packed.extend(compress_to_vec(&b"two"[..], CompressionLevel::Fastest));
        assert_eq!(unpack(&packed).unwrap(), b"one,two");
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error() {
        let content: Vec<u8> = (0..40_000u32).flat_map(|i| (i * i).to_le_bytes()).collect();
        let packed = compress_to_vec(&content[..], CompressionLevel::Fastest);
        assert_eq!(unpack(&packed).unwrap(), content);
        for cut in (1..packed.len()).step_by(997).chain([packed.len() - 1]) {
            assert!(unpack(&packed[..cut]).is_err(), "cut at {cut} of {}", packed.len());
        }
    }

    #[test]
    fn bytes_behind_the_last_frame_are_an_error() {
        let mut packed = compress_to_vec(&b"one"[..], CompressionLevel::Fastest);
        packed.extend(b"rubbish");
        assert!(unpack(&packed).is_err());
    }
}
