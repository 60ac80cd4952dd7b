//! The CNI plugin executable.
fn main() {}
