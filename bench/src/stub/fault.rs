//! Faults: owns what may go wrong, which requests it strikes and how often. It plans; `connection` and `reply` carry out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// One thing that goes wrong. In JSON: `{"kind": "status", "status": 503}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// The request is refused with this status, after its body was read; nothing is done.
    Status {
        /// HTTP status.
        status: u16,
        /// Code in the XML document; left out, the one that S3 sends with that status.
        #[serde(default)]
        code: Option<String>,
        /// Value of `Retry-After`, in seconds.
        #[serde(default)]
        retry_after_s: Option<u64>,
    },
    /// Like `Status`, but sent as soon as the head was read; the body is left unread and the connection closed.
    EarlyAnswer {
        /// HTTP status.
        status: u16,
        /// Code in the XML document; left out, the one that S3 sends with that status.
        #[serde(default)]
        code: Option<String>,
    },
    /// Sleep before the head of the answer, after the request was carried out.
    DelayHead {
        /// Milliseconds.
        ms: u64,
    },
    /// Sleep before the request is carried out: what it does is seen late too.
    DelayApply {
        /// Milliseconds.
        ms: u64,
    },
    /// Sleep between the head and the body of the answer.
    DelayBody {
        /// Milliseconds.
        ms: u64,
    },
    /// The body trickles.
    RateLimit {
        /// Bytes in each second, in small steps.
        bytes_per_s: u64,
    },
    /// The body ends early and the connection with it.
    Cut {
        /// Body bytes sent before the end; 0 leaves the head alone.
        after_bytes: u64,
        /// Ends with a TCP reset instead of an orderly close.
        #[serde(default)]
        reset: bool,
    },
    /// The body goes on after the declared length.
    Extend {
        /// Surplus bytes.
        bytes: u64,
    },
    /// `Content-Length` says this, whatever the body has; the connection is closed after it.
    ContentLength {
        /// The false length.
        value: u64,
    },
    /// A header of the answer is set to this: a wrong `ETag`, `Content-Range`, checksum.
    SetHeader {
        /// Name, any case.
        name: String,
        /// Value; empty removes the header.
        value: String,
    },
    /// One byte of the body is flipped on its way; the stored object stays right.
    Corrupt {
        /// Position in the body that is sent.
        offset: u64,
    },
    /// 200 with an HTML page in place of the object, as a hotel's network would answer.
    CaptivePortal,
    /// The request is read and never answered; the connection stays open.
    NeverAnswer,
    /// The request is carried out, then the connection is reset without an answer.
    CommitThenDrop,
    /// The connection is reset without an answer and nothing is done.
    Drop,
    /// The connection is reset once this much of the request's body was read; nothing is done.
    CutUpload {
        /// Body bytes read before the reset.
        after_bytes: u64,
    },
    /// `Range` is overlooked: 200 with the whole object.
    IgnoreRange,
    /// The client is sent elsewhere.
    Redirect {
        /// 301, 302, 307 or 308.
        status: u16,
        /// Value of `Location`.
        location: String,
    },
}

impl Action {
    /// A refusal with this status and the code that S3 sends with it.
    pub fn status(status: u16) -> Self {
        Self::Status {
            status,
            code: None,
            retry_after_s: None,
        }
    }

    /// A header set to a wrong value.
    pub fn header(name: &str, value: &str) -> Self {
        Self::SetHeader {
            name: name.into(),
            value: value.into(),
        }
    }
}

/// Which requests are struck, how often, and with what. In JSON:
/// `{"method": "GET", "key": "a/*", "skip": 1, "times": 2, "actions": [{"kind": "cut", "after_bytes": 10}]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// HTTP method; `*` is any.
    #[serde(default = "any")]
    pub method: String,
    /// Pattern for the whole key: `*` is any run of characters, `?` any one, the rest stands for itself.
    #[serde(default = "any")]
    pub key: String,
    /// Matching requests that pass unharmed first.
    #[serde(default)]
    pub skip: u64,
    /// Matching requests that are struck after those; left out, all of them for ever.
    #[serde(default)]
    pub times: Option<u64>,
    /// How long after its first strike the fault is over, milliseconds; left out, never.
    #[serde(default)]
    pub for_ms: Option<u64>,
    /// What happens to them, all at once.
    pub actions: Vec<Action>,
}

fn any() -> String {
    "*".into()
}

impl Fault {
    /// A fault for requests of that method and key pattern, for ever, that does nothing yet.
    pub fn on(method: &str, key: &str) -> Self {
        Self {
            method: method.into(),
            key: key.into(),
            skip: 0,
            times: None,
            for_ms: None,
            actions: Vec::new(),
        }
    }

