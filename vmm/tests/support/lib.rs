//! What several integration tests need: guests, processes of the program, and what they are given.

pub mod guest;
pub mod owner;
pub mod process;
pub mod scratch;
pub mod short_pipe;
pub mod terminal;
pub mod unread;
