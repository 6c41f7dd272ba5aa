//! Shared by several integration tests: guests, processes of the program, and their inputs.

pub mod guest;
pub mod owner;
pub mod process;
pub mod scratch;
pub mod short_pipe;
pub mod terminal;
pub mod unread;
