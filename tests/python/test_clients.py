"""The clients that people use, against the built binary: boto3, requests, curl.

Run by scripts/test, which sets FOREBAY_TEST_BINARY and starts the stores. boto3 signs nothing here:
its requests carry the volume's bearer token instead.
"""

import os
import subprocess
import unittest

import boto3
import botocore
import botocore.config
import botocore.exceptions
import requests

from forebay_proxy import TOKEN, VOLUME, Proxy, Store

BODY = bytes(range(256)) * 40_000  # 10 MB: several blocks.


def store_names():
    return [name for name in ("RGW", "SWIFT") if f"FOREBAY_TEST_S3_{name}_ENDPOINT" in os.environ]


class Clients:
    """The tests, for any store behind; each class below names one."""

    @classmethod
    def setUpClass(cls):
        binary = os.environ["FOREBAY_TEST_BINARY"]
        cls.proxy = Proxy(binary, store=cls.make_store(), shards=2, block_size="1MiB")
        cls.addClassCleanup(cls.proxy.close)  # Also when the start fails.
        cls.proxy.start()

    def s3(self):
        settings = botocore.config.Config(
            signature_version=botocore.UNSIGNED,
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            # aws-chunked bodies with trailers are a later part of the S3 dialect.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        client = boto3.client(
            "s3", endpoint_url=self.proxy.url, region_name="us-east-1", verify=self.proxy.certificate, config=settings
        )

        def add_token(request, **_):
            request.headers["Authorization"] = f"Bearer {TOKEN}"

        client.meta.events.register("before-send.s3", add_token)
        return client

    def session(self):
        session = requests.Session()
        session.verify = self.proxy.certificate
        session.trust_env = False  # No proxy and no bundle of whoever runs the tests.
        session.headers["Authorization"] = f"Bearer {TOKEN}"
        return session

    def curl(self, *words, data=None):
        command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", self.proxy.certificate]
        command += ["-H", f"Authorization: Bearer {TOKEN}", *words]
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout

    def test_boto3_round_trip(self):
        s3 = self.s3()
        written = s3.put_object(
            Bucket=VOLUME, Key="boto3/object", Body=BODY, ContentType="application/x-test", Metadata={"colour": "green"}
        )
        read = s3.get_object(Bucket=VOLUME, Key="boto3/object")
        self.assertEqual(read["Body"].read(), BODY)
        self.assertEqual(read["ETag"], written["ETag"])
        self.assertEqual(read["ContentType"], "application/x-test")
        self.assertEqual(read["Metadata"], {"colour": "green"})
        part = s3.get_object(Bucket=VOLUME, Key="boto3/object", Range="bytes=1048570-1048580")
        self.assertEqual(part["Body"].read(), BODY[1048570:1048581])
        self.assertEqual(part["ContentRange"], f"bytes 1048570-1048580/{len(BODY)}")
        head = s3.head_object(Bucket=VOLUME, Key="boto3/object")
        self.assertEqual(head["ContentLength"], len(BODY))
        s3.delete_object(Bucket=VOLUME, Key="boto3/object")
        with self.assertRaises(s3.exceptions.NoSuchKey):
            s3.get_object(Bucket=VOLUME, Key="boto3/object")

    def test_boto3_understands_our_errors(self):
        s3 = self.s3()
        s3.put_object(Bucket=VOLUME, Key="boto3/errors", Body=b"body")
        cases = [
            (404, "404", lambda: s3.head_object(Bucket=VOLUME, Key="boto3/missing")),
            (412, "PreconditionFailed", lambda: s3.get_object(Bucket=VOLUME, Key="boto3/errors", IfMatch='"other"')),
            (416, "InvalidRange", lambda: s3.get_object(Bucket=VOLUME, Key="boto3/errors", Range="bytes=100-")),
            (400, "BadDigest", lambda: s3.put_object(Bucket=VOLUME, Key="boto3/bad", Body=b"x", ContentMD5="A" * 22 + "==")),
        ]
        for status, code, call in cases:
            with self.subTest(code), self.assertRaises(botocore.exceptions.ClientError) as caught:
                call()
            answer = caught.exception.response
            self.assertEqual((answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]), (status, code))
            self.assertTrue(answer["ResponseMetadata"]["RequestId"])

    def test_requests_keep_alive_stream_and_conditions(self):
        session, url = self.session(), f"{self.proxy.url}/{VOLUME}/requests/object"
        self.assertEqual(session.put(url, data=BODY).status_code, 200)
        first = session.get(url, stream=True)
        self.assertEqual(b"".join(first.iter_content(100_000)), BODY)
        again = session.get(url, headers={"If-None-Match": first.headers["ETag"]})
        self.assertEqual((again.status_code, again.content), (304, b""))
        suffix = session.get(url, headers={"Range": "bytes=-1000"})
        self.assertEqual((suffix.status_code, suffix.content), (206, BODY[-1000:]))
        self.assertTrue(suffix.headers["x-cache"].startswith("hit-"))
        self.assertEqual(session.delete(url).status_code, 204)
        self.assertEqual(session.get(url).status_code, 404)

    def test_requests_without_a_token(self):
        answer = requests.get(f"{self.proxy.url}/{VOLUME}/any", verify=self.proxy.certificate, timeout=30)
        self.assertIn(answer.status_code, (401, 403))

    def test_curl_upload_download_and_tls_versions(self):
        url = f"{self.proxy.url}/{VOLUME}/curl/object"
        # curl asks with Expect: 100-continue for bodies of this size.
        self.curl("--fail", "--upload-file", "-", "-H", "Transfer-Encoding:", "-H", f"Content-Length: {len(BODY)}", url, data=BODY)
        for version in ("1.2", "1.3"):
            self.assertEqual(self.curl("--fail", f"--tlsv{version}", "--tls-max", version, url), BODY)
        self.assertEqual(self.curl("--fail", "--range", "100-199", url), BODY[100:200])
        status = self.curl("--output", os.devnull, "--write-out", "%{http_code}", "--head", url)
        self.assertEqual(status, b"200")
        old = ["curl", "--silent", "--cacert", self.proxy.certificate, "--tls-max", "1.1", url]
        self.assertNotEqual(subprocess.run(old, stdout=subprocess.DEVNULL).returncode, 0, "TLS 1.1 was spoken")


class FileStoreClients(Clients, unittest.TestCase):
    @staticmethod
    def make_store():
        return None


if "RGW" in store_names():

    class RgwClients(Clients, unittest.TestCase):
        @staticmethod
        def make_store():
            return Store("RGW")


if "SWIFT" in store_names():

    class SwiftClients(Clients, unittest.TestCase):
        @staticmethod
        def make_store():
            return Store("SWIFT")


if __name__ == "__main__":
    unittest.main()
