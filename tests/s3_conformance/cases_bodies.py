"""What a body is checked against: payload hash, Content-MD5, checksums, the chunks of aws-chunked. Tables only.

Wherever a body is refused, the object of before must still be there: nothing half-done stays.
"""

import base64
import hashlib
import zlib

from chunked import SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER, SignedChunks, headers, signing, unsigned_chunks
from model import Want, case, error, get, head, put
from wire import Signing

BODY = b"123456789"
LARGE = bytes(range(256)) * 1024  # 256 KiB: several chunks.
OVER_A_BLOCK = bytes(range(256)) * 4097  # 1 MiB and 256 bytes: streamed to the store.


def b64(data):
    return base64.b64encode(data).decode()


# The check values of "123456789" that everybody publishes, and what the standard library knows.
CHECKSUMS = {
    "crc32": b64(zlib.crc32(BODY).to_bytes(4, "big")),
    "crc32c": b64(bytes.fromhex("e3069283")),
    "crc64nvme": b64(bytes.fromhex("ae8b14860a799888")),
    "sha1": b64(hashlib.sha1(BODY).digest()),
    "sha256": b64(hashlib.sha256(BODY).digest()),
}
WRONG = {name: b64(bytes(len(base64.b64decode(value)))) for name, value in CHECKSUMS.items()}
HEADER = "x-amz-checksum-"
MODE = {"x-amz-checksum-mode": "ENABLED"}
MD5 = b64(hashlib.md5(BODY).digest())


def refused(name, sent, want, body=BODY, **more):
    """A write that is refused, over an object that stays; and again where there was none."""
    differential = more.pop("differential", True)
    return case(
        name, put("k", b"before"), put("k", body, want, headers=sent, **more), get("k", Want(200, body=b"before")),
        put("new", body, want, headers=sent, **more), head("new", 404), differential=differential,
    )


def digests():
    yield case("md5/right", put("k", BODY, headers={"content-md5": MD5}), get("k", Want(200, body=BODY)))
    yield case("md5/right-of-nothing", put("k", b"", headers={"content-md5": b64(hashlib.md5(b"").digest())}), get("k", Want(200, body=b"")))
    large = b64(hashlib.md5(OVER_A_BLOCK).digest())
    yield case("md5/right-over-a-block", put("k", OVER_A_BLOCK, headers={"content-md5": large}), get("k", Want(200, body=OVER_A_BLOCK)))
    invalid = error(400, "InvalidDigest")
    for name, value, want in (
        ("wrong", b64(bytes(16)), error(400, "BadDigest")), ("of-something-else", b64(hashlib.md5(b"x").digest()), error(400, "BadDigest")),
        ("hex", hashlib.md5(BODY).hexdigest(), invalid), ("short", "MTIz", invalid), ("long", b64(bytes(20)), invalid),
        ("no-base64", "!" * 24, invalid), ("no-padding", MD5.rstrip("="), invalid), ("blanks", MD5[:8] + " " + MD5[8:], invalid),
        ("empty", "", invalid),
    ):
        yield refused(f"md5/{name}", {"content-md5": value}, want)
    yield refused("md5/wrong-over-a-block", {"content-md5": b64(bytes(16))}, error(400, "BadDigest"), body=OVER_A_BLOCK)
    mismatch = error(400, "XAmzContentSHA256Mismatch|BadDigest")
    for name, payload, want in (
        ("wrong", "0" * 64, mismatch), ("of-nothing", hashlib.sha256(b"").hexdigest(), mismatch),
        ("short", "abc", error(400)), ("empty-word", "SIGNED-PAYLOAD", error(400)), ("unknown-streaming", "STREAMING-WHAT", error((400, 501))),
    ):
        yield refused(f"sha256/{name}", {}, want, sign=Signing(payload=payload), differential=name != "unknown-streaming")
    yield refused("sha256/wrong-over-a-block", {}, mismatch, body=OVER_A_BLOCK, sign=Signing(payload="0" * 64))
    yield case("sha256/unsigned", put("k", BODY, sign=Signing(payload="UNSIGNED-PAYLOAD")), get("k", Want(200, body=BODY)))
    yield case("sha256/in-capitals", put("k", BODY, Want((200, 400)), sign=Signing(payload=hashlib.sha256(BODY).hexdigest().upper())), differential=False)


