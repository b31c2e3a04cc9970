//! The script that a path names, and what stands behind it. Pure.

/// Where a program finds its scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scripts {
    /// The folder of all of them, as the program sees it, without a `/` at its end; `None`: it has no files.
    pub root: Option<String>,
    /// The script of a path that ends in `/`.
    pub index: String,
    /// How the segment ends that is a script; what stands behind it is PATH_INFO. Empty: the whole path is a script.
    pub split: String,
    /// The front controller: the script of every path, which is then told the path by REQUEST_URI, and has no PATH_INFO.
    /// It is what `try_files … /index.php?$query_string` comes to in nginx; files that are there are another route's.
    pub front: Option<String>,
}

impl Default for Scripts {
    /// The documented settings.
    fn default() -> Self {
        Self { root: None, index: "index.php".to_owned(), split: ".php".to_owned(), front: None }
    }
}

/// A path, cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// SCRIPT_NAME.
    pub name: Vec<u8>,
    /// PATH_INFO; empty or beginning with `/`.
    pub info: Vec<u8>,
}

impl Scripts {
    /// The script of a decoded path.
    pub fn of(&self, path: &[u8]) -> Script {
        if let Some(front) = &self.front {
            return Script { name: front.clone().into_bytes(), info: Vec::new() };
        }
        let mut end = 0;
        for segment in path.split_inclusive(|&b| b == b'/') {
            let name = segment.strip_suffix(b"/").unwrap_or(segment);
            if !self.split.is_empty() && name.ends_with(self.split.as_bytes()) {
                let (name, info) = path.split_at(end + name.len());
                return Script { name: name.to_vec(), info: info.to_vec() };
            }
            end += segment.len();
        }
        let index: &[u8] = if path.ends_with(b"/") { self.index.as_bytes() } else { b"" };
        Script { name: [path, index].concat(), info: Vec::new() }
    }
}

/// Why a path can be told to no program: 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// `..` leads above the root.
    #[error("the decoded path leads above the root")]
    AboveRoot,
    /// A percent sign without two hexadecimal digits.
    #[error("a percent sign without two hexadecimal digits")]
    BadEscape,
    /// A line break in a file's name is nobody's, and a NUL ends it for some.
    #[error("a control character in the decoded path")]
    Control,
    /// `*`, which names no script.
    #[error("the target is no path")]
    NoPath,
}

/// A path as bytes, every escape decoded, slashes merged and dot segments resolved.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_path(path: &str) -> Result<Vec<u8>, DecodeError> {
    let Some(rest) = path.strip_prefix('/') else { return Err(DecodeError::NoPath) };
    let mut decoded = Vec::with_capacity(rest.len());
    let mut bytes = rest.bytes();
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let pair = digit(bytes.next()).zip(digit(bytes.next())).ok_or(DecodeError::BadEscape)?;
            u8::try_from(pair.0 * 16 + pair.1).map_err(|_| DecodeError::BadEscape)?
        } else {
            byte
        };
        if byte.is_ascii_control() {
            return Err(DecodeError::Control);
        }
        decoded.push(byte);
    }
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut is_folder = true;
    for segment in decoded.split(|&b| b == b'/') {
        is_folder = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop().ok_or(DecodeError::AboveRoot)?),
            name => segments.push(name),
        }
    }
    let mut path = Vec::with_capacity(decoded.len() + 1);
    for segment in &segments {
        path.push(b'/');
        path.extend_from_slice(segment);
    }
    if is_folder {
        path.push(b'/');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::super::naive;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scripts_are_cut_from_paths() {
        for (path, name, info) in [
            ("/", "/index.php", ""),
            ("/a/", "/a/index.php", ""),
            ("/a", "/a", ""),
            ("/a.php", "/a.php", ""),
            ("/a.php/", "/a.php", "/"),
            ("/a.php/b.php/c", "/a.php", "/b.php/c"),
            ("/a.php.jpg", "/a.php.jpg", ""),
            ("/a.phpx/b.php", "/a.phpx/b.php", ""),
            ("/x.PHP/y", "/x.PHP/y", ""),
        ] {
            let expected = Script { name: name.into(), info: info.into() };
            assert_eq!(Scripts::default().of(path.as_bytes()), expected, "{path}");
        }
        let whole = Scripts { split: String::new(), ..Scripts::default() };
        assert_eq!(whole.of(b"/a.php/b").name, b"/a.php/b");
    }

    #[test]
    fn paths_are_decoded_once_and_resolved() {
        let decoded = |path| decode_path(path).map(|path| path.escape_ascii().to_string());
        assert_eq!(decoded("/a%2Fb"), Ok("/a/b".to_owned()));
        assert_eq!(decoded("/a%2F%2F%2Fb/./c/../d/."), Ok("/a/b/d/".to_owned()));
        assert_eq!(decoded("/%2F..%2F%2E%2e/x"), Err(DecodeError::AboveRoot));
        assert_eq!(decoded("/%25%32e"), Ok("/%2e".to_owned()));
        assert_eq!(decoded("/%E4"), Ok("/\\xe4".to_owned()));
        for control in ["/%0a", "/x.php%00.jpg", "/%0D", "/%7F", "/\t"] {
            assert_eq!(decoded(control), Err(DecodeError::Control), "{control}");
        }
        assert_eq!(decoded("/%4"), Err(DecodeError::BadEscape));
        assert_eq!(decoded("*"), Err(DecodeError::NoPath));
        assert_eq!(decoded(""), Err(DecodeError::NoPath));
    }

    proptest! {
        #[test]
        fn a_path_is_its_script_and_what_follows(
            path in "/([a.]|/|\\.php|\\.\\.|%2[eEfF5]|%[0-9A-Fa-f]{2}|[!-~]){0,16}"
        ) {
            naive::check_path(&path);
        }
    }
}
