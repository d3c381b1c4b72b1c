"""The clients' matrix in its short form: each client once, written back, with the proxy killed half way through.

All situations and a larger tree: scripts/clients. Run by scripts/test, as test_clients.py.
"""

import os
import unittest

from client_matrix import STEPS, Row, Situation
from forebay_proxy import Store
from tree_clients import ALL

SMALL_FILES = 15
# Large enough that every client sends it in parts.
LARGE_BYTES = 17 << 20


class Matrix(unittest.TestCase):
    def run_row(self, client_class):
        missing = client_class.missing()
        if missing and "FOREBAY_TEST_REQUIRE_SERVERS" not in os.environ:
            self.skipTest(f"{missing} is not installed")
        self.assertIsNone(missing)
        store = Store("RGW") if "FOREBAY_TEST_S3_RGW_ENDPOINT" in os.environ else None
        situation = Situation(writeback=True, killed=True)
        row = Row(client_class, situation, store, os.environ["FOREBAY_TEST_BINARY"], SMALL_FILES, LARGE_BYTES)
        self.assertEqual(row.run(), {step: "ok" for step in STEPS})


def make_test(client_class):
    return lambda self: self.run_row(client_class)


for client_class in ALL:
    name = "".join(letter if letter.isalnum() else "_" for letter in client_class.name.lower())
    setattr(Matrix, f"test_{name}", make_test(client_class))


if __name__ == "__main__":
    unittest.main()
