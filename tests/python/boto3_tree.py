"""A program: carries a tree of files to a volume and back with whichever boto3 its interpreter has, left at its defaults.

Usage: PYTHON boto3_tree.py up|down|delete ENDPOINT VOLUME PREFIX FOLDER. The pair and the region come from AWS's own variables. It stands
alone: an old boto3 lives in a virtual environment of its own, so nothing of the tests may be imported here.
"""

import os
import sys

import boto3


def up(client, volume, prefix, folder):
    for directory, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(directory, name)
            client.upload_file(path, volume, prefix + os.path.relpath(path, folder))


def keys(client, volume, prefix):
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=volume, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def down(client, volume, prefix, folder):
    for key in keys(client, volume, prefix):
        path = os.path.join(folder, key[len(prefix) :])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        client.download_file(volume, key, path)


def delete(client, volume, prefix, _):
    objects = [{"Key": key} for key in keys(client, volume, prefix)]
    answer = client.delete_objects(Bucket=volume, Delete={"Objects": objects})
    if answer.get("Errors"):
        raise SystemExit(f"not deleted: {answer['Errors']}")


def main():
    action, endpoint, volume, prefix, folder = sys.argv[1:]
    client = boto3.client("s3", endpoint_url=endpoint)
    {"up": up, "down": down, "delete": delete}[action](client, volume, prefix, folder)


if __name__ == "__main__":
    main()
