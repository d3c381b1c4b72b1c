"""Lists, DeleteObjects and buckets. Tables only."""

import base64
import hashlib
from xml.sax.saxutils import escape as xml_escape

from model import ANY, P, Want, ask, case, delete, error, get, head, put, saved, volume

NAMES = ["a", "b/1", "b/2", "b/c/3", "d e+f", "g&<h>", "z"]
# In order of their bytes.
ODD = ["A", "Z", "_", "a-b", "a/b", "ab", "ä", "日本", "\U0001f600"]


def listing(name, query, want, v1_only=False, v2_only=False, names=NAMES, **more):
    """The same list in both versions; keys come without the case's prefix."""
    fixture = tuple(put(key, key.encode()) for key in names)
    for version in ([] if v2_only else [1]) + ([] if v1_only else [2]):
        parameters = ([("list-type", "2")] if version == 2 else []) + query
        yield case(f"list/v{version}-{name}", volume("GET", want, parameters), fixture=fixture, **more)


def found(keys=(), prefixes=(), truncated=False, **more):
    xml = {"Contents/Key": [P + key for key in keys], "CommonPrefixes/Prefix": [P + one for one in prefixes]}
    return Want(200, xml=xml | {"IsTruncated": str(truncated).lower()} | more)


def lists():
    mine = ("prefix", P)
    yield from listing("all", [mine], found(NAMES))
    yield from listing("prefix", [("prefix", P + "b/")], found(["b/1", "b/2", "b/c/3"]))
    yield from listing("prefix-is-a-key", [("prefix", P + "a")], found(["a"]))
    yield from listing("prefix-of-nothing", [("prefix", P + "nothing")], found())
    yield from listing("prefix-and-more-than-a-key", [("prefix", P + "a/")], found())
    yield from listing("delimiter", [mine, ("delimiter", "/")], found(["a", "d e+f", "g&<h>", "z"], ["b/"], Delimiter="/"))
    yield from listing("delimiter-and-prefix", [("prefix", P + "b/"), ("delimiter", "/")], found(["b/1", "b/2"], ["b/c/"]))
    yield from listing("delimiter-and-part-of-a-name", [("prefix", P + "b"), ("delimiter", "/")], found([], ["b/"]))
    yield from listing("delimiter-empty", [mine, ("delimiter", "")], found(NAMES, Delimiter=None))
    yield from listing("delimiter-letter", [mine, ("delimiter", "1")], found([one for one in NAMES if one != "b/1"], ["b/1"]))
    yield from listing("delimiter-of-two", [mine, ("delimiter", "/c")], found([one for one in NAMES if one != "b/c/3"], ["b/c"]))
    yield from listing("delimiter-blank", [mine, ("delimiter", " ")], found([one for one in NAMES if one != "d e+f"], ["d "]))
    yield from listing("delimiter-percent", [mine, ("delimiter", "%")], found(NAMES))
    yield from listing("delimiter-dot", [mine, ("delimiter", ".")], found(["a"], ["a."]), names=["a", "a.b", "a.c"])
    yield from listing("delimiter-not-in-any", [mine, ("delimiter", "#")], found(NAMES))
    yield from listing("delimiter-letter-of-many-bytes", [mine, ("delimiter", "ü")], found(["a"], ["aü"]), names=["a", "aüb", "aüc"])
    yield from listing("order-of-bytes", [mine], found(ODD), names=ODD)
    yield from listing("folder-objects", [mine, ("delimiter", "/")], found(["f"], ["f/"]), names=["f", "f/", "f/a"])
    yield from listing("folder-object-is-its-own-prefix", [("prefix", P + "f/"), ("delimiter", "/")], found(["f/", "f/a"]), names=["f", "f/", "f/a"])
    yield from listing("double-slash", [("prefix", P + "f/"), ("delimiter", "/")], found([], ["f//"]), names=["f//a", "f//b"])
    for size in (1, 2, 3):
        yield from listing(f"max-keys-{size}", [mine, ("max-keys", str(size))], found(NAMES[:size], truncated=True, MaxKeys=str(size)))
    yield from listing("max-keys-exact", [mine, ("max-keys", "7")], found(NAMES))
    yield from listing("max-keys-more", [mine, ("max-keys", "8")], found(NAMES, MaxKeys="8"))
    yield from listing("max-keys-0", [mine, ("max-keys", "0")], found([], MaxKeys="0"))
    yield from listing("max-keys-1001", [mine, ("max-keys", "1001")], found(NAMES))
    yield from listing("max-keys-huge", [mine, ("max-keys", "2147483647")], found(NAMES))
    for bad in ("-1", "abc", "1.5", "0x10", "99999999999999999999"):
        yield from listing(f"max-keys-{bad}", [mine, ("max-keys", bad)], error(400, "InvalidArgument"))
    yield from listing("max-keys-empty", [mine, ("max-keys", "")], found(NAMES))
    yield from listing("max-keys-and-delimiter", [mine, ("delimiter", "/"), ("max-keys", "2")], found(["a"], ["b/"], truncated=True))
    yield from listing("encoded", [mine, ("encoding-type", "url")], found(
        ["a", "b/1", "b/2", "b/c/3", "d%20e%2Bf", "g%26%3Ch%3E", "z"], EncodingType="url"))
    yield from listing("encoded-odd", [mine, ("encoding-type", "url")], found(
        ["A", "Z", "_", "a-b", "a/b", "ab", "%C3%A4", "%E6%97%A5%E6%9C%AC", "%F0%9F%98%80"]), names=ODD)
    yield from listing("encoded-prefix", [("prefix", P + "d e"), ("delimiter", "+"), ("encoding-type", "url")], found([], ["d%20e%2B"]))
    yield from listing("encoding-unknown", [mine, ("encoding-type", "rot13")], error(400, "InvalidArgument"))
    yield from listing("twice", [mine, ("prefix", "x")], error(400, "InvalidArgument"), differential=False)
    yield from listing("unknown-parameter", [mine, ("what", "x")], error(501, "NotImplemented"), differential=False)
    yield from listing("type-3", [mine, ("list-type", "3")], error(400, "InvalidArgument"), v1_only=True, differential=False)
    yield from listing("details", [("prefix", P + "b/1")], Want(200, xml={
        "Contents/Size": "3", "Contents/StorageClass": "STANDARD", "Contents/ETag": f'"{hashlib.md5(b"b/1").hexdigest()}"'}))
    unreadable = [("encoding-type", "url")]
    yield from listing("prefix-unreadable", [("prefix", P + "\n"), *unreadable], found(Prefix="%0A"))
    yield from listing("delimiter-unreadable", [mine, ("delimiter", "\n")], found(NAMES, Delimiter="\n"))
    yield from listing("unreadable-names", [mine, *unreadable], found(["a%0Ab", "a%01b"][::-1]), names=["a\nb", "a\x01b"])
    yield from marks(mine)
    yield from pages(mine)


