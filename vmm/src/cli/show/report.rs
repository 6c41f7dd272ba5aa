//! A machine's report as a table for people, or as JSON.

use serde_json::{Value, json};

use crate::cli::arguments::ReportFormat;
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
    let verified = if launch.verified { "verified" } else { "for the guest owner to verify" };
    format!(
        "sevferry: SEV guest, policy {}, C-bit {}, firmware API {}.{} build {}\n\
         sevferry: launch digest: {}\n\
         sevferry: launch measurement: {} ({verified})\n",
        launch.policy,
        launch.c_bit,
        launch.version.major,
        launch.version.minor,
        launch.version.build,
        launch.digest_hex(),
        launch.measurement_base64(),
    )
}

fn text(report: &Report) -> String {
    let (vcpus, mib) = (report.vcpus, report.ram.bytes() >> 20);
    let plural = if vcpus == 1 { "" } else { "s" };
    let mut out = format!("machine: {vcpus} vCPU{plural}, {mib} MiB\n");
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
    match (&pages.shared, &pages.private) {
        (Ok(shared), Ok(private)) => {
            out.push_str(&format!("pages: {shared} shared, {private} private\n"));
        }
        // The reason is that of the migration below.
        (Err(_), _) | (_, Err(_)) => out.push_str("pages: not known\n"),
    }
    out.push_str(&format!("record: {}, {} bytes\n", pages.form, pages.memory_bytes));
    match &pages.migratable {
        Ok(()) => out.push_str("migration: READY\n"),
        Err(reason) => out.push_str(&format!("migration: not now: {reason}\n")),
    }
    for doubt in &pages.doubts {
        out.push_str(&format!("doubtful: {doubt}\n"));
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
        "sev": report.sev.as_ref().map(sev_json),
    })
}

fn sev_json(sev: &SevReport) -> Value {
    let (launch, pages) = (&sev.launch, &sev.pages);
    let regions = pages.regions.as_ref().ok().map(|regions| {
        regions.iter().map(|region| [region.base().0, region.limit().0]).collect::<Vec<_>>()
    });
    json!({
        "policy": launch.policy.bits(),
        "c_bit": launch.c_bit,
        "api_major": launch.version.major,
        "api_minor": launch.version.minor,
        "build_id": launch.version.build,
        "launch_digest": launch.digest_hex(),
        "launch_measurement": launch.measurement_base64(),
        "measurement_verified": launch.verified,
        "guest": sev.guest.map(|guest| json!({
            "state": format!("{:?}", guest.state), "handle": guest.handle, "policy": guest.policy,
        })),
        "hypercalls": {
            "shared": pages.counters.shared_calls,
            "private": pages.counters.private_calls,
            "refused": pages.counters.rejected_calls,
            "clipped": pages.counters.clipped_calls,
            "reported_pages": pages.counters.reported_pages,
            "flipped_pages": pages.counters.flipped_pages,
        },
        "shared_pages": pages.shared.as_ref().ok(),
        "private_pages": pages.private.as_ref().ok(),
        "record": pages.form.to_string(),
        "record_bytes": pages.memory_bytes,
        "migration_ready": pages.migratable.is_ok(),
        "doubts": pages.doubts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "not_migratable": pages.migratable.as_ref().err().map(ToString::to_string),
        "shared_regions": regions.as_ref().map(|_| pages.region_count),
        "shared_regions_frames": regions,
    })
}
