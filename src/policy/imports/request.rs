//! `request`: getters for the request of the hook that is running. Each copies what it names, and no more.

use super::Imports;
use crate::http::body::Framing;
use crate::http::head::Version;
use crate::http::path::{Plus, decode};
use crate::policy::bindings::{peer, request, types};
use crate::policy::body::BodyError;
use crate::request::Request;

impl Imports {
    fn request(&self, getter: &'static str) -> wasmtime::Result<&Request> {
        self.call(getter).map(|call| &*call.request)
    }
}

impl request::Host for Imports {
    fn id(&mut self) -> wasmtime::Result<String> {
        Ok(self.request("id")?.id.to_string())
    }

    fn method(&mut self) -> wasmtime::Result<String> {
        Ok(self.request("method")?.head.method().to_owned())
    }

    fn path(&mut self) -> wasmtime::Result<String> {
        Ok(self.request("path")?.head.path().to_owned())
    }

    fn request_target(&mut self) -> wasmtime::Result<String> {
        Ok(self.request("request-target")?.head.target().to_owned())
    }

    fn query(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.request("query")?.head.query().map(str::to_owned))
    }

    fn authority(&mut self) -> wasmtime::Result<String> {
        Ok(self.request("authority")?.head.authority().to_owned())
    }

    fn scheme(&mut self) -> wasmtime::Result<String> {
        Ok(self.request("scheme")?.scheme().to_owned())
    }

    fn version(&mut self) -> wasmtime::Result<types::HttpVersion> {
        Ok(match self.request("version")?.head.version() {
            Version::Http10 => types::HttpVersion::Http10,
            Version::Http11 => types::HttpVersion::Http11,
        })
    }

    fn route(&mut self) -> wasmtime::Result<Option<String>> {
        Ok(self.request("route")?.route.as_deref().map(str::to_owned))
    }

    /// Routes capture nothing in this version.
    fn param(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        let value = self.request("param")?.variable(&name);
        Ok(value.map(|value| String::from_utf8_lossy(value).into_owned()))
    }

    fn header(&mut self, name: String) -> wasmtime::Result<Option<Vec<u8>>> {
        Ok(self.request("header")?.field(&name).map(<[u8]>::to_vec))
    }

    fn header_all(&mut self, name: String) -> wasmtime::Result<Vec<Vec<u8>>> {
        Ok(self.request("header-all")?.field_all(&name).map(<[u8]>::to_vec).collect())
    }

    fn header_many(&mut self, names: Vec<String>) -> wasmtime::Result<Vec<Option<Vec<u8>>>> {
        let request = self.request("header-many")?;
        Ok(names.iter().map(|name| request.field(name).map(<[u8]>::to_vec)).collect())
    }

    fn headers(&mut self) -> wasmtime::Result<Vec<types::Field>> {
        let fields = self.request("headers")?.fields().into_iter();
        Ok(fields.map(|(name, value)| types::Field { name: name.into_owned(), value: value.to_vec() }).collect())
    }

    fn headers_raw(&mut self) -> wasmtime::Result<Vec<u8>> {
        let request = self.request("headers-raw")?;
        let mut block = Vec::with_capacity(request.head.bytes().len());
        for (name, value) in request.fields() {
            block.extend_from_slice(name.as_bytes());
            block.extend_from_slice(b": ");
            block.extend_from_slice(value);
            block.extend_from_slice(b"\r\n");
        }
        Ok(block)
    }

    fn cookie(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        let request = self.request("cookie")?;
        let pairs = request.field_all("cookie").flat_map(|line| line.split(|&byte| byte == b';'));
        let found = pairs.map(<[u8]>::trim_ascii).find_map(|pair| {
            let (key, value) = pair.split_at(pair.iter().position(|&byte| byte == b'=')?);
            (key == name.as_bytes()).then(|| &value[1..])
        });
        Ok(found.map(|value| String::from_utf8_lossy(value).into_owned()))
    }

    fn query_param(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        let query = self.request("query-param")?.head.query().unwrap_or_default();
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let found = pairs.filter(|(key, _)| !key.is_empty()).find(|(key, _)| decode(key, Plus::Space) == name);
        Ok(found.map(|(_, value)| decode(value, Plus::Space)))
    }

    fn peer(&mut self) -> wasmtime::Result<types::PeerAddress> {
        Ok(peer(&self.request("peer")?.origin.peer))
    }

    fn client_ip(&mut self) -> wasmtime::Result<String> {
        Ok(self.request("client-ip")?.client_ip())
    }

    fn local_address(&mut self) -> wasmtime::Result<String> {
        Ok(self.request("local-address")?.origin.local.to_string())
    }

    fn listener(&mut self) -> wasmtime::Result<String> {
        Ok(self.request("listener")?.origin.listener.to_string())
    }

    /// Listeners speak clear text in this version.
    fn tls(&mut self) -> wasmtime::Result<Option<types::TlsInfo>> {
        self.request("tls")?;
        Ok(None)
    }

    fn client_certificate(&mut self) -> wasmtime::Result<Option<Vec<u8>>> {
        self.request("client-certificate")?;
        Ok(None)
    }

    fn passability(&mut self) -> wasmtime::Result<types::Passable> {
        self.request("passability")?;
        Ok(types::Passable::Direct)
    }

    fn content_length(&mut self) -> wasmtime::Result<Option<u64>> {
        Ok(match self.request("content-length")?.head.framing() {
            Framing::Chunked => None,
            Framing::Length(bytes) => Some(bytes),
            Framing::None => Some(0),
        })
    }

    async fn body_prefix(&mut self, bytes_max: u32) -> wasmtime::Result<Result<Vec<u8>, request::BodyError>> {
        let body = self.call("body-prefix")?.body.clone();
        let prefix = self.deadline.stopped(body.prefix(bytes_max)).await;
        Ok(prefix.map_err(|error| match error {
            BodyError::Closed => request::BodyError::Closed,
            BodyError::NotAvailable => request::BodyError::NotAvailable,
            BodyError::TimedOut => request::BodyError::TimedOut,
            BodyError::TooLarge => request::BodyError::TooLarge,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::{Call, Identity};
    use super::*;
    use crate::decision::{Edits, Field};
    use crate::http::head::{Limits, RequestHead};
    use crate::policy::Options;
    use crate::policy::body::BodyPort;
    use crate::policy::epoch::Deadline;
    use crate::request::Peer;
    use crate::request::{Id, Origin};
    use request::Host as _;

    fn imports(text: &str) -> Imports {
        let head = RequestHead::parse(text.as_bytes(), Limits::default()).expect("well-formed");
        let peer = Peer::Tcp("[::ffff:192.0.2.1]:7".parse().expect("an address"));
        let origin = Origin { peer, local: "127.0.0.1:80".into(), listener: "http".into() };
        let request = Arc::new(Request::new(Id::new(), head, Arc::new(origin), Some("/v1/".into())));
        Imports {
            identity: Arc::new(Identity::new(&Arc::default(), &Options::new("p", "p.wasm".into()), 1)),
            call: Some(Call { request, body: BodyPort::empty(), response: None }),
            deadline: Deadline::after(Duration::from_secs(1)),
            spoke: false,
            callouts: 0,
        }
    }

    const TEXT: &str = "GET /a//b?q=1%202&e&plus+key=x+y HTTP/1.1\r\nHost: Example.org:80\r\nX-A: 1\r\nx-a: 2\r\n\
        Cookie: sid=1; s=2\r\nCookie: t=a=b\r\nContent-Length: 5\r\n\r\n";

    #[test]
    fn each_getter_gives_what_its_name_says() -> wasmtime::Result<()> {
        let mut imports = imports(TEXT);
        assert_eq!(imports.method()?, "GET");
        assert_eq!(imports.path()?, "/a/b");
        assert_eq!(imports.request_target()?, "/a//b?q=1%202&e&plus+key=x+y");
        assert_eq!(imports.query()?.as_deref(), Some("q=1%202&e&plus+key=x+y"));
        assert_eq!(imports.authority()?, "example.org:80");
        assert_eq!(imports.route()?.as_deref(), Some("/v1/"));
        assert_eq!(imports.header("X-a".into())?.as_deref(), Some(&b"1"[..]));
        assert_eq!(imports.header_all("x-A".into())?, [b"1", b"2"]);
        assert_eq!(imports.header_many(vec!["none".into(), "X-A".into()])?, [None, Some(b"1".to_vec())]);
        assert_eq!(imports.headers()?[1].name, "x-a");
        assert!(
            imports.headers_raw()?.starts_with(b"host: Example.org:80\r\nx-a: 1\r\nx-a: 2\r\ncookie: sid=1; s=2\r\n")
        );
        assert_eq!(imports.cookie("s".into())?.as_deref(), Some("2"));
        assert_eq!(imports.cookie("t".into())?.as_deref(), Some("a=b"));
        assert_eq!(imports.cookie("t=a".into())?, None);
        assert_eq!(imports.query_param("q".into())?.as_deref(), Some("1 2"));
        assert_eq!(imports.query_param("e".into())?.as_deref(), Some(""));
        assert_eq!(imports.query_param("plus key".into())?.as_deref(), Some("x y"));
        assert_eq!(imports.query_param("z".into())?, None);
        assert_eq!(imports.client_ip()?, "192.0.2.1");
        assert_eq!(imports.content_length()?, Some(5));
        Ok(())
    }

    #[test]
    fn edits_of_an_earlier_policy_are_seen() -> wasmtime::Result<()> {
        let mut imports = imports(TEXT);
        let call = imports.call.as_mut().expect("made above");
        let set = vec![Field { name: "x-a".into(), value: b"3".to_vec() }];
        Arc::make_mut(&mut call.request).edit(&Edits { set, ..Edits::default() });
        assert_eq!(imports.header_all("X-A".into())?, [b"3"]);
        Ok(())
    }

    #[test]
    fn outside_of_a_hook_every_getter_traps() {
        let mut imports = imports(TEXT);
        imports.call = None;
        assert!(imports.path().is_err());
        assert!(imports.tls().is_err());
        let said = imports.header("a".into()).expect_err("there is no request").to_string();
        assert_eq!(said, "request.header was called outside of a hook");
    }
}
