//! Amazon's published examples, another implementation's URLs, and what must be refused.

use super::*;
use crate::http::{head, target};
use proptest::prelude::*;
use rusty_s3::S3Action;
use std::time::Duration;

const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// 20130524T000000Z, when the examples were signed.
const SIGNED_AT: u64 = 1_369_353_600;
const HOST: &str = "examplebucket.s3.amazonaws.com";
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const PRESIGNED: &str = "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
    &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
    &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
    &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404";

/// Reads and verifies a request whose head is `request_line` and `headers`.
fn judge(request_line: &str, headers: &str, now: u64) -> Result<(), ErrorReply> {
    let text = format!("{request_line} HTTP/1.1\r\n{headers}\r\n");
    let head = head::parse(text.as_bytes()).expect("a good head");
    let query = target::parse(&head.target).expect("a good target").query;
    let claim = Claim::of(&head, &query)?.expect("a claim");
    assert_eq!(claim.access_key(), ACCESS_KEY);
    let verified = claim.verify(&head, &query, &Secret::new(SECRET_KEY), now);
    verified.map(|_| ())
}

fn code(result: Result<(), ErrorReply>) -> &'static str {
    result.err().map_or("OK", |error| error.code)
}

/// The headers of one of Amazon's examples.
fn example(signed_headers: &str, signature: &str, others: &str) -> String {
    format!(
        "Host: {HOST}\r\nx-amz-date: 20130524T000000Z\r\n{others}Authorization: AWS4-HMAC-SHA256 \
         Credential={ACCESS_KEY}/20130524/us-east-1/s3/aws4_request,\
         SignedHeaders={signed_headers},Signature={signature}\r\n"
    )
}

fn get_example() -> String {
    example(
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        &format!("Range: bytes=0-9\r\nx-amz-content-sha256: {EMPTY_SHA256}\r\n"),
    )
}

#[test]
fn amazons_examples_hold() {
    let empty = format!("x-amz-content-sha256: {EMPTY_SHA256}\r\n");
    let put = "Date: Fri, 24 May 2013 00:00:00 GMT\r\n\
        x-amz-storage-class: REDUCED_REDUNDANCY\r\nx-amz-content-sha256: \
        44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072\r\n";
    let put = example(
        "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        put,
    );
    let plain = "host;x-amz-content-sha256;x-amz-date";
    let lifecycle = example(
        plain,
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        &empty,
    );
    let list = example(
        plain,
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        &empty,
    );
    for (request_line, headers) in [
        ("GET /test.txt", &get_example()),
        ("PUT /test%24file.text", &put),
        // S3 signs its own spelling of the path, whatever was sent.
        ("PUT /test$file.text", &put),
        ("GET /?lifecycle", &lifecycle),
        ("GET /?max-keys=2&prefix=J", &list),
        ("GET /?prefix=J&max-keys=2", &list),
        (&format!("GET {PRESIGNED}"), &format!("Host: {HOST}\r\n")),
    ] {
        assert_eq!(
            code(judge(request_line, headers, SIGNED_AT)),
            "OK",
            "{request_line}"
        );
    }
}

