//! What is refused before it reaches the cache has the dependants that it would have there.

use super::*;
use crate::types::IdKind;

#[test]
fn operations_that_cannot_be_read_have_the_dependants_of_their_kind() {
    let sequence = Id::new(IdKind::Sequence, 1, 1);
    // SAFETY: no results are there to be written.
    let done = unsafe { OutArray::<kavern_kv_op_result>::new(std::ptr::null_mut(), 0, "results") }.unwrap();
    // SAFETY: it is made of integers and pointers, of which zeros are values.
    let nothing: kavern_kv_op = unsafe { std::mem::zeroed() };
    let (mut kinds, mut with_dependants) = (0, 0);
    for kind in 0..64 {
        let op = kavern_kv_op { kind, target: sequence.0, row: -1, mode: u32::from(kind == 10), ..nothing };
        // SAFETY: the pointers of the operation are null and their counts 0.
        let Ok(op) = (unsafe { read_op(&op, 0, &done, 16) }) else {
            assert!(!kv_ops::has_dependants(kind), "kind {kind} does not exist");
            continue;
        };
        assert_eq!(op.dependants().is_some(), kv_ops::has_dependants(kind), "kind {kind}: {op:?}");
        kinds += 1;
        with_dependants += u32::from(op.dependants().is_some());
    }
    assert_eq!((kinds, with_dependants), (16, 8), "the kinds that exist");
}
