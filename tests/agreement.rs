//! What parts of the project repeat because none may import the other, compared here. Needs no Xen.

use kicktrace::markers as read;
use xen_guest::markers as written;

#[test]
fn the_guest_writes_the_markers_kicktrace_reads() {
    let written =
        [written::WAIT_BEGIN, written::WAIT_END, written::KICK, written::ACQUIRED_AFTER_BLOCK];
    let read = [read::WAIT_BEGIN, read::WAIT_END, read::KICK, read::ACQUIRED_AFTER_BLOCK];
    assert_eq!(written.map(u32::from), read);
}
