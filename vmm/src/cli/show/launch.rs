//! A guest's launch for people: the same words in a status, in a report and when the guest starts.

use crate::control::api::LaunchReply;
use crate::sev::Policy;

/// What was launched, its digest, and its measurement: one line each.
pub(super) fn launch_facts(launch: &LaunchReply) -> [String; 3] {
    let LaunchReply { c_bit, api_major, api_minor, build_id, .. } = launch;
    let LaunchReply { launch_digest, launch_measurement, .. } = launch;
    let policy = Policy::describe(launch.policy);
    let verified =
        if launch.measurement_verified { "verified" } else { "for the guest owner to verify" };
    [
        format!(
            "policy {policy}, C-bit {c_bit}, firmware API {api_major}.{api_minor} build {build_id}"
        ),
        format!("launch digest: {launch_digest}"),
        format!("launch measurement: {launch_measurement} ({verified})"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy is a number with the names of its bits, wherever it is shown.
    #[test]
    fn a_policy_is_shown_with_its_names() {
        let mut launch = LaunchReply {
            policy: 0x21,
            c_bit: 51,
            api_major: 1,
            api_minor: 55,
            build_id: 24,
            launch_digest: "00ff".to_owned(),
            launch_measurement: "AAECAw==".to_owned(),
            measurement_verified: false,
        };
        let [what, digest, measurement] = launch_facts(&launch);
        assert_eq!(what, "policy 0x21 (NODBG SEV), C-bit 51, firmware API 1.55 build 24");
        assert_eq!(digest, "launch digest: 00ff");
        assert_eq!(measurement, "launch measurement: AAECAw== (for the guest owner to verify)");
        (launch.policy, launch.measurement_verified) = (0x8000, true);
        let [what, _, measurement] = launch_facts(&launch);
        assert!(what.starts_with("policy 0x8000, C-bit"), "{what}");
        assert_eq!(measurement, "launch measurement: AAECAw== (verified)");
    }
}
