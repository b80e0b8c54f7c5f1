//! What slots hold in the models with bytes: a token's number tells its whole past.

/// The number of a token that follows one with the number `before`.
pub(crate) fn number(before: i32, token: i32) -> i32 {
    let mixed =
        (i64::from(before) ^ i64::from(token + 77) << 33).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64);
    (mixed >> 29) as i32
}

/// The numbers of the tokens of a sequence that begins with `first`.
pub(crate) fn numbers(first: u64, tokens: &[i32]) -> Vec<i32> {
    let mut before = first as i32;
    let next = |&token: &i32| {
        before = number(before, token);
        before
    };
    tokens.iter().map(next).collect()
}
