"""What a case is: requests, and what each must be answered with. Runs them against one endpoint and says what is not so.

Owns the tables' vocabulary. Which cases there are is in cases_*.py, where the store may answer otherwise in differences.py.
"""

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple

from wire import Request, Signing

# Stands for the case's own prefix in keys, queries, headers and bodies. Never part of a key by itself.
P = "\ue000"
# Stands for the bucket's name.
B = "\ue003"

# Headers that are compared with the store's, whatever a case says of them. Of checksums the store's release knows nothing.
COMPARED = re.compile(
    r"etag|content-(length|range|type|encoding|language|disposition)|cache-control|expires|accept-ranges|x-amz-meta-.*"
)

ANY = object()


def saved(name):
    """Stands for what an earlier step of the case has saved; `body-md5` for the Content-MD5 of the request's own body."""
    return f"\ue001{name}\ue002"


class Want(NamedTuple):
    """What an answer must be like; what is not named may be as it likes."""

    status: object  # A number, or a tuple of them.
    code: str = None
    # Values, None for a header that must not be there, ANY for one that must.
    headers: dict = {}
    body: bytes = None
    # Texts of the document's elements, by their name: a list or a set of all, or one; None for an element that must not be there.
    xml: dict = {}
    # What later steps need: name -> "header:NAME" or "xml:NAME".
    save: dict = {}


class Step(NamedTuple):
    request: Request
    want: Want


class Case(NamedTuple):
    """A name and steps; `fixture` steps are run once for all cases that share it."""

    name: str
    steps: tuple
    fixture: tuple = ()
    # Whether the store is asked, too. Where it is not, there is a reason in the table that says so.
    differential: bool = True
    # Whether only the store can do it: then a proxy before it may answer as the store does.
    as_store: bool = False
    # Whether a proxy before a folder can do it, too.
    folder: bool = True


# The tables' short forms.


def ask(method, key, want, **more):
    """A step. The case's prefix comes before the key."""
    query = more.pop("query", ())
    query = tuple((one, None) if isinstance(one, str) else one for one in query)
    if key is not None and not more.pop("bare_key", False):
        key = (P.encode() + key) if isinstance(key, bytes) else P + key
    if isinstance(want, int):
        want = Want(want)
    return Step(Request(method, key, query=query, **more), want)


def put(key, body=b"", want=200, **more):
    return ask("PUT", key, want, body=body, **more)


def get(key, want=200, **more):
    return ask("GET", key, want, **more)


def head(key, want=200, **more):
    return ask("HEAD", key, want, **more)


def delete(key, want=204, **more):
    return ask("DELETE", key, want, **more)


def volume(method, want, query=(), **more):
    """A step on the bucket."""
    return ask(method, None, want, query=query, **more)


def case(name, *steps, **more):
    return Case(name, steps, **more)


def error(status, code=None, **more):
    return Want(status, code=code, **more)


def signed(**how):
    return Signing(**how)


