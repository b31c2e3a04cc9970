//! Which module is in force, after reloads and rollbacks of real guests.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use crate::policy::tests::{ENGINE, decide, load, logged, options, status};
use crate::policy::{Options, Policy, Reload, RollbackError, Stage};

#[test]
fn a_rollback_stays_until_the_file_is_another_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let module = folder.path().join("p.wasm");
    let write = |guest: &str| fs::copy(options(guest).module, &module).expect("copied");
    write("answers");
    let options =
        |deadline| Options { deadline: Duration::from_millis(deadline), ..Options::new("gate", module.clone()) };
    let policy = Policy::load(&ENGINE, options(100), None).expect("it loads");
    assert_eq!(policy.rollback(), Err(RollbackError::NothingBefore));
    write("counts");
    policy.reload().expect("it can be used");
    assert_eq!(policy.rollback(), Ok(Reload::Swapped { from: 2, to: 1 }));
    assert_eq!((status(decide(&policy.current())), policy.status().last_reload.map(|l| l.result)), (231, Some(Ok(1))));
    assert_eq!(policy.rollback(), Err(RollbackError::NothingBefore), "one step");
    // The file is the same that was rolled back from: also for a new configuration.
    assert_eq!(policy.reload(), Ok(Reload::Unchanged));
    let next = Policy::load(&ENGINE, options(200), Some(&policy)).expect("it loads");
    assert_eq!((status(decide(&next.current())), next.current().number()), (231, 3));
    assert_eq!(next.reload(), Ok(Reload::Unchanged));
    // Another file, and then that one again.
    write("passes");
    assert_eq!(next.reload(), Ok(Reload::Swapped { from: 3, to: 4 }));
    write("counts");
    assert_eq!(next.reload(), Ok(Reload::Swapped { from: 4, to: 5 }));
    assert_eq!(next.rollback(), Ok(Reload::Swapped { from: 5, to: 4 }));
}

#[test]
fn a_failing_reload_is_said_once_for_each_content() {
    let folder = tempfile::tempdir().expect("a folder");
    let module = folder.path().join("p.wasm");
    let write = |guest: &str| fs::copy(options(guest).module, &module).expect("copied");
    write("answers");
    let policy = Policy::load(&ENGINE, Options::new("gate", module.clone()), None).expect("it loads");
    let lines = logged(|| {
        for guest in ["start_traps", "start_traps", "self_test_fails", "self_test_fails", "answers", "counts"] {
            write(guest);
            drop(policy.reload());
        }
    });
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].contains("generation 1 stays: instantiate: trap"), "{}", lines[0]);
    assert!(lines[1].contains("generation 1 stays: self-test: two and two are five"), "{}", lines[1]);
    assert!(lines[2].contains("policy reloaded policy=\"gate\" from=1 to=2"), "{}", lines[2]);
}

#[test]
fn a_reload_swaps_what_is_better_and_keeps_what_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let module = folder.path().join("p.wasm");
    let text = |guest: &str| fs::read(options(guest).module).expect("a guest");
    fs::write(&module, text("answers")).expect("written");
    let policy = Policy::load(&ENGINE, Options::new("gate", module.clone()), None).expect("it loads");
    assert_eq!(policy.reload(), Ok(Reload::Unchanged));

    let old = policy.current();
    fs::write(&module, text("counts")).expect("written");
    assert_eq!(policy.reload(), Ok(Reload::Swapped { from: 1, to: 2 }));
    assert_eq!((status(decide(&old)), status(decide(&policy.current()))), (231, 200));

    for broken in ["start_traps", "wrong_world", "configure_refuses"] {
        fs::write(&module, text(broken)).expect("written");
        policy.reload().expect_err(broken);
        assert_eq!(policy.current().number(), 2);
    }
    fs::remove_file(&module).expect("removed");
    assert_eq!(policy.reload().expect_err("it is gone").stage(), Stage::Read);
    assert_eq!(status(decide(&policy.current())), 201);

    fs::write(&module, text("answers")).expect("written");
    assert_eq!(policy.reload(), Ok(Reload::Swapped { from: 2, to: 3 }));
}

#[test]
fn numbers_go_on_in_the_next_configuration() {
    let first = load("answers");
    let same = Policy::load(&ENGINE, options("answers"), Some(&first)).expect("it loads");
    assert!(Arc::ptr_eq(&first.current(), &same.current()), "nothing has changed");
    let other = Options { reuse_max: 7, ..options("answers") };
    assert_eq!(Policy::load(&ENGINE, other, Some(&same)).expect("it loads").current().number(), 2);
}
