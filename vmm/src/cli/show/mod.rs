//! How facts are shown: a guest's launch, pages, devices, report and status, and the progress of its migration.

mod devices;
mod launch;
mod pages;
mod progress;
mod report;
mod screen;
mod status;

pub(crate) use progress::{Display, End};
pub(crate) use report::{print_launch, print_report, report_json};
pub(crate) use status::status_text;
