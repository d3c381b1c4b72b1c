//! Amazon's published examples, a signer of our own, and every way in which a body can be wrong.

use super::*;
use crate::http::{head, target};
use crate::settings::secret::Secret;
use aws_lc_rs::{digest, hmac};
use proptest::prelude::*;

const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// 20130524T000000Z, when the examples were signed.
const SIGNED_AT: u64 = 1_369_353_600;
const CONTEXT: &str = "20130524T000000Z\n20130524/us-east-1/s3/aws4_request";

const SIGNED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const SIGNED_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";

/// Seeds of Amazon's two examples.
const SEED: &str = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
const TRAILER_SEED: &str = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e";

/// The request of Amazon's examples, its headers in the order in which they are signed.
fn example_head(payload: &str) -> head::Head {
    let (names, seed, more) = match payload {
        SIGNED => (
            "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;\
             x-amz-decoded-content-length;x-amz-storage-class",
            SEED,
            "Content-Length: 66824\r\n",
        ),
        _ => (
            "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;\
             x-amz-storage-class;x-amz-trailer",
            TRAILER_SEED,
            "x-amz-trailer: x-amz-checksum-crc32c\r\n",
        ),
    };
    let text = format!(
        "PUT /examplebucket/chunkObject.txt HTTP/1.1\r\nHost: s3.amazonaws.com\r\n\
         x-amz-date: 20130524T000000Z\r\nx-amz-storage-class: REDUCED_REDUNDANCY\r\n\
         Content-Encoding: aws-chunked\r\nx-amz-decoded-content-length: 66560\r\n{more}\
         x-amz-content-sha256: {payload}\r\nAuthorization: AWS4-HMAC-SHA256 \
         Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
         SignedHeaders={names},Signature={seed}\r\n\r\n"
    );
    head::parse(text.as_bytes()).expect("a good head")
}

/// What verifies the body of that request, its seed being verified.
fn example_seal(payload: &str) -> Seal {
    let head = example_head(payload);
    let query = target::parse(&head.target).expect("a good target").query;
    let claim = crate::http::sigv4::Claim::of(&head, &query).expect("a claim");
    let verifier = claim
        .expect("a claim")
        .verify(&head, &query, &Secret::new(SECRET_KEY), SIGNED_AT)
        .expect("Amazon's seed signature holds");
    let verifier = verifier.expect("its chunks are signed");
    match payload {
        SIGNED => Seal::Chunks(verifier),
        _ => Seal::ChunksAndTrailer(verifier),
    }
}

fn announced(payload: &str) -> BodyChecks {
    BodyChecks::of(&example_head(payload)).expect("good headers")
}

/// Decodes a body that arrives in pieces: its content, once all of it holds.
fn open(seal: Seal, mut checks: BodyChecks, body: &[u8], piece: usize) -> Result<Vec<u8>, String> {
    let mut envelope = Envelope::new(seal);
    let (mut content, mut ended) = (Vec::new(), false);
    for mut input in body.chunks(piece) {
        loop {
            let found = envelope.step(&mut input, &mut checks);
            match found.map_err(|error| error.code.to_owned())? {
                Piece::Content(bytes) => {
                    checks.update(bytes);
                    content.extend_from_slice(bytes);
                }
                Piece::NeedMore => break,
                Piece::End => {
                    ended = true;
                    if input.is_empty() {
                        break;
                    }
                }
            }
        }
    }
    match ended {
        true => checks.verify().map_err(|error| error.code.to_owned()),
        false => Err("cut off".to_owned()),
    }?;
    Ok(content)
}

/// A signer of chunks that shares nothing with the verifier.
struct Signer {
    key: hmac::Key,
    previous: String,
}

impl Signer {
    fn new(seed: &str) -> Signer {
        let mut key = format!("AWS4{SECRET_KEY}").into_bytes();
        for part in ["20130524", "us-east-1", "s3", "aws4_request"] {
            let now = hmac::Key::new(hmac::HMAC_SHA256, &key);
            key = hmac::sign(&now, part.as_bytes()).as_ref().to_vec();
        }
        Signer {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            previous: seed.to_owned(),
        }
    }