def marks(mine):
    yield from listing("marker", [mine, ("marker", P + "b/1")], found(NAMES[2:], Marker=P + "b/1"), v1_only=True)
    yield from listing("marker-not-a-key", [mine, ("marker", P + "b/")], found(NAMES[1:]), v1_only=True)
    yield from listing("marker-after-all", [mine, ("marker", P + "zz")], found(), v1_only=True)
    yield from listing("marker-before-all", [mine, ("marker", "!")], found(NAMES), v1_only=True)
    yield from listing("marker-empty", [mine, ("marker", "")], found(NAMES), v1_only=True)
    yield from listing("marker-odd", [mine, ("marker", P + "a\u0001ü"), ("encoding-type", "url")], found(["b/1", "b/2", "b/c/3", "d%20e%2Bf", "g%26%3Ch%3E", "z"]), v1_only=True, differential=False)
    yield from listing("marker-with-delimiter", [mine, ("delimiter", "/"), ("marker", P + "b/1")], found(["d e+f", "g&<h>", "z"]), v1_only=True)
    yield from listing("marker-is-a-prefix", [mine, ("delimiter", "/"), ("marker", P + "b/")], found(["d e+f", "g&<h>", "z"]), v1_only=True)
    yield from listing("next-marker", [mine, ("delimiter", "/"), ("max-keys", "2")], found(["a"], ["b/"], True, NextMarker=P + "b/"), v1_only=True)
    yield from listing("start-after", [mine, ("start-after", P + "b/1")], found(NAMES[2:], KeyCount="5", StartAfter=P + "b/1"), v2_only=True)
    yield from listing("start-after-not-a-key", [mine, ("start-after", P + "c")], found(NAMES[4:]), v2_only=True)
    yield from listing("start-after-all", [mine, ("start-after", P + "zz")], found(KeyCount="0"), v2_only=True)
    yield from listing("key-count", [mine], found(NAMES, KeyCount="7"), v2_only=True)
    yield from listing("key-count-with-prefixes", [mine, ("delimiter", "/")], found(["a", "d e+f", "g&<h>", "z"], ["b/"], KeyCount="5"), v2_only=True)
    yield from listing("owner-asked-for", [mine, ("fetch-owner", "true"), ("max-keys", "1")], Want(200, xml={"Contents/Key": P + "a", "Owner/ID": ANY}), v2_only=True, differential=False)
    yield from listing("owner-not-asked-for", [mine], found(NAMES, **{"Owner/ID": None}), v2_only=True)
    yield from listing("owner-refused", [mine, ("fetch-owner", "false")], found(NAMES, **{"Owner/ID": None}), v2_only=True)
    for name, token in (("garbage", "what"), ("empty", ""), ("blank", " "), ("long", "A" * 2000), ("base64", "AQIDBA==")):
        yield from listing(f"token-{name}", [mine, ("continuation-token", token)], error(400, "InvalidArgument"), v2_only=True, differential=False)


