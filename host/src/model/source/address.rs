//! Web addresses, as far as index pages and error messages need them.
//!
//! [`join`] follows a page's links, [`shown`] leaves out of an address what nobody may see. Not a URL library:
//! addresses that are asked for are parsed by the HTTP client.

/// An address as it may be shown: without credentials and query, which may hold secrets.
pub(super) fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// What `reference` means on the page `base`.
pub(super) fn join(base: &str, reference: &str) -> String {
    if reference.contains("://") {
        return reference.to_owned();
    }
    let base = base.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = base.split_once("://") else {
        return reference.to_owned();
    };
    if let Some(reference) = reference.strip_prefix("//") {
        return format!("{scheme}://{reference}");
    }
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    if reference.starts_with('/') {
        return format!("{scheme}://{authority}{reference}");
    }
    let mut folders: Vec<&str> = path.split('/').skip(1).collect();
    folders.pop();
    for step in reference.split('/') {
        match step {
            "." => {}
            ".." => {
                folders.pop();
            }
            step => folders.push(step),
        }
    }
    format!("{scheme}://{authority}/{}", folders.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_joined_as_browsers_join_them() {
        let base = "https://host/simple/name/?x#y";
        for (reference, expected) in [
            ("https://other/f", "https://other/f"),
            ("//other/f", "https://other/f"),
            ("/f", "https://host/f"),
            ("f", "https://host/simple/name/f"),
            ("../../files/f", "https://host/files/f"),
            ("../../../../f", "https://host/f"),
        ] {
            assert_eq!(join(base, reference), expected);
        }
        assert_eq!(join("http://host", "f"), "http://host/f");
    }

    #[test]
    fn credentials_are_not_shown() {
        assert_eq!(shown("https://me:secret@host/a/b?token=x#y"), "https://host/a/b");
        assert_eq!(shown("https://host"), "https://host");
    }
}