    fn sign(&mut self, kind: &str, hashed: &[&[u8]]) -> String {
        let hashes: Vec<String> = hashed
            .iter()
            .map(|bytes| hex::encode(digest::digest(&digest::SHA256, bytes)))
            .collect();
        let previous = &self.previous;
        let text = format!(
            "AWS4-HMAC-SHA256-{kind}\n{CONTEXT}\n{previous}\n{}",
            hashes.join("\n")
        );
        self.previous = hex::encode(hmac::sign(&self.key, text.as_bytes()));
        self.previous.clone()
    }

    /// The envelope of `content`; `trailer` is a line of it without its end.
    fn seal(mut self, content: &[u8], chunk_bytes: usize, trailer: Option<&str>) -> Vec<u8> {
        let mut body = Vec::new();
        for chunk in content.chunks(chunk_bytes).chain([&b""[..]]) {
            let signature = self.sign("PAYLOAD", &[b"", chunk]);
            let line = format!("{:x};chunk-signature={signature}\r\n", chunk.len());
            body.extend_from_slice(line.as_bytes());
            body.extend_from_slice(chunk);
            if !chunk.is_empty() {
                body.extend_from_slice(b"\r\n");
            }
        }
        if let Some(line) = trailer {
            let signature = self.sign("TRAILER", &[format!("{line}\n").as_bytes()]);
            let lines = format!("{line}\r\nx-amz-trailer-signature:{signature}\r\n");
            body.extend_from_slice(lines.as_bytes());
        }
        body.extend_from_slice(b"\r\n");
        body
    }
}

/// 65 KiB of the letter a, as Amazon's examples send them.
fn example_content() -> Vec<u8> {
    vec![b'a'; 66_560]
}

#[test]
fn amazons_example_of_signed_chunks_holds() {
    let content = example_content();
    let mut body = Vec::new();
    for (size, signature) in [
        (
            65_536,
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        ),
        (
            1024,
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        ),
        (
            0,
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        ),
    ] {
        body.extend_from_slice(format!("{size:x};chunk-signature={signature}\r\n").as_bytes());
        body.extend_from_slice(&content[..size]);
        body.extend_from_slice(b"\r\n");
    }
    assert_eq!(body.len(), 66_824, "as the example's Content-Length says");
    for piece in [1, 100, 65_536, body.len()] {
        let opened = open(example_seal(SIGNED), BodyChecks::default(), &body, piece);
        assert!(opened.as_deref() == Ok(&content), "in pieces of {piece}");
    }
    let signed = Signer::new(SEED).seal(&content, 65_536, None);
    assert!(signed == body, "the signer of these tests is right");
}

#[test]
fn amazons_example_of_a_signed_trailer_holds() {
    let content = example_content();
    let line = "x-amz-checksum-crc32c:sOO8/Q==";
    let body = Signer::new(TRAILER_SEED).seal(&content, 65_536, Some(line));
    let text = String::from_utf8(body.clone()).expect("letters");
    for signature in [
        "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
        "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435",
    ] {
        assert!(text.contains(signature), "{signature}");
    }
    for piece in [1, 977, body.len()] {
        let (seal, checks) = (example_seal(SIGNED_TRAILER), announced(SIGNED_TRAILER));
        let opened = open(seal, checks, &body, piece);
        assert!(opened.as_deref() == Ok(&content), "in pieces of {piece}");
    }
    // As the documentation spells it, and minio-go sends it.
    let spelt = text.replacen(&format!("{line}\r\n"), &format!("{line}\n\r\n"), 1);
    assert_ne!(spelt, text);
    let (seal, checks) = (example_seal(SIGNED_TRAILER), announced(SIGNED_TRAILER));
    assert!(open(seal, checks, spelt.as_bytes(), 100).is_ok());
}

/// An envelope with its trailer, signed by the signer above.
fn sealed(content: &[u8], chunk_bytes: usize) -> String {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, content) as u32;
    use base64::Engine;
    let value = base64::engine::general_purpose::STANDARD.encode(crc.to_be_bytes());
    let line = format!("x-amz-checksum-crc32c:{value}");
    let body = Signer::new(TRAILER_SEED).seal(content, chunk_bytes, Some(&line));
    String::from_utf8(body).expect("letters")
}

