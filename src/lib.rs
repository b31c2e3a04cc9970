//! Baton is an HTTP front server that hands clients over. For each request, policies in WebAssembly decide whether and
//! where the client goes, and what data goes with it; the core then passes the client's own socket to a daemon
//! (SCM_RIGHTS, unix(7)), which answers the client directly. The gateway holds nothing while a stream lasts.
//!
//! # Nouns
//!
//! - A **client** is who connected to us; a **listener** is an address that accepts clients; a **connection** is one
//!   accepted client and its requests.
//! - A **request head** is the request line and the fields, parsed, with its exact bytes. A **route** says which policies
//!   and which default a request gets.
//! - A **policy** is a component that exports our world (`wit/policy.wit`). A **generation** of it is one loaded and proved
//!   module, numbered from 1. It answers with a **decision**: handoff, proxy, respond, pass or abort. When it fails, its
//!   **on_error** decides.
//! - An **upstream** is a named group of servers that answer through us: over HTTP, or as FastCGI programs. What one says
//!   is **relayed**, unless a policy, or the application itself, gives the client to somebody else before it has seen a
//!   byte.
//! - A **target** is a named group of **daemons**: local processes that receive clients, each in a **dialect**. A
//!   **handoff** is passing a client and its **message** to one of them. It is *taken* when the daemon has read the
//!   message, *refused* when it certainly was not read and the client is still ours, *unanswered* when nobody can know. In
//!   the native dialect the daemon says so, over a **channel** that stays, says how it *ended*, and may *return* the client.
//! - The **outcome** is what became of a request, in one line of the access log.
//!
//! # The life of a request
//!
//! 1. [`listener`] accepts the client (there is a place and a descriptor, or it waits in the kernel's queue) and gives it
//!    to a task of [`connection`], which owns it from now on. Where the listener names policies, they are asked first: served,
//!    closed, or handed over as it is.
//! 2. [`arrival`] looks at what has come and takes exactly the head. [`http::head`] understands it in one way, or it is
//!    answered 400, 408, 414, 417, 431, 501 or 505 here; no policy sees it.
//! 3. [`route`] finds policies and default: host, then exact path, then longest prefix.
//! 4. [`policy`] asks each policy in turn. Guest code runs on the worker's thread, bounded in time, memory and stack. Its
//!    body-prefix is served by [`exchange`], which shows the body and takes nothing.
//! 5. [`connection`] has the one `match` over what was decided: abort, handoff, pass, proxy or respond.
//! 6. A handoff moves the socket into [`handoff::send`] by way of [`target`]. Taken: our copy is closed. Refused: the socket
//!    comes back inside the error, the next daemon is tried, then the policy that decided is asked what else, up to three
//!    times, at last the client is answered 503. Unread at the deadline: answered and shut in one breath. Unanswered: closed,
//!    unwritten. Behind a response's head that was written here, what would be an answer is a reset.
//!    In the native dialect a client is lent over a [`handoff::channel`], whose ledger says who owns it. The request's task
//!    ends when the client is taken; what its line needs waits there, packed, for the daemon's report, and a client that is
//!    given back gets a task again.
//! 7. A proxied request goes to [`upstream`], its body as fast as it is taken there. When the head of the answer is here, the
//!    policies that have a hook for it are asked, then the application's own wish is done: a handoff, another route. Else it
//!    is relayed, the slower side setting the pace. An answer that is cut never looks whole.
//! 8. An answer of ours is written by [`exchange`]; what nobody wanted of the body is drained, or the connection is closed in a way
//!    that lets the answer arrive. Then the next head, in order.
//! 9. The [`access_log`]'s line is written when it is dropped, whatever happened; and the policies that were asked are told,
//!    in tasks of their own.
//!
//! # The life of a reload
//!
//! An event in a watched folder, HUP, or the poll that backs both up ([`policy::Watcher`]) makes [`reload`] look again. The
//! file settles, is read, made a component, compiled off the workers and proved: it must start, accept its configuration
//! and pass its own test. Then one `Arc` is swapped. Requests keep the generation and the settings that they began with.
//! Any failure leaves everything as it is, and is said once for the same content. The configuration goes the same way, all
//! of it or nothing.
//!
//! # The life of a drain
//!
//! TERM or INT: who has connected is accepted and served, also clients that have said nothing yet, which takes the kernel a
//! second; then the listeners close. Idle connections are closed now, requests under way are finished and answered with
//! `Connection: close`. Clients that were handed over are not ours and not waited for. The last [`drain::Guard`] ends the
//! process with 0; so do the deadline and a second signal, which say how many were cut.
//!
//! # Threads
//!
//! One current-thread runtime for each core serves clients, each accepting from sockets of its own; [`listener`] says why.
//! What every request counts itself into, settings above all, each has to itself; targets are the same for all, because
//! they count what is in flight. When a worker has nothing else to do, the messages that it has sent are looked at.
//! The main thread drains and says what to reload; loading runs on threads of a lower priority ([`background`]), so that
//! compiling takes no processor from requests. The access log, the log and the policies' clock have a thread each, and so
//! has every policy that ticks.
//!
//! # Invariants, by what is absent
//!
//! - Nothing but `connection`, and what it lends to by value, holds a client's socket. After a handoff there is no value
//!   left to write to.
//! - A policy cannot open a socket or a file: the linker holds the interfaces of the contract, and what of them reaches
//!   outside goes through traits that `target` and `upstream` implement.
//! - `handoff` imports nothing from the rest of the crate: it is what a daemon links.
//! - `http` and `decision` touch no socket and no clock, and can be compiled without the rest, as the fuzz targets do.
//! - The configuration is not handed around: each module owns its options, and `config` fills them in.
//! - `unsafe` stands in `handoff::ancillary` only.
//! - No task without an owner: `tokio::spawn` stands in [`drain`] only; a connection to an upstream is a task of its pool.
//! - `fastcgi` connects to nobody, waits for no deadline and begins no task: whoever asks does.

