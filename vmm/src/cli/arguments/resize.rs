//! `sevferry resize-disk`: which disk, and how large.

use clap::Args;

use super::migration::{AskOptions, SocketArgument};
use super::values;
use crate::control::api::Request;

/// Which disk has another size.
#[derive(Debug, Args)]
pub(super) struct ResizeDiskArguments {
    /// Its name: what `--disk` said as id=, or disk0, disk1 and so on
    #[arg(long, value_name = "NAME")]
    id: String,
    /// Make its file so large, as 20G; without it, something else has grown, and the guest is told
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    size: Option<u64>,
    #[command(flatten)]
    socket: SocketArgument,
}

impl ResizeDiskArguments {
    pub(super) fn options(self) -> AskOptions {
        let request = Request::ResizeDisk { id: self.id, size: self.size };
        AskOptions { api_socket: self.socket.api_socket, request, json: false }
    }
}