fn opened(body: &str) -> Result<Vec<u8>, String> {
    let (seal, checks) = (example_seal(SIGNED_TRAILER), announced(SIGNED_TRAILER));
    open(seal, checks, body.as_bytes(), 50)
}

/// What all the changed bodies below were.
fn good() -> String {
    sealed(b"all good things come in pieces", 10)
}

fn changed(from: &str, to: &str) -> String {
    let good = good();
    assert!(good.contains(from), "{from}");
    good.replacen(from, to, 1)
}

/// A body's error code, or OK.
fn code_of(body: &str) -> String {
    opened(body).err().unwrap_or_else(|| "OK".to_owned())
}

const WRONG: &str = "SignatureDoesNotMatch";

#[test]
fn chunks_that_do_not_hold_are_told_apart() {
    let good = good();
    let content = &b"all good things come in pieces"[..];
    assert_eq!(opened(&good).as_deref(), Ok(content));
    let zero = &good[good.find("\r\n0;").expect("there") + 2..];
    let zero_line = zero.split_inclusive("\r\n").next().expect("a line");
    // A line of 82 bytes and its end, ten bytes and their end.
    let (first, second, rest) = (&good[..96], &good[96..192], &good[192..]);
    let size = |spelling: &str| {
        let line = format!("{spelling}chunk-signature=");
        changed("a;chunk-signature=", &line)
    };
    for (body, code) in [
        (changed("good", "goad"), WRONG),
        (changed("come", "came"), WRONG),
        (size("A;"), "OK"),
        (size("00a;"), "OK"),
        (size("9;"), WRONG),
        (size("b;"), WRONG),
        (size("a;x=y;"), WRONG),
        (size("a; "), WRONG),
        (size("-a;"), "InvalidChunkSizeError"),
        (size(";"), "InvalidChunkSizeError"),
        (size("a "), "InvalidChunkSizeError"),
        (changed("chunk-signature=", "chunk-signaturE="), WRONG),
        (changed("chunk-signature=", "chunk-signature=0"), WRONG),
        (format!("{second}{first}{rest}"), WRONG),
        (format!("{second}{rest}"), WRONG),
        (format!("{first}{first}{second}{rest}"), WRONG),
        (changed(zero_line, ""), "InvalidChunkSizeError"),
    ] {
        assert_eq!(code_of(&body), code, "{body}");
    }
}

#[test]
fn ends_that_do_not_hold_are_told_apart() {
    let good = good();
    let trailer = good.find("x-amz-checksum").expect("there");
    let seal = good.find("x-amz-trailer-signature").expect("there");
    let (name, signature) = ("x-amz-checksum-crc32c:", "x-amz-trailer-signature:");
    let more = "x-amz-meta-a:b\r\n";
    for (body, code) in [
        (good[..trailer].to_owned(), "cut off"),
        (good[..seal].to_owned(), "cut off"),
        (good[..good.len() - 2].to_owned(), "cut off"),
        (format!("{}\r\n", &good[..seal]), WRONG),
        (format!("{}\r\n", &good[..trailer]), WRONG),
        (format!("{good}\r\n"), "IncompleteBody"),
        (format!("{good}more"), "IncompleteBody"),
        // Another trailer than was signed, or more of it.
        (changed(name, "x-amz-checksum-crc32c: "), "OK"),
        (changed(name, "x-amz-checksum-crc32:"), WRONG),
        (changed(name, &format!("{more}{name}")), WRONG),
        (changed(signature, "x-amz-trailer-signature:0"), WRONG),
        (
            changed("\r\n\r\n", &format!("\r\n{more}\r\n")),
            "MalformedTrailerError",
        ),
        (
            changed(signature, &format!("no colon\r\n{signature}")),
            "MalformedTrailerError",
        ),
    ] {
        assert_eq!(code_of(&body), code, "{body}");
    }
}