def checksums():
    for name, value in CHECKSUMS.items():
        header = HEADER + name
        told = {header: value, "x-amz-checksum-type": "FULL_OBJECT"}
        yield case(
            f"checksum/{name}-right", put("k", BODY, Want(200, headers=told), headers={header: value}),
            get("k", Want(200, body=BODY, headers=told), headers=MODE), head("k", Want(200, headers=told), headers=MODE),
            get("k", Want(200, headers={header: None})), head("k", Want(200, headers={header: None})),
            get("k", Want(206, headers={header: None}), headers=MODE | {"range": "bytes=0-1"}), differential=False,
        )
        yield case(
            f"checksum/{name}-named", put("k", BODY, 200, headers={header: value, "x-amz-sdk-checksum-algorithm": name.upper()}),
            get("k", Want(200, body=BODY, headers=told), headers=MODE), differential=False,
        )
        # What follows the store's release knows nothing of.
        wrong = error(400, "BadDigest|XAmzContentChecksumMismatch")
        yield refused(f"checksum/{name}-wrong", {header: WRONG[name]}, wrong, differential=False)
        yield refused(f"checksum/{name}-wrong-over-a-block", {header: WRONG[name]}, wrong, body=OVER_A_BLOCK, differential=False)
        for kind, bad in (("short", "AAA="), ("no-base64", "?" * len(value)), ("empty", ""), ("hex", "00" * 32), ("no-padding", value.rstrip("=") + "A")):
            yield refused(f"checksum/{name}-{kind}", {header: bad}, error(400, "InvalidRequest|InvalidArgument"), differential=False)
        trailer = f"{header}:{value}"
        yield case(
            f"checksum/{name}-in-a-trailer",
            put("k", unsigned_chunks(BODY, trailer), Want(200, headers=told), headers=headers(9, header), sign=signing(UNSIGNED_TRAILER)),
            get("k", Want(200, body=BODY, headers=told | {"content-encoding": None}), headers=MODE), differential=False,
        )
        yield refused(
            f"checksum/{name}-wrong-in-a-trailer", headers(9, header), wrong, body=unsigned_chunks(BODY, f"{header}:{WRONG[name]}"),
            sign=signing(UNSIGNED_TRAILER), differential=False,
        )
    two = {HEADER + name: CHECKSUMS[name] for name in ("crc32", "sha1")}
    yield refused("checksum/two", two, error(400, "InvalidRequest"), differential=False)
    yield refused(
        "checksum/other-than-named", {HEADER + "crc32": CHECKSUMS["crc32"], "x-amz-sdk-checksum-algorithm": "SHA256"},
        error(400, "InvalidRequest"), differential=False,
    )
    yield refused("checksum/named-and-missing", {"x-amz-sdk-checksum-algorithm": "CRC32"}, error(400, "InvalidRequest"), differential=False)
    yield refused("checksum/unknown-name", {"x-amz-sdk-checksum-algorithm": "ADLER32"}, error(400, "InvalidRequest"), differential=False)
    yield refused("checksum/unknown-header", {HEADER + "adler32": "AAAAAA=="}, error((400, 501)), differential=False)
    both = {"content-md5": MD5, HEADER + "crc32": CHECKSUMS["crc32"]}
    yield case("checksum/and-md5", put("k", BODY, headers=both), get("k", Want(200, body=BODY)))
    yield refused("checksum/right-and-md5-wrong", both | {"content-md5": b64(bytes(16))}, error(400, "BadDigest"))
    yield case(
        "checksum/given-by-the-server", put("k", BODY, Want(200, headers={HEADER + "crc64nvme": CHECKSUMS["crc64nvme"]})),
        get("k", Want(200, headers={HEADER + "crc64nvme": CHECKSUMS["crc64nvme"]}), headers=MODE), differential=False,
    )
    yield case(
        "checksum/replaced", put("k", BODY, headers={HEADER + "crc32": CHECKSUMS["crc32"]}),
        put("k", BODY, headers={HEADER + "sha1": CHECKSUMS["sha1"]}),
        get("k", Want(200, headers={HEADER + "crc32": None, HEADER + "sha1": CHECKSUMS["sha1"]}), headers=MODE), differential=False,
    )


