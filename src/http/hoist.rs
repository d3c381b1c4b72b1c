//! Headers that a presigned URL carries in its query, as Amazon's SDKs for JavaScript and Go make it.
//! Pure.
//!
//! S3 takes `x-amz-*` parameters of a signed query for headers; the signature covers them as it does
//! all of the query. Nothing here judges what they mean.

use super::head::Head;
use super::reply::ErrorReply;
use super::sigv4::QUERY_PARAMETERS;

/// What starts the names of such headers.
const PREFIX: &str = "x-amz-";

/// Parameters that are no headers although they look so: what stands for the body in a signature, and
/// what reads ask for in either place.
const NOT_HEADERS: [&str; 2] = ["X-Amz-Content-Sha256", "x-amz-checksum-mode"];

/// A request as it is meant: headers of its query with the others, and the rest of its query. The
/// signature must have been verified, in the query.
pub fn unfold(
    head: &Head,
    query: &[(String, String)],
) -> Result<(Head, Vec<(String, String)>), ErrorReply> {
    let mut head = head.clone();
    let mut rest = Vec::new();
    for (name, value) in query {
        let lower = name.to_ascii_lowercase();
        let own = QUERY_PARAMETERS.contains(&name.as_str()) || NOT_HEADERS.contains(&name.as_str());
        if own || !lower.starts_with(PREFIX) {
            rest.push((name.clone(), value.clone()));
            continue;
        }
        if head.has(&lower) || value.chars().any(char::is_control) {
            let message = format!("{name} must stand there once, with the value of a header");
            return Err(ErrorReply::new(400, "InvalidArgument", message));
        }
        head.headers
            .push((lower.into(), value.clone().into_bytes()));
    }
    Ok((head, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{head, target};

    fn unfolded(query: &str) -> Result<(Head, Vec<(String, String)>), ErrorReply> {
        let text = format!("PUT /v/k?{query} HTTP/1.1\r\nHost: x\r\nx-amz-acl: private\r\n\r\n");
        let head = head::parse(text.as_bytes()).expect("a good head");
        let query = target::parse(&head.target).expect("a good target").query;
        unfold(&head, &query)
    }

    #[test]
    fn headers_leave_the_query_and_nothing_else_does() {
        let own = QUERY_PARAMETERS.map(|name| format!("{name}=a")).join("&");
        let others =
            "x-id=PutObject&X-Amz-Content-Sha256=UNSIGNED-PAYLOAD&x-amz-checksum-mode=ENABLED";
        let (head, rest) = unfolded(&format!(
            "{own}&X-Amz-Meta-Colour=dark%20green&{others}&x-amz-checksum-crc32=AAAAAA%3D%3D"
        ))
        .expect("good");
        assert_eq!(head.header("x-amz-meta-colour"), Some("dark green"));
        assert_eq!(head.header("x-amz-checksum-crc32"), Some("AAAAAA=="));
        assert_eq!(rest.len(), QUERY_PARAMETERS.len() + 3);
        assert!(!head.has("x-amz-date") && !head.has("x-amz-content-sha256"));
    }

    #[test]
    fn what_is_said_twice_or_breaks_a_line_is_refused() {
        for query in [
            "x-amz-acl=private",
            "X-Amz-Acl=private",
            "x-amz-meta-a=1&x-amz-meta-a=2",
            "x-amz-meta-a=1&X-Amz-Meta-A=1",
            "x-amz-meta-a=1%0d%0ax: y",
            "x-amz-meta-a=%00",
        ] {
            let refused = unfolded(&query.replace(' ', "%20")).err();
            assert_eq!(refused.map(|e| e.code), Some("InvalidArgument"), "{query}");
        }
    }
}
