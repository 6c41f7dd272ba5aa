//! How facts are shown: a guest's launch, pages, devices, report and status, its migration, and what a host can do.

mod devices;
mod hindrances;
mod host;
mod launch;
mod pages;
mod progress;
mod report;
mod screen;
mod status;

pub(crate) use hindrances::{hindrances_json, hindrances_text};
pub(crate) use host::{host_json, host_text};
pub(crate) use progress::{Display, End};
pub(crate) use report::{print_launch, print_report, report_json};
pub(crate) use status::status_text;
