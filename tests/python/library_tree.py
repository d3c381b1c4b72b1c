"""A program: carries a tree of files to a volume and back with one of the libraries that data loaders are made of.

Usage: PYTHON library_tree.py LIBRARY up|down|delete ENDPOINT VOLUME PREFIX FOLDER. The pair and the region come from AWS's own
variables. It stands alone, in a virtual environment of its own: nothing of the tests may be imported here.
"""

import os
import sys

REGION = os.environ["AWS_REGION"]
KEY, SECRET = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]


class MinioSdk:
    """MinIO's own SDK: signs bodies by their hash over plain HTTP, and sends parts."""

    def __init__(self, endpoint, volume):
        from minio import Minio

        self.client = Minio(endpoint=endpoint.split("//")[1], access_key=KEY, secret_key=SECRET, secure=False, region=REGION)
        self.volume = volume

    def put(self, key, path):
        self.client.fput_object(bucket_name=self.volume, object_name=key, file_path=path)

    def get(self, key, path):
        self.client.fget_object(bucket_name=self.volume, object_name=key, file_path=path)

    def keys(self, prefix):
        return [item.object_name for item in self.client.list_objects(bucket_name=self.volume, prefix=prefix, recursive=True)]

    def delete(self, keys):
        from minio.deleteobjects import DeleteObject

        failed = list(self.client.remove_objects(bucket_name=self.volume, delete_object_list=[DeleteObject(key) for key in keys]))
        if failed:
            raise SystemExit(f"not deleted: {failed}")


class Obstore:
    """Rust's object_store."""

    def __init__(self, endpoint, volume):
        from obstore.store import S3Store

        self.store = S3Store(
            volume, endpoint=endpoint, access_key_id=KEY, secret_access_key=SECRET, region=REGION, client_options={"allow_http": True}
        )

    def put(self, key, path):
        import obstore

        with open(path, "rb") as file:
            obstore.put(self.store, key, file)

    def get(self, key, path):
        import obstore

        with open(path, "wb") as file:
            for piece in obstore.get(self.store, key).stream():
                file.write(piece)

    def keys(self, prefix):
        import obstore

        return [item["path"] for batch in obstore.list(self.store, prefix.rstrip("/")) for item in batch]

    def delete(self, keys):
        import obstore

        obstore.delete(self.store, keys)


class Arrow:
    """PyArrow: Amazon's SDK for C++."""

    def __init__(self, endpoint, volume):
        from pyarrow import fs

        self.files = fs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, endpoint_override=endpoint.split("//")[1], scheme="http", region=REGION
        )
        self.volume = volume

    def put(self, key, path):
        with open(path, "rb") as file, self.files.open_output_stream(f"{self.volume}/{key}") as target:
            target.write(file.read())

    def get(self, key, path):
        with open(path, "wb") as file, self.files.open_input_stream(f"{self.volume}/{key}") as source:
            file.write(source.read())

    def keys(self, prefix):
        from pyarrow import fs

        found = self.files.get_file_info(fs.FileSelector(f"{self.volume}/{prefix.rstrip('/')}", recursive=True))
        return [item.path.split("/", 1)[1] for item in found if item.is_file]

    def delete(self, keys):
        for key in keys:
            self.files.delete_file(f"{self.volume}/{key}")


class Fsspec:
    """fsspec's s3fs: aiobotocore."""

    def __init__(self, endpoint, volume):
        import s3fs

        self.files = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=endpoint, client_kwargs={"region_name": REGION})
        self.volume = volume

    def put(self, key, path):
        self.files.put_file(path, f"{self.volume}/{key}")

    def get(self, key, path):
        self.files.get_file(f"{self.volume}/{key}", path)

    def keys(self, prefix):
        return [path.split("/", 1)[1] for path in self.files.find(f"{self.volume}/{prefix}")]

    def delete(self, keys):
        self.files.rm([f"{self.volume}/{key}" for key in keys])


class Torch:
    """The client of Mountpoint for S3 (Amazon's CRT), as the S3 connector for PyTorch ships it."""

    def __init__(self, endpoint, volume):
        from s3torchconnectorclient._mountpoint_s3_client import MountpointS3Client

        self.client = MountpointS3Client(
            region=REGION, user_agent_prefix="forebay-test", endpoint=endpoint, force_path_style=True, throughput_target_gbps=1.0
        )
        self.volume = volume

    def put(self, key, path):
        writer = self.client.put_object(self.volume, key)
        with open(path, "rb") as file:
            writer.write(file.read())
        writer.close()

    def get(self, key, path):
        with open(path, "wb") as file:
            for piece in self.client.get_object(self.volume, key):
                file.write(piece)

    def keys(self, prefix):
        return [item.key for page in self.client.list_objects(self.volume, prefix) for item in page.object_info]

    def delete(self, keys):
        for key in keys:
            self.client.delete_object(self.volume, key)


def up(library, prefix, folder):
    for directory, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(directory, name)
            library.put(prefix + os.path.relpath(path, folder), path)


def down(library, prefix, folder):
    for key in library.keys(prefix):
        path = os.path.join(folder, key[len(prefix) :])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        library.get(key, path)


def delete(library, prefix, _):
    library.delete(library.keys(prefix))


def main():
    name, action, endpoint, volume, prefix, folder = sys.argv[1:]
    library = {"minio": MinioSdk, "obstore": Obstore, "pyarrow": Arrow, "s3fs": Fsspec, "s3torchconnector": Torch}[name](endpoint, volume)
    {"up": up, "down": down, "delete": delete}[action](library, prefix, folder)


if __name__ == "__main__":
    main()
