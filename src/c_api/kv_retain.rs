//! Reads the operations RETAIN, PIN and UNPIN; a field that they do not use must be 0.

use super::kv_types::kavern_kv_op;
use crate::cache::{Op, Stretch, Target};
use crate::error::{Error, Result, Status};

fn invalid(text: &'static str) -> Error {
    Error::new(Status::InvalidArgument, text)
}

/// The stretch of tokens that an operation is about.
pub(super) fn stretch(op: &kavern_kv_op, target: Target, retains: bool) -> Result<Stretch> {
    let counts = [op.key_count, op.extra_count, op.key_bytes.into(), op.lookahead.into()];
    let others = [op.expected_tokens, op.lease, op.mode.into()];
    let has_retention = op.ttl_ms != 0 || op.priority != 0;
    let has_pointer = !op.token_ids.is_null() || !op.keys.is_null() || !op.extras.is_null();
    if counts != [0; 4] || others != [0; 3] || has_pointer || (has_retention && !retains) {
        return Err(invalid("RETAIN, PIN and UNPIN use target, offset and tokens; leave the other fields 0"));
    }
    Ok(Stretch { target, offset: op.offset, tokens: op.tokens })
}

/// A RETAIN.
pub(super) fn retain<'a>(op: &kavern_kv_op, target: Target) -> Result<Op<'a>> {
    let stretch = stretch(op, target, true)?;
    let priority = u8::try_from(op.priority).map_err(|_| invalid("a priority is 0 to 100"))?;
    Ok(Op::Retain { stretch, priority, ttl_ms: op.ttl_ms })
}
