//! One page-status report: into the record, then into what the guest sees without the C-bit.

use std::sync::Arc;

use log::{debug, error, trace};

use super::error::RamError;
use super::ram::GuestRam;
use crate::encryption::{PageStatus, Status};
use crate::page::FrameSet;

/// `-KVM_EFAULT` (`include/uapi/linux/kvm_para.h`): the host could not follow.
const FAULT: u64 = (-14_i64).cast_unsigned();

/// The page status of a running SEV guest, and the RAM whose views follow it.
#[derive(Debug)]
pub struct Pages {
    status: PageStatus,
    ram: Arc<GuestRam>,
    /// While the guest is migrated: the pages whose status changed.
    flipped: Option<FrameSet>,
    /// While the guest is migrated and keeps the record itself: the last that was sampled of it.
    last_table: Option<FrameSet>,
    faulted: bool,
}

impl Pages {
    /// The views of `ram` show what `status` says.
    #[must_use]
    pub fn new(status: PageStatus, ram: Arc<GuestRam>) -> Self {
        Self { status, ram, flipped: None, last_table: None, faulted: false }
    }

    /// The same for a guest that came from elsewhere with its memory, and its table if it keeps one.
    #[must_use]
    pub fn arrived(mut status: PageStatus, ram: Arc<GuestRam>) -> Self {
        status.adopt_table(Arc::<GuestRam>::clone(&ram));
        Self::new(status, ram)
    }

    /// The record.
    #[must_use]
    pub fn status(&self) -> &PageStatus {
        &self.status
    }

    /// Starts to remember the pages whose status changes: a copy of RAM must count those as
    /// written.
    pub fn track_flips(&mut self) {
        self.flipped = Some(FrameSet::new(*self.status.layout()));
    }

    /// Adds the pages whose status changed since the last call to `into`, once each, and returns the
    /// record as of now. Without [`Pages::track_flips`] before it there are none.
    ///
    /// A guest that keeps the record itself may change it without a hypercall: what is not as it was
    /// at the last call has changed too.
    pub fn take_flipped(&mut self, into: &mut FrameSet) -> PageStatus {
        let now = self.status.sample();
        if let Some(flipped) = &mut self.flipped {
            into.merge(flipped);
            flipped.clear();
            let table = now.sampled_table().cloned();
            if let (Some(before), Some(table)) = (&self.last_table, &table) {
                into.merge_differences(before, table);
            }
            self.last_table = table;
        }
        now
    }

    /// Stops to remember.
    pub fn forget_flips(&mut self) {
        self.flipped = None;
        self.last_table = None;
    }

    /// A hypercall exit, with the number and arguments as KVM gives them; returns what the guest
    /// gets in RAX.
    pub fn hypercall(&mut self, number: u64, args: &[u64; 6]) -> u64 {
        let flips = &mut self.flipped;
        let mut flipped = |range| {
            if let Some(flips) = flips {
                flips.insert_range(range);
            }
        };
        let change = match self.status.hypercall(number, args, &mut flipped) {
            Ok(change) => change,
            Err(refused) => {
                debug!("hypercall {number} {args:x?}: {refused}");
                return refused.ret();
            }
        };
        let [gpa, count, attributes, ..] = *args;
        trace!("page status {gpa:#x} {count} {attributes:#x}");
        let shared = change.status() == Status::Shared;
        for range in change.reported() {
            let shown = self.ram.show(range, shared, &|piece| self.status.may_share(piece));
            if let Err(cause) = shown {
                self.report_fault(&cause);
                return FAULT;
            }
        }
        0
    }

    /// Says once that the guest's view is wrong: a hostile guest must not fill the log.
    fn report_fault(&mut self, cause: &RamError) {
        if !self.faulted {
            self.faulted = true;
            error!("{cause}; the guest may read noise there (said once)");
        }
    }

    /// The guest reads `MSR_KVM_MIGRATION_CONTROL`; `None` is a #GP.
    #[must_use]
    pub fn read_migration_control(&self) -> Option<u64> {
        self.status.read_migration_control().ok()
    }

    /// The guest writes `MSR_KVM_MIGRATION_CONTROL`; false is a #GP.
    pub fn write_migration_control(&mut self, value: u64) -> bool {
        match self.status.write_migration_control(value) {
            Ok(()) => true,
            Err(refused) => {
                debug!("{refused}");
                false
            }
        }
    }
}

impl Pages {
    /// The guest reads `MSR_PAGE_TABLE`; `None` is a #GP.
    #[must_use]
    pub fn read_table_register(&self) -> Option<u64> {
        self.status.read_table_register().ok()
    }

    /// The guest writes `MSR_PAGE_TABLE`; false is a #GP.
    pub fn write_table_register(&mut self, value: u64) -> bool {
        let written = self.status.write_table_register(value, Arc::<GuestRam>::clone(&self.ram));
        written.inspect_err(|refused| debug!("{refused}")).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption::{KVM_HC_MAP_GPA_RANGE, Overflow};
    use crate::page::{Frame, RamLayout};

    const SHARED: u64 = 0;
    const PRIVATE: u64 = 1 << 4;

    fn pages() -> Pages {
        let layout = RamLayout::new(16 << 20).unwrap();
        let (ram, _firmware) = GuestRam::split(layout, 47).unwrap();
        Pages::new(PageStatus::new(layout, Overflow::Promote), Arc::new(ram))
    }

    fn report(pages: &mut Pages, frame: u64, count: u64, attributes: u64) {
        let args = [frame << 12, count, attributes, 0, 0, 0];
        assert_eq!(pages.hypercall(KVM_HC_MAP_GPA_RANGE, &args), 0);
    }

    fn flipped(pages: &mut Pages) -> Vec<Frame> {
        let mut set = FrameSet::new(*pages.status().layout());
        let _status = pages.take_flipped(&mut set);
        set.frames().collect()
    }

    /// A page that flips while the guest is migrated must be sent again, even if it flipped back;
    /// it is named once.
    #[test]
    fn flips_are_remembered_while_migrating() {
        let mut pages = pages();
        report(&mut pages, 0x300, 4, SHARED);
        assert_eq!(flipped(&mut pages), []);
        pages.track_flips();
        report(&mut pages, 0x302, 4, SHARED);
        report(&mut pages, 0x305, 1, PRIVATE);
        assert_eq!(flipped(&mut pages), [Frame(0x304), Frame(0x305)]);
        assert_eq!(flipped(&mut pages), []);
        report(&mut pages, 0x304, 1, PRIVATE);
        pages.forget_flips();
        report(&mut pages, 0x300, 1, PRIVATE);
        assert_eq!(flipped(&mut pages), []);
    }
}
