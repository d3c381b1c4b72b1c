"""We differ from the store, because: cases (patterns of names) whose answers by Ceph's gateway (16.2) are not S3's.

Every entry says whose oddity it is. A case without one must be answered alike by both.
"""

IGNORED_RANGE = "S3 ignores a Range that is not one of its forms and sends the whole object; the store guesses at a range in it"
ONE_OF_MANY = "S3 ignores a list of ranges; the store sends the first range of the list"
NO_ETAG_IN_304 = "the store's 304 has no ETag, or judges If-Modified-Since before what RFC 9110 puts before it"
WHOLE_ETAG_ONLY = "the store compares the header as one text: it knows neither *, nor lists, nor weak ETags here"

DIFFERENCES = {
    "key/1025-bytes*": "the store has a name of its own for the error (InvalidObjectName); S3's is KeyTooLongError",
    "range/suffix-zero*": "RFC 9110 and S3: no byte, 416; the store sends the whole object as 206",
    "range/reversed*": IGNORED_RANGE,
    "range/empty-set*": IGNORED_RANGE,
    "range/dash*": IGNORED_RANGE,
    "range/letters*": IGNORED_RANGE,
    "range/half-letters*": IGNORED_RANGE,
    "range/other-unit*": IGNORED_RANGE,
    "range/no-unit*": IGNORED_RANGE,
    "range/no-equals*": IGNORED_RANGE,
    "range/negative*": IGNORED_RANGE,
    "range/plus*": IGNORED_RANGE,
    "range/hex*": IGNORED_RANGE,
    "range/two*": ONE_OF_MANY,
    "range/many*": ONE_OF_MANY,
    "if-range/other-etag": "the store does not know If-Range",
    "if-range/older-date": "the store does not know If-Range",
    "if-range/weak-etag": "the store does not know If-Range",
    "if-range/garbage": "the store does not know If-Range",
    "condition/*ms=since-then*": NO_ETAG_IN_304,
    "condition/*nm=same*": NO_ETAG_IN_304,
    "condition-odd/*star": WHOLE_ETAG_ONLY,
    "condition-odd/*match-in-list": WHOLE_ETAG_ONLY,
    "condition-odd/none-match-weak": WHOLE_ETAG_ONLY,
    "condition-odd/*not-a-date": "RFC 9110: a date that is none is ignored; the store answers 400",
    "condition-odd/*range-and-none-match": "the store's 304 has fewer headers",
    "metadata/2049-bytes*": "S3's limit of 2 KiB; the store takes more",
    "md5/no-base64": "S3: InvalidDigest; the store takes it for a wrong signature",
    "sha256/short": "neither a hash nor one of S3's words: refused as an argument; the store compares it",
    "sha256/empty-word": "neither a hash nor one of S3's words: refused as an argument; the store compares it",
    "chunks/*": "S3 takes aws-chunked off Content-Encoding; the store keeps it with the object",
    "list/*-max-keys--1": "S3: InvalidArgument; the store takes it for 0",
    "list/*-max-keys-99999999999999999999": "S3: InvalidArgument; the store takes it for 0",
    "list/*-encoded": "S3 leaves slashes as they are; the store escapes them, which decodes to the same",
    "list/*-encoded-odd": "S3 leaves slashes as they are; the store escapes them, which decodes to the same",
    "list/*-encoding-unknown": "S3: InvalidArgument; the store ignores it",
    "list/*-prefix-unreadable": "the store escapes keys, and not the prefix that it repeats",
    "copy/same-etag": "the store leaves the quotes out in the document",
    "copy-if/match-other": "the store knows conditions of copies by names of its own only, and does not heed S3's",
    "copy-if/none-match-same": "the store knows conditions of copies by names of its own only, and does not heed S3's",
    "copy-if/*modified-since-*": "the store knows conditions of copies by names of its own only, and does not heed S3's",
    "multipart/part-left-out": "S3 leaves out parts that are not named; the store refuses, and so does a proxy before it",
    "multipart/listed-with-delimiter": "the store gives no common prefixes of uploads",
    "multipart/listed-after-a-key": "the store lists uploads of the marker's key again where no upload is named",
    "multipart/parts-of-an-ended-upload": "S3: NoSuchUpload; the store says NoSuchKey",
    "multipart/aborted": "S3: NoSuchUpload; the store answers 500 as long as it cleans up",
    "multipart/order-wrong": "S3: InvalidPartOrder; the store sorts",
    "delete-objects/1001-keys": "the same refusal, but the store's error has no code",
    "delete-objects/md5-*": "the store deletes without looking at Content-MD5",
}