def pages(mine):
    """Page after page, each from where the last ended."""
    fixture = tuple(put(key, key.encode()) for key in NAMES)
    for size in (1, 3):
        steps, token = [], []
        for start in range(0, len(NAMES), size):
            part, more = NAMES[start : start + size], start + size < len(NAMES)
            want = found(part, truncated=more, KeyCount=str(len(part)))._replace(save={"token": "xml:NextContinuationToken"} if more else {})
            steps.append(volume("GET", want, [("list-type", "2"), mine, ("max-keys", str(size)), *token]))
            token = [("continuation-token", saved("token"))]
        yield case(f"list/v2-pages-of-{size}", *steps, fixture=fixture)
    want = found(["a"], [], True)._replace(save={"token": "xml:NextContinuationToken"})
    yield case(
        "list/v2-pages-with-delimiter", volume("GET", want, [("list-type", "2"), mine, ("delimiter", "/"), ("max-keys", "1")]),
        volume("GET", found([], ["b/"], True)._replace(save={"token": "xml:NextContinuationToken"}), [
            ("list-type", "2"), mine, ("delimiter", "/"), ("max-keys", "1"), ("continuation-token", saved("token"))]),
        volume("GET", found(["d e+f", "g&<h>", "z"]), [("list-type", "2"), mine, ("delimiter", "/"), ("continuation-token", saved("token"))]),
        fixture=fixture,
    )
    yield case(
        "list/v2-token-counts-more-than-start-after", volume("GET", want, [("list-type", "2"), mine, ("max-keys", "1")]),
        volume("GET", found(NAMES[1:]), [("list-type", "2"), mine, ("continuation-token", saved("token")), ("start-after", P + "y")]),
        fixture=fixture,
    )
    # Names, prefix and token of such length that the request's target is long.
    long = "ü" * 480
    yield case(
        "list/v2-long-names", put(long + "a"), put(long + "b"),
        volume("GET", found([long + "a"], [], True)._replace(save={"token": "xml:NextContinuationToken"}), [
            ("list-type", "2"), ("prefix", P + long), ("max-keys", "1")]),
        volume("GET", found([long + "b"]), [("list-type", "2"), ("prefix", P + long), ("continuation-token", saved("token"))]),
    )
    yield case(
        "list/after-changes", put("a"), put("b"), volume("GET", found(["a", "b"]), [mine]), delete("a"), volume("GET", found(["b"]), [mine]),
        put("a", b"longer"), volume("GET", found(["a", "b"], **{"Contents/Size": ["6", "0"]}), [mine]),
    )
    yield case("list/bucket-not-there", ask("GET", None, error(404, "NoSuchBucket"), bucket="no-such-volume"))
    yield case("list/slash-after-the-bucket", put("a"), ask("GET", "", found(["a"]), query=[mine], bare_key=True))