#[test]
fn every_signed_part_counts() {
    let good = get_example();
    for (name, request_line, headers) in [
        ("method", "HEAD /test.txt", good.clone()),
        ("path", "GET /test.tx%54", good.clone()),
        ("case of an escape", "GET /test%2etxt2", good.clone()),
        ("query", "GET /test.txt?a", good.clone()),
        (
            "host",
            "GET /test.txt",
            good.replace("Host: ex", "Host: xx"),
        ),
        (
            "range",
            "GET /test.txt",
            good.replace("bytes=0-9", "bytes=0-8"),
        ),
        (
            "body",
            "GET /test.txt",
            good.replace(EMPTY_SHA256, "UNSIGNED-PAYLOAD"),
        ),
        (
            "region",
            "GET /test.txt",
            good.replace("us-east-1", "us-east-2"),
        ),
        (
            "time",
            "GET /test.txt",
            good.replace("T000000Z", "T000001Z"),
        ),
        (
            "signature",
            "GET /test.txt",
            good.replace("036bdb41", "036bdb42"),
        ),
        (
            "case of the signature",
            "GET /test.txt",
            good.replace("036bdb41", "036BDB41"),
        ),
        (
            "length of the signature",
            "GET /test.txt",
            good.replace("036bdb41", "036bdb"),
        ),
        (
            "a header twice",
            "GET /test.txt",
            format!("Range: bytes=0-9\r\n{good}"),
        ),
        (
            "a signed header gone",
            "GET /test.txt",
            good.replace("Range:", "X-Range:"),
        ),
    ] {
        let result = judge(request_line, &headers, SIGNED_AT);
        assert_eq!(code(result), "SignatureDoesNotMatch", "{name}");
    }
    let moved = PRESIGNED.replace("Expires=86400", "Expires=86401");
    let result = judge(
        &format!("GET {moved}"),
        &format!("Host: {HOST}\r\n"),
        SIGNED_AT,
    );
    assert_eq!(code(result), "SignatureDoesNotMatch");
    let padded = good.replace("Range: bytes=0-9", "Range:  \t bytes=0-9 ");
    assert_eq!(code(judge("GET /test.txt", &padded, SIGNED_AT)), "OK");
}

#[test]
fn times_are_held() {
    let header = get_example();
    let presigned = format!("GET {PRESIGNED}");
    let host = format!("Host: {HOST}\r\n");
    for (offset, of_header, of_query) in [
        (-901_i64, "RequestTimeTooSkewed", "AccessDenied"),
        (-900, "OK", "OK"),
        (0, "OK", "OK"),
        (900, "OK", "OK"),
        (901, "RequestTimeTooSkewed", "OK"),
        (86_400, "RequestTimeTooSkewed", "OK"),
        (86_401, "RequestTimeTooSkewed", "AccessDenied"),
    ] {
        let now = SIGNED_AT.checked_add_signed(offset).expect("after 1970");
        assert_eq!(
            code(judge("GET /test.txt", &header, now)),
            of_header,
            "{offset}"
        );
        assert_eq!(code(judge(&presigned, &host, now)), of_query, "{offset}");
    }
    assert_eq!(
        code(judge("GET /test.txt", &header, u64::MAX)),
        "RequestTimeTooSkewed"
    );
    let expired = judge(&presigned, &host, SIGNED_AT + 90_000).expect_err("expired");
    assert_eq!(
        (expired.status, expired.message.as_str()),
        (403, "Request has expired")
    );
    let detail = |error: &ErrorReply, name: &str| {
        let found = error.details.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.clone())
    };
    assert_eq!(detail(&expired, "X-Amz-Expires").as_deref(), Some("86400"));
    let ends = detail(&expired, "Expires");
    assert_eq!(ends.as_deref(), Some("2013-05-25T00:00:00Z"));
    let skewed = judge("GET /test.txt", &header, SIGNED_AT + 3600).expect_err("late");
    let ours = detail(&skewed, "ServerTime");
    assert_eq!(ours.as_deref(), Some("2013-05-24T01:00:00Z"));
    let theirs = detail(&skewed, "RequestTime");
    assert_eq!(theirs.as_deref(), Some("20130524T000000Z"));
}

