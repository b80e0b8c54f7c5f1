//! Numbers of the command line: what is refused is told with what would be taken.

use std::fmt::Display;
use std::ops::{Bound, RangeBounds};
use std::str::FromStr;

/// A parser of whole numbers in a range.
pub(crate) fn whole<T>(
    range: impl RangeBounds<T> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let bound = |words: &str, bound: Bound<&T>| match bound {
                Bound::Included(number) => format!(" {words} {number}"),
                Bound::Excluded(number) => format!(" {words} less than {number}"),
                Bound::Unbounded => String::new(),
            };
            let (from, to) = (bound("from", range.start_bound()), bound("to", range.end_bound()));
            format!("expected a whole number{from}{to}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_such_number_is_told_with_what_would_be() {
        assert_eq!((whole(1u64..)("18446744073709551615"), whole(1u32..=8)("8")), (Ok(u64::MAX), Ok(8)));
        for text in ["0", "-1", "many", "", "1.5", "18446744073709551616"] {
            assert_eq!(whole(1u64..)(text).unwrap_err(), "expected a whole number from 1");
        }
        assert_eq!(whole(1u32..=8)("9").unwrap_err(), "expected a whole number from 1 to 8");
    }
}
