//! What a request makes of a file: all of it, a part, or nothing (RFC 9110 §13, §14). Pure.

use std::time::SystemTime;

/// The fields of a request that ask for less than the whole.
#[derive(Clone, Debug, Default)]
pub struct Conditions<'a> {
    if_match: Vec<&'a [u8]>,
    if_none_match: Vec<&'a [u8]>,
    if_modified_since: Once<'a>,
    if_unmodified_since: Once<'a>,
    if_range: Once<'a>,
    range: Once<'a>,
}

/// A field that is said once. Said more often, nobody knows what it says.
#[derive(Clone, Copy, Debug, Default)]
enum Once<'a> {
    #[default]
    Absent,
    Said(&'a [u8]),
    Repeated,
}

impl<'a> Once<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = if matches!(self, Self::Absent) { Self::Said(value) } else { Self::Repeated };
    }

    fn value(self) -> Option<&'a [u8]> {
        if let Self::Said(value) = self { Some(value) } else { None }
    }
}

/// What is known of a file, for clients to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validators {
    /// Its entity-tag as it is sent.
    pub(super) tag: String,
    /// Its Last-Modified, to the second. `None` when no date can say it.
    pub(super) modified: Option<SystemTime>,
    /// Its bytes.
    pub(super) length: u64,
}

/// What is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// 412.
    Failed,
    /// 304.
    NotModified,
    /// 206 of the bytes from the first to the last.
    Part { first: u64, last: u64 },
    /// 416.
    Unsatisfiable,
    /// 200.
    Whole,
}

/// Whether a part can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// In GET.
    Allowed,
    /// In HEAD, for which no meaning of Range is defined (RFC 9110 §14.2).
    Ignored,
}

impl<'a> Conditions<'a> {
    /// Picks them from a request's fields.
    pub fn read(fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut conditions = Self::default();
        for (name, value) in fields {
            // Lengths first: most fields are ruled out by one comparison.
            match name.len() {
                5 if name.eq_ignore_ascii_case("range") => conditions.range.add(value),
                8 if name.eq_ignore_ascii_case("if-match") => conditions.if_match.push(value),
                8 if name.eq_ignore_ascii_case("if-range") => conditions.if_range.add(value),
                13 if name.eq_ignore_ascii_case("if-none-match") => conditions.if_none_match.push(value),
                17 if name.eq_ignore_ascii_case("if-modified-since") => conditions.if_modified_since.add(value),
                19 if name.eq_ignore_ascii_case("if-unmodified-since") => conditions.if_unmodified_since.add(value),
                _ => {}
            }
        }
        conditions
    }

    /// Judges a GET or HEAD, in the order of RFC 9110 §13.2.2.
    pub(super) fn judge(&self, file: &Validators, parts: Parts) -> Verdict {
        let ours = Tag::whole(file.tag.as_bytes());
        if !self.if_match.is_empty() {
            if !self.if_match.iter().any(|list| names(list, |tag| tag.is_strongly(ours))) {
                return Verdict::Failed;
            }
        } else if let (Some(since), Some(modified)) = (date(self.if_unmodified_since), file.modified)
            && modified > since
        {
            return Verdict::Failed;
        }
        if !self.if_none_match.is_empty() {
            if self.if_none_match.iter().any(|list| names(list, |tag| tag.opaque == ours.opaque)) {
                return Verdict::NotModified;
            }
        } else if let (Some(since), Some(modified)) = (date(self.if_modified_since), file.modified)
            && modified <= since
        {
            return Verdict::NotModified;
        }
        let Some(range) = self.range.value().filter(|_| parts == Parts::Allowed && self.is_same(file, ours)) else {
            return Verdict::Whole;
        };
        part(range, file.length)
    }

    /// If-Range: whether the file is still the one of which the client has a part. A date is exact, as an entity-tag is:
    /// the client sends it only when it knows that it is (RFC 9110 §13.1.5).
    fn is_same(&self, file: &Validators, ours: Tag<'_>) -> bool {
        match self.if_range {
            Once::Absent => true,
            Once::Repeated => false,
            Once::Said(value) if value.starts_with(b"\"") || value.starts_with(b"W/") => {
                Tag::read(value).is_some_and(|(tag, rest)| rest.is_empty() && tag.is_strongly(ours))
            }
            said @ Once::Said(_) => date(said).is_some_and(|date| file.modified == Some(date)),
        }
    }
}

