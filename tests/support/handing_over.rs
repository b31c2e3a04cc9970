//! What tests of handing over ask for and look at: requests that can be found again, clients that go on or are sealed, a
//! gateway at rest. Their gateways answer `/hello` with `hello` themselves.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::{Client, Gateway, eventually, holds, inode_of};

/// A path below `/hand` that nobody else asks for, so that its line of the access log can be found.
pub fn fresh() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/hand/{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The one line of the access log about a path.
#[track_caller]
pub fn logged(gateway: &Gateway, path: &str) -> Value {
    let line = eventually("the request's line", || gateway.log().into_iter().find(|line| line["target"] == path));
    assert_eq!(gateway.log().iter().filter(|line| line["target"] == path).count(), 1, "logged once");
    line
}

#[track_caller]
pub fn check_alive(client: &mut Client) {
    client.get("/hello");
    assert_eq!(client.answer().body, "hello");
}

/// 503, whole and once, and the end.
#[track_caller]
pub fn check_sealed(client: &mut Client) {
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(client.rest(), "");
}

/// Descriptors of a gateway at rest: after its first request, with no client.
pub fn at_rest(gateway: &Gateway) -> usize {
    let mut client = gateway.client();
    check_alive(&mut client);
    let inode = inode_of(&client);
    drop(client);
    eventually("the gateway closes", || (!holds(gateway.child.id(), inode)).then_some(()));
    gateway.descriptors()
}
