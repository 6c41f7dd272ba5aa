//! The table that says where the guest owner's secrets go.
//!
//! Its form is OVMF's: entries that end in their GUID, read from the last one back, below the reset
//! vector. OVMF has it at the end of its flash, and QEMU finds it there. Here it is in the page of
//! [`RESET_VECTOR`], which is measured, so a host cannot make the guest look elsewhere.
//! `docs/secrets.md` describes it for authors of guests.

use super::layout::{RESET_PAGE, RESET_VECTOR, SECRET_PAGE};
use crate::page::PAGE_SIZE;

/// Bytes between the table's end and the reset vector.
const GAP: u64 = 16;

/// `96b582de-1fb2-45f7-baea-a366c55a082d`: the table's own, in its last entry.
const FOOTER: [u8; 16] = guid(0x96b5_82de, 0x1fb2, 0x45f7, 0xbaea_a366_c55a_082d);

/// `4c2eb361-7d9b-4cc3-8081-127c90d3d294`: address and length of the area for secrets.
const SECRET_AREA: [u8; 16] = guid(0x4c2e_b361, 0x7d9b, 0x4cc3, 0x8081_127c_90d3_d294);

/// Bytes of the last entry: its length and its GUID.
const FOOTER_LEN: u16 = 18;

/// Bytes of the other entry: address, length, the entry's length and its GUID.
const ENTRY_LEN: u16 = 26;

/// A GUID as it lies in memory: the first three parts little-endian.
const fn guid(first: u32, second: u16, third: u16, rest: u64) -> [u8; 16] {
    let ([a, b, c, d], [e, f], [g, h]) =
        (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes());
    let [i, j, k, l, m, n, o, p] = rest.to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The page of the reset vector from its start, as long as it is: the table, then `code`.
pub(super) fn page_with(code: &[u8]) -> Vec<u8> {
    let end = RESET_VECTOR.0 - RESET_PAGE.0 - GAP;
    let table = table();
    let mut page = vec![0; usize::try_from(end).unwrap_or(0).saturating_sub(table.len())];
    page.extend(table);
    page.resize(usize::try_from(end + GAP).unwrap_or(0), 0);
    page.extend(code);
    page
}

fn table() -> Vec<u8> {
    // Both are constants below 4 GiB.
    let words = [SECRET_PAGE.0, PAGE_SIZE].map(|word| u32::try_from(word).unwrap_or(0));
    let mut table: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    table.extend(ENTRY_LEN.to_le_bytes());
    table.extend(SECRET_AREA);
    table.extend((ENTRY_LEN + FOOTER_LEN).to_le_bytes());
    table.extend(FOOTER);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte for byte what OVMF would say of the same area, at the same distance from the end.
    #[test]
    fn the_table_is_as_ovmf_has_it() {
        let page = page_with(&[0xba; 9]);
        assert_eq!(page.len(), 0xff9);
        assert_eq!(page[0xff0..], [0xba; 9]);
        let footer = [
            0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a,
            0x08, 0x2d,
        ];
        assert_eq!(page[0xfd0..0xfe0], footer);
        assert_eq!(page[0xfce..0xfd0], [44, 0]);
        let area = [
            0x61, 0xb3, 0x2e, 0x4c, 0x9b, 0x7d, 0xc3, 0x4c, 0x80, 0x81, 0x12, 0x7c, 0x90, 0xd3,
            0xd2, 0x94,
        ];
        assert_eq!(page[0xfbe..0xfce], area);
        assert_eq!(page[0xfb4..0xfbe], [0, 0xf0, 0x0e, 0, 0, 0x10, 0, 0, 26, 0]);
        assert!(page[..0xfb4].iter().all(|&byte| byte == 0));
    }
}