/// An entity-tag (RFC 9110 §8.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag<'a> {
    is_weak: bool,
    opaque: &'a [u8],
}

impl<'a> Tag<'a> {
    fn read(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (is_weak, rest) = text.strip_prefix(b"W/").map_or((false, text), |rest| (true, rest));
        let rest = rest.strip_prefix(b"\"")?;
        let end = rest.iter().position(|&b| b == b'"')?;
        Some((Self { is_weak, opaque: &rest[..end] }, &rest[end + 1..]))
    }

    /// One of ours.
    fn whole(text: &'a [u8]) -> Self {
        Self::read(text).expect("our entity-tags are well formed").0
    }

    /// The strong comparison (RFC 9110 §8.8.3.2).
    fn is_strongly(self, other: Self) -> bool {
        !self.is_weak && !other.is_weak && self.opaque == other.opaque
    }
}

/// Whether a list is `*`, or has an entity-tag that `is_meant`. It ends at what is none: a comma may be part of a tag, so
/// there is no telling where the next would begin.
fn names(list: &[u8], is_meant: impl Fn(Tag<'_>) -> bool) -> bool {
    let mut rest = list.trim_ascii();
    if rest == b"*" {
        return true;
    }
    while let Some((tag, behind)) = Tag::read(rest) {
        if is_meant(tag) {
            return true;
        }
        let end = behind.iter().position(|b| !matches!(b, b' ' | b'\t' | b',')).unwrap_or(behind.len());
        rest = &behind[end..];
    }
    false
}

fn date(field: Once<'_>) -> Option<SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(field.value()?).ok()?).ok()
}

/// What a Range asks for. What is no range of bytes, or several, is as if it were absent, which it may always be (RFC 9110
/// §14.2): nobody is made to send one file a thousand times.
fn part(range: &[u8], length: u64) -> Verdict {
    let asked = (|| {
        let (unit, set) = range.split_at_checked(6)?;
        if !unit.eq_ignore_ascii_case(b"bytes=") {
            return None;
        }
        let mut members = set.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty());
        let member = members.next()?;
        members.next().is_none().then_some(())?;
        let dash = member.iter().position(|&b| b == b'-')?;
        Some((number(&member[..dash])?, number(&member[dash + 1..])?))
    })();
    match asked {
        Some((Some(first), Some(last))) if last < first => Verdict::Whole,
        Some((Some(first), _)) if first >= length => Verdict::Unsatisfiable,
        Some((Some(first), last)) => Verdict::Part { first, last: last.unwrap_or(u64::MAX).min(length - 1) },
        Some((None, Some(0))) => Verdict::Unsatisfiable,
        // The last bytes of nothing are there, and no Content-Range can say so.
        Some((None, Some(_))) if length == 0 => Verdict::Whole,
        Some((None, Some(suffix))) => Verdict::Part { first: length.saturating_sub(suffix), last: length - 1 },
        Some((None, None)) | None => Verdict::Whole,
    }
}

