//! Answers made here: a policy's or a route's, and the short page that tells a client what failed.
//!
//! A page says nothing of the inside: the status, its phrase, and a style sheet that the operator may serve.

use std::collections::HashMap;

use crate::decision::{Field, Respond};
use crate::http::fields::list;
use crate::http::response::{Answer, phrase};

/// Pages that replace the built-in one, by status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorPages(pub HashMap<u16, Vec<u8>>);

/// The form of a page that the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A page for a browser.
    Html,
    /// `application/problem+json` (RFC 9457).
    Json,
}

impl Form {
    /// Reads `Accept`: JSON where it is asked for and HTML is not. A weight of 0 asks for nothing (RFC 9110 §12.4.2);
    /// others are not weighed against each other.
    pub fn wanted<'a>(accept: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut json = false;
        for member in accept.flat_map(list) {
            let mut parts = member.split(|&b| b == b';').map(|part| part.trim_ascii().to_ascii_lowercase());
            let kind = parts.next().unwrap_or_default();
            if parts.any(|part| matches!(&part[..], b"q=0" | b"q=0." | b"q=0.0" | b"q=0.00" | b"q=0.000")) {
                continue;
            }
            match &kind[..] {
                b"text/html" | b"application/xhtml+xml" => return Self::Html,
                b"application/json" | b"application/problem+json" => json = true,
                _ => {}
            }
        }
        if json { Self::Json } else { Self::Html }
    }
}

/// Returns the answer that a decision or a route describes.
pub fn answer(respond: &Respond) -> Answer {
    Answer { status: respond.status, fields: respond.headers.clone(), body: respond.body.clone() }
}

/// Returns the page for a failure.
pub fn page(status: u16, form: Form, pages: &ErrorPages) -> Answer {
    let (kind, body) = match (form, pages.0.get(&status)) {
        (Form::Html, Some(page)) => ("text/html; charset=utf-8", page.clone()),
        (Form::Html, None) => ("text/html; charset=utf-8", html(status).into_bytes()),
        (Form::Json, _) => {
            let problem = serde_json::json!({"type": "about:blank", "title": phrase(status), "status": status});
            ("application/problem+json", format!("{problem}\n").into_bytes())
        }
    };
    Answer { status, fields: vec![field("content-type", kind)], body }
}

/// A field whose value is text of our own.
pub fn field(name: &str, value: &str) -> Field {
    Field { name: name.to_owned(), value: value.as_bytes().to_vec() }
}

fn html(status: u16) -> String {
    let title = format!("{status} {}", phrase(status));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <link rel=\"stylesheet\" href=\"/error.css\">\n<h1>{title}</h1>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_given_to_whoever_asks_for_it_and_not_for_html() {
        let wanted = |accept: &str| Form::wanted([accept.as_bytes()].into_iter());
        assert_eq!(wanted("*/*"), Form::Html);
        assert_eq!(wanted("application/json"), Form::Json);
        assert_eq!(wanted("text/plain, Application/Problem+JSON;q=0.5"), Form::Json);
        assert_eq!(wanted("text/html, application/json"), Form::Html);
        assert_eq!(wanted("text/html;Q=0.0, application/json ; x=y; q=0.001"), Form::Json);
        assert_eq!(wanted("application/json; q=0"), Form::Html);
        assert_eq!(Form::wanted(std::iter::empty()), Form::Html);
    }

    proptest::proptest! {
        #[test]
        fn any_accept_is_read(accept in "([ -~\\x80-\\xff]|text/html|application/json|;q=0|,|;|\"){0,20}") {
            let form = Form::wanted([accept.as_bytes()].into_iter());
            // Split over two fields at a comma it is the same list.
            let parts: Vec<_> = accept.splitn(2, ',').map(str::as_bytes).collect();
            assert_eq!(Form::wanted(parts.into_iter()), form);
        }
    }

    #[test]
    fn a_page_is_replaced_by_status() {
        let pages = ErrorPages([(503, b"ours".to_vec())].into());
        assert_eq!(page(503, Form::Html, &pages).body, b"ours");
        assert!(page(404, Form::Html, &pages).body.starts_with(b"<!DOCTYPE html>"));
        assert_eq!(
            page(404, Form::Json, &pages).body,
            b"{\"type\":\"about:blank\",\"title\":\"Not Found\",\"status\":404}\n"
        );
    }
}