    /// Strikes this many requests, then is over.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Is over this long after its first strike.
    pub fn lasting(mut self, time: Duration) -> Self {
        self.for_ms = Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Lets this many matching requests pass first.
    pub fn skip(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Adds an action.
    pub fn then(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }

    fn matches(&self, method: &str, key: &str) -> bool {
        (self.method == "*" || self.method.eq_ignore_ascii_case(method))
            && pattern_matches(self.key.as_bytes(), key.as_bytes())
    }
}

/// `*` and `?` only, so that no key needs escaping in a test. Linear: after a mismatch only the last `*` is retried.
fn pattern_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut position) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while position < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at + 1, position));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[position] => {
                at += 1;
                position += 1;
            }
            _ => {
                let Some((after_star, from)) = retry else {
                    return false;
                };
                retry = Some((after_star, from + 1));
                at = after_star;
                position = from + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// The faults in force, in the order they were added.
#[derive(Debug, Default)]
pub(super) struct Faults {
    faults: Vec<Fault>,
    /// Of each fault: when it first struck.
    struck: Vec<Option<Instant>>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
        self.struck.push(None);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn list(&self) -> &[Fault] {
        &self.faults
    }

    /// The plan for one request: the first fault that matches counts it, and strikes unless it is still skipping.
    /// A fault that is over does not match, so that the next one in line takes its place.
    pub(super) fn strike(&mut self, method: &str, key: &str) -> Plan {
        let mut each = self.faults.iter_mut().zip(&mut self.struck);
        let found = each.find(|(fault, struck)| {
            let for_time = fault.for_ms.map(Duration::from_millis).zip(**struck);
            let is_over = for_time.is_some_and(|(time, since)| since.elapsed() >= time);
            fault.times != Some(0) && !is_over && fault.matches(method, key)
        });
        let Some((fault, struck)) = found else {
            return Plan::default();
        };
        if fault.skip > 0 {
            fault.skip -= 1;
            return Plan::default();
        }
        struck.get_or_insert_with(Instant::now);
        if let Some(times) = &mut fault.times {
            *times -= 1;
        }
        Plan(fault.actions.clone().into())
    }
}

/// What is to go wrong with one request; usually nothing.
#[derive(Debug, Clone)]
pub(super) struct Plan(Arc<[Action]>);

impl Default for Plan {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl Plan {
    pub(super) fn actions(&self) -> &[Action] {
        &self.0
    }

    pub(super) fn has(&self, action: &Action) -> bool {
        self.0.contains(action)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_keys() {
        let matches =
            |pattern: &str, key: &str| pattern_matches(pattern.as_bytes(), key.as_bytes());
        for (pattern, key) in [
            ("*", ""),
            ("a/*", "a/b"),
            ("*b*d", "abcbd"),
            ("a?c", "abc"),
            ("**x", "x"),
            ("", ""),
        ] {
            assert!(matches(pattern, key), "{pattern} should match {key}");
        }
        for (pattern, key) in [
            ("a/*", "b/a/"),
            ("a", "ab"),
            ("?", ""),
            ("*b", "abc"),
            ("", "a"),
        ] {
            assert!(!matches(pattern, key), "{pattern} should not match {key}");
        }
    }

    #[test]
    fn a_fault_skips_strikes_and_ends_then_the_next_takes_over() {
        let mut faults = Faults::default();
        faults.add(
            Fault::on("GET", "a*")
                .skip(1)
                .times(1)
                .then(Action::status(503)),
        );
        faults.add(Fault::on("*", "*").then(Action::NeverAnswer));
        assert_eq!(faults.strike("PUT", "a1").actions(), [Action::NeverAnswer]);
        assert!(faults.strike("GET", "a1").is_empty(), "skipped");
        assert_eq!(faults.strike("GET", "a1").actions(), [Action::status(503)]);
        assert_eq!(
            faults.strike("GET", "a1").actions(),
            [Action::NeverAnswer],
            "the first is over"
        );
    }

    #[test]
    fn faults_are_read_from_json_and_misspellings_refused() {
        let fault: Fault = serde_json::from_str(
            r#"{"method":"GET","times":2,"actions":[{"kind":"cut","after_bytes":3}]}"#,
        )
        .unwrap();
        let expected = Fault::on("GET", "*").times(2).then(Action::Cut {
            after_bytes: 3,
            reset: false,
        });
        assert_eq!(fault, expected);
        assert!(
            serde_json::from_str::<Fault>(r#"{"actions":[{"kind":"cut","after":3}]}"#).is_err()
        );
        assert!(serde_json::from_str::<Fault>(r#"{"acts":[]}"#).is_err());
    }
}
