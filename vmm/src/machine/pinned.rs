//! How much of a guest's RAM is pinned, and the function that is told.

use serde::{Deserialize, Serialize};

/// How much of a guest's RAM is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Pages that are pinned.
    pub pages: u64,
    /// All of the guest's pages.
    pub of: u64,
}

/// Is told the progress of pinning, and returns whether to stop.
pub type PinCallback<'a> = dyn FnMut(Pinned) -> bool + 'a;
