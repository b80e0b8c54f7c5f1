//! Reads the operations RETAIN, PIN and UNPIN. Fields that they do not use were refused before.

use super::kv_types::kavern_kv_op;
use crate::cache::{Op, Stretch, Target};
use crate::error::{Error, Result, Status};

/// The stretch of tokens that an operation is about.
pub(super) fn stretch(op: &kavern_kv_op, target: Target) -> Stretch {
    Stretch { target, offset: op.offset, tokens: op.tokens }
}

/// A RETAIN.
pub(super) fn retain<'a>(op: &kavern_kv_op, target: Target) -> Result<Op<'a>> {
    let priority = u8::try_from(op.priority)
        .map_err(|_| Error::new(Status::InvalidArgument, "a priority is 0 to 100"))?;
    Ok(Op::Retain { stretch: stretch(op, target), priority, ttl_ms: op.ttl_ms })
}