#[test]
fn a_wrong_line_in_a_well_signed_trailer_is_noticed() {
    let content = b"content";
    for (line, code) in [
        ("x-amz-checksum-crc32c:AAAAAA==", "BadDigest"),
        ("x-amz-checksum-crc32c:AAAA", "InvalidRequest"),
        ("x-amz-checksum-crc32:AAAAAA==", "MalformedTrailerError"),
    ] {
        let body = Signer::new(TRAILER_SEED).seal(content, 100, Some(line));
        let text = String::from_utf8(body).expect("letters");
        assert_eq!(opened(&text), Err(code.to_owned()));
    }
}

#[test]
fn a_chunk_is_refused_before_its_last_bytes_are_handed_out() {
    let good = sealed(b"0123456789abcdefghij", 10);
    let bad = good.replacen("abcdefghij", "abcdefghiJ", 1);
    let mut envelope = Envelope::new(example_seal(SIGNED_TRAILER));
    let mut checks = announced(SIGNED_TRAILER);
    let mut input = bad.as_bytes();
    let first = envelope.step(&mut input, &mut checks).expect("signed");
    assert_eq!(first, Piece::Content(b"0123456789"));
    assert_eq!(envelope.content_left(), 0);
    let second = envelope.step(&mut input, &mut checks);
    assert_eq!(second.err().map(|e| e.code), Some("SignatureDoesNotMatch"));
}

#[test]
fn an_unsigned_envelope_takes_no_signatures_for_content() {
    let unsigned = |body: &str| {
        let checks = announced(SIGNED_TRAILER);
        open(Seal::Unsigned, checks, body.as_bytes(), 7)
    };
    let crc = "x-amz-checksum-crc32c:4waSgw==";
    let good = format!("9\r\n123456789\r\n0\r\n{crc}\r\n\r\n");
    assert_eq!(unsigned(&good).as_deref(), Ok(&b"123456789"[..]));
    let extended = good.replacen("9\r\n", "9;a=b\r\n", 1);
    assert_eq!(unsigned(&extended).as_deref(), Ok(&b"123456789"[..]));
    let odd = good.replacen("9\r\n", "9;\u{1}\r\n", 1);
    assert_eq!(unsigned(&odd), Err("InvalidChunkSizeError".to_owned()));
    let signed = good.replacen("\r\n\r\n", "\r\nx-amz-trailer-signature:0\r\n\r\n", 1);
    assert_eq!(unsigned(&signed), Err("MalformedTrailerError".to_owned()));
    let missing = good.replacen(&format!("{crc}\r\n"), "", 1);
    assert_eq!(unsigned(&missing), Err("MalformedTrailerError".to_owned()));
}

proptest! {
    #[test]
    fn any_content_in_any_chunks_and_pieces_is_opened(
        content in "[ -~]{0,200}",
        chunk_bytes in 1..60_usize,
        piece in 1..300_usize,
    ) {
        let body = sealed(content.as_bytes(), chunk_bytes);
        let (seal, checks) = (example_seal(SIGNED_TRAILER), announced(SIGNED_TRAILER));
        let opened = open(seal, checks, body.as_bytes(), piece);
        prop_assert_eq!(opened, Ok(content.into_bytes()));
    }

    /// Whatever happens to a signed body on its way: it is refused, or it is the same content.
    #[test]
    fn no_change_of_a_signed_body_changes_what_is_stored(
        content in "[ -~]{1,60}",
        chunk_bytes in 5..40_usize,
        at in 0..10_000_usize,
        removed in 0..3_usize,
        added in proptest::collection::vec(any::<u8>(), 0..3),
    ) {
        let mut body = sealed(content.as_bytes(), chunk_bytes).into_bytes();
        let at = at % body.len();
        let end = body.len().min(at + removed);
        body.splice(at..end, added);
        let (seal, checks) = (example_seal(SIGNED_TRAILER), announced(SIGNED_TRAILER));
        if let Ok(found) = open(seal, checks, &body, 33) {
            prop_assert_eq!(found, content.into_bytes());
        }
    }

    #[test]
    fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = open(example_seal(SIGNED), BodyChecks::default(), &body, 7);
        let _ = open(Seal::Unsigned, announced(SIGNED_TRAILER), &body, 7);
    }
}
