//! Answers as stores write them, and as they must not be.

use super::*;
use forebay_io::store::StoreErrorKind as Kind;
use proptest::prelude::*;

const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

fn result(root: &str, inside: &str) -> String {
    let space = "http://s3.amazonaws.com/doc/2006-03-01/";
    format!("{HEAD}<{root} xmlns=\"{space}\">{inside}</{root}>")
}

fn error(code: &str) -> String {
    format!("{HEAD}<Error><Code>{code}</Code><Message>no</Message></Error>")
}

#[test]
fn a_completion_lists_its_parts() {
    let parts = [CompletedPart {
        number: 7,
        etag: "a<b".into(),
        checksums: vec![("ChecksumCRC32".into(), "AAAA==".into())],
    }];
    let plain = "<Part><PartNumber>7</PartNumber><ETag>&quot;a&lt;b&quot;</ETag></Part>";
    assert!(completion(&parts, false).contains(plain));
    let checked = "</ETag><ChecksumCRC32>AAAA==</ChecksumCRC32></Part>";
    assert!(completion(&parts, true).contains(checked));
}

#[test]
fn what_was_made_is_read() {
    let inside =
        "<LastModified>2024-01-02T03:04:05.678Z</LastModified><ETag>&quot;tag&quot;</ETag>";
    let expected = Made {
        etag: "tag".into(),
        last_modified: 1_704_164_645,
        version_id: None,
    };
    for (verb, root) in [
        (Verb::Copy, "CopyObjectResult"),
        (Verb::CopyPart, "CopyPartResult"),
    ] {
        let body = result(root, inside);
        assert_eq!(made(verb, body.as_bytes()).expect("good"), expected);
    }
    // Ceph tells how far it is; others send blanks as long as they work.
    let inside = format!("<Progress>1</Progress><Progress>2</Progress>{inside}");
    let body = result("CopyObjectResult", &inside);
    assert_eq!(made(Verb::Copy, body.as_bytes()).expect("good"), expected);
    let body = format!(
        "   \n  {}",
        result("CompleteMultipartUploadResult", "<ETag></ETag>")
    );
    assert_eq!(
        made(Verb::Complete, body.as_bytes()).expect("good"),
        Made::default()
    );
}

#[test]
fn a_success_that_tells_an_error_is_one() {
    let missing = made(Verb::Copy, error("NoSuchKey").as_bytes());
    assert_eq!(missing.expect_err("no source").kind, Kind::NotFound);
    for (code, kind) in [
        ("InternalError", Kind::Internal),
        ("SlowDown", Kind::SlowDown),
        ("NoSuchUpload", Kind::NoSuchUpload),
        ("InvalidPart", Kind::InvalidPart),
        ("PreconditionFailed", Kind::PreconditionFailed),
        ("AccessDenied", Kind::Denied),
        ("InvalidRequest", Kind::Rejected),
        ("SomethingNew", Kind::Internal),
    ] {
        for verb in [Verb::Copy, Verb::CopyPart, Verb::Complete] {
            let failed = made(verb, error(code).as_bytes()).expect_err(code);
            assert_eq!((failed.kind, failed.status), (kind, None), "{code}");
            assert!(failed.message.contains(code), "{failed}");
        }
    }
}

#[test]
fn other_documents_are_corrupt() {
    let cut = result("CopyObjectResult", "<ETag>x</ETag>");
    let cut = &cut[..cut.len() - 5];
    for body in ["", "  ", "<html/>", "{}", cut, "<CopyObjectResult><ETag>"] {
        let failed = made(Verb::Copy, body.as_bytes()).expect_err(body);
        assert_eq!(failed.kind, Kind::Corrupt, "{body}");
        assert_eq!(begun(body.as_bytes()).expect_err(body).kind, Kind::Corrupt);
        assert_eq!(
            uploads(body.as_bytes()).expect_err(body).kind,
            Kind::Corrupt
        );
    }
    let nameless = result("InitiateMultipartUploadResult", "<UploadId> </UploadId>");
    assert_eq!(
        begun(nameless.as_bytes()).expect_err("nameless").kind,
        Kind::Corrupt
    );
}

fn part(number: u32) -> String {
    format!(
        "<Part><PartNumber>{number}</PartNumber><LastModified>2024-01-02T03:04:05Z</LastModified>\
         <ETag>&quot;t{number}&quot;</ETag><Size>{number}0</Size></Part>"
    )
}

#[test]
fn parts_are_read() {
    let inside = format!("<IsTruncated>true</IsTruncated>{}{}", part(2), part(5));
    let body = result("ListPartsResult", &inside);
    let page = parts(body.as_bytes(), 1, 2).expect("good");
    assert!(page.is_truncated);
    let expected = PartMeta {
        number: 5,
        etag: "t5".into(),
        size: 50,
        last_modified: 1_704_164_645,
    };
    assert_eq!(page.parts[1], expected);
}

#[test]
fn parts_that_were_not_asked_for_are_corrupt() {
    for (inside, after, limit) in [
        ([part(5), part(2)].concat(), 0, 10),
        ([part(2), part(2)].concat(), 0, 10),
        (part(2), 2, 10),
        ([part(2), part(3)].concat(), 0, 1),
        ("<IsTruncated>true</IsTruncated>".into(), 0, 10),
        ("<Part><PartNumber>1</PartNumber></Part>".into(), 0, 10),
        (
            "<Part><PartNumber>-1</PartNumber><Size>1</Size></Part>".into(),
            0,
            10,
        ),
    ] {
        let body = result("ListPartsResult", &inside);
        let failed = parts(body.as_bytes(), after, limit).expect_err(&inside);
        assert_eq!(failed.kind, Kind::Corrupt, "{inside}");
    }
}

#[test]
fn uploads_are_read_and_decoded() {
    let upload = |key: &str| {
        format!(
            "<Upload><Key>{key}</Key><UploadId>2~x</UploadId><Initiator><ID>i</ID></Initiator>\
             <Initiated>2024-01-02T03:04:05.000Z</Initiated></Upload>"
        )
    };
    let inside = format!(
        "<EncodingType>url</EncodingType><NextKeyMarker>p%2Fb</NextKeyMarker>\
         <NextUploadIdMarker>m</NextUploadIdMarker><IsTruncated>true</IsTruncated>{}",
        upload("p/a%20b+c%2B")
    );
    let body = result("ListMultipartUploadsResult", &inside);
    let answer = uploads(body.as_bytes()).expect("good");
    assert_eq!(answer.next, ("p/b".to_owned(), "m".to_owned()));
    assert_eq!(answer.uploads[0].key, "p/a b c+");
    assert_eq!(answer.uploads[0].initiated, 1_704_164_645);
    let body = result("ListMultipartUploadsResult", &upload("p/a%20b+c"));
    let answer = uploads(body.as_bytes()).expect("good");
    assert_eq!(answer.uploads[0].key, "p/a%20b+c", "not said to be encoded");
    let body = result(
        "ListMultipartUploadsResult",
        "<IsTruncated>true</IsTruncated>",
    );
    assert_eq!(
        uploads(body.as_bytes()).expect_err("nowhere").kind,
        Kind::Corrupt
    );
}

proptest! {
    #[test]
    fn any_bytes_are_judged(body in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(begun(&body).is_err());
        prop_assert!(made(Verb::Complete, &body).is_err());
    }
}
