"""Requests as they go over the wire, signed by hand: what a client library would mend or refuse to send can be sent.

Owns Signature Version 4 from Amazon's description and one connection per endpoint. Judges nothing. Standard library only.
"""

import hashlib
import hmac
import http.client
import socket
import time
import urllib.parse
from typing import NamedTuple

# Whoever says nothing for so long hangs.
ANSWER_SECONDS_MAX = 20
ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def escape(text, safe=""):
    """As AWS escapes: all but letters, digits and `-_.~`."""
    return urllib.parse.quote(text, safe=safe + "-_.~")


def digest(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Answer(NamedTuple):
    """What came back. `status` 0: nothing did; `body` then says why."""

    status: int
    headers: dict
    body: bytes


class Signing(NamedTuple):
    """How a request is signed; the defaults are right."""

    how: str = "header"  # header | query | none
    pair: tuple = None  # Of the endpoint, unless given.
    region: str = None
    service: str = "s3"
    # Seconds to add to the time that is signed.
    skew: int = 0
    expires: object = 300
    payload: str = None  # The hash of the body, unless given.
    # Names of headers that are sent and not signed.
    unsigned: tuple = ()
    # Changes after signing: headers, and a function for the Authorization line or the query.
    tampered: dict = {}
    rewrite: object = None
    # Another bucket, for which it is signed.
    bucket: str = None


class Request(NamedTuple):
    """One request; `key` None: for the bucket, `bucket` "": for the service."""

    method: str
    key: object = None
    query: tuple = ()
    headers: dict = {}
    body: object = b""
    sign: Signing = Signing()
    # The path's or the query's spelling on the wire, where it is not the usual one.
    raw_path: str = None
    raw_query: str = None
    bucket: str = None
    # None: of the body; False: without a length.
    length: object = None


class Endpoint:
    """One server and the bucket to use there."""

    # Whether it is a proxy, which has promises to keep beyond S3's.
    is_ours = False

    def __init__(self, name, url, bucket, pair, region="us-east-1"):
        self.name, self.bucket, self.pair, self.region = name, bucket, pair, region
        self.host = url.split("//")[1].rstrip("/")
        self.connection = None

    def send(self, request):
        """Signs and sends one request; gives the answer, also where none came."""
        line, headers, body = self.prepare(request)
        for attempt in (1, 2):
            is_fresh = self.connection is None
            try:
                return self.exchange(request.method, line, headers, body, request.length)
            except (socket.timeout, TimeoutError):
                self.close()
                return Answer(0, {}, b"no answer in time")
            except (http.client.HTTPException, OSError) as error:
                self.close()
                # A connection that was kept open may have ended meanwhile.
                if is_fresh or attempt == 2:
                    return Answer(0, {}, f"{type(error).__name__}: {error}".encode())

    def exchange(self, method, line, headers, body, length):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.host, timeout=ANSWER_SECONDS_MAX)
        connection = self.connection
        connection.putrequest(method, line, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value if isinstance(value, bytes) else value.encode())
        if length is None and (body or method in ("PUT", "POST")):
            connection.putheader("content-length", str(len(body)))
        elif length:
            connection.putheader("content-length", str(length))
        connection.endheaders()
        try:
            if body:
                connection.send(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # It may have answered before the end, and say why.
        got = connection.getresponse()
        said = {}
        for name, value in got.getheaders():
            said[name.lower()] = f"{said[name.lower()]}, {value}" if name.lower() in said else value
        answer = Answer(got.status, said, got.read())
        if got.will_close or got.status >= 400 and body:
            self.close()
        return answer

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    # Signing.

    def prepare(self, request):
        """The request line's target, the headers in order and the body."""
        sign = request.sign
        bucket = self.bucket if request.bucket is None else request.bucket
        path = f"/{bucket}" if bucket else "/"
        if request.key is not None:
            path += "/" + escape(request.key, safe="/")
        signed_path = path
        if sign.bucket is not None:
            signed_path = path.replace(f"/{bucket}", f"/{sign.bucket}", 1)
        wire_path = f"/{bucket}/{request.raw_path}" if request.raw_path is not None else path
        body = request.body(self, request) if callable(request.body) else request.body
        headers = {"host": self.host} | {name.lower(): value for name, value in request.headers.items()}
        query = list(request.query)
        if sign.how == "header":
            headers, body = self.sign_header(request, signed_path, query, headers, body)
        elif sign.how == "query":
            query = self.sign_query(request, signed_path, query, headers)
        if not isinstance(body, bytes):
            body = body.sealed  # A body of chunks, whose signatures hang on the request's.
        text = "&".join(escape(name) if value is None else f"{escape(name)}={escape(value)}" for name, value in query)
        if request.raw_query is not None:
            text = request.raw_query
        if sign.how == "query" and sign.rewrite:
            text = sign.rewrite(text)
        headers |= sign.tampered
        return wire_path + (f"?{text}" if text else ""), [(name, value) for name, value in headers.items() if value is not None], body

    def scope(self, sign, stamp):
        return f"{stamp[:8]}/{sign.region or self.region}/{sign.service}/aws4_request"

    def signing_key(self, sign, stamp):
        key = b"AWS4" + (sign.pair or self.pair)[1].encode()
        for part in self.scope(sign, stamp).split("/"):
            key = digest(key, part)
        return key

    def signature(self, sign, stamp, canonical):
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        return digest(self.signing_key(sign, stamp), f"{ALGORITHM}\n{stamp}\n{self.scope(sign, stamp)}\n{hashed}").hex()

    def sign_header(self, request, path, query, headers, body):
        sign = request.sign
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + sign.skew))
        payload = sign.payload or hashlib.sha256(body if isinstance(body, bytes) else b"").hexdigest()
        headers = headers | {"x-amz-date": stamp, "x-amz-content-sha256": payload}
        names, canonical = canonical_request(request.method, path, query, headers, sign.unsigned, payload)
        signature = self.signature(sign, stamp, canonical)
        if not isinstance(body, bytes):
            body.seal(self.signing_key(sign, stamp), stamp, self.scope(sign, stamp), signature)
        access = (sign.pair or self.pair)[0]
        line = f"{ALGORITHM} Credential={access}/{self.scope(sign, stamp)}, SignedHeaders={names}, Signature={signature}"
        return headers | {"authorization": sign.rewrite(line) if sign.rewrite else line}, body

    def sign_query(self, request, path, query, headers):
        sign = request.sign
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + sign.skew))
        names = ";".join(sorted(name for name in headers if name not in sign.unsigned))
        query = query + [
            ("X-Amz-Algorithm", ALGORITHM),
            ("X-Amz-Credential", f"{(sign.pair or self.pair)[0]}/{self.scope(sign, stamp)}"),
            ("X-Amz-Date", stamp),
            ("X-Amz-Expires", str(sign.expires)),
            ("X-Amz-SignedHeaders", names),
        ]
        _, canonical = canonical_request(request.method, path, query, headers, sign.unsigned, sign.payload or UNSIGNED)
        return query + [("X-Amz-Signature", self.signature(sign, stamp, canonical))]


def canonical_request(method, path, query, headers, unsigned, payload):
    """The names that are signed, and the text of which the signature is made."""
    signed = sorted(name for name in headers if name not in unsigned and headers[name] is not None)
    text_of = lambda value: " ".join((value.decode() if isinstance(value, bytes) else value).split())
    lines = "".join(f"{name}:{text_of(headers[name])}\n" for name in signed)
    pairs = sorted((escape(name), escape(value or "")) for name, value in query)
    text = "&".join(f"{name}={value}" for name, value in pairs)
    return ";".join(signed), f"{method}\n{path}\n{text}\n{lines}\n{';'.join(signed)}\n{payload}"
