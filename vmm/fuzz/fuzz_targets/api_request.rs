//! Lines of the control socket, from its clients and to them: refused, or read the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sevferry::control::api::{Request, Response};

fuzz_target!(|line: &[u8]| {
    if let Ok(request) = Request::from_line(line) {
        let written = request.to_line().expect("it was a line");
        assert_eq!(
            format!("{:?}", Request::from_line(&written)),
            format!("{:?}", Ok::<_, ()>(request))
        );
    }
    if let Ok(response) = Response::from_line(line) {
        let written = response.to_line().expect("it was a line");
        Response::from_line(&written).expect("our own line");
    }
});
