//! The `sevferry` binary.

fn main() {}
