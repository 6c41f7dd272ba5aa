//! placeholder until the entry code lands
fn main() {}
