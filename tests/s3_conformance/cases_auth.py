"""Who may do what: signatures that are wrong, old, cut, moved, tampered with. Tables only.

In all that is refused the body, if any, is not looked at, and what was there stays.
"""

import re

from model import B, P, Want, ask, case, error, get, head, put, saved, volume
from wire import Signing

TEN = b"0123456789"
LARGE = bytes(range(256)) * 4097  # More than a block.
FIXTURE = (put("k", TEN),)
WEEK = 7 * 24 * 3600
# Of the same volume, and may only read.
READER = ("FBREADER", "reader-secret-0123456789abcdef")
# Of another volume of the same proxy, and may do all there.
OTHER_VOLUME = "other-volume"
NEIGHBOUR = ("FBNEIGHBOUR", "neighbour-secret-0123456789abcdef")
# Of both volumes.
TRAVELLER = ("FBTRAVELLER", "traveller-secret-0123456789abcdef")
STRANGER = ("FBNOBODY", "no-secret-0123456789abcdef")
DENIED = "AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId|RequestTimeTooSkewed|AuthorizationHeaderMalformed|InvalidArgument|InvalidRequest|AuthorizationQueryParametersError|MissingSecurityHeader|InvalidToken"


def both(name, sign, want, **more):
    """The same for a read, a write, a deletion and a list; what is there stays."""
    yield case(f"auth/{name}-get", get("k", want, sign=sign), fixture=FIXTURE, **more)
    yield case(f"auth/{name}-put", put("k", b"evil", want, sign=sign), get("k", Want(200, body=TEN)), fixture=FIXTURE, **more)
    yield case(f"auth/{name}-delete", ask("DELETE", "k", want, sign=sign), get("k", Want(200, body=TEN)), fixture=FIXTURE, **more)
    yield case(f"auth/{name}-list", volume("GET", want, sign=sign), fixture=FIXTURE, **more)


