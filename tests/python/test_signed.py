"""Clients that sign their requests, with their default settings: boto3, the aws command, curl.

Run by scripts/test, as test_clients.py. Nothing here is told to sign or to checksum in a way of its
own: what a client sends by itself must work.
"""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import unittest
import zlib

import boto3
import botocore.config
import botocore.exceptions
import requests

from forebay_proxy import TOKEN, VOLUME, Proxy, Store

BODY = bytes(range(256)) * 12_000  # 3 MB: several blocks, and below the size at which clients send parts.
REGION = "eu-somewhere-1"
WRITER = ("FBWRITER", "writer-secret-0123456789abcdef")
READER = ("FBREADER", "reader-secret-0123456789abcdef")


class Signed:
    """The tests, over TLS or not, before a folder or an S3 server; each class below says which."""

    store = None

    @classmethod
    def setUpClass(cls):
        store = Store(cls.store) if cls.store else None
        cls.proxy = Proxy(os.environ["FOREBAY_TEST_BINARY"], store=store, shards=2, block_size="1MiB", tls=cls.tls)
        cls.addClassCleanup(cls.proxy.close)  # Also when the start fails.
        cls.proxy.give_keys([(WRITER, "rw"), (READER, "r")])
        cls.proxy.start()

    def s3(self, pair=WRITER, **settings):
        config = botocore.config.Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, **settings)
        return boto3.client(
            "s3",
            endpoint_url=self.proxy.url,
            region_name=REGION,
            verify=self.proxy.certificate if self.tls else None,
            aws_access_key_id=pair[0],
            aws_secret_access_key=pair[1],
            config=config,
        )

    def aws(self, *words, data=None):
        """The aws command; gives what it wrote to stdout."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment |= {"AWS_ACCESS_KEY_ID": WRITER[0], "AWS_SECRET_ACCESS_KEY": WRITER[1], "AWS_DEFAULT_REGION": REGION}
        environment |= {"HOME": self.proxy.folder, "AWS_MAX_ATTEMPTS": "1"}
        if self.tls:
            environment["AWS_CA_BUNDLE"] = self.proxy.certificate
        command = [sys.executable, os.path.join(os.path.dirname(sys.executable), "aws"), "--endpoint-url", self.proxy.url]
        return subprocess.run([*command, *words], input=data, stdout=subprocess.PIPE, env=environment, check=True).stdout

    def curl(self, pair, *words, data=None):
        command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--user", ":".join(pair)]
        if self.tls:
            command += ["--cacert", self.proxy.certificate]
        # Older releases of curl leave this header out and cannot be taken for it.
        command += ["--aws-sigv4", f"aws:amz:{REGION}:s3", "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", *words]
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout

    def refusal(self, call, **arguments):
        with self.assertRaises(botocore.exceptions.ClientError) as caught:
            call(Bucket=VOLUME, **arguments)
        answer = caught.exception.response
        return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]

    def test_boto3_with_its_defaults(self):
        s3 = self.s3()
        for number, (key, body) in enumerate((("plain", b"small"), ("b/ü (1)+~=&?", BODY), ("empty", b""), ("file", io.BytesIO(BODY)))):
            with self.subTest(key):
                expected = BODY if isinstance(body, io.BytesIO) else body
                key = f"boto3/{number}/{key}"
                written = s3.put_object(Bucket=VOLUME, Key=key, Body=body, Metadata={"colour": "green  and  blue"})
                read = s3.get_object(Bucket=VOLUME, Key=key)
                self.assertEqual(read["Body"].read(), expected)
                self.assertEqual(read["ETag"], written["ETag"])
                self.assertNotIn("ContentEncoding", read)
                self.assertEqual(s3.head_object(Bucket=VOLUME, Key=key)["ContentLength"], len(expected))
                s3.delete_object(Bucket=VOLUME, Key=key)
                self.assertEqual(self.refusal(s3.get_object, Key=key), (404, "NoSuchKey"))

    def test_boto3_ranges_and_file_transfers(self):
        s3 = self.s3()
        s3.upload_fileobj(io.BytesIO(BODY), VOLUME, "boto3/transfer")
        part = s3.get_object(Bucket=VOLUME, Key="boto3/transfer", Range="bytes=1048570-1048580")
        self.assertEqual(part["Body"].read(), BODY[1048570:1048581])
        whole = io.BytesIO()
        s3.download_fileobj(VOLUME, "boto3/transfer", whole)
        self.assertEqual(whole.getvalue(), BODY)

    def test_boto3_with_every_checksum(self):
        s3 = self.s3()
        sums = {name: base64.b64encode(value).decode() for name, value in (
            ("CRC32", zlib.crc32(BODY).to_bytes(4, "big")),
            ("SHA1", hashlib.sha1(BODY).digest()),
            ("SHA256", hashlib.sha256(BODY).digest()),
            # What botocore cannot compute by itself: check values of "123456789".
            ("CRC32C", bytes.fromhex("e3069283")),
            ("CRC64NVME", bytes.fromhex("ae8b14860a799888")),
        )}
        for algorithm, value in sums.items():
            with self.subTest(algorithm):
                own = algorithm in ("CRC32", "SHA1", "SHA256")
                body = BODY if own else b"123456789"
                how = {"ChecksumAlgorithm": algorithm} if own else {f"Checksum{algorithm}": value}
                written = s3.put_object(Bucket=VOLUME, Key="boto3/sum", Body=body, **how)
                read = s3.get_object(Bucket=VOLUME, Key="boto3/sum", ChecksumMode="ENABLED")
                head = s3.head_object(Bucket=VOLUME, Key="boto3/sum", ChecksumMode="ENABLED")
                self.assertEqual(read["Body"].read(), body)  # botocore compares it with the checksum, too.
                for answer in (written, read, head):
                    told = {name: value for name, value in answer.items() if name.startswith("Checksum")}
                    self.assertEqual(told, {f"Checksum{algorithm}": value, "ChecksumType": "FULL_OBJECT"})
                part = s3.get_object(Bucket=VOLUME, Key="boto3/sum", Range="bytes=1-3", ChecksumMode="ENABLED")
                self.assertEqual(part["Body"].read(), body[1:4])
                wrong = {f"Checksum{algorithm}": value[:-2] + ("A=" if value[-2] != "A" else "B=")}
                if not value.endswith("=="):  # Else its last letters are not all of a checksum.
                    self.assertEqual(self.refusal(s3.put_object, Key="boto3/bad", Body=body, **wrong), (400, "BadDigest"))
        self.assertEqual(self.refusal(s3.get_object, Key="boto3/bad"), (404, "NoSuchKey"))

    def test_boto3_default_checksum_is_kept(self):
        s3 = self.s3()
        value = base64.b64encode(zlib.crc32(BODY).to_bytes(4, "big")).decode()
        for key, body in (("bytes", BODY), ("file", io.BytesIO(BODY))):
            with self.subTest(key):
                self.assertEqual(s3.put_object(Bucket=VOLUME, Key=f"boto3/{key}", Body=body)["ChecksumCRC32"], value)
                self.proxy.restart()
                self.assertEqual(s3.get_object(Bucket=VOLUME, Key=f"boto3/{key}")["ChecksumCRC32"], value)

    def test_boto3_streams_without_a_length(self):
        class Pipe(io.RawIOBase):  # No seek: botocore sends it in chunks, the checksum behind it.
            def __init__(self):
                self.left = io.BytesIO(BODY)

            def readable(self):
                return True

            def readinto(self, target):
                return self.left.readinto(target)

        s3 = self.s3()
        s3.upload_fileobj(Pipe(), VOLUME, "boto3/pipe")
        self.assertEqual(s3.get_object(Bucket=VOLUME, Key="boto3/pipe")["Body"].read(), BODY)

    def test_boto3_changes_headers_of_the_answer(self):
        s3 = self.s3(signature_version="s3v4")
        s3.put_object(Bucket=VOLUME, Key="boto3/changed", Body=b"body", ContentType="text/plain")
        changes = {"ResponseContentType": "text/html; charset=utf-8", "ResponseContentDisposition": 'attachment; filename="a b"'}
        read = s3.get_object(Bucket=VOLUME, Key="boto3/changed", **changes)
        self.assertEqual(read["ContentType"], changes["ResponseContentType"])
        self.assertEqual(read["ContentDisposition"], changes["ResponseContentDisposition"])
        self.assertEqual(s3.get_object(Bucket=VOLUME, Key="boto3/changed")["ContentType"], "text/plain")
        url = s3.generate_presigned_url("get_object", Params={"Bucket": VOLUME, "Key": "boto3/changed", **changes}, ExpiresIn=60)
        with requests.Session() as session:
            session.trust_env = False
            session.verify = self.proxy.certificate if self.tls else None
            self.assertEqual(session.get(url).headers["Content-Type"], changes["ResponseContentType"])
            forged = session.get(url.replace("text%2Fhtml", "text%2Fxml"))
            self.assertEqual(forged.status_code, 403)

    def test_boto3_is_refused_what_its_pair_may_not(self):
        self.s3().put_object(Bucket=VOLUME, Key="boto3/guarded", Body=b"body")
        reader = self.s3(READER)
        self.assertEqual(reader.get_object(Bucket=VOLUME, Key="boto3/guarded")["Body"].read(), b"body")
        self.assertEqual(self.refusal(reader.put_object, Key="boto3/guarded", Body=b"x"), (403, "AccessDenied"))
        self.assertEqual(self.refusal(reader.delete_object, Key="boto3/guarded"), (403, "AccessDenied"))
        wrong = self.s3((WRITER[0], WRITER[1] + "x"))
        self.assertEqual(self.refusal(wrong.get_object, Key="boto3/guarded"), (403, "SignatureDoesNotMatch"))
        unknown = self.s3(("FBNOBODY", WRITER[1]))
        self.assertEqual(self.refusal(unknown.get_object, Key="boto3/guarded"), (403, "InvalidAccessKeyId"))

    def test_presigned_urls_of_boto3(self):
        # What boto3 itself makes for V4; its default for presigning without a known region is V2.
        s3 = self.s3(signature_version="s3v4")
        verify = self.proxy.certificate if self.tls else None
        url = lambda operation, **more: s3.generate_presigned_url(
            operation, Params={"Bucket": VOLUME, "Key": "boto3/presigned ü", **more}, ExpiresIn=60
        )
        with requests.Session() as session:
            session.trust_env = False  # No proxy and no bundle of whoever runs the tests.
            session.verify = verify
            self.assertEqual(session.put(url("put_object"), data=BODY).status_code, 200)
            self.assertEqual(session.get(url("get_object")).content, BODY)
            self.assertEqual(session.get(url("head_object")).status_code, 403)
            self.assertEqual(session.head(url("head_object")).status_code, 200)
            self.assertEqual(session.get(url("get_object"), headers={"Range": "bytes=0-4"}).content, BODY[:5])
            both = session.get(url("get_object"), headers={"Authorization": f"Bearer {TOKEN}"})
            self.assertEqual(both.status_code, 400)
            self.assertEqual(session.delete(url("delete_object")).status_code, 204)

    def test_aws_command(self):
        for name, body in (("small", b"hello"), ("large", BODY * 2)):
            with self.subTest(name):
                source, copy = self.proxy.path(f"{name}.bin"), self.proxy.path(f"{name}.copy")
                with open(source, "wb") as file:
                    file.write(body)
                self.aws("s3", "cp", source, f"s3://{VOLUME}/aws/{name} file.bin")
                self.aws("s3", "cp", f"s3://{VOLUME}/aws/{name} file.bin", copy)
                with open(copy, "rb") as file:
                    self.assertEqual(file.read(), body)
                self.assertEqual(self.aws("s3", "cp", f"s3://{VOLUME}/aws/{name} file.bin", "-"), body)
                self.aws("s3", "rm", f"s3://{VOLUME}/aws/{name} file.bin")

    def test_aws_command_with_checksums(self):
        source, copy = self.proxy.path("sum.bin"), self.proxy.path("sum.copy")
        with open(source, "wb") as file:
            file.write(BODY)
        where = ("--bucket", VOLUME, "--key", "aws/sum")
        value = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
        written = json.loads(self.aws("s3api", "put-object", *where, "--body", source, "--checksum-algorithm", "SHA256"))
        self.assertEqual((written["ChecksumSHA256"], written["ChecksumType"]), (value, "FULL_OBJECT"))
        read = json.loads(self.aws("s3api", "get-object", *where, "--checksum-mode", "ENABLED", copy))
        self.assertEqual(read["ChecksumSHA256"], value)
        self.assertNotIn("ChecksumSHA256", json.loads(self.aws("s3api", "head-object", *where)))

    def test_aws_command_from_a_pipe(self):
        self.aws("s3", "cp", "-", f"s3://{VOLUME}/aws/piped", data=BODY)
        self.assertEqual(self.aws("s3", "cp", f"s3://{VOLUME}/aws/piped", "-"), BODY)

    def test_curl(self):
        url = f"{self.proxy.url}/{VOLUME}/curl/a%20b"
        headers = ["-H", "Content-Type: text/plain", "-H", "x-amz-meta-colour: green", "-H", "x-amz-meta-a: b"]
        self.curl(WRITER, "--fail", "--request", "PUT", "--data-binary", "@-", *headers, url, data=BODY)
        self.assertEqual(self.curl(READER, "--fail", url), BODY)
        self.assertEqual(self.curl(READER, "--fail", "--range", "100-199", url), BODY[100:200])
        status = ["--output", os.devnull, "--write-out", "%{http_code}"]
        self.assertEqual(self.curl(READER, *status, "--head", url), b"200")
        self.assertEqual(self.curl(READER, *status, "--request", "DELETE", url), b"403")
        self.assertEqual(self.curl((WRITER[0], "wrong-secret-0123456789"), *status, url), b"403")
        self.assertEqual(self.curl(WRITER, *status, "--request", "DELETE", url), b"204")


class SignedOverTls(Signed, unittest.TestCase):
    tls = True


class SignedOverPlainHttp(Signed, unittest.TestCase):
    tls = False


if "FOREBAY_TEST_S3_RGW_ENDPOINT" in os.environ:

    class SignedBeforeRgw(Signed, unittest.TestCase):
        tls, store = True, "RGW"


if __name__ == "__main__":
    unittest.main()
