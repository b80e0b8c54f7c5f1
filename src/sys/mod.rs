//! The few doors to the machine; safe outside.