#[test]
fn a_mismatch_tells_what_was_signed_here_and_no_signature_of_ours() {
    let headers = get_example().replace("bytes=0-9", "bytes=0-8");
    let error = judge("GET /test.txt", &headers, SIGNED_AT).expect_err("changed");
    let document = error.document("/v/k", "id");
    let canonical = format!(
        "<CanonicalRequest>GET\n/test.txt\n\nhost:{HOST}\nrange:bytes=0-8\n\
         x-amz-content-sha256:{EMPTY_SHA256}\nx-amz-date:20130524T000000Z\n\n\
         host;range;x-amz-content-sha256;x-amz-date\n{EMPTY_SHA256}</CanonicalRequest>"
    );
    assert!(document.contains(&canonical), "{document}");
    assert!(
        document
            .contains("<StringToSign>AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/")
    );
    assert!(document.contains("<SignatureProvided>f0e8bdb87c964420e857bd35b5d6ed310"));
    // What would have been right for it must not be told: it opens what nobody signed.
    let secret = Secret::new(SECRET_KEY);
    let scope = Scope {
        day: "20130524".into(),
        region: "us-east-1".into(),
    };
    let text = document.split_once("<StringToSign>").expect("there").1;
    let text = text.split_once("</StringToSign>").expect("there").0;
    let right = hex::encode(hmac::sign(&signing_key(&secret, &scope), text.as_bytes()));
    assert!(!document.contains(&right), "{document}");
    assert!(
        judge(
            "GET /test.txt",
            &headers.replace(
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
                &right
            ),
            SIGNED_AT
        )
        .is_ok()
    );
}

#[test]
fn a_date_header_serves_where_x_amz_date_is_missing() {
    let secret = Secret::new(SECRET_KEY);
    let scope = Scope {
        day: "20130524".into(),
        region: "r".into(),
    };
    let canonical = format!(
        "GET\n/v/k\n\nhost:{HOST}\nx-amz-content-sha256:UNSIGNED-PAYLOAD\n\nhost;x-amz-content-sha256\nUNSIGNED-PAYLOAD"
    );
    let text = format!(
        "AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/r/s3/aws4_request\n{}",
        hex::encode(digest(&SHA256, canonical.as_bytes()))
    );
    let signature = hex::encode(hmac::sign(&signing_key(&secret, &scope), text.as_bytes()));
    let headers = |date: &str| {
        format!(
            "Host: {HOST}\r\n{date}x-amz-content-sha256: UNSIGNED-PAYLOAD\r\nAuthorization: \
             AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20130524/r/s3/aws4_request, \
             SignedHeaders=host;x-amz-content-sha256, Signature={signature}\r\n"
        )
    };
    for (date, expected) in [
        ("Date: Fri, 24 May 2013 00:00:00 GMT\r\n", "OK"),
        ("Date: 20130524T000000Z\r\n", "OK"),
        (
            "Date: Fri, 24 May 2013 00:00:01 GMT\r\n",
            "SignatureDoesNotMatch",
        ),
        ("Date: 2013\r\n", "AccessDenied"),
        ("", "AccessDenied"),
    ] {
        assert_eq!(
            code(judge("GET /v/k", &headers(date), SIGNED_AT)),
            expected,
            "{date}"
        );
    }
}

