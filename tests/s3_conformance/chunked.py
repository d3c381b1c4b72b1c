"""Bodies in aws-chunked's envelope, right and broken on purpose, signed and unsigned. Owns the envelope's bytes only."""

import hashlib

from wire import EMPTY_SHA256, Signing, digest

SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_TRAILER = SIGNED + "-TRAILER"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


class SignedChunks:
    """A body whose chunks are signed once the request is; `edit` breaks the list of sealed pieces."""

    def __init__(self, body, chunk_bytes=65_536, trailer=None, edit=None):
        self.body, self.chunk_bytes, self.trailer, self.edit = body, chunk_bytes, trailer, edit
        self.sealed = b""

    def seal(self, key, stamp, scope, seed):
        previous = seed
        pieces = []
        starts = [*range(0, len(self.body), self.chunk_bytes), None]
        for start in starts:
            chunk = b"" if start is None else self.body[start : start + self.chunk_bytes]
            text = f"AWS4-HMAC-SHA256-PAYLOAD\n{stamp}\n{scope}\n{previous}\n{EMPTY_SHA256}\n{hashlib.sha256(chunk).hexdigest()}"
            previous = digest(key, text).hex()
            pieces.append([f"{len(chunk):x}".encode(), previous.encode(), chunk])
        trailer = None
        if self.trailer:
            hashed = hashlib.sha256(f"{self.trailer}\n".encode()).hexdigest()
            trailer = digest(key, f"AWS4-HMAC-SHA256-TRAILER\n{stamp}\n{scope}\n{previous}\n{hashed}").hex()
        if self.edit:
            self.edit(pieces)
        out = []
        for size, signature, chunk in pieces:
            out.append(size + b";chunk-signature=" + signature + b"\r\n" + chunk + (b"\r\n" if chunk else b""))
        if trailer:
            out.append(f"{self.trailer}\r\nx-amz-trailer-signature:{trailer}\r\n".encode())
        self.sealed = b"".join([*out, b"\r\n"])


def unsigned_chunks(body, trailer=None, chunk_bytes=65_536):
    """The envelope without signatures; `trailer` as `name:value`."""
    pieces = [body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes)]
    out = [f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces] + [b"0\r\n"]
    if trailer:
        out.append(trailer.encode() + b"\r\n")
    return b"".join([*out, b"\r\n"])


def headers(length, trailer=None):
    """The headers that go with an envelope around `length` bytes."""
    found = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(length)}
    return found | ({"x-amz-trailer": trailer} if trailer else {})


def signing(kind, **more):
    return Signing(payload=kind, **more)
