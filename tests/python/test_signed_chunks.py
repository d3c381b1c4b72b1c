"""Bodies with signed chunks, sent to Forebay and to the store behind it: both must judge alike.

The signer is written from Amazon's description, for no client of Python's signs chunks. What the store
takes, Forebay must take; what Forebay stores must be what was signed. The store's release (Ceph 16) knows
neither signed trailers nor empty bodies in chunks: of those Forebay alone is asked. Run by scripts/test.
"""

import base64
import hashlib
import hmac
import http.client
import os
import time
import unittest
import urllib.parse
import zlib

from forebay_proxy import VOLUME, Proxy, Store

BODY = bytes(range(256)) * 12_000  # 3 MB: several blocks.
PAIR = ("FBWRITER", "writer-secret-0123456789abcdef")
CHUNK_BYTES = 65_536
SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"


def sign(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Request:
    """One PUT: its signed headers, and its body in signed chunks."""

    def __init__(self, host, path, pair, region, body, trailer=None, headers=()):
        self.time = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.scope = f"{self.time[:8]}/{region}/s3/aws4_request"
        self.key = b"AWS4" + pair[1].encode()
        for part in self.scope.split("/"):
            self.key = sign(self.key, part)
        payload = SIGNED + ("-TRAILER" if trailer else "")
        signed = {"host": host, "x-amz-content-sha256": payload, "x-amz-date": self.time, **dict(headers)}
        signed |= {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(body))}
        if trailer:
            signed["x-amz-trailer"] = trailer.split(":")[0]
        names = ";".join(sorted(signed))
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        canonical = f"PUT\n{path}\n\n{lines}\n{names}\n{payload}"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        self.previous = sign(self.key, f"AWS4-HMAC-SHA256\n{self.time}\n{self.scope}\n{digest}").hex()
        self.headers = dict(signed) | {
            "authorization": f"AWS4-HMAC-SHA256 Credential={pair[0]}/{self.scope}, SignedHeaders={names}, Signature={self.previous}"
        }
        self.body = self.seal(body, trailer)

    def next_signature(self, kind, *hashed):
        hashes = "\n".join(hashlib.sha256(part).hexdigest() for part in hashed)
        text = f"AWS4-HMAC-SHA256-{kind}\n{self.time}\n{self.scope}\n{self.previous}\n{hashes}"
        self.previous = sign(self.key, text).hex()
        return self.previous

    def seal(self, body, trailer):
        sealed = []
        for start in [*range(0, len(body), CHUNK_BYTES), None]:
            chunk = b"" if start is None else body[start : start + CHUNK_BYTES]
            signature = self.next_signature("PAYLOAD", b"", chunk)
            sealed += [f"{len(chunk):x};chunk-signature={signature}\r\n".encode(), chunk, b"\r\n" if chunk else b""]
        if trailer:
            signature = self.next_signature("TRAILER", f"{trailer}\n".encode())
            sealed.append(f"{trailer}\r\nx-amz-trailer-signature:{signature}\r\n".encode())
        return b"".join([*sealed, b"\r\n"])


@unittest.skipUnless("FOREBAY_TEST_S3_RGW_ENDPOINT" in os.environ, "there is no S3 server to compare with")
class SignedChunks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.store = Store("RGW")
        cls.proxy = Proxy(os.environ["FOREBAY_TEST_BINARY"], store=cls.store, block_size="1MiB", tls=False)
        cls.addClassCleanup(cls.proxy.close)  # Also when the start fails.
        cls.proxy.give_keys([(PAIR, "rw")])
        cls.proxy.start()

    def send(self, to_store, key, body, change=lambda sealed: sealed, **more):
        """Status and error code of a PUT to the store, or to Forebay."""
        if to_store:
            host, path = urllib.parse.urlsplit(self.store.endpoint).netloc, f"/{self.store.bucket}/{self.store.prefix}-direct/{key}"
            pair, region = (self.store.key, self.store.secret), self.store.region
        else:
            host, path, pair, region = f"127.0.0.1:{self.proxy.port}", f"/{VOLUME}/{key}", PAIR, "us-east-1"
        request = Request(host, path, pair, region, body, **more)
        connection = http.client.HTTPConnection(host, timeout=60)
        sealed = change(request.body)
        try:
            connection.putrequest("PUT", path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.putheader("content-length", str(len(sealed)))
            connection.endheaders()
            try:
                connection.send(sealed)
            except (BrokenPipeError, ConnectionResetError):
                pass  # Refused before its end; the answer is there.
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        code = text.split("<Code>")[1].split("</Code>")[0] if "<Code>" in text else ""
        return answer.status, code

    def get(self, key):
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=60)
        connection.request("GET", f"/{VOLUME}/{key}", headers={"Authorization": "Bearer token-read-write-0123456789abcdef"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    def test_good_bodies_are_taken(self):
        for number, body in enumerate((b"", b"small", BODY[:100_000], BODY)):
            checksum = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
            for trailer in (None, f"x-amz-checksum-crc32:{checksum}"):
                with self.subTest(length=len(body), trailer=trailer):
                    key = f"good-{number}-{bool(trailer)}"
                    self.assertEqual(self.send(False, key, body, trailer=trailer), (200, ""))
                    if body and not trailer:
                        self.assertEqual(self.send(True, key, body), (200, ""))
                    self.assertEqual(self.get(key), (200, body))

    def test_bad_bodies_are_taken_by_neither(self):
        middle = len(BODY) // 2
        changes = {
            "content": lambda sealed: sealed[:middle] + bytes([sealed[middle] ^ 1]) + sealed[middle + 1 :],
            "signature": lambda sealed: sealed.replace(b"chunk-signature=", b"chunk-signature=0", 2)[:-1],
            "order": lambda sealed: sealed[65_626:131_252] + sealed[:65_626] + sealed[131_252:],
        }
        for what, change in changes.items():
            for body in (BODY, BODY[:200_000]):
                with self.subTest(what, length=len(body)):
                    if len(body) < middle and what == "content":
                        change = lambda sealed: sealed[:100_000] + bytes([sealed[100_000] ^ 1]) + sealed[100_001:]
                    self.assertGreaterEqual(self.send(True, "bad", body, change)[0], 400)
                    self.assertEqual(self.send(False, "bad", body, change), (403, "SignatureDoesNotMatch"))
                    self.assertEqual(self.get("bad")[0], 404)

    def test_a_wrong_trailer_is_not_stored(self):
        for body in (BODY, b"small"):
            with self.subTest(length=len(body)):
                trailer = "x-amz-checksum-crc32:AAAAAA=="
                self.assertEqual(self.send(False, "wrong", body, trailer=trailer), (400, "BadDigest"))
                self.assertEqual(self.get("wrong")[0], 404)


if __name__ == "__main__":
    unittest.main()