/// A position, or none where there are no digits; what exceeds all files is the largest. `None`: no number.
fn number(digits: &[u8]) -> Option<Option<u64>> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some((!digits.is_empty()).then(|| digits.iter().fold(0, add)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const AT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Sunday, 06-Nov-94 08:49:38 GMT";

    fn file(tag: &str) -> Validators {
        let modified = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777));
        Validators { tag: tag.to_owned(), modified, length: 100 }
    }

    fn judge(fields: &[(&str, &str)], file: &Validators, parts: Parts) -> Verdict {
        Conditions::read(fields.iter().map(|(name, value)| (*name, value.as_bytes()))).judge(file, parts)
    }

    fn check(fields: &[(&str, &str)], expected: Verdict) {
        assert_eq!(judge(fields, &file("\"a,b\""), Parts::Allowed), expected, "{fields:?}");
    }

    fn check_range(range: &str, length: u64, expected: Verdict) {
        assert_eq!(part(range.as_bytes(), length), expected, "{range} of {length}");
    }

    #[test]
    fn if_match_wants_the_same_bytes() {
        for list in ["*", "\"a,b\"", "\"x\", \"a,b\"", "\"x\",,\t\"a,b\" , \"y\""] {
            check(&[("If-Match", list)], Verdict::Whole);
        }
        for list in ["W/\"a,b\"", "\"a\"", "\"a,b", "a,b", "", "x, \"a,b\"", "\"A,B\"", "*, \"x\""] {
            check(&[("if-match", list)], Verdict::Failed);
        }
        check(&[("if-match", "\"x\""), ("if-match", "\"a,b\"")], Verdict::Whole);
        // A tag that is weak is the same as none, strongly.
        assert_eq!(judge(&[("if-match", "W/\"x\"")], &file("W/\"x\""), Parts::Allowed), Verdict::Failed);
        assert_eq!(judge(&[("if-match", "\"x\"")], &file("W/\"x\""), Parts::Allowed), Verdict::Failed);
    }

    #[test]
    fn if_unmodified_since_counts_where_no_tag_does() {
        check(&[("if-unmodified-since", AT)], Verdict::Whole);
        check(&[("if-unmodified-since", AFTER)], Verdict::Whole);
        check(&[("if-unmodified-since", BEFORE)], Verdict::Failed);
        check(&[("if-unmodified-since", BEFORE), ("if-match", "\"a,b\"")], Verdict::Whole);
        check(&[("if-unmodified-since", "yesterday")], Verdict::Whole);
        check(&[("if-unmodified-since", BEFORE), ("if-unmodified-since", BEFORE)], Verdict::Whole);
    }

    #[test]
    fn if_none_match_saves_the_bytes() {
        for list in ["*", "\"a,b\"", "W/\"a,b\"", "\"x\", W/\"a,b\""] {
            check(&[("If-None-Match", list)], Verdict::NotModified);
        }
        for list in ["\"a\"", "a,b", "", "w/\"a,b\""] {
            check(&[("If-None-Match", list)], Verdict::Whole);
        }
        // It outranks the date, either way.
        check(&[("if-none-match", "\"x\""), ("if-modified-since", AT)], Verdict::Whole);
        check(&[("if-none-match", "\"a,b\""), ("if-modified-since", BEFORE)], Verdict::NotModified);
        // And the first two outrank it.
        check(&[("if-match", "\"x\""), ("if-none-match", "\"a,b\"")], Verdict::Failed);
        check(&[("if-unmodified-since", BEFORE), ("if-none-match", "\"a,b\"")], Verdict::Failed);
        check(&[("if-match", "*"), ("if-none-match", "*")], Verdict::NotModified);
    }

    #[test]
    fn if_modified_since_is_to_the_second() {
        check(&[("if-modified-since", AT)], Verdict::NotModified);
        check(&[("if-modified-since", AFTER)], Verdict::NotModified);
        check(&[("if-modified-since", BEFORE)], Verdict::Whole);
        check(&[("if-modified-since", "")], Verdict::Whole);
        check(&[("if-modified-since", "Sun Nov  6 08:49:37 1994")], Verdict::NotModified);
        let undated = Validators { modified: None, ..file("\"x\"") };
        for field in ["if-modified-since", "if-unmodified-since"] {
            assert_eq!(judge(&[(field, BEFORE)], &undated, Parts::Allowed), Verdict::Whole);
        }
    }

    #[test]
    fn if_range_is_exact_or_the_whole_is_sent() {
        let part = Verdict::Part { first: 0, last: 0 };
        for (value, expected) in [
            ("\"a,b\"", part),
            ("W/\"a,b\"", Verdict::Whole),
            ("\"x\"", Verdict::Whole),
            ("\"a,b\", \"x\"", Verdict::Whole),
            (AT, part),
            (BEFORE, Verdict::Whole),
            (AFTER, Verdict::Whole),
            ("yesterday", Verdict::Whole),
            ("*", Verdict::Whole),
        ] {
            check(&[("range", "bytes=0-0"), ("if-range", value)], expected);
        }
        check(&[("range", "bytes=0-0"), ("if-range", AT), ("if-range", AT)], Verdict::Whole);
        check(&[("if-range", AT)], Verdict::Whole);
        // Where it is another file, nothing is out of its range either.
        check(&[("range", "bytes=100-"), ("if-range", "\"x\"")], Verdict::Whole);
        check(&[("range", "bytes=0-0"), ("if-none-match", "*")], Verdict::NotModified);
        check(&[("range", "bytes=0-0"), ("if-none-match", "\"x\"")], part);
        check(&[("range", "bytes=0-0"), ("range", "bytes=0-0")], Verdict::Whole);
        assert_eq!(judge(&[("range", "bytes=0-0")], &file("\"x\""), Parts::Ignored), Verdict::Whole);
        assert_eq!(judge(&[("range", "bytes=100-")], &file("\"x\""), Parts::Ignored), Verdict::Whole);
        let undated = Validators { modified: None, ..file("\"x\"") };
        assert_eq!(judge(&[("range", "bytes=0-"), ("if-range", AT)], &undated, Parts::Allowed), Verdict::Whole);
    }

    #[test]
    fn ranges_at_their_edges() {
        let part = |first, last| Verdict::Part { first, last };
        for (range, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=0-", part(0, 99)),
            ("bytes=0-99", part(0, 99)),
            ("bytes=0-100", part(0, 99)),
            ("bytes=99-", part(99, 99)),
            ("bytes=99-99", part(99, 99)),
            ("bytes=100-", Verdict::Unsatisfiable),
            ("bytes=100-100", Verdict::Unsatisfiable),
            ("bytes=-1", part(99, 99)),
            ("bytes=-100", part(0, 99)),
            ("bytes=-101", part(0, 99)),
            ("bytes=-0", Verdict::Unsatisfiable),
            ("bytes=5-4", Verdict::Whole),
            ("bytes=200-4", Verdict::Whole),
            ("bytes=00000000000000000000000000000001-1", part(1, 1)),
            ("bytes=1-99999999999999999999999999999999", part(1, 99)),
            ("bytes=99999999999999999999999999999999-", Verdict::Unsatisfiable),
            ("bytes=-99999999999999999999999999999999", part(0, 99)),
            ("BYTES=1-2", part(1, 2)),
            ("bytes= 1-2 , ,", part(1, 2)),
            ("bytes=,1-2", part(1, 2)),
            ("bytes=1-2,3-4", Verdict::Whole),
            ("bytes=1-2,x", Verdict::Whole),
        ] {
            check_range(range, 100, expected);
        }
        for range in
            ["", "bytes", "bytes=", "bytes=-", "bytes=--1", "bytes=1", "bytes=+1-2", "bytes=1-2-3", "bytes=1 -2"]
        {
            check_range(range, 100, Verdict::Whole);
        }
        for range in
            ["bytes=a-b", "bytes 0-1", "lines=0-1", "byte=0-1", "bytes=0x1-2", "bytes =0-1", "\u{e9}\u{e9}\u{e9}=0-1"]
        {
            check_range(range, 100, Verdict::Whole);
        }
    }

    #[test]
    fn nothing_has_no_parts() {
        check_range("bytes=0-", 0, Verdict::Unsatisfiable);
        check_range("bytes=0-0", 0, Verdict::Unsatisfiable);
        check_range("bytes=-1", 0, Verdict::Whole);
        check_range("bytes=-0", 0, Verdict::Unsatisfiable);
        check_range("bytes=0-", u64::MAX, Verdict::Part { first: 0, last: u64::MAX - 1 });
    }

    proptest::proptest! {
        #[test]
        fn a_part_lies_in_the_file(range in "(bytes=)?[-0-9, ]{0,48}", length: u64) {
            if let Verdict::Part { first, last } = part(range.as_bytes(), length) {
                assert!(first <= last && last < length);
            }
        }

        #[test]
        fn any_condition_is_judged(
            list in "(\"|W/|,|\\*| |a,b|[ -~]|\u{e9}){0,16}", date in ".{0,30}", range in "(bytes=|-|,|[0-9]){0,12}",
        ) {
            let fields = [("if-match", &list), ("if-none-match", &list), ("if-range", &list), ("if-modified-since", &date), ("range", &range)];
            for some in 0..1 << fields.len() {
                let picked = fields.iter().enumerate().filter(|(at, _)| some >> at & 1 == 1);
                let picked: Vec<_> = picked.map(|(_, (name, value))| (*name, value.as_str())).collect();
                judge(&picked, &file("\"a,b\""), Parts::Allowed);
            }
        }
    }
}
