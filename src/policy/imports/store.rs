//! `store`: what a policy keeps between requests, whichever instance or generation is asked.

use std::time::Duration;

use super::Imports;
use crate::policy::bindings::store;
use crate::policy::store::{Store, StoreError, Write};

impl Imports {
    fn store(&mut self) -> (&Store, Duration) {
        self.spoke = true;
        let store = &self.identity.shared().store;
        (store, store.now())
    }

    fn write<'a>(&self, key: &'a str, ttl_ms: Option<u64>) -> Write<'a> {
        Write { key, ttl: ttl_ms.map(Duration::from_millis), bytes_max: self.identity.store_bytes_max }
    }
}

impl store::Host for Imports {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<store::Entry>> {
        let (store, now) = self.store();
        let found = store.get(now, &key);
        Ok(found.map(|entry| store::Entry { value: entry.value.to_vec(), version: entry.version }))
    }

    fn set(
        &mut self,
        key: String,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<u64, store::StoreError>> {
        let write = self.write(&key, ttl_ms);
        let (store, now) = self.store();
        Ok(store.set(now, write, &value).map_err(Into::into))
    }

    fn compare_and_set(
        &mut self,
        key: String,
        version: u64,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<u64, store::StoreError>> {
        let write = self.write(&key, ttl_ms);
        let (store, now) = self.store();
        Ok(store.compare_and_set(now, write, version, &value).map_err(Into::into))
    }

    fn delete(&mut self, key: String) -> wasmtime::Result<()> {
        self.store().0.delete(&key);
        Ok(())
    }

    fn increment(
        &mut self,
        key: String,
        delta: i64,
        ttl_ms: Option<u64>,
    ) -> wasmtime::Result<Result<i64, store::StoreError>> {
        let write = self.write(&key, ttl_ms);
        let (store, now) = self.store();
        Ok(store.increment(now, write, delta).map_err(Into::into))
    }

    fn take(&mut self, key: String, rate_per_s: f64, burst: f64, cost: f64) -> wasmtime::Result<bool> {
        let write = self.write(&key, None);
        let (store, now) = self.store();
        Ok(store.take(now, write, rate_per_s, burst, cost))
    }
}

impl From<StoreError> for store::StoreError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::Conflict,
            StoreError::Full => Self::Full,
            StoreError::TooLarge => Self::TooLarge,
        }
    }
}
