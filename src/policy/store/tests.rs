//! The store against a naive one that keeps everything in one map and forgets nothing before it looks.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MAX: usize = 2000;

fn write(key: &str, ttl: Option<u64>) -> Write<'_> {
    Write { key, ttl: ttl.map(Duration::from_millis), bytes_max: MAX }
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the contract says, as slowly as one likes.
#[derive(Debug, Default)]
struct Naive {
    /// Value, version, and when it ends.
    entries: BTreeMap<String, (Vec<u8>, u64, Option<u64>)>,
    version: u64,
}

impl Naive {
    fn get(&self, now: u64, key: &str) -> Option<(Vec<u8>, u64)> {
        let (value, version, end) = self.entries.get(key)?;
        end.is_none_or(|end| end > now).then(|| (value.clone(), *version))
    }

    fn put(&mut self, now: u64, key: &str, value: &[u8], end: Option<u64>) -> Result<u64, StoreError> {
        self.entries.retain(|_, (_, _, end)| end.is_none_or(|end| end > now));
        let others = self.entries.iter().filter(|(other, _)| *other != key);
        let bytes: usize = others.map(|(key, (value, ..))| ENTRY_BYTES + key.len() + value.len()).sum();
        let before = self.entries.get(key).map_or(0, |(value, ..)| value.len() + 1);
        if bytes + ENTRY_BYTES + key.len() + value.len() > MAX && value.len() + 1 > before {
            return Err(StoreError::Full);
        }
        self.version += 1;
        self.entries.insert(key.to_owned(), (value.to_vec(), self.version, end));
        Ok(self.version)
    }

