//! `response`: getters for the head that an upstream has answered with, during `on-response`.

use super::Imports;
use crate::policy::UpstreamHead;
use crate::policy::bindings::{response, types};

impl Imports {
    fn response(&self, getter: &'static str) -> wasmtime::Result<&UpstreamHead> {
        let response = self.call.as_ref().and_then(|call| call.response.as_deref());
        response.ok_or_else(|| wasmtime::format_err!("response.{getter} was called outside of on-response"))
    }
}

impl response::Host for Imports {
    fn status(&mut self) -> wasmtime::Result<u16> {
        Ok(self.response("status")?.status)
    }

    fn header(&mut self, name: String) -> wasmtime::Result<Option<Vec<u8>>> {
        let mut fields = self.response("header")?.fields.iter();
        Ok(fields.find(|field| field.name.eq_ignore_ascii_case(&name)).map(|field| field.value.clone()))
    }

    fn headers(&mut self) -> wasmtime::Result<Vec<types::Field>> {
        let fields = self.response("headers")?.fields.iter();
        Ok(fields.map(|field| types::Field { name: field.name.clone(), value: field.value.clone() }).collect())
    }

    fn upstream(&mut self) -> wasmtime::Result<String> {
        Ok(self.response("upstream")?.upstream.to_string())
    }

    fn elapsed_us(&mut self) -> wasmtime::Result<u64> {
        let elapsed = self.response("elapsed-us")?.elapsed;
        Ok(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }
}