class Run:
    """One case on one endpoint: substitutes, sends, checks."""

    def __init__(self, endpoint, prefix):
        self.endpoint, self.prefix, self.memory = endpoint, prefix, {}

    def step(self, step):
        """Gives what is wrong, and what is compared between endpoints."""
        body = self.fill(step.request.body)
        if isinstance(body, bytes):
            self.memory["body-md5"] = base64.b64encode(hashlib.md5(body).digest()).decode()
        request = Request(*(self.fill(part) for part in step.request))
        answer = self.endpoint.send(request)
        problems, document = self.judge(step.want, answer)
        for name, where in step.want.save.items():
            kind, _, wanted = where.partition(":")
            found = [answer.headers.get(wanted)] if kind == "header" else texts(document, wanted)
            self.memory[name] = (found or [None])[0] or ""
            if not self.memory[name] and not problems:
                problems.append(f"there is no {where}")
        return problems, self.seen(answer, document, step)

    def fill(self, part):
        """Puts prefix and memory where a table only named them."""
        if isinstance(part, str):
            part = part.replace(P, self.prefix).replace(B, self.endpoint.bucket)
            return re.sub("\ue001(.*?)\ue002", lambda match: self.memory.get(match[1], "missing"), part)
        if isinstance(part, bytes):
            filled = part.replace(P.encode(), self.prefix.encode())
            return re.sub("\ue001(.*?)\ue002".encode(), lambda match: self.memory.get(match[1].decode(), "missing").encode(), filled)
        if isinstance(part, Signing):
            return part._replace(bucket=self.fill(part.bucket))
        if callable(part):
            return part
        if isinstance(part, tuple):
            return tuple(self.fill(one) for one in part)
        if isinstance(part, dict):
            return {name: self.fill(value) for name, value in part.items()}
        return part

    def judge(self, want, answer):
        problems = []
        if answer.status == 0:
            return [f"no answer: {answer.body.decode()}"], None
        statuses = want.status if isinstance(want.status, tuple) else (want.status,)
        if answer.status not in statuses:
            problems.append(f"status {answer.status}, not {want.status}: {answer.body[:300]!r}")
        document = parse(answer)
        if self.endpoint.is_ours:
            problems += broken_promises(answer, document)
        found_code = code_of(answer, document)
        if want.code and answer.body and found_code not in want.code.split("|"):
            problems.append(f"code {found_code}, not {want.code}: {answer.body[:300]!r}")
        for name, wanted in want.headers.items():
            found = answer.headers.get(name)
            wanted = self.fill(wanted)
            if wanted is ANY:
                if found is None:
                    problems.append(f"there is no header {name}")
            elif found != wanted:
                problems.append(f"header {name} is {found!r}, not {wanted!r}")
        if want.body is not None and answer.body != want.body:
            problems.append(f"the body has {len(answer.body)} bytes, {answer.body[:60]!r}, not {len(want.body)}, {want.body[:60]!r}")
        if want.xml and document is None:
            problems.append(f"no document: {answer.body[:200]!r}")
        for name, wanted in want.xml.items():
            found = [self.without_prefix(text) for text in texts(document, name)]
            if wanted is ANY:
                problems += [] if found else [f"there is no {name}"]
                continue
            if isinstance(wanted, (set, frozenset)):
                found, wanted = sorted(found), sorted(wanted)
            wanted_list = wanted if isinstance(wanted, list) else [] if wanted is None else [wanted]
            if found != [self.without_prefix(self.fill(one)) for one in wanted_list]:
                problems.append(f"{name} is {found[:8]!r}, not {wanted_list[:8]!r}")
        return problems, document

    def without_prefix(self, text):
        return text.replace(self.prefix, "")

    def seen(self, answer, document, step):
        """What is compared with the store's answer, beyond what the case itself wants."""
        if answer.status == 0:
            return {"status": 0}
        is_error = answer.status >= 400
        headers = {
            name: value
            for name, value in answer.headers.items()
            # An error document's own length and type are nobody's business, nor are those of documents of other servers.
            if COMPARED.fullmatch(name) and not ((is_error or document is not None) and name.startswith(("content-", "accept-", "etag")))
        }
        if step.request.method not in ("GET", "HEAD"):
            headers.pop("content-length", None)
            headers.pop("content-type", None)
            headers.pop("accept-ranges", None)
        body = None if is_error or document is not None else hashlib.sha256(answer.body).hexdigest()[:16]
        return {"status": answer.status, "code": code_of(answer, document) if is_error else None, **headers, "body": body}


def broken_promises(answer, document):
    """What must hold of every answer of Forebay's, whatever was asked."""
    request_id = answer.headers.get("x-amz-request-id")
    broken = [f"there is no header {name}" for name in ("date", "x-amz-request-id") if not answer.headers.get(name)]
    if answer.status >= 400 and answer.body:
        named = {name: texts(document, name) for name in ("Code", "Message", "RequestId", "Resource")}
        broken += [f"an error with {name} {found}" for name, found in named.items() if len(found) != 1]
        if named["RequestId"] != [request_id]:
            broken.append(f"the error is of request {named['RequestId']}, the answer of {request_id}")
        if answer.headers.get("content-type") != "application/xml":
            broken.append(f"an error of the type {answer.headers.get('content-type')}")
    if answer.status in (204, 304) and answer.body:
        broken.append("a body where there can be none")
    return broken


def parse(answer):
    """The XML document of an answer, without name spaces; None where there is none."""
    if not answer.body.lstrip()[:1] == b"<":
        return None
    try:
        root = ElementTree.fromstring(answer.body)
    except ElementTree.ParseError:
        return None
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
    return root


def texts(document, name):
    """The texts of all elements of a name, in order; `A/B` for those below an A."""
    if document is None:
        return []
    outer, _, inner = name.rpartition("/")
    parents = [document] if not outer else [element for element in document.iter() if element.tag == outer]
    found = []
    for parent in parents:
        children = parent.iter() if not outer else list(parent)
        found += [element.text or "" for element in children if element.tag == inner]
    return found


def code_of(answer, document):
    if document is None or document.tag != "Error":
        return None
    return (texts(document, "Code") or [None])[0]