def md5_of(body):
    return {"content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()}


def order(keys, quiet=False, extra=""):
    objects = "".join(f"<Object><Key>{xml_escape(P + key)}</Key>{extra}</Object>" for key in keys)
    return f"<Delete>{'<Quiet>true</Quiet>' if quiet else ''}{objects}</Delete>"


def delete_objects(name, document, want, *after, before=(), sent=None, **more):
    """A DeleteObjects, with the MD5 of its document unless other headers are given."""
    body = document if isinstance(document, bytes) else document.encode()
    step = volume("POST", want, [("delete", "")], body=body, headers=sent if sent is not None else {"content-md5": saved("body-md5")})
    return case(f"delete-objects/{name}", *before, step, *after, **more)


def deletes():
    keys = ["a", "b c", "d/e", "ü", "&<>\"'", "g+h%20"]
    written = tuple(put(key, b"x") for key in keys)
    deleted = lambda names: Want(200, xml={"Deleted/Key": {P + key for key in names}, "Error/Key": None})
    gone = tuple(head(key, 404) for key in keys)
    yield delete_objects("all", order(keys), deleted(keys), *gone, before=written)
    yield delete_objects("quiet", order(keys, quiet=True), deleted([]), *gone, before=written)
    yield delete_objects("missing-keys", order(["no-1", "no-2"]), deleted(["no-1", "no-2"]))
    yield delete_objects("some-missing", order(["a", "no"]), deleted(["a", "no"]), head("a", 404), before=(put("a"),))
    yield delete_objects("same-key-twice", order(["a", "a"]), Want(200, xml={"Error/Key": None}), head("a", 404), before=(put("a"),))
    yield delete_objects("one", order(["a"]), deleted(["a"]), head("a", 404), head("b", 200), before=(put("a"), put("b")))
    yield delete_objects("quiet-false", order(["a"]).replace("<Delete>", "<Delete><Quiet>false</Quiet>"), deleted(["a"]), before=(put("a"),))
    yield delete_objects("quiet-at-the-end", order(["a"]).replace("</Delete>", "<Quiet>true</Quiet></Delete>"), deleted([]), head("a", 404), before=(put("a"),))
    yield delete_objects("with-declaration", '<?xml version="1.0" encoding="UTF-8"?>\n' + order(["a"]), deleted(["a"]))
    name_space = '<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    yield delete_objects("with-name-space", order(["a"]).replace("<Delete>", name_space), deleted(["a"]))
    yield delete_objects("with-blanks", order(["a", "b"]).replace("><", ">\n  <"), deleted(["a", "b"]))
    yield delete_objects("with-a-comment", order(["a"]).replace("<Delete>", "<Delete><!-- x -->"), deleted(["a"]))
    yield delete_objects("1000-keys", order([f"k{n:04}" for n in range(1000)]), deleted([f"k{n:04}" for n in range(1000)]))
    malformed = error(400, "MalformedXML")
    yield delete_objects("1001-keys", order([f"k{n:04}" for n in range(1001)]), malformed, head("k0000", 200), before=(put("k0000"),))
    yield delete_objects("10000-keys", order([f"k{n:05}" for n in range(10_000)]), error((400, 413)), head("k00000", 200), before=(put("k00000"),), differential=False)
    for name, document in (
        ("no-objects", "<Delete></Delete>"), ("empty", ""), ("no-xml", "what"), ("other-root", "<Remove></Remove>"),
        ("not-closed", "<Delete><Object><Key>a</Key></Object>"), ("crossed", "<Delete><Object><Key>a</Object></Key></Delete>"),
        ("object-without-key", "<Delete><Object></Object></Delete>"), ("two-roots", "<Delete></Delete><Delete></Delete>"),
        ("half", order(["a"])[:20]), ("bad-utf8", b"<Delete><Object><Key>\xff</Key></Object></Delete>"),
        ("unknown-entity", "<Delete><Object><Key>&what;</Key></Object></Delete>"),
        ("bomb", '<!DOCTYPE a [<!ENTITY b "' + "b" * 100 + '"><!ENTITY c "' + "&b;" * 100 + '">]><Delete><Object><Key>&c;</Key></Object></Delete>'),
        ("outside-entity", '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><Delete><Object><Key>&b;</Key></Object></Delete>'),
        ("deep", "<Delete>" + "<a>" * 5000 + "</a>" * 5000 + "</Delete>"),
    ):
        yield delete_objects(f"broken-{name}", document, error(400), head("a", 200), before=(put("a"),), differential=False)
    yield delete_objects("empty-key", "<Delete><Object><Key></Key></Object></Delete>", Want((200, 400)), differential=False)
    yield delete_objects("too-large", b"<Delete>" + b" " * (3 << 20) + b"</Delete>", error((400, 413)), differential=False)
    yield delete_objects("version", order(["a"], extra="<VersionId>v1</VersionId>"), Want((200, 501)), head("a", 200), before=(put("a"),), differential=False)
    yield delete_objects("condition", order(["a"], extra='<ETag>"abc"</ETag>'), Want((200, 501)), head("a", 200), before=(put("a"),), differential=False)
    yield delete_objects("md5-wrong", order(["a"]), error(400, "BadDigest"), head("a", 200), before=(put("a"),), sent={"content-md5": base64.b64encode(bytes(16)).decode()})
    yield delete_objects("md5-malformed", order(["a"]), error(400, "InvalidDigest"), head("a", 200), before=(put("a"),), sent={"content-md5": "abc"})
    yield delete_objects("no-checksum", order(["a"]), error(400, "InvalidRequest"), head("a", 200), before=(put("a"),), sent={}, differential=False)
    yield delete_objects("bucket-not-there", order(["a"]), 200)._replace(
        steps=(ask("POST", None, error(404, "NoSuchBucket"), query=[("delete", "")], body=b"<Delete/>", headers=md5_of(b"<Delete/>"), bucket="no-such-volume"),)
    )


UNKNOWN_SUBRESOURCES = (
    "accelerate", "analytics", "cors", "encryption", "intelligent-tiering", "inventory", "lifecycle", "logging", "metadataConfiguration",
    "metadataTable", "metrics", "notification", "object-lock", "ownershipControls", "policy", "policyStatus", "publicAccessBlock", "replication",
    "requestPayment", "session", "tagging", "website",
)


def buckets():
    refused = error(501, "NotImplemented", headers={"content-type": "application/xml"})
    for name in UNKNOWN_SUBRESOURCES:
        for method in ("GET", "PUT", "DELETE"):
            body = b"<x/>" if method == "PUT" else b""
            yield case(f"bucket-refused/{method.lower()}-{name}", volume(method, refused, [name], body=body), differential=False)
    for method, name in (("PUT", "acl"), ("DELETE", "versioning"), ("PUT", "versions"), ("POST", "what"), ("PUT", "location"), ("DELETE", "location")):
        yield case(f"bucket-refused/{method.lower()}-{name}", volume(method, refused, [name], body=b"<x/>" if method != "DELETE" else b""), differential=False)
    yield case("bucket-refused/delete", volume("DELETE", refused), differential=False)
    for method in ("PATCH", "PROPFIND", "OPTIONS"):
        yield case(f"bucket-refused/{method.lower()}", volume(method, Want((400, 403, 405, 501))), differential=False)
    yield case("bucket/head", volume("HEAD", Want(200, body=b"")))
    yield case("bucket/head-not-there", ask("HEAD", None, Want(404, body=b""), bucket="no-such-volume"))
    yield case("bucket/location", volume("GET", Want(200, xml={"LocationConstraint": ""}), ["location"]), differential=False)
    yield case("bucket/location-not-there", ask("GET", None, error(404, "NoSuchBucket"), query=["location"], bucket="no-such-volume"))
    yield case("bucket/versioning", volume("GET", Want(200, xml={"Status": None}), ["versioning"]))
    yield case("bucket/acl", volume("GET", Want(200, xml={"Permission": "FULL_CONTROL"}), ["acl"]))
    yield case("bucket/create-again", volume("PUT", error(409, "BucketAlreadyOwnedByYou")), differential=False)
    yield case("bucket/create-another", ask("PUT", None, error((403, 404, 501)), bucket="not-here-yet"), differential=False)
    yield case("bucket/bad-names", *(ask("GET", None, error((400, 404)), bucket=name) for name in ("A_B", "a", "x" * 64)), differential=False)
    yield case("service/list", ask("GET", None, Want(200, xml={"Buckets/Bucket": ANY, "Owner/ID": ANY}), bucket=""))
    yield case("service/post", ask("POST", None, Want((400, 403, 405, 501)), bucket="", body=b"x"), differential=False)
    yield case("service/delete", ask("DELETE", None, Want((400, 403, 405, 501)), bucket=""), differential=False)
    yield case("service/put", ask("PUT", None, Want((400, 403, 405, 501)), bucket=""), differential=False)


TABLES = (lists, deletes, buckets)
