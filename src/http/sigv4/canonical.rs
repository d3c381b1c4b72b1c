//! The canonical request: the one spelling of a request that is signed. Pure.
//!
//! It is made of what was received and of nothing else, and two requests that mean different things
//! never have the same one as far as it covers them: path, query, signed headers, payload hash.

use super::Claim;
use crate::http::head::Head;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use std::borrow::Cow;

/// What SigV4 leaves as it is in a query: the unreserved characters of RFC 3986.
const QUERY_ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The same for a path, whose slashes stay.
const PATH_ENCODED: &AsciiSet = &QUERY_ENCODED.remove(b'/');

/// The spellings of a target's path that may have been signed: as sent, and as S3 would spell it.
///
/// Clients send what they sign, but HTTP libraries under them may re-encode it (`(` for `%28`). Both
/// spellings decode to the same key, so whichever was signed, it was signed for this key.
pub fn paths(target: &str) -> Vec<Cow<'_, str>> {
    let sent = target.split_once('?').map_or(target, |(path, _)| path);
    let decoded: Cow<'_, [u8]> = percent_decode_str(sent).into();
    let normal: String = percent_encode(&decoded, PATH_ENCODED).collect();
    if normal == sent {
        vec![Cow::Borrowed(sent)]
    } else {
        vec![Cow::Borrowed(sent), Cow::Owned(normal)]
    }
}

/// The canonical request of a claim.
pub fn request(claim: &Claim, head: &Head, path: &str, query: &[(String, String)]) -> Vec<u8> {
    let mut text = Vec::with_capacity(1024);
    for line in [head.method.as_str(), path, &canonical_query(query)] {
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    for name in &claim.signed_headers {
        text.extend_from_slice(name.as_bytes());
        text.push(b':');
        push_values(&mut text, head, name);
        text.push(b'\n');
    }
    text.push(b'\n');
    text.extend_from_slice(claim.signed_headers.join(";").as_bytes());
    text.push(b'\n');
    text.extend_from_slice(claim.payload.as_bytes());
    text
}

/// Decoded pairs, encoded again in one way and sorted; without the signature, which cannot sign
/// itself.
fn canonical_query(query: &[(String, String)]) -> String {
    let encode = |text: &str| percent_encode(text.as_bytes(), QUERY_ENCODED).to_string();
    let signed = query.iter().filter(|(name, _)| name != "X-Amz-Signature");
    let mut pairs: Vec<(String, String)> = signed
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

/// All values of a header in their order, with commas between; each trimmed, and with runs of
/// blanks inside as one.
fn push_values(text: &mut Vec<u8>, head: &Head, name: &str) {
    let values = head.headers.iter().filter(|(found, _)| found == name);
    for (number, (_, value)) in values.enumerate() {
        if number > 0 {
            text.push(b',');
        }
        let words = value.split(|byte| matches!(byte, b' ' | b'\t'));
        let words = words.filter(|word| !word.is_empty());
        for (number, word) in words.enumerate() {
            if number > 0 {
                text.push(b' ');
            }
            text.extend_from_slice(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_has_its_own_spelling_and_ours() {
        assert_eq!(paths("/v/a%2Bb%20c?x=y"), ["/v/a%2Bb%20c"]);
        assert_eq!(paths("/v/a+(b)"), ["/v/a+(b)", "/v/a%2B%28b%29"]);
        assert_eq!(paths("/v/a%2fb"), ["/v/a%2fb", "/v/a/b"]);
        assert_eq!(paths("/v//a/~b"), ["/v//a/~b"]);
        assert_eq!(paths("/v/%7e"), ["/v/%7e", "/v/~"]);
    }

    #[test]
    fn a_query_is_sorted_by_its_encoded_form() {
        let query = crate::http::target::parse(
            "/v/k?b=2&a-b=1&a=%C3%A9&a&B=x%2fy&X-Amz-Signature=z&c=p+q&&a%2a=~",
        );
        assert_eq!(
            canonical_query(&query.expect("good").query),
            "B=x%2Fy&a=&a=%C3%A9&a%2A=~&a-b=1&b=2&c=p%20q"
        );
        assert_eq!(canonical_query(&[]), "");
    }

    #[test]
    fn header_values_lose_blanks_that_mean_nothing() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\nA:  b \t c  \r\nA: d\r\nE:\r\nF: \xff\r\n\r\n";
        let head = crate::http::head::parse(text).expect("good");
        let values = |name| {
            let mut text = Vec::new();
            push_values(&mut text, &head, name);
            text
        };
        assert_eq!(values("a"), b"b c,d");
        assert_eq!(values("e"), b"");
        assert_eq!(values("f"), b"\xff");
        assert_eq!(values("absent"), b"");
    }

    proptest! {
        #[test]
        fn all_spellings_of_a_path_name_one_key(key in "(%[0-9a-fA-F]{2}|[!-$&->@-~]){0,40}") {
            let sent = format!("/v/{key}");
            let decode = |path: &str| percent_decode_str(path).collect::<Vec<u8>>();
            for path in paths(&sent) {
                prop_assert_eq!(decode(&path), decode(&sent));
            }
        }

        #[test]
        fn the_order_of_a_query_does_not_matter(
            mut pairs in proptest::collection::vec(("\\PC{0,8}", "\\PC{0,8}"), 0..6),
        ) {
            let before = canonical_query(&pairs);
            pairs.reverse();
            prop_assert_eq!(canonical_query(&pairs), before);
        }
    }
}
