//! `store`: what one policy keeps, for all of its instances and generations, in this process.
//!
//! Keys are spread over shards with a lock each, so that workers seldom wait for each other; what is done to one key is
//! done under its shard's lock, and therefore at once. Keys, values and what they cost beside are counted, and there is no
//! more than the limit. What has expired is absent at once and freed bit by bit: each call that writes takes a few along,
//! and one that finds no room looks for more, but never for so many that the request would notice.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Of a key.
pub(super) const KEY_BYTES_MAX: usize = 1 << 10;
/// Of a value.
pub(super) const VALUE_BYTES_MAX: usize = 64 << 10;
/// What an entry costs beside its key and its value: places in a map and in the order of expiry.
pub(super) const ENTRY_BYTES: usize = 128;

const SHARD_COUNT: usize = 16;
/// Expired entries that a call that writes frees on its way.
const COLLECT_COUNT: usize = 8;
/// The same for one that finds no room, from each shard; all of them together take less than a millisecond.
const COLLECT_COUNT_FULL: usize = 128;

/// Why nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreError {
    /// No room: `store_bytes_max`.
    Full,
    /// The key or the value.
    TooLarge,
    /// Another version is there, or no counter, or no number that large.
    Conflict,
}

/// A value and its version, which no other value of this store has or had; never 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) value: Arc<[u8]>,
    pub(super) version: u64,
    expires: Option<Duration>,
}

/// What a bucket had when it was last looked at.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Duration,
    /// When it will be full, which is as if it were absent.
    expires: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Bucket,
    Entry,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<Arc<str>, Entry>,
    buckets: HashMap<Arc<str>, Bucket>,
    /// Everything that expires, the next first.
    expiries: BTreeSet<(Duration, Kind, Arc<str>)>,
}

#[derive(Debug)]
pub(super) struct Store {
    shards: [Mutex<Shard>; SHARD_COUNT],
    /// Of all entries and buckets.
    bytes: AtomicUsize,
    /// The last version given.
    version: AtomicU64,
    hasher: RandomState,
    /// When its clock was 0. It is never set, unlike the one on the wall.
    began: Instant,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            shards: Default::default(),
            bytes: AtomicUsize::new(0),
            version: AtomicU64::new(0),
            hasher: RandomState::new(),
            began: Instant::now(),
        }
    }
}

/// What is written, and under which conditions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write<'a> {
    pub(super) key: &'a str,
    /// `None`: for ever.
    pub(super) ttl: Option<Duration>,
    /// Of everything in the store.
    pub(super) bytes_max: usize,
}

