//! What the checks are worth: for each of them a daemon that is wrong in one thing only, which it must catch.

use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use crate::language::faulty_program;

/// At a time; most of them wait for what does not come.
const SIDE_BY_SIDE: usize = 20;

/// A fault of `faulty.py`, and the checks that catch it.
const FAULTS: &[(&str, &[&str])] = &[
    // The socket, and the channel's beginning.
    ("hello-says-100", &["says_how_many_it_takes"]),
    ("hello-without-credits", &["says_hello_at_once"]),
    ("load-before-hello", &["says_hello_at_once"]),
    ("waits-for-hello", &["says_hello_at_once"]),
    ("no-credits", &["refuses_what_is_too_many"]),
    ("counts-by-channel", &["refuses_what_is_too_many"]),
    ("keeps-credits", &["refuses_what_is_too_many"]),
    ("nothing-needs-hello", &["ends_a_channel_that_does_not_begin_with_hello"]),
    ("any-hello", &["agrees_on_a_version"]),
    ("greets-twice", &["ends_a_channel_with_a_second_hello"]),
    ("hello-with-id", &["ends_a_channel_with_a_hello_that_has_an_id"]),
    ("believes-everybody", &["refuses_peers_that_are_not_allowed"]),
    ("unreadable-list-is-everybody", &["does_not_start_with_a_list_that_cannot_be_read"]),
    ("open-to-all", &["lets_its_group_connect_and_nobody_else"]),
    ("keeps-a-stale-socket", &["replaces_a_stale_socket_and_no_live_one"]),
    ("takes-a-live-socket", &["replaces_a_stale_socket_and_no_live_one"]),
    ("one-channel-at-a-time", &["serves_channels_side_by_side"]),
    ("one-lock", &["a_gateway_that_does_not_read_delays_nobody"]),
    ("keeps-ended-channels", &["lets_go_of_channels_that_end"]),
    ("one-by-one", &["takes_a_packet_whole_or_not_at_all"]),
    ("ignores-trailing-bytes", &["takes_a_packet_whole_or_not_at_all", "ends_a_channel_with_a_wrong_header"]),
    ("no-usage", &["refuses_what_it_does_not_understand"]),
    // Who owns the client.
    ("takes-regardless", &["touches_no_client_before_taken_was_sent", "touches_no_client_of_a_gateway_that_has_gone"]),
    ("takes-late", &["touches_no_client_before_taken_was_sent"]),
    ("writes-before-taken", &["touches_no_client_before_taken_was_sent"]),
    ("reads-before-taken", &["touches_no_client_before_taken_was_sent"]),
    (
        "shuts-what-is-not-its-own",
        &["touches_no_client_before_taken_was_sent", "touches_no_client_of_a_gateway_that_has_gone"],
    ),
    ("never-taken", &["reports_what_it_wrote", "gives_the_client_back"]),
    ("takes-twice", &["reports_what_it_wrote", "gives_the_client_back"]),
    ("one-reason", &["refuses_with_a_reason"]),
    ("forgets-retry-after", &["refuses_with_a_reason"]),
    ("retry-after-as-text", &["refuses_with_a_reason"]),
    ("writes-and-refuses", &["refuses_with_a_reason"]),
    ("shuts-and-refuses", &["refuses_with_a_reason"]),
    ("refuses-and-keeps", &["refuses_with_a_reason"]),
    ("refuses-in-silence", &["refuses_with_a_reason"]),
    ("miscounts", &["reports_what_it_wrote", "gives_the_client_back", "streams_ten_events_with_the_data_in_the_first"]),
    ("another-word", &["reports_what_it_wrote"]),
    ("done-in-silence", &["reports_what_it_wrote"]),
    ("done-first", &["closes_before_it_says_done"]),
    ("errors-are-ok", &["reports_a_failure"]),
    ("drops-in-silence", &["reports_what_it_forgot"]),
    ("milliseconds", &["streams_ten_events_with_the_data_in_the_first"]),
    ("nine-events", &["streams_ten_events_with_the_data_in_the_first"]),
    ("no-data", &["streams_ten_events_with_the_data_in_the_first", "serves_where_the_metadata_says_nothing"]),
    ("plain-close", &["an_unread_body_does_not_cost_the_answer"]),
    ("two-heads", &["writes_no_second_head"]),
    ("says-status", &["writes_no_second_head"]),
    ("never-back", &["gives_the_client_back"]),
    ("another-socket", &["gives_the_client_back"]),
    ("always-close", &["gives_the_client_back"]),
    ("returns-and-keeps", &["gives_the_client_back"]),
    ("wrong-length", &["reports_what_it_wrote", "gives_the_client_back"]),
    ("eats-the-next", &["leaves_the_next_request_alone"]),
    ("unread-body-back", &["leaves_the_next_request_alone"]),
    ("leaves-trailers", &["leaves_the_next_request_alone"]),
    ("reads-without-body", &["reads_a_body_of_known_length"]),
    ("forgets-preread", &["gives_back_preread_bytes_that_it_did_not_use"]),
    ("head-goes-back", &["gives_back_preread_bytes_that_it_did_not_use"]),
    ("head-is-body", &["gives_back_preread_bytes_that_it_did_not_use", "reads_preread_bytes_before_the_socket"]),
    ("cuts-what-goes-back", &["closes_where_too_much_would_go_back"]),
    ("reads-less", &["gives_back_behind_a_short_rest_only"]),
    ("reads-any-rest", &["gives_back_behind_a_short_rest_only"]),
    ("waits-for-what-nobody-sends", &["closes_a_client_that_keeps_its_body"]),
    ("body-to-head", &["answers_head_without_a_body"]),
    ("returns-to-nobody", &["closes_what_it_cannot_give_back"]),
    ("never-revoked", &["ends_what_is_revoked"]),
    ("revoked-is-an-error", &["ends_what_is_revoked"]),
    ("revoke-must-exist", &["ends_what_is_revoked"]),
    ("never-gone", &["notices_a_client_that_leaves"]),
    ("gone-is-ok", &["notices_a_client_that_leaves"]),
    ("one-send", &["writes_all_of_it_to_a_slow_reader"]),
    // What comes beside it.
    ("data-is-text", &["gets_the_data_byte_by_byte"]),
    ("reads-from-position", &["gets_the_data_byte_by_byte", "reads_a_body_in_a_memfd"]),
    ("any-data", &["takes_no_more_data_than_it_said"]),
    ("decodes-headers", &["gets_the_metadata_as_it_is"]),
    ("last-header-wins", &["makes_an_environment"]),
    ("no-role", &["makes_an_environment", "makes_an_environment_of_what_is_known_only"]),
    ("remaining-behind-preread", &["reads_preread_bytes_before_the_socket"]),
    ("skips-preread", &["reads_preread_bytes_before_the_socket"]),
    ("chunks-as-they-are", &["reads_a_chunked_body"]),
    ("swaps-memfds", &["tells_memfds_apart"]),
    ("keeps-memfds", &["closes_memfds"]),
    ("cut-is-whole", &["takes_no_cut_body_for_a_whole_one"]),
    ("seventeen-digits", &["takes_no_cut_body_for_a_whole_one"]),
    ("cut-is-an-error", &["takes_a_cut_body_for_a_client_that_left"]),
    ("any-framing", &["takes_no_framing_that_it_does_not_know"]),
    ("one-frame-a-packet", &["reads_packets_of_several_frames"]),
    // What is wrong.
    ("any-magic", &["ends_a_channel_with_a_wrong_header"]),
    ("any-version", &["ends_a_channel_with_a_wrong_header"]),
    ("short-payloads", &["ends_a_channel_with_a_wrong_header"]),
    ("any-type", &["ends_a_channel_with_a_type_that_it_does_not_know"]),
    ("no-type", &["ignores_a_type_that_it_need_not_know"]),
    ("daemons-frames", &["ends_a_channel_whose_gateway_speaks_as_a_daemon"]),
    ("any-id", &["ends_a_channel_with_a_wrong_id"]),
    ("ids-again", &["ends_a_channel_with_a_wrong_id"]),
    ("two-sections", &["ends_a_channel_with_a_wrong_payload"]),
    ("any-metadata", &["ends_a_channel_with_a_wrong_payload"]),
    ("both-places", &["ends_a_channel_with_a_wrong_payload"]),
    ("any-count", &["ends_a_channel_with_a_wrong_number_of_descriptors"]),
    ("leaks", &["ends_a_channel_with_a_wrong_number_of_descriptors", "ends_a_channel_with_a_wrong_payload"]),
    ("room-for-one", &["ends_a_channel_with_a_wrong_number_of_descriptors"]),
    ("any-descriptor", &["ends_a_channel_with_a_client_that_is_none"]),
    ("takes-cut-packets", &["ends_a_channel_with_a_packet_that_is_too_long"]),
    ("no-pong", &["answers_ping"]),
    ("empty-pongs", &["answers_ping"]),
    ("pongs-wait", &["answers_ping_while_it_serves"]),
    // Ends.
    ("never-drains", &["drains_at_term"]),
    ("drains-in-silence", &["drains_at_term", "ends_at_term_with_nothing_to_do"]),
    ("drains-one-channel", &["drains_at_term"]),
    ("drains-with-another-word", &["drains_at_term"]),
    ("cuts-at-the-end", &["drains_at_term"]),
    ("ends-with-1", &["drains_at_term", "ends_at_term_with_nothing_to_do"]),
    ("leaves-its-file", &["drains_at_term", "lets_nobody_connect_after_its_end"]),
    ("takes-its-successors-file", &["leaves_the_socket_of_its_successor"]),
    ("ends-clients-with-their-channel", &["serves_on_when_the_gateway_has_gone", "ends_a_channel_with_a_wrong_header"]),
    ("streams-end-with-channel", &["ends_a_channel_with_a_wrong_header"]),
    ("hoards", &["neither_descriptors_nor_memory_grow"]),
    ("says-data", &["says_nothing_of_data_and_headers"]),
    ("says-headers", &["says_nothing_of_data_and_headers"]),
];

