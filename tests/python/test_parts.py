"""Large files by the clients that send them in parts: written, copied, and read without the store.

Run by scripts/test, as test_clients.py. The clients choose sizes and number of parts by themselves.
"""

import filecmp
import os
import re
import shutil
import subprocess
import sys
import unittest
import urllib.request

import boto3
import botocore.config

from forebay_proxy import VOLUME, Proxy, Store

BYTES = 40_000_003  # No multiple of any block or part.
REGION = "eu-somewhere-1"
WRITER = ("FBWRITER", "writer-secret-0123456789abcdef")
OPERATOR = "token-operator-0123456789abcdef"


class Parts:
    """The tests, before a folder or an S3 server; each class below says which."""

    store = None

    @classmethod
    def setUpClass(cls):
        store = Store(cls.store) if cls.store else None
        cls.proxy = Proxy(os.environ["FOREBAY_TEST_BINARY"], store=store, shards=2, tls=False, disk_quota="2G")
        cls.addClassCleanup(cls.proxy.close)  # Also when the start fails.
        cls.proxy.give_keys([(WRITER, "rw")])
        cls.proxy.start()
        cls.file = cls.proxy.path("file")
        with open(cls.file, "wb") as file:
            file.write(os.urandom(BYTES))

    def environment(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment |= {"AWS_ACCESS_KEY_ID": WRITER[0], "AWS_SECRET_ACCESS_KEY": WRITER[1], "AWS_DEFAULT_REGION": REGION}
        return environment | {"HOME": self.proxy.folder, "AWS_MAX_ATTEMPTS": "1"}

    def run_client(self, *words):
        done = subprocess.run(words, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual(done.returncode, 0, done.stdout[-2000:])

    def store_gets(self):
        request = urllib.request.Request(f"{self.proxy.url}/-/metrics", headers={"Authorization": f"Bearer {OPERATOR}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if re.match(r'forebay_store_requests_total\{verb="GET"', line)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def assert_reads_without_store(self, download):
        before, target = self.store_gets(), self.proxy.path("read")
        if os.path.exists(target):
            os.remove(target)
        download(target)
        self.assertTrue(filecmp.cmp(self.file, target, shallow=False), "other bytes")
        self.assertEqual(self.store_gets(), before, "the store was asked for bytes")

    def s3(self):
        config = botocore.config.Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        pair = {"aws_access_key_id": WRITER[0], "aws_secret_access_key": WRITER[1]}
        return boto3.client("s3", endpoint_url=self.proxy.url, region_name=REGION, config=config, **pair)

    def test_boto3_transfers_and_copies(self):
        s3 = self.s3()
        s3.upload_file(self.file, VOLUME, "boto3/a b", ExtraArgs={"Metadata": {"colour": "green"}, "ContentType": "a/b"})
        self.assert_reads_without_store(lambda target: s3.download_file(VOLUME, "boto3/a b", target))
        head = s3.head_object(Bucket=VOLUME, Key="boto3/a b")
        self.assertEqual((head["ContentLength"], head["Metadata"], head["ContentType"]), (BYTES, {"colour": "green"}, "a/b"))
        # Of this size it copies part by part.
        s3.copy({"Bucket": VOLUME, "Key": "boto3/a b"}, VOLUME, "boto3/copy")
        self.assert_reads_without_store(lambda target: s3.download_file(VOLUME, "boto3/copy", target))
        s3.copy_object(Bucket=VOLUME, Key="boto3/whole", CopySource={"Bucket": VOLUME, "Key": "boto3/a b"})
        self.assert_reads_without_store(lambda target: s3.download_file(VOLUME, "boto3/whole", target))
        self.assertEqual(s3.head_object(Bucket=VOLUME, Key="boto3/whole")["Metadata"], {"colour": "green"})
        part = s3.get_object(Bucket=VOLUME, Key="boto3/copy", PartNumber=2)
        self.assertEqual(part["PartsCount"], len(range(0, BYTES, 8 << 20)))
        with open(self.file, "rb") as file:
            file.seek(8 << 20)
            self.assertEqual(part["Body"].read(), file.read(8 << 20))

    def test_boto3_verifies_parts(self):
        s3 = self.s3()
        with open(self.file, "rb") as file:
            body = file.read(12 << 20)
        for algorithm in ("CRC32", "SHA1", "SHA256"):
            with self.subTest(algorithm):
                where = {"Bucket": VOLUME, "Key": f"boto3/{algorithm}"}
                upload = s3.create_multipart_upload(**where, ChecksumAlgorithm=algorithm)
                self.assertEqual(upload["ChecksumAlgorithm"], algorithm)
                where["UploadId"] = upload["UploadId"]
                parts = []
                for number, piece in enumerate((body[: 6 << 20], body[6 << 20 :]), 1):
                    told = s3.upload_part(**where, PartNumber=number, Body=piece, ChecksumAlgorithm=algorithm)
                    name = f"Checksum{algorithm}"
                    parts.append({"PartNumber": number, "ETag": told["ETag"], name: told[name]})
                s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
                del where["UploadId"]
                self.assertEqual(s3.get_object(**where)["Body"].read(), body)

    def test_aws(self):
        aws = [sys.executable, os.path.join(os.path.dirname(sys.executable), "aws"), "--endpoint-url", self.proxy.url, "s3"]
        self.run_client(*aws, "cp", self.file, f"s3://{VOLUME}/aws/file")
        self.assert_reads_without_store(lambda target: self.run_client(*aws, "cp", f"s3://{VOLUME}/aws/file", target))
        self.run_client(*aws, "mv", f"s3://{VOLUME}/aws/file", f"s3://{VOLUME}/aws/moved")
        target = self.proxy.path("moved")
        self.run_client(*aws, "cp", f"s3://{VOLUME}/aws/moved", target)
        self.assertTrue(filecmp.cmp(self.file, target, shallow=False))

    @unittest.skipUnless(shutil.which("rclone"), "rclone is not installed")
    def test_rclone(self):
        access, secret = WRITER
        remote = f":s3,provider=Other,access_key_id={access},secret_access_key={secret},region={REGION}"
        remote += f",endpoint='{self.proxy.url}',upload_cutoff=5M,chunk_size=5M,force_path_style=true:{VOLUME}/rclone"
        rclone = ["rclone", "--config", os.devnull, "--low-level-retries", "1", "--retries", "1"]
        self.run_client(*rclone, "copyto", self.file, f"{remote}/file")
        self.assert_reads_without_store(lambda target: self.run_client(*rclone, "copyto", f"{remote}/file", target))
        self.run_client(*rclone, "moveto", f"{remote}/file", f"{remote}/moved")
        target = self.proxy.path("moved")
        self.run_client(*rclone, "copyto", f"{remote}/moved", target)
        self.assertTrue(filecmp.cmp(self.file, target, shallow=False))

    @unittest.skipUnless(shutil.which("s3cmd"), "s3cmd is not installed")
    def test_s3cmd(self):
        host = self.proxy.url.split("//")[1]
        s3cmd = ["s3cmd", "--config", os.devnull, f"--host={host}", f"--host-bucket={host}", f"--region={REGION}", "--no-ssl"]
        s3cmd += [f"--access_key={WRITER[0]}", f"--secret_key={WRITER[1]}", "--no-progress", "--multipart-chunk-size-mb=6"]
        self.run_client(*s3cmd, "put", self.file, f"s3://{VOLUME}/s3cmd/file")
        self.assert_reads_without_store(lambda target: self.run_client(*s3cmd, "get", f"s3://{VOLUME}/s3cmd/file", target))
        self.run_client(*s3cmd, "mv", f"s3://{VOLUME}/s3cmd/file", f"s3://{VOLUME}/s3cmd/moved")
        target = self.proxy.path("s3cmd-moved")
        self.run_client(*s3cmd, "get", f"s3://{VOLUME}/s3cmd/moved", target)
        self.assertTrue(filecmp.cmp(self.file, target, shallow=False))


class BeforeFolder(Parts, unittest.TestCase):
    pass


if "FOREBAY_TEST_S3_RGW_ENDPOINT" in os.environ:

    class BeforeRgw(Parts, unittest.TestCase):
        store = "RGW"


if __name__ == "__main__":
    unittest.main()
