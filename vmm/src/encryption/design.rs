//! Which of the three designs keeps the record of shared pages.

use std::fmt::{Display, Formatter, Result as FmtResult};

use serde::{Deserialize, Serialize};

/// What the region list does when the guest makes more regions than it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// It turns itself into a bitmap, once, and loses nothing. Memory grows by RAM / 32,768.
    #[default]
    Promote,
    /// It marks itself incomplete until the next reset: the guest runs on but cannot be migrated.
    Poison,
}

/// How the record of shared pages is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Design {
    /// As a list of regions, which is bounded.
    List(Overflow),
    /// As one bit per page of RAM, from the start.
    Bitmap,
    /// By the guest, in a table in its own memory.
    Donated,
}

impl Default for Design {
    fn default() -> Self {
        Self::List(Overflow::default())
    }
}

impl From<Overflow> for Design {
    fn from(overflow: Overflow) -> Self {
        Self::List(overflow)
    }
}

impl Display for Design {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(match self {
            Self::List(_) => "list",
            Self::Bitmap => "bitmap",
            Self::Donated => "donated",
        })
    }
}
