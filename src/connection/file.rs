//! A file that a route serves.

use std::sync::Arc;

use super::{Serving, form};
use crate::client::Client;
use crate::decision::{Field, Outcome};
use crate::exchange::Exchange;
use crate::files::{Conditions, Folder, Refusal, Wanted};
use crate::request::Request;
use crate::respond;
use crate::route::{Fallback, Route};
use crate::upstream::{Answer, Data, Source};

impl Serving<'_> {
    /// Serves what is below `folder` at the request's path, or lets `fallback` answer what no file does; returns the client
    /// when its connection goes on.
    pub(super) async fn file(
        &mut self,
        exchange: Exchange,
        request: &Arc<Request>,
        route: &Route,
        folder: &Folder,
        fallback: Option<&Fallback>,
    ) -> Option<Client> {
        let (path, query) = (request.head.path(), request.head.query());
        if let Some(fallback) = fallback.filter(|fallback| fallback.is_first(request.head.method(), path)) {
            return self.proxy(exchange, request, &fallback.proxy, None).await;
        }
        let wanted = Wanted {
            method: request.head.method(),
            path,
            below: below(route, path),
            query,
            conditions: Conditions::read(request.head.fields()),
        };
        if let Some(filter) = &route.filter {
            let found = match folder.find(&wanted).await {
                Ok(found) => found,
                Err(refusal) => return self.no_file_here(exchange, request, refusal, fallback).await,
            };
            let modified = found.modified;
            let data = match found.body().await {
                Ok(body) => Data { source: Source::body(body), modified },
                Err(refusal) => return self.no_file(exchange, request, refusal).await,
            };
            return self.filter(exchange, request, filter, data, true).await;
        }
        match folder.answer(&wanted).await {
            Ok(answer) => self.deliver_own(exchange, request, answer).await,
            Err(refusal) => self.no_file_here(exchange, request, refusal, fallback).await,
        }
    }

    /// A file that is not there may be somebody else's; one that must not be read, or cannot be, is nobody's.
    async fn no_file_here(
        &mut self,
        exchange: Exchange,
        request: &Arc<Request>,
        refusal: Refusal,
        fallback: Option<&Fallback>,
    ) -> Option<Client> {
        match fallback {
            Some(fallback) if refusal.status == 404 && refusal.error.is_none() => {
                self.proxy(exchange, request, &fallback.proxy, None).await
            }
            _ => self.no_file(exchange, request, refusal).await,
        }
    }

    /// The file to which an application's answer leads, by its path; the answer to be delivered.
    pub(super) async fn file_at(
        &self,
        request: &Request,
        route: &Route,
        folder: &Folder,
        path: &str,
    ) -> Result<Answer, Refusal> {
        let method = if request.head.method() == "HEAD" { "HEAD" } else { "GET" };
        let conditions = Conditions::read(request.head.fields());
        folder.answer(&Wanted { method, path, below: below(route, path), query: None, conditions }).await
    }

    pub(super) async fn no_file(&mut self, exchange: Exchange, request: &Request, refusal: Refusal) -> Option<Client> {
        let Refusal { status, field, error } = refusal;
        if let Some(error) = error {
            tracing::warn!(request = %request.id, error, "file not served");
            self.line.set(|r| r.error = Some(error));
        }
        let mut page = respond::page(status, form(request), &self.settings.pages);
        if let Some((name, value)) = field {
            page.fields.push(Field { name: name.as_str().to_owned(), value: value.as_bytes().to_vec() });
        }
        self.answer(exchange, Outcome::Responded, &page).await
    }
}

/// What of a path is below the route's.
fn below<'a>(route: &Route, path: &'a str) -> &'a str {
    path.strip_prefix(route.mount()).unwrap_or(path)
}
