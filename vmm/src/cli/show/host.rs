//! What a host has and lacks for guests, as a screen for people or as JSON.

use serde_json::json;

use crate::machine::{Finding, HostCheck, NOT_PORTABLE, Verdict};

/// The same for programs, in one line.
pub(crate) fn host_json(host: &HostCheck) -> String {
    let runs = json!({
        "plain": host.runs_plain(),
        "sev_software": host.runs_software(),
        "sev_hardware": host.runs_hardware(),
    });
    format!("{}\n", json!({ "version": 1, "runs": runs, "findings": host }))
}

/// What there is, what is missing, how to get it, and which guests can run.
pub(crate) fn host_text(host: &HostCheck) -> String {
    let mut text = String::new();
    for (title, findings) in [
        ("Every guest", &host.kvm),
        ("SEV guests, on any platform", &host.sev),
        ("SEV guests on hardware", &host.hardware),
    ] {
        text.push_str(title);
        text.push('\n');
        findings.iter().for_each(|finding| text.push_str(&lines(finding)));
    }
    let can = |yes| if yes { "can" } else { "CANNOT" };
    text.push_str(&format!(
        "{NOT_PORTABLE}.\n\n\
         This host {} run plain guests.\n\
         It {} run SEV guests on the software platform (sev=software), which gives no confidentiality.\n\
         It {} run SEV guests on hardware (sev=hardware).\n",
        can(host.runs_plain()),
        can(host.runs_software()),
        can(host.runs_hardware()),
    ));
    text
}

fn lines(finding: &Finding) -> String {
    let mark = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Missing => "MISSING",
    };
    let mut text = format!("  {mark:<8}{:<18} {}\n", finding.subject, finding.found);
    if let Some(advice) = finding.advice {
        text.push_str(&format!("  {:<26} -> {advice}\n", ""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostCheck {
        let finding =
            |verdict, advice| Finding { subject: "KVM", verdict, found: "x".into(), advice };
        HostCheck {
            kvm: vec![finding(Verdict::Ok, None)],
            sev: vec![finding(Verdict::Note, Some("do this"))],
            hardware: vec![finding(Verdict::Missing, Some("get that"))],
        }
    }

    /// A newcomer reads what there is, what is missing, what to do, and what it comes to.
    #[test]
    fn a_screen_says_what_is_missing_and_what_to_do() {
        let text = host_text(&host());
        for part in
            ["  ok      KVM ", "  MISSING KVM ", "-> get that", "-> do this", "SEND_UPDATE_VMSA"]
        {
            assert!(text.contains(part), "'{part}' in {text}");
        }
        assert!(text.contains("It CANNOT run SEV guests on hardware"), "{text}");
        assert!(text.contains("It can run SEV guests on the software platform"), "{text}");
    }

    /// A program reads the same.
    #[test]
    fn json_has_the_same() {
        let value: serde_json::Value = serde_json::from_str(&host_json(&host())).unwrap();
        assert_eq!(value.pointer("/runs/sev_hardware"), Some(&json!(false)));
        assert_eq!(value.pointer("/findings/hardware/0/verdict"), Some(&json!("missing")));
        assert_eq!(value.pointer("/findings/kvm/0/advice"), None);
    }
}