    fn increment(&mut self, now: u64, key: &str, delta: i64, ttl: Option<u64>) -> Result<i64, StoreError> {
        let before = self.get(now, key);
        let number = before.as_ref().map_or(Some(0), |(value, _)| std::str::from_utf8(value).ok()?.parse::<i64>().ok());
        let sum = number.and_then(|number| number.checked_add(delta)).ok_or(StoreError::Conflict)?;
        let end = if before.is_some() { self.entries[key].2 } else { ttl.map(|ttl| now + ttl) };
        self.put(now, key, sum.to_string().as_bytes(), end).map(|_| sum)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Get,
    Set(usize, Option<u64>),
    Text,
    CompareAndSet(bool, usize, Option<u64>),
    Delete,
    Increment(i64, Option<u64>),
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Vec<(usize, Op)>> {
    let ttl = || prop_oneof![Just(None), (0..50_u64).prop_map(Some)];
    let op = prop_oneof![
        Just(Op::Get),
        (0..400_usize, ttl()).prop_map(|(bytes, ttl)| Op::Set(bytes, ttl)),
        Just(Op::Text),
        (any::<bool>(), 0..400_usize, ttl()).prop_map(|(fits, bytes, ttl)| Op::CompareAndSet(fits, bytes, ttl)),
        Just(Op::Delete),
        (prop_oneof![Just(i64::MAX), Just(i64::MIN), -5..5_i64], ttl()).prop_map(|(by, ttl)| Op::Increment(by, ttl)),
        (0..20_u64).prop_map(Op::Wait),
    ];
    proptest::collection::vec((0..12_usize, op), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn it_does_what_the_naive_one_does(ops in ops()) {
        let (store, mut naive) = (Store::default(), Naive::default());
        let mut now = 0;
        for (key, op) in ops {
            let key = &*"abcdefghijkl"[key..=key].to_owned();
            match op {
                Op::Get => {}
                Op::Set(bytes, ttl) => {
                    let value = vec![b'x'; bytes];
                    let expected = naive.put(now, key, &value, ttl.map(|ttl| now + ttl));
                    prop_assert_eq!(store.set(at(now), write(key, ttl), &value), expected);
                }
                Op::Text => {
                    let expected = naive.put(now, key, b"41", None);
                    prop_assert_eq!(store.set(at(now), write(key, None), b"41"), expected);
                }
                Op::CompareAndSet(fits, bytes, ttl) => {
                    let value = vec![b'y'; bytes];
                    let version = naive.get(now, key).map_or(0, |(_, version)| version) + u64::from(!fits);
                    let result = store.compare_and_set(at(now), write(key, ttl), version, &value);
                    let expected = if fits { naive.put(now, key, &value, ttl.map(|ttl| now + ttl)) } else { Err(StoreError::Conflict) };
                    prop_assert_eq!(result, expected);
                }
                Op::Delete => {
                    naive.entries.remove(key);
                    store.delete(key);
                }
                Op::Increment(by, ttl) => {
                    let expected = naive.increment(now, key, by, ttl);
                    prop_assert_eq!(store.increment(at(now), write(key, ttl), by), expected);
                }
                Op::Wait(ms) => now += ms,
            }
            for key in "abcdefghijkl".chars().map(String::from) {
                let found = store.get(at(now), &key).map(|entry| (entry.value.to_vec(), entry.version));
                prop_assert_eq!(found, naive.get(now, &key), "{}", key);
            }
            prop_assert!(store.bytes.load(Ordering::Relaxed) <= MAX);
        }
        store.clear();
        prop_assert_eq!(store.bytes.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn keys_and_values_are_judged_at_their_limits() {
    let store = Store::default();
    let write = |key, bytes_max| Write { key, ttl: None, bytes_max };
    let (key, value) = ("k".repeat(KEY_BYTES_MAX), vec![0; VALUE_BYTES_MAX]);
    let bytes = ENTRY_BYTES + key.len() + value.len();
    assert_eq!(store.set(at(0), write(&key, bytes - 1), &value), Err(StoreError::Full));
    assert_eq!(store.set(at(0), write(&key, bytes), &value), Ok(1));
    let over = key.clone() + "k";
    assert_eq!(store.set(at(0), write(&over, usize::MAX), b""), Err(StoreError::TooLarge));
    assert_eq!(store.increment(at(0), write(&over, usize::MAX), 1), Err(StoreError::TooLarge));
    assert!(!store.take(at(0), write(&over, usize::MAX), 1.0, 1.0, 1.0));
    assert_eq!(store.set(at(0), write("a", usize::MAX), &[value, vec![0]].concat()), Err(StoreError::TooLarge));
    assert_eq!(store.get(at(0), &over), None);
    assert_eq!(store.increment(at(0), write("b", bytes), 1), Err(StoreError::Full));
    assert_eq!(store.set(at(0), write(&key, 0), b"5"), Ok(2), "what becomes smaller always has room");
    assert_eq!(store.increment(at(0), write(&key, 0), 4), Ok(9));
}

#[test]
fn a_number_has_one_spelling() {
    for text in ["0", "-1", "9223372036854775807"] {
        assert!(number(text.as_bytes()).is_some(), "{text}");
    }
    for text in ["", "+1", "01", "-0", " 1", "1.0", "9223372036854775808", "x"] {
        assert_eq!(number(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn increments_of_many_threads_are_all_counted() {
    let store = Store::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for n in 0..5000 {
                    let now = store.now();
                    store.increment(now, Write { key: "n", ttl: None, bytes_max: 1 << 20 }, 1).expect("room");
                    let other = format!("o{}", n % 50);
                    let ttl = Some(Duration::from_micros(n));
                    let other = Write { key: &other, ttl, bytes_max: 1 << 20 };
                    store.set(now, other, b"x").expect("room");
                    assert!(!store.take(now, Write { ttl: None, ..other }, 0.0, 0.0, 1.0));
                }
            });
        }
    });
    assert_eq!(store.get(store.now(), "n").expect("counted").value[..], *b"40000");
    store.clear();
    assert_eq!(store.bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn of_many_who_compare_and_set_one_wins() {
    let store = Store::default();
    let write = Write { key: "k", ttl: None, bytes_max: 1 << 20 };
    let won = std::thread::scope(|scope| {
        let tries: Vec<_> =
            (0..8).map(|_| scope.spawn(|| store.compare_and_set(store.now(), write, 0, b"x").is_ok())).collect();
        tries.into_iter().filter_map(|thread| thread.join().ok()).filter(|won| *won).count()
    });
    assert_eq!(won, 1);
}

#[test]
fn a_bucket_begins_full_and_refills_by_its_own_clock() {
    let store = Store::default();
    let take = |ms, cost| store.take(at(ms), write("b", None), 2.0, 3.0, cost);
    assert!(!take(0, 3.5) && take(0, 3.0) && !take(0, 0.5));
    assert!(take(250, 0.5) && !take(499, 0.5) && take(500, 0.5));
    assert!(take(10_000, 3.0) && !take(10_000, 0.1), "it holds no more than its burst");
    assert!(take(10_000, 0.0));
    for (rate, burst, cost) in [(f64::NAN, 1.0, 1.0), (1.0, f64::INFINITY, 1.0), (-1.0, 1.0, 1.0), (1.0, 1.0, -1.0)] {
        assert!(!store.take(at(0), write("c", None), rate, burst, cost), "{rate} {burst} {cost}");
    }
    assert!(store.take(at(0), write("d", None), 0.0, 1.0, 1.0));
    assert!(!store.take(at(1 << 40), write("d", None), 0.0, 1.0, 1.0), "without a rate it never refills");
}

#[test]
fn what_has_expired_and_buckets_that_are_full_make_room() {
    let store = Store::default();
    let count = MAX / (ENTRY_BYTES + 4);
    for n in 0..count {
        assert!(store.take(at(0), write(&format!("b{n:03}"), None), 1.0, 5.0, 5.0), "{n}");
    }
    assert!(!store.take(at(0), write("next", None), 1.0, 5.0, 5.0));
    assert_eq!(store.set(at(4999), write("next", None), b""), Err(StoreError::Full));
    for n in 0..count {
        store.set(at(5000), write(&format!("e{n:03}"), Some(10)), b"").expect("the buckets are as good as absent");
    }
    assert_eq!(store.set(at(5009), write("next", None), b""), Err(StoreError::Full));
    assert_eq!(store.get(at(5010), "e000"), None);
    store.set(at(5010), write("next", None), b"").expect("what was there is gone");
}

/// Entries that expire at once are freed by those who come, a few by each.
#[test]
fn nobody_pays_for_all_that_has_expired() {
    let store = Store::default();
    for n in 0..100_000 {
        let write = Write { key: &n.to_string(), ttl: Some(at(1)), bytes_max: 1 << 30 };
        store.set(at(0), write, b"").expect("room");
    }
    let before = store.bytes.load(Ordering::Relaxed);
    store.set(at(10), Write { key: "next", ttl: None, bytes_max: 1 << 30 }, b"").expect("room");
    let freed = before - store.bytes.load(Ordering::Relaxed);
    assert!((1..=COLLECT_COUNT * (ENTRY_BYTES + 6)).contains(&freed), "{freed}");
    let full = Write { key: "more", ttl: None, bytes_max: 0 };
    assert_eq!(store.set(at(10), full, b""), Err(StoreError::Full));
    let freed = before - store.bytes.load(Ordering::Relaxed);
    assert!(freed <= (SHARD_COUNT * COLLECT_COUNT_FULL + COLLECT_COUNT) * (ENTRY_BYTES + 6), "{freed}");
}