#[test]
fn malformed_headers_are_refused() {
    let good = get_example();
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    let malformed = "AuthorizationHeaderMalformed";
    for (headers, expected) in [
        (changed("/us-east-1/s3/", "/us-east-1/ec2/"), malformed),
        (changed("aws4_request", "aws5_request"), malformed),
        (changed("/20130524/", "/20130525/"), malformed),
        (changed("/20130524/us-east-1", "/us-east-1"), malformed),
        (changed("/us-east-1/", "//"), malformed),
        (changed(ACCESS_KEY, ""), malformed),
        (changed("Credential=", "Credentials="), malformed),
        (changed("SignedHeaders=", "Signature="), malformed),
        (
            changed(",Signature=", ",Signature=ab,Signature="),
            malformed,
        ),
        (
            changed(
                ",SignedHeaders=host;range;x-amz-content-sha256;x-amz-date",
                "",
            ),
            malformed,
        ),
        (changed("host;range", "range;host"), malformed),
        (changed("host;range", "host;host;range"), malformed),
        (changed("host;range", "Host;range"), malformed),
        (changed("host;range", ";host;range"), malformed),
        (
            changed("AWS4-HMAC-SHA256 Cred", "AWS4-HMAC-SHA512 Cred"),
            "InvalidRequest",
        ),
        (
            changed("AWS4-HMAC-SHA256 Cred", "AWS Cred"),
            "InvalidRequest",
        ),
        (
            changed("x-amz-date: 20130524T000000Z", "x-amz-date: 20130524"),
            "AccessDenied",
        ),
        (
            changed("x-amz-date: 20130524T000000Z\r\n", ""),
            "AccessDenied",
        ),
        (
            changed(
                "x-amz-date: ",
                "x-amz-date: 20130524T000000Z\r\nx-amz-date: ",
            ),
            "InvalidArgument",
        ),
        (changed(EMPTY_SHA256, "none"), "InvalidArgument"),
        (changed(EMPTY_SHA256, ""), "InvalidArgument"),
        (
            changed(&format!("x-amz-content-sha256: {EMPTY_SHA256}\r\n"), ""),
            "InvalidRequest",
        ),
        (changed("Host:", "x-amz-meta-a: b\r\nHost:"), "AccessDenied"),
        (
            changed("Host:", "X-Amz-Security-Token: b\r\nHost:"),
            "InvalidToken",
        ),
        (changed("host;range", "range"), "AccessDenied"),
        (changed(";x-amz-date", ""), "AccessDenied"),
    ] {
        assert_eq!(
            code(judge("GET /test.txt", &headers, SIGNED_AT)),
            expected,
            "{headers}"
        );
    }
    let both = judge(&format!("GET {PRESIGNED}"), &good, SIGNED_AT);
    assert_eq!(code(both), "InvalidArgument");
}

#[test]
fn malformed_queries_are_refused() {
    let malformed = "AuthorizationQueryParametersError";
    let host = format!("Host: {HOST}\r\n");
    for (from, to, expected) in [
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1", malformed),
        ("X-Amz-Algorithm=AWS4-HMAC-SHA256&", "", malformed),
        ("&X-Amz-Date=20130524T000000Z", "", malformed),
        ("&X-Amz-Date=", "&X-Amz-Date=x", malformed),
        (
            "&X-Amz-Date=",
            "&X-Amz-Date=20130524T000000Z&X-Amz-Date=",
            malformed,
        ),
        ("%2F20130524%2F", "%2F20130523%2F", malformed),
        ("%2Fs3%2F", "%2Fec2%2F", malformed),
        ("Expires=86400", "Expires=0", malformed),
        ("Expires=86400", "Expires=604801", malformed),
        ("Expires=86400", "Expires=-1", malformed),
        ("Expires=86400", "Expires=%2B60", malformed),
        ("Expires=86400", "Expires=99999999999999999999", malformed),
        ("Expires=86400", "Expires=", malformed),
        ("&X-Amz-Expires=86400", "", malformed),
        ("SignedHeaders=host", "SignedHeaders=host%3B", malformed),
        ("SignedHeaders=host", "SignedHeaders=range", "AccessDenied"),
        ("&X-Amz-Signature=", "&X-Amz-Signature=&x=", malformed),
        ("&X-Amz-Signature=", "&x-amz-signature=", malformed),
        (
            "&X-Amz-Sig",
            "&X-Amz-Security-Token=a&X-Amz-Sig",
            "InvalidToken",
        ),
        ("Expires=86400", "Expires=604800", "SignatureDoesNotMatch"),
    ] {
        let target = PRESIGNED.replacen(from, to, 1);
        assert_ne!(target, PRESIGNED, "{from}");
        let result = judge(&format!("GET {target}"), &host, SIGNED_AT);
        assert_eq!(code(result), expected, "{from} became {to}");
    }
    let unsigned = format!("{host}x-amz-meta-a: b\r\n");
    let result = judge(&format!("GET {PRESIGNED}"), &unsigned, SIGNED_AT);
    assert_eq!(code(result), "AccessDenied");
}

