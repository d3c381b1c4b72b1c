//! The refusals of S3: owns the table from a code to its status and message, and the XML document they are sent in.

use crate::stub::reply::Reply;

/// An answer other than success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct S3Error {
    pub(super) status: u16,
    pub(super) code: String,
    pub(super) message: String,
    /// Headers that belong to this refusal only, such as the size in a 416.
    pub(super) headers: Vec<(String, String)>,
}

impl S3Error {
    /// The refusal of that code, with the status and the message that S3 gives it.
    pub(super) fn new(code: &str) -> Self {
        let (status, message) = match code {
            "AccessDenied" => (403, "Access Denied"),
            "BadDigest" => (
                400,
                "The digest or checksum you specified did not match what we received.",
            ),
            "EntityTooLarge" => (
                400,
                "Your proposed upload exceeds the maximum allowed object size.",
            ),
            "IncompleteBody" => (
                400,
                "You did not provide the number of bytes specified by Content-Length.",
            ),
            "InvalidAccessKeyId" => (
                403,
                "The AWS access key Id you provided does not exist in our records.",
            ),
            "InvalidArgument" => (400, "Invalid Argument"),
            "InvalidDigest" => (
                400,
                "The Content-MD5 or checksum you specified is not valid.",
            ),
            "InvalidRange" => (416, "The requested range is not satisfiable"),
            "InvalidRequest" => (400, "Invalid Request"),
            "InvalidURI" => (400, "Couldn't parse the specified URI."),
            "KeyTooLongError" => (400, "Your key is too long"),
            "MethodNotAllowed" => (
                405,
                "The specified method is not allowed against this resource.",
            ),
            "MissingContentLength" => (411, "You must provide the Content-Length HTTP header."),
            "NoSuchBucket" => (404, "The specified bucket does not exist"),
            "NoSuchKey" => (404, "The specified key does not exist."),
            "NotImplemented" => (
                501,
                "A header or query you provided implies functionality that is not implemented.",
            ),
            "PreconditionFailed" => (
                412,
                "At least one of the pre-conditions you specified did not hold",
            ),
            "RequestTimeTooSkewed" => (
                403,
                "The difference between the request time and the current time is too large.",
            ),
            "SignatureDoesNotMatch" => (
                403,
                "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
            ),
            "SlowDown" => (503, "Please reduce your request rate."),
            "XAmzContentSHA256Mismatch" => (
                400,
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
            ),
            _ => (500, "We encountered an internal error. Please try again."),
        };
        Self {
            status,
            code: code.into(),
            message: message.into(),
            headers: Vec::new(),
        }
    }

    /// The same refusal with a message of its own.
    pub(super) fn because(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// The same refusal with one more header.
    pub(super) fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The answer that carries this refusal for `resource`.
    pub(super) fn into_reply(self, resource: &str, request_id: &str) -> Reply {
        let document = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{}</Code><Message>{}</Message>\
             <Resource>{}</Resource><RequestId>{request_id}</RequestId></Error>",
            escape(&self.code),
            escape(&self.message),
            escape(resource),
        );
        let mut reply = Reply::new(self.status)
            .header("Content-Type", "application/xml")
            .body(document);
        reply.headers.extend(self.headers);
        reply
    }
}

/// Text as it may stand between XML tags.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The code that S3 itself would send with a status, for faults that name a status only.
pub(super) fn code_of_status(status: u16) -> &'static str {
    match status {
        400 => "InvalidRequest",
        403 => "AccessDenied",
        404 => "NoSuchKey",
        405 => "MethodNotAllowed",
        412 => "PreconditionFailed",
        416 => "InvalidRange",
        429 | 503 => "SlowDown",
        _ => "InternalError",
    }
}