def chunk_signing(**how):
    return signing(SIGNED, **how)


def signed_chunks():
    """Chunks that are signed, right in several sizes, and broken in every part."""
    for name, body, size in (
        ("one", BODY, 65_536), ("exact", LARGE, 65_536), ("uneven", LARGE + b"x", 65_536), ("small-chunks", LARGE[:40_000], 8192),
        ("large-chunk", LARGE, 1 << 20), ("over-a-block", OVER_A_BLOCK, 65_536),
    ):
        yield case(
            f"chunks/{name}", put("k", lambda *_, b=body, s=size: SignedChunks(b, s), headers=headers(len(body)), sign=chunk_signing()),
            get("k", Want(200, body=body, headers={"content-length": str(len(body)), "content-encoding": None})),
        )
    yield case(
        "chunks/of-nothing", put("k", lambda *_: SignedChunks(b""), headers=headers(0), sign=chunk_signing()), get("k", Want(200, body=b"")),
        differential=False,
    )
    yield case(
        "chunks/other-encoding-too", put("k", lambda *_: SignedChunks(BODY), headers=headers(9) | {"content-encoding": "gzip,aws-chunked"},
                                         sign=chunk_signing()), head("k", Want(200, headers={"content-encoding": "gzip"})),
    )

    def edit(place, part, value):
        def do(pieces):
            pieces[place][part] = value(pieces[place][part]) if callable(value) else value

        return do

    flip = lambda data: bytes([data[0] ^ 1]) + data[1:]
    other_hex = lambda text: (b"1" if text[:1] != b"1" else b"2") + text[1:]
    broken = error((400, 403), "SignatureDoesNotMatch|InvalidChunkSizeError|IncompleteBody|InvalidRequest|XAmzContentSHA256Mismatch")
    for name, change in (
        ("flipped-first-byte", edit(0, 2, flip)), ("flipped-in-a-later-chunk", edit(2, 2, flip)), ("wrong-signature", edit(1, 1, other_hex)),
        ("wrong-last-signature", edit(-1, 1, other_hex)), ("short-signature", edit(0, 1, lambda text: text[:-2])),
        ("no-signature", edit(0, 1, b"")), ("size-too-small", edit(0, 0, b"fff")), ("size-too-large", edit(0, 0, b"10001")),
        ("size-no-hex", edit(0, 0, b"xyz")), ("size-negative", edit(0, 0, b"-1")), ("size-huge", edit(0, 0, b"f" * 20)),
        ("size-empty", edit(0, 0, b"")), ("swapped", lambda pieces: pieces.insert(0, pieces.pop(1))), ("left-out", lambda pieces: pieces.pop(1)),
        ("twice", lambda pieces: pieces.insert(1, list(pieces[1]))), ("no-last", lambda pieces: pieces.pop()),
    ):
        yield refused(
            f"chunks-broken/{name}", headers(len(LARGE)), broken, body=lambda *_, c=change: SignedChunks(LARGE, edit=c), sign=chunk_signing(),
            differential=False,
        )
    whole = lambda *_: SignedChunks(LARGE)
    for name, sent in (("length-too-small", headers(len(LARGE) - 1)), ("length-too-large", headers(len(LARGE) + 1)), ("length-zero", headers(0)),
                       ("length-no-number", {**headers(9), "x-amz-decoded-content-length": "x"}),
                       ("length-negative", {**headers(9), "x-amz-decoded-content-length": "-1"}),
                       ("length-missing", {"content-encoding": "aws-chunked"})):
        yield refused(f"chunks-broken/{name}", sent, error((400, 411, 403)), body=whole, sign=chunk_signing(), differential=False)
    yield refused(
        "chunks-broken/plain-body", headers(len(LARGE)), error((400, 403)), body=LARGE, sign=chunk_signing(), differential=False
    )
    header = HEADER + "crc32"
    trailer = f"{header}:{CHECKSUMS['crc32']}"
    yield case(
        "chunks/signed-trailer", put("k", lambda *_: SignedChunks(BODY, trailer=trailer), headers=headers(9, header), sign=signing(SIGNED_TRAILER)),
        get("k", Want(200, body=BODY, headers={header: CHECKSUMS["crc32"]}), headers=MODE), differential=False,
    )
    wrong = f"{header}:{WRONG['crc32']}"
    yield refused(
        "chunks-broken/signed-trailer-wrong", headers(9, header), error(400), body=lambda *_: SignedChunks(BODY, trailer=wrong),
        sign=signing(SIGNED_TRAILER), differential=False,
    )