#[test]
fn what_is_no_signature_makes_no_claim() {
    let claim = |target: &str, headers: &str| {
        let text = format!("GET {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let head = head::parse(text.as_bytes()).expect("a good head");
        let query = target::parse(target).expect("a good target").query;
        Claim::of(&head, &query).map(|claim| claim.is_some())
    };
    assert_eq!(claim("/v/k?x-id=GetObject", "").ok(), Some(false));
    assert_eq!(
        claim("/v/k", "Authorization: Bearer AWS4\r\n").ok(),
        Some(false)
    );
    let old = claim("/v/k?AWSAccessKeyId=a&Signature=b&Expires=1", "").expect_err("old");
    assert_eq!(old.code, "InvalidRequest");
}

/// A URL that another implementation signed, as request line and host.
fn presign(key: &str, seconds: u64) -> (String, String) {
    let endpoint = "https://cache.example:8443".parse().expect("a URL");
    let style = rusty_s3::UrlStyle::Path;
    let bucket = rusty_s3::Bucket::new(endpoint, style, "vol", "eu-1").expect("a bucket");
    let credentials = rusty_s3::Credentials::new(ACCESS_KEY, SECRET_KEY);
    let action = bucket.get_object(Some(&credentials), key);
    let at = jiff::Timestamp::from_second(SIGNED_AT as i64).expect("a time");
    let url = action.sign_with_time(Duration::from_secs(seconds), &at);
    let target = format!("{}?{}", url.path(), url.query().expect("a query"));
    (target, "Host: cache.example:8443\r\n".to_owned())
}

proptest! {
    #[test]
    fn urls_of_another_implementation_hold(key in "[^\0]{1,60}", seconds in 1..604_800_u64) {
        // Segments of dots are refused before any signature is looked at.
        prop_assume!(!key.split('/').any(|segment| segment == "." || segment == ".."));
        let (target, host) = presign(&key, seconds);
        prop_assert_eq!(code(judge(&format!("GET {target}"), &host, SIGNED_AT + seconds)), "OK");
        let late = judge(&format!("GET {target}"), &host, SIGNED_AT + seconds + 1);
        prop_assert_eq!(code(late), "AccessDenied");
        let other = judge(&format!("PUT {target}"), &host, SIGNED_AT);
        prop_assert_eq!(code(other), "SignatureDoesNotMatch");
    }

    #[test]
    fn a_url_for_one_key_opens_no_other(key in "[a-z/%+~ ]{1,12}", other in "[a-z/%+~ ]{1,12}") {
        prop_assume!(key != other);
        let (signed, host) = presign(&key, 60);
        let (wanted, _) = presign(&other, 60);
        let path = wanted.split('?').next().unwrap_or_default();
        let query = signed.split_once('?').map_or("", |(_, query)| query);
        let result = judge(&format!("GET {path}?{query}"), &host, SIGNED_AT);
        prop_assert_eq!(code(result), "SignatureDoesNotMatch");
    }

    #[test]
    fn a_changed_letter_is_noticed(at in 0_usize..2000, letter in "[a-zA-Z0-9]") {
        let good = get_example();
        let value = good.find("Credential=").expect("there") + "Credential=".len();
        let end = good.len() - 2;
        let at = value + at % (end - value);
        prop_assume!(good.as_bytes()[at] != letter.as_bytes()[0]);
        // Another access key is another key's claim, which `judge` does not look up.
        prop_assume!(at >= value + ACCESS_KEY.len());
        let mut changed = good.clone();
        changed.replace_range(at..=at, &letter);
        prop_assert!(judge("GET /test.txt", &changed, SIGNED_AT).is_err());
    }

    #[test]
    fn arbitrary_claims_never_panic(
        query in proptest::collection::vec(("X-Amz-[A-Z][a-z]{1,6}|X-Amz-Date", "[ -~]{0,30}"), 0..8),
        value in "AWS4-HMAC-SHA256 [ -~]{0,80}",
    ) {
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {value}\r\n\r\n");
        let with = head::parse(text.as_bytes()).expect("a good head");
        let without = head::parse(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("a good head");
        let _ = Claim::of(&with, &[]);
        let _ = Claim::of(&without, &query);
    }
}