def headers():
    yield from both("unknown-key", Signing(pair=STRANGER), error(403, "InvalidAccessKeyId"))
    yield from both("wrong-signature", Signing(rewrite=lambda line: line[:-4] + "0000"), error(403, "SignatureDoesNotMatch"))
    yield from both("skewed-back", Signing(skew=-16 * 60), error(403, "RequestTimeTooSkewed"))
    yield from both("skewed-ahead", Signing(skew=16 * 60), error(403, "RequestTimeTooSkewed"))
    yield from both("other-service", Signing(service="ec2"), error((400, 403), DENIED), differential=False)
    yield from both("other-bucket", Signing(bucket=OTHER_VOLUME), error(403, "SignatureDoesNotMatch"))
    yield from both("anonymous", Signing(how="none"), error(403, "AccessDenied"))
    yield case("auth/skewed-a-little", get("k", Want(200, body=TEN), sign=Signing(skew=-14 * 60)), fixture=FIXTURE)
    yield case("auth/skewed-ahead-a-little", get("k", Want(200, body=TEN), sign=Signing(skew=14 * 60)), fixture=FIXTURE)
    yield case("auth/any-region", get("k", Want(200, body=TEN), sign=Signing(region="eu-nowhere-7")), fixture=FIXTURE)
    refused = error((400, 403), DENIED)
    for name, rewrite in (
        ("no-signature", lambda line: re.sub(", Signature=.*", "", line)), ("empty-signature", lambda line: re.sub("Signature=.*", "Signature=", line)),
        ("half-signature", lambda line: line[:-32]), ("long-signature", lambda line: line + "00"), ("no-hex", lambda line: line[:-1] + "g"),
        ("no-signed-headers", lambda line: re.sub("SignedHeaders=[^,]*, ", "", line)),
        ("empty-signed-headers", lambda line: re.sub("SignedHeaders=[^,]*", "SignedHeaders=", line)),
        ("host-not-signed", lambda line: line.replace("host;", "")), ("no-credential", lambda line: re.sub("Credential=[^,]*, ", "", line)),
        ("short-scope", lambda line: line.replace("/s3/aws4_request", "")), ("wrong-terminator", lambda line: line.replace("aws4_request", "aws5_request")),
        ("only-the-algorithm", lambda line: "AWS4-HMAC-SHA256"), ("cut-in-the-middle", lambda line: line[: len(line) // 2]),
        ("scope-of-another-day", lambda line: re.sub(r"/\d{8}/", "/20200101/", line)), ("algorithm-in-small-letters", lambda line: line.replace("AWS4", "aws4")),
        ("two-signatures", lambda line: line + ", Signature=" + "0" * 64), ("unknown-field", lambda line: line + ", What=ever"),
    ):
        # Of broken lines the store judges each in its own way. What has no algorithm that is known is no credential at all.
        want = {"unknown-field": Want((200, 400, 403)), "algorithm-in-small-letters": error((400, 403))}.get(name, refused)
        yield case(f"auth-line/{name}", get("k", want, sign=Signing(rewrite=rewrite)), fixture=FIXTURE, differential=False)
    for name, line in (
        ("empty", ""), ("blank", " "), ("basic", "Basic dXNlcjpwYXNz"), ("v2", "AWS FBCONFORM:c2lnbmF0dXJl"), ("word", "what"), ("bearer-empty", "Bearer "),
        ("bearer-wrong", "Bearer not-the-token-0123456789"), ("v4a", "AWS4-ECDSA-P256-SHA256 Credential=a/20200101/s3/aws4_request, SignedHeaders=host, Signature=00"),
        ("long", "AWS4-HMAC-SHA256 " + "x" * 8000),
    ):
        yield case(
            f"auth-line/other-{name}", get("k", Want((400, 403, 431, 501)), headers={"authorization": line}, sign=Signing(how="none")),
            fixture=FIXTURE, differential=False,
        )
    for name, tampered in (
        ("date", {"x-amz-date": "20200101T000000Z"}), ("no-date", {"x-amz-date": None}), ("date-of-another-form", {"x-amz-date": "Sat, 01 Jan 2022 00:00:00 GMT"}),
        ("payload-hash", {"x-amz-content-sha256": "0" * 64}), ("no-payload-hash", {"x-amz-content-sha256": None}), ("metadata-added", {"x-amz-meta-a": "b"}),
        ("acl-added", {"x-amz-acl": "public-read"}), ("token-added", {"x-amz-security-token": "abc"}), ("copy-source-added", {"x-amz-copy-source": "/b/k"}),
    ):
        yield case(
            f"auth-tampered/{name}", put("k", b"evil", error((400, 401, 403), DENIED), sign=Signing(tampered=tampered)), get("k", Want(200, body=TEN)),
            fixture=FIXTURE, differential=False,
        )
    yield case(
        "auth-tampered/signed-metadata-changed", put("k", b"evil", error(403, "SignatureDoesNotMatch"), headers={"x-amz-meta-a": "b"},
        sign=Signing(tampered={"x-amz-meta-a": "c"})), get("k", Want(200, body=TEN)), fixture=FIXTURE,
    )
    yield case(
        "auth-tampered/unsigned-metadata", put("k", b"evil", error(403, "AccessDenied|SignatureDoesNotMatch"), headers={"x-amz-meta-a": "b"},
        sign=Signing(unsigned=("x-amz-meta-a",))), get("k", Want(200, body=TEN)), fixture=FIXTURE, differential=False,
    )
    yield case("auth/unsigned-ordinary-header", get("k", Want(206, body=b"01"), headers={"range": "bytes=0-1"}, sign=Signing(unsigned=("range",))), fixture=FIXTURE)
    yield case("auth-tampered/query", get("k", error(403, "SignatureDoesNotMatch"), query=[("response-content-type", "a/b")], raw_query="response-content-type=c%2Fd"), fixture=FIXTURE)
    yield case("auth-tampered/path", get("k", error(403, "SignatureDoesNotMatch"), raw_path=P + "other"), fixture=FIXTURE)


def presigned():
    query = lambda **how: Signing(how="query", **how)
    good = Want(200, body=TEN)
    yield case("presigned/get", get("k", good, sign=query()), fixture=FIXTURE)
    yield case("presigned/head", head("k", 200, sign=query()), fixture=FIXTURE)
    yield case("presigned/range", get("k", Want(206, body=b"01"), headers={"range": "bytes=0-1"}, sign=query(unsigned=("range",))), fixture=FIXTURE)
    yield case("presigned/put-and-delete", put("n", TEN, sign=query()), get("n", good), ask("DELETE", "n", 204, sign=query()), head("n", 404))
    yield case("presigned/list", volume("GET", Want(200, xml={"Contents/Key": [P + "k"]}), [("prefix", P)], sign=query()), fixture=FIXTURE)
    yield case("presigned/odd-key", put("a b+c&d=e/ü", TEN, sign=query()), get("a b+c&d=e/ü", good, sign=query()))
    yield case("presigned/a-week", get("k", good, sign=query(expires=WEEK)), fixture=FIXTURE)
    yield case("presigned/one-second", get("k", good, sign=query(expires=30)), fixture=FIXTURE)
    yield case("presigned/signed-metadata", put("n", TEN, headers={"x-amz-meta-a": "b"}, sign=query()), head("n", Want(200, headers={"x-amz-meta-a": "b"})))
    yield from both("presigned-expired", query(skew=-600, expires=300), error(403, "AccessDenied"))
    yield from both("presigned-wrong", query(rewrite=lambda text: text[:-4] + "0000"), error(403, "SignatureDoesNotMatch"))
    yield from both("presigned-unknown-key", query(pair=STRANGER), error(403, "InvalidAccessKeyId"))
    refused = error((400, 403), DENIED)
    for name, sign in (
        ("longer-than-a-week", query(expires=WEEK + 1)), ("negative", query(expires=-1)), ("no-number", query(expires="x")), ("empty", query(expires="")),
        ("from-the-future", query(skew=3600)), ("huge", query(expires="9" * 30)),
        ("no-date", query(rewrite=lambda text: re.sub("X-Amz-Date=[^&]*&", "", text))),
        ("no-expires", query(rewrite=lambda text: re.sub("X-Amz-Expires=[^&]*&", "", text))),
        ("no-signature", query(rewrite=lambda text: re.sub("&X-Amz-Signature=.*", "", text))),
        ("no-credential", query(rewrite=lambda text: re.sub("X-Amz-Credential=[^&]*&", "", text))),
        ("no-signed-headers", query(rewrite=lambda text: re.sub("X-Amz-SignedHeaders=[^&]*&", "", text))),
        ("longer-than-signed", query(rewrite=lambda text: text.replace("X-Amz-Expires=300", "X-Amz-Expires=3000"))),
        ("other-algorithm", query(rewrite=lambda text: text.replace("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512"))),
        ("twice", query(rewrite=lambda text: text + "&X-Amz-Date=20200101T000000Z")),
        ("parameter-added", query(rewrite=lambda text: text + "&response-content-type=a%2Fb")),
        ("other-bucket", query(bucket=OTHER_VOLUME)),
    ):
        yield case(f"presigned-refused/{name}", get("k", refused, sign=sign), fixture=FIXTURE, differential=False)
    yield case("presigned-refused/other-method", put("k", b"evil", refused, sign=query(), raw_query="X-Amz-Algorithm=AWS4-HMAC-SHA256"), get("k", good), fixture=FIXTURE, differential=False)
    yield case("presigned-refused/unsigned-amz-header", put("k", b"evil", refused, headers={"x-amz-meta-a": "b"}, sign=query(unsigned=("x-amz-meta-a",))), get("k", good), fixture=FIXTURE, differential=False)
    yield case("presigned-refused/and-a-header", get("k", refused, headers={"authorization": "Bearer what-0123456789abcdef"}, sign=query(unsigned=("authorization",))), fixture=FIXTURE, differential=False)


def permissions():
    denied = error(403, "AccessDenied")
    good = Want(200, body=TEN)
    mine = [("prefix", P)]
    yield from both("neighbour", Signing(pair=NEIGHBOUR), denied, differential=False)
    yield from both("neighbour-presigned", Signing(how="query", pair=NEIGHBOUR), denied, differential=False)
    reader = Signing(pair=READER)
    for name, step in (
        ("put", put("k", b"evil", denied, sign=reader)), ("delete", ask("DELETE", "k", denied, sign=reader)),
        ("delete-objects", volume("POST", denied, ["delete"], body=f"<Delete><Object><Key>{P}k</Key></Object></Delete>".encode(),
                                  headers={"content-md5": saved("body-md5")}, sign=reader)),
        ("copy", put("k", b"", denied, headers={"x-amz-copy-source": f"{B}/{P}k"}, sign=reader)),
        ("create-upload", ask("POST", "k", denied, query=["uploads"], sign=reader)),
        ("part", put("k", b"evil", denied, query=[("partNumber", "1"), ("uploadId", "x")], sign=reader)),
        ("complete", ask("POST", "k", denied, query=[("uploadId", "x")], body=b"<CompleteMultipartUpload/>", sign=reader)),
        ("abort", ask("DELETE", "k", denied, query=[("uploadId", "x")], sign=reader)),
        ("presigned-put", put("k", b"evil", denied, sign=Signing(how="query", pair=READER))), ("create-bucket", volume("PUT", denied, sign=reader)),
    ):
        yield case(f"reader/{name}", step, get("k", good), fixture=FIXTURE, differential=False)
    listed = Want(200, xml={"Contents/Key": [P + "k"]})
    for name, step in (
        ("get", get("k", good, sign=reader)), ("head", head("k", 200, sign=reader)), ("list", volume("GET", listed, mine, sign=reader)),
        ("location", volume("GET", 200, ["location"], sign=reader)), ("head-bucket", volume("HEAD", 200, sign=reader)),
    ):
        yield case(f"reader/{name}", step, fixture=FIXTURE, differential=False)
    elsewhere = Signing(how="query", bucket=OTHER_VOLUME)
    yield case("auth/presigned-for-another-volume", get("k", error(403, "SignatureDoesNotMatch"), sign=elsewhere), fixture=FIXTURE)
    moved = {"bucket": OTHER_VOLUME, "sign": Signing(bucket=B)}
    yield case("auth/moved-to-another-volume", ask("PUT", "k", error(403, "SignatureDoesNotMatch|AccessDenied"), body=b"x", **moved), differential=False)
    theirs = put("target", b"", error((403, 501)), headers={"x-amz-copy-source": f"{OTHER_VOLUME}/k"})
    yield case("auth/copy-from-a-volume-of-others", ask("PUT", "k", 200, body=TEN, bare_key=True, bucket=OTHER_VOLUME, sign=Signing(pair=NEIGHBOUR)), theirs, head("target", 404), differential=False)
    traveller = Signing(pair=TRAVELLER)
    meta = {"content-type": "text/x-a", "x-amz-meta-a": "b"}
    for name, body in (("small", TEN), ("large", LARGE), ("empty", b"")):
        yield case(
            f"copy-across/{name}", ask("PUT", "source", 200, body=body, headers=meta, bucket=OTHER_VOLUME, sign=traveller),
            put("target", b"", headers={"x-amz-copy-source": f"{OTHER_VOLUME}/{P}source"}, sign=traveller), get("target", Want(200, body=body, headers=meta)),
            ask("PUT", "back", 200, headers={"x-amz-copy-source": f"{B}/{P}target"}, bucket=OTHER_VOLUME, sign=traveller),
            ask("GET", "back", Want(200, body=body, headers=meta), bucket=OTHER_VOLUME, sign=traveller), differential=False,
        )
    buckets = lambda names, pair: ask("GET", None, Want(200, xml={"Bucket/Name": names}), bucket="", sign=Signing(pair=pair))
    yield case("auth/buckets-of-a-neighbour", buckets([OTHER_VOLUME], NEIGHBOUR), differential=False)
    yield case("auth/buckets-of-a-traveller", buckets([OTHER_VOLUME, B], TRAVELLER), differential=False)
    yield case("auth/buckets-of-a-reader", buckets([B], READER), differential=False)
    yield case("auth/buckets-of-a-stranger", ask("GET", None, error(403, "InvalidAccessKeyId"), bucket="", sign=Signing(pair=STRANGER)), differential=False)


TABLES = (headers, presigned, permissions)