// In reading order.
#[cfg(feature = "gateway")]
pub mod access_log;
#[cfg(feature = "gateway")]
pub mod admin;
#[cfg(feature = "gateway")]
pub mod admission;
#[cfg(feature = "gateway")]
pub mod arrival;
#[cfg(feature = "gateway")]
pub mod background;
#[cfg(feature = "gateway")]
pub mod cli;
#[cfg(feature = "gateway")]
pub mod client;
#[cfg(feature = "gateway")]
pub mod config;
#[cfg(feature = "gateway")]
pub mod connection;
#[cfg(feature = "gateway")]
pub mod counts;
#[cfg(feature = "gateway")]
pub mod decision;
#[cfg(feature = "gateway")]
pub mod drain;
#[cfg(feature = "gateway")]
pub mod exchange;
#[cfg(feature = "gateway")]
pub mod fastcgi;
#[cfg(feature = "gateway")]
pub mod files;
#[cfg(feature = "gateway")]
pub mod gateway;
pub mod handoff;
#[cfg(feature = "gateway")]
pub mod http;
#[cfg(feature = "gateway")]
pub mod listener;
#[cfg(feature = "gateway")]
pub mod log;
#[cfg(feature = "gateway")]
pub mod metrics;
#[cfg(feature = "gateway")]
pub mod pace;
#[cfg(feature = "gateway")]
pub mod policy;
#[cfg(feature = "gateway")]
mod process;
#[cfg(feature = "gateway")]
pub mod reload;
#[cfg(feature = "gateway")]
pub mod request;
#[cfg(feature = "gateway")]
pub mod respond;
#[cfg(feature = "gateway")]
pub mod route;
#[cfg(feature = "gateway")]
pub mod signal;
#[cfg(feature = "gateway")]
pub mod spool;
#[cfg(feature = "gateway")]
pub mod target;
#[cfg(feature = "gateway")]
pub mod unix_socket;
#[cfg(feature = "gateway")]
pub mod upstream;
