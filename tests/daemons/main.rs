//! `examples/PROTOCOL.md` and the daemons: each statement of the page is a check here, and each check is run on each of
//! the five examples and on the one that was written from the page alone, or on a stranger's daemon that `BATON_DAEMON` names. The other dialects likewise, behind the real
//! gateway. What a check is worth is tried on a daemon with faults.

#![allow(unreachable_pub, reason = "nothing of a program can be reached")]

mod broken;
mod client;
mod dialects;
mod end;
mod faults;
mod gateway;
mod language;
mod owned;
mod page;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod told;

use std::process::ExitCode;

use language::Language;
use libtest_mimic::{Arguments, Trial};

/// A statement, and what holds a daemon against it.
type Check = (&'static str, fn(Language));

macro_rules! checks {
    ($($file:ident: $($name:ident),*;)*) => { &[$($((stringify!($name), $file::$name as fn(Language)),)*)*] };
}

/// Of the native dialect.
const NATIVE: &[Check] = checks! {
    start: says_hello_at_once, says_how_many_it_takes, refuses_what_is_too_many,
        ends_a_channel_that_does_not_begin_with_hello, agrees_on_a_version, ends_a_channel_with_a_second_hello,
        ends_a_channel_with_a_hello_that_has_an_id,
        refuses_peers_that_are_not_allowed, does_not_start_with_a_list_that_cannot_be_read,
        lets_its_group_connect_and_nobody_else, replaces_a_stale_socket_and_no_live_one, serves_channels_side_by_side,
        a_gateway_that_does_not_read_delays_nobody, lets_go_of_channels_that_end, takes_a_packet_whole_or_not_at_all;
    owned: touches_no_client_before_taken_was_sent, touches_no_client_of_a_gateway_that_has_gone, takes_late_and_serves,
        refuses_with_a_reason, reports_what_it_wrote, closes_before_it_says_done, reports_a_failure,
        reports_what_it_forgot, streams_ten_events_with_the_data_in_the_first, serves_where_the_metadata_says_nothing,
        serves_many_at_once, writes_no_second_head, gives_the_client_back, leaves_the_next_request_alone,
        gives_back_preread_bytes_that_it_did_not_use, gives_back_behind_a_short_rest_only,
        closes_where_too_much_would_go_back,
        closes_a_client_that_keeps_its_body, answers_head_without_a_body, closes_what_it_cannot_give_back,
        ends_what_is_revoked, notices_a_client_that_leaves, writes_all_of_it_to_a_slow_reader,
        gives_up_a_client_that_never_reads, an_unread_body_does_not_cost_the_answer;
    told: gets_the_data_byte_by_byte, reads_a_packet_of_the_largest_size, takes_no_more_data_than_it_said,
        gets_the_metadata_as_it_is, makes_an_environment, makes_an_environment_of_what_is_known_only,
        reads_a_body_of_known_length, reads_a_chunked_body, reads_preread_bytes_before_the_socket,
        reads_a_body_in_a_memfd, tells_memfds_apart, closes_memfds, takes_no_cut_body_for_a_whole_one,
        takes_a_cut_body_for_a_client_that_left,
        takes_no_framing_that_it_does_not_know, reads_packets_of_several_frames;
    broken: ends_a_channel_with_a_wrong_header, ends_a_channel_with_a_type_that_it_does_not_know,
        ignores_a_type_that_it_need_not_know, ends_a_channel_whose_gateway_speaks_as_a_daemon,
        ends_a_channel_with_a_wrong_id, ends_a_channel_with_a_wrong_payload,
        ends_a_channel_with_a_wrong_number_of_descriptors, ends_a_channel_with_a_client_that_is_none,
        ends_a_channel_with_a_packet_that_is_too_long, answers_ping, answers_ping_while_it_serves;
    end: drains_at_term, ends_at_term_with_nothing_to_do, leaves_the_socket_of_its_successor,
        serves_on_when_the_gateway_has_gone, neither_descriptors_nor_memory_grow, says_nothing_of_data_and_headers,
        outlives_a_flood, lets_nobody_connect_after_its_end;
    dialects: refuses_what_it_does_not_understand;
};

/// What takes half a minute, because it is about half a minute.
const SLOW: &[&str] = &["gives_up_a_client_that_never_reads"];

/// Trials at a time: they wait more than they work.
const SIDE_BY_SIDE: usize = 12;

/// Behind the real gateway, of every dialect that is spoken.
const DIALECTS: &[Check] = checks! {
    dialects: streams_ten_events_with_the_data_in_the_first, serves_many_at_once,
        an_unread_body_does_not_cost_the_answer, replaces_a_stale_socket_and_no_live_one,
        closes_what_should_not_have_come, a_silent_peer_delays_nobody, outlives_clients_that_leave;
};

/// Of the native dialect, where it is spoken with the real gateway.
const BEHIND: &[Check] = checks! { dialects: keeps_the_connection_behind_the_real_gateway; };

/// One that is about no daemon of a language.
fn single(name: &str, run: fn()) -> Trial {
    Trial::test(name, move || {
        run();
        Ok(())
    })
}

fn trials() -> Vec<Trial> {
    let of = |language: Language, native: &'static [Check]| {
        let native = native.iter().map(move |(name, run)| {
            let trial = Trial::test(format!("{}::{name}", language.name), move || {
                run(language);
                Ok(())
            });
            trial.with_ignored_flag(SLOW.contains(name))
        });
        let others = if language.kinds.is_empty() { &[] } else { DIALECTS }.iter().map(move |(name, run)| {
            Trial::test(format!("{}::dialects::{name}", language.name), move || {
                run(language);
                Ok(())
            })
        });
        let is_native = language.kinds.contains(&"baton");
        let behind = if is_native { BEHIND } else { &[] }.iter().map(move |(name, run)| {
            Trial::test(format!("{}::dialects::{name}", language.name), move || {
                run(language);
                Ok(())
            })
        });
        native.chain(others).chain(behind).collect::<Vec<_>>()
    };
    if let Some(stranger) = language::stranger() {
        return of(stranger, NATIVE);
    }
    let mut trials = vec![
        single("page::the_exchange_is_exact", page::the_exchange_is_exact),
        single("page::the_limits_are_the_codes", page::the_limits_are_the_codes),
        single("page::the_json_is_json", page::the_json_is_json),
        single("page::the_links_lead_somewhere", page::the_links_lead_somewhere),
        single("faults::each_is_caught", faults::each_is_caught),
        single("apache::a_daemon_of_fdpass_is_the_same_behind_it", dialects::behind_apache_and_behind_us_is_the_same),
    ];
    trials.extend(of(language::FAULTY, NATIVE));
    for language in language::ALL {
        trials.extend(of(*language, NATIVE));
    }
    trials
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(SIDE_BY_SIDE);
    libtest_mimic::run(&arguments, trials()).exit_code()
}