/// Checks for which a daemon with a fault has not been thought of.
const WITHOUT: &[&str] = &[
    // Their faults are among those of others: what is taken late or by one at a time.
    "takes_late_and_serves",
    "serves_many_at_once",
    "reads_a_packet_of_the_largest_size",
    "outlives_a_flood",
    // It takes half a minute.
    "gives_up_a_client_that_never_reads",
];

/// Each fault is caught by each of its checks, and no check is without one.
pub fn each_is_caught() {
    for (name, _) in crate::NATIVE {
        let has_one = FAULTS.iter().any(|(_, checks)| checks.contains(name));
        assert!(has_one != WITHOUT.contains(name), "{name} has no fault");
    }
    let left: Mutex<Vec<_>> =
        Mutex::new(FAULTS.iter().flat_map(|(fault, checks)| checks.iter().map(move |check| (fault, check))).collect());
    let passed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while let Some((fault, check)) = { left.lock().unwrap().pop() } {
                    if !is_caught(fault, check) {
                        passed.lock().unwrap().push((fault, check));
                    }
                }
            });
        }
    });
    let passed = passed.into_inner().unwrap();
    assert!(passed.is_empty(), "not caught: {passed:#?}");
}

/// Runs this program once more, as a stranger would.
fn is_caught(fault: &str, check: &str) -> bool {
    let mut command = Command::new(std::env::current_exe().expect("Linux"));
    command.args(["--exact", &format!("stranger::{check}")]);
    command.env("BATON_DAEMON", format!("python3 {} --fault {fault}", faulty_program().display()));
    command.env("BATON_TEST_PATIENCE", "2").stdin(Stdio::null());
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let has_failed = said.contains(" 0 passed; 1 failed;");
    assert!(has_failed || said.contains(" 1 passed; 0 failed;"), "{check}: {said}");
    has_failed
}