def unsigned_envelopes():
    header = HEADER + "crc32"
    good = f"{header}:{CHECKSUMS['crc32']}"
    sent = headers(9, header)
    for name, body in (
        ("one-chunk", unsigned_chunks(BODY, good)), ("bytewise", unsigned_chunks(BODY, good, chunk_bytes=1)),
        ("capital-hex", b"9\r\n" + BODY + b"\r\n0\r\n" + good.encode() + b"\r\n\r\n"),
        ("leading-zeros", b"0009\r\n" + BODY + b"\r\n0\r\n" + good.encode() + b"\r\n\r\n"),
        ("blank-in-trailer", b"9\r\n" + BODY + b"\r\n0\r\n" + good.replace(":", ": ").encode() + b"\r\n\r\n"),
        # What botocore sent for a while.
        ("line-feed-after-trailer", b"9\r\n" + BODY + b"\r\n0\r\n" + good.encode() + b"\n\r\n\r\n"),
    ):
        yield case(
            f"envelope/{name}", put("k", body, 200, headers=sent, sign=signing(UNSIGNED_TRAILER)), get("k", Want(200, body=BODY)),
            differential=False,
        )
    yield case(
        "envelope/no-trailer", put("k", unsigned_chunks(BODY), 200, headers=headers(9), sign=signing(UNSIGNED_TRAILER)),
        get("k", Want(200, body=BODY)), differential=False,
    )
    end = b"0\r\n" + good.encode() + b"\r\n\r\n"
    for name, body, *more in (
        ("no-end", b"9\r\n" + BODY + b"\r\n"), ("no-last-line", (b"9\r\n" + BODY + b"\r\n" + end)[:-2]), ("size-no-hex", b"g\r\n" + BODY + b"\r\n" + end),
        ("size-too-small", b"8\r\n" + BODY + b"\r\n" + end), ("size-too-large", b"a\r\n" + BODY + b"\r\n" + end),
        ("no-line-break-after-chunk", b"9\r\n" + BODY + end), ("bare-line-feeds", (b"9\r\n" + BODY + b"\r\n" + end).replace(b"\r\n", b"\n")),
        ("endless-size", b"0" * 5000 + b"9\r\n" + BODY + b"\r\n" + end), ("bytes-after-the-end", b"9\r\n" + BODY + b"\r\n" + end + b"more"),
        ("only-the-end", end), ("empty", b""), ("trailer-missing", b"9\r\n" + BODY + b"\r\n0\r\n\r\n"),
        ("trailer-of-another-name", unsigned_chunks(BODY, f"{HEADER}sha1:{CHECKSUMS['sha1']}")),
        ("trailer-twice", b"9\r\n" + BODY + b"\r\n0\r\n" + (good + "\r\n").encode() * 2 + b"\r\n"),
        ("trailer-without-colon", unsigned_chunks(BODY, header)), ("trailer-endless", unsigned_chunks(BODY, f"{header}:" + "A" * 20_000)),
        ("trailer-empty", unsigned_chunks(BODY, f"{header}:")), ("trailer-not-announced", unsigned_chunks(BODY, good), headers(9)),
    ):
        yield refused(
            f"envelope-broken/{name}", more[0] if more else sent, error((400, 403, 411)), body=body, sign=signing(UNSIGNED_TRAILER),
            differential=False,
        )
    yield refused(
        "envelope-broken/unknown-trailer", headers(9, "x-amz-meta-a"), error((400, 501)), body=unsigned_chunks(BODY, "x-amz-meta-a:b"),
        sign=signing(UNSIGNED_TRAILER), differential=False,
    )


TABLES = (digests, checksums, signed_chunks, unsigned_envelopes)