impl Store {
    /// Of its own clock.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn get(&self, now: Duration, key: &str) -> Option<Entry> {
        self.shard(key).entries.get(key).filter(|entry| !is_over(entry.expires, now)).cloned()
    }

    /// Returns the new version.
    pub(super) fn set(&self, now: Duration, write: Write<'_>, value: &[u8]) -> Result<u64, StoreError> {
        self.check(write, value)?;
        self.with_room(now, || self.put(&mut self.shard(write.key), now, write, value))
    }

    /// The same when that version is there; 0: when nothing is.
    pub(super) fn compare_and_set(
        &self,
        now: Duration,
        write: Write<'_>,
        version: u64,
        value: &[u8],
    ) -> Result<u64, StoreError> {
        self.check(write, value)?;
        self.with_room(now, || {
            let mut shard = self.shard(write.key);
            let found = shard.entries.get(write.key).filter(|entry| !is_over(entry.expires, now));
            if found.map_or(0, |entry| entry.version) != version {
                return Err(StoreError::Conflict);
            }
            self.put(&mut shard, now, write, value)
        })
    }

    /// Both a value and a bucket of that key.
    pub(super) fn delete(&self, key: &str) {
        let mut shard = self.shard(key);
        if let Some((key, entry)) = shard.entries.remove_entry(key) {
            self.release(entry_bytes(&key, &entry.value));
            shard.forget(entry.expires, Kind::Entry, &key);
        }
        if let Some((key, bucket)) = shard.buckets.remove_entry(key) {
            self.release(bucket_bytes(&key));
            shard.forget(bucket.expires, Kind::Bucket, &key);
        }
    }

    /// Adds to a value that is a decimal number. The time to live is that of the first: one that is there keeps its own.
    pub(super) fn increment(&self, now: Duration, write: Write<'_>, delta: i64) -> Result<i64, StoreError> {
        self.check(write, &[])?;
        self.with_room(now, || {
            let mut shard = self.shard(write.key);
            let found = shard.entries.get(write.key).filter(|entry| !is_over(entry.expires, now));
            let (before, expires) = match found {
                Some(entry) => (number(&entry.value).ok_or(StoreError::Conflict)?, entry.expires),
                None => (0, write.ttl.map(|ttl| now.saturating_add(ttl))),
            };
            let sum = before.checked_add(delta).ok_or(StoreError::Conflict)?;
            self.place(&mut shard, write, sum.to_string().as_bytes(), expires)?;
            shard.collect(self, now, COLLECT_COUNT);
            Ok(sum)
        })
    }

    /// Takes `cost` tokens from a bucket that holds up to `burst` and gets `rate` a second; it begins full.
    pub(super) fn take(&self, now: Duration, write: Write<'_>, rate: f64, burst: f64, cost: f64) -> bool {
        let is_amount = |amount: f64| amount.is_finite() && amount >= 0.0;
        if ![rate, burst, cost].into_iter().all(is_amount) || cost > burst || write.key.len() > KEY_BYTES_MAX {
            return false;
        }
        let take = || {
            let mut shard = self.shard(write.key);
            let found = shard.buckets.get(write.key).copied();
            let tokens = found.map_or(burst, |bucket| {
                let refilled = rate * now.saturating_sub(bucket.at).as_secs_f64();
                (bucket.tokens + refilled).min(burst)
            });
            if tokens < cost {
                return Ok(false);
            }
            let tokens = tokens - cost;
            let full_in = Duration::try_from_secs_f64((burst - tokens) / rate).ok();
            let expires = full_in.and_then(|full_in| now.checked_add(full_in));
            let key = match found {
                Some(bucket) => {
                    let key = shard.buckets.get_key_value(write.key).map(|(key, _)| Arc::clone(key));
                    let key = key.unwrap_or_else(|| write.key.into());
                    shard.forget(bucket.expires, Kind::Bucket, &key);
                    key
                }
                None if self.reserve(bucket_bytes(write.key), 0, write.bytes_max) => write.key.into(),
                None => return Err(StoreError::Full),
            };
            shard.remember(expires, Kind::Bucket, &key);
            shard.buckets.insert(key, Bucket { tokens, at: now, expires });
            shard.collect(self, now, COLLECT_COUNT);
            Ok(true)
        };
        self.with_room(now, take).unwrap_or(false)
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let shard = std::mem::take(&mut *lock(shard));
            let entries = shard.entries.iter().map(|(key, entry)| entry_bytes(key, &entry.value)).sum::<usize>();
            self.release(entries + shard.buckets.keys().map(|key| bucket_bytes(key)).sum::<usize>());
        }
    }

    fn shard(&self, key: &str) -> MutexGuard<'_, Shard> {
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash do")]
        let at = self.hasher.hash_one(key) as usize;
        lock(&self.shards[at % SHARD_COUNT])
    }

    fn check(&self, write: Write<'_>, value: &[u8]) -> Result<(), StoreError> {
        if write.key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(StoreError::TooLarge);
        }
        Ok(())
    }

    /// Tries once more when there was no room and some could be made. No lock is held while it is made.
    fn with_room<T>(&self, now: Duration, mut op: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let result = op();
        if !matches!(result, Err(StoreError::Full)) {
            return result;
        }
        let freed: usize = self.shards.iter().map(|shard| lock(shard).collect(self, now, COLLECT_COUNT_FULL)).sum();
        if freed == 0 { result } else { op() }
    }

    fn put(&self, shard: &mut Shard, now: Duration, write: Write<'_>, value: &[u8]) -> Result<u64, StoreError> {
        let expires = write.ttl.map(|ttl| now.saturating_add(ttl));
        let version = self.place(shard, write, value, expires)?;
        shard.collect(self, now, COLLECT_COUNT);
        Ok(version)
    }

    fn place(
        &self,
        shard: &mut Shard,
        write: Write<'_>,
        value: &[u8],
        expires: Option<Duration>,
    ) -> Result<u64, StoreError> {
        let before = shard.entries.get_key_value(write.key);
        let less = before.map_or(0, |(key, entry)| entry_bytes(key, &entry.value));
        if !self.reserve(entry_bytes(write.key, value), less, write.bytes_max) {
            return Err(StoreError::Full);
        }
        let key = before.map_or_else(|| write.key.into(), |(key, _)| Arc::clone(key));
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Entry { value: value.into(), version, expires };
        if let Some(before) = shard.entries.insert(Arc::clone(&key), entry) {
            shard.forget(before.expires, Kind::Entry, &key);
        }
        shard.remember(expires, Kind::Entry, &key);
        Ok(version)
    }

    /// What becomes smaller always has room.
    fn reserve(&self, more: usize, less: usize, bytes_max: usize) -> bool {
        let change = |bytes: usize| {
            let after = bytes - less + more;
            (after <= bytes_max || more <= less).then_some(after)
        };
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }

    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Shard {
    fn remember(&mut self, expires: Option<Duration>, kind: Kind, key: &Arc<str>) {
        if let Some(expires) = expires {
            self.expiries.insert((expires, kind, Arc::clone(key)));
        }
    }

    fn forget(&mut self, expires: Option<Duration>, kind: Kind, key: &Arc<str>) {
        if let Some(expires) = expires {
            self.expiries.remove(&(expires, kind, Arc::clone(key)));
        }
    }

    /// Frees up to `count_max` of what has expired, and returns how many it were.
    fn collect(&mut self, store: &Store, now: Duration, count_max: usize) -> usize {
        let mut count = 0;
        while count < count_max && self.expiries.first().is_some_and(|(expires, ..)| *expires <= now) {
            let Some((_, kind, key)) = self.expiries.pop_first() else { break };
            match kind {
                Kind::Bucket => {
                    self.buckets.remove(&key);
                    store.release(bucket_bytes(&key));
                }
                Kind::Entry => {
                    if let Some(entry) = self.entries.remove(&key) {
                        store.release(entry_bytes(&key, &entry.value));
                    }
                }
            }
            count += 1;
        }
        count
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_over(expires: Option<Duration>, now: Duration) -> bool {
    expires.is_some_and(|expires| expires <= now)
}

fn entry_bytes(key: &str, value: &[u8]) -> usize {
    ENTRY_BYTES + key.len() + value.len()
}

fn bucket_bytes(key: &str) -> usize {
    ENTRY_BYTES + key.len()
}

/// A number as `increment` writes it: no plus, no zeros in front.
fn number(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    text.parse().ok().filter(|number: &i64| number.to_string() == text)
}

#[cfg(test)]
mod tests;
