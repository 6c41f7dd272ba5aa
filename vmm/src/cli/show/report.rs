//! A machine's report as a table for people, or as JSON.

use serde_json::{Value, json, to_value};

use super::devices::device_lines;
use super::launch::launch_facts;
use super::pages::{page_facts, readiness};
use crate::cli::arguments::ReportFormat;
use crate::control::api::{LaunchReply, PagesReply};
use crate::machine::{LaunchRecord, PageReport, REGIONS_MAX, Report, SevReport};
use crate::page::PageRange;

/// Regions of the table; the rest is counted. JSON has more.
const TABLE_ROWS: usize = 64;

/// Prints what was launched, to standard error: standard output is the guest's.
pub(crate) fn print_launch(launch: &LaunchRecord) {
    eprint!("{}", launch_lines(launch));
}

/// Prints `report` to standard error.
pub(crate) fn print_report(report: &Report, format: ReportFormat) {
    match format {
        ReportFormat::Text => eprint!("{}", text(report)),
        ReportFormat::Json => eprintln!("{}", report_json(report)),
    }
}

fn launch_lines(launch: &LaunchRecord) -> String {
    let [what, digest, measurement] = launch_facts(&launch.into());
    format!("sevferry: SEV guest, {what}\nsevferry: {digest}\nsevferry: {measurement}\n")
}

fn text(report: &Report) -> String {
    let (vcpus, mib) = (report.vcpus, report.ram.bytes() >> 20);
    let plural = if vcpus == 1 { "" } else { "s" };
    let mut out = format!("machine: {vcpus} vCPU{plural}, {mib} MiB\n");
    for line in device_lines(&report.devices) {
        out.push_str(&format!("{line}\n"));
    }
    match &report.sev {
        None => out.push_str("plain VM: no page is encrypted\n"),
        Some(sev) => {
            out.push_str(&launch_lines(&sev.launch));
            if let Some(guest) = &sev.guest {
                let (state, handle) = (guest.state, guest.handle);
                out.push_str(&format!("firmware: guest state {state:?}, handle {handle}\n"));
            }
            out.push_str(&pages_text(&sev.pages));
        }
    }
    out
}

fn pages_text(pages: &PageReport) -> String {
    let counters = &pages.counters;
    let mut out = format!(
        "page status: {} hypercalls ({} shared, {} private, {} refused, {} clipped)\n",
        counters.shared_calls + counters.private_calls + counters.rejected_calls,
        counters.shared_calls,
        counters.private_calls,
        counters.rejected_calls,
        counters.clipped_calls,
    );
    let summary = PagesReply::from(&pages.summary);
    let readiness = match readiness(&summary) {
        Ok(()) => "migration: READY".to_owned(),
        Err(reason) => format!("migration: not now: {reason}"),
    };
    for line in page_facts(&summary).into_iter().chain([readiness]) {
        out.push_str(&line);
        out.push('\n');
    }
    if let Ok(regions) = &pages.regions {
        out.push_str(&regions_text(regions, pages.region_count));
    }
    out
}

fn regions_text(regions: &[PageRange], count: u64) -> String {
    let mut out = format!("shared regions: {count}\n");
    if !regions.is_empty() {
        out.push_str("           first byte            last byte      pages\n");
    }
    for region in regions.iter().take(TABLE_ROWS) {
        let (first, bytes) = (region.start().0, region.bytes());
        let last = first + (bytes - 1);
        out.push_str(&format!("  {first:#19x}  {last:#19x}  {:9}\n", region.pages()));
    }
    if let Some(rest @ 1..) = count.checked_sub(TABLE_ROWS as u64) {
        out.push_str(&format!("  ... and {rest} more; --report=json lists up to {REGIONS_MAX}\n"));
    }
    out
}

/// `report` as one JSON object.
pub(crate) fn report_json(report: &Report) -> Value {
    json!({
        "vcpus": report.vcpus,
        "memory_bytes": report.ram.bytes(),
        "devices": report.devices,
        "sev": report.sev.as_ref().map(sev_json),
    })
}

/// The launch in its own names, and the rest beside it.
fn sev_json(sev: &SevReport) -> Value {
    let pages = PagesReply::from(&sev.pages.summary);
    let regions = sev.pages.regions.as_ref().ok().map(|regions| {
        regions.iter().map(|region| [region.base().0, region.limit().0]).collect::<Vec<_>>()
    });
    let counters = &sev.pages.counters;
    let mut whole = json!({
        "guest": sev.guest.map(|guest| json!({
            "state": format!("{:?}", guest.state), "handle": guest.handle, "policy": guest.policy,
        })),
        "hypercalls": {
            "shared": counters.shared_calls,
            "private": counters.private_calls,
            "refused": counters.rejected_calls,
            "clipped": counters.clipped_calls,
            "reported_pages": counters.reported_pages,
            "flipped_pages": counters.flipped_pages,
        },
        "shared_pages": pages.shared,
        "private_pages": pages.private,
        "record": pages.record,
        "record_bytes": pages.record_bytes,
        "migration_ready": readiness(&pages).is_ok(),
        "doubts": pages.doubts,
        "not_migratable": pages.not_migratable,
        "shared_regions": regions.as_ref().map(|_| sev.pages.region_count),
        "shared_regions_frames": regions,
    });
    let launch = to_value(LaunchReply::from(&sev.launch));
    if let (Some(whole), Ok(Value::Object(launch))) = (whole.as_object_mut(), launch) {
        whole.extend(launch);
    }
    whole
}
