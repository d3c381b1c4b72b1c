//! The `aws-chunked` envelope: framed bytes in, object bytes out. Pure. HTTP's own chunked transfer
//! coding has the same grammar and is taken off with the same decoder.
//!
//! ```text
//! hex-size[;chunk-signature=…] CRLF bytes CRLF … 0[;…] CRLF [name:value CRLF]… CRLF
//! ```
//!
//! The decoder is strict and works in place on whatever pieces arrive. It never hands out a byte
//! of the envelope as content: an envelope stored as data is the classic fault of S3 proxies. What
//! follows a size is kept for whoever knows what it means (`envelope.rs`); nothing here does.

/// Longest line of the envelope: a size, a signature of 64 digits, a trailer's name and value.
const LINE_BYTES_MAX: usize = 1024;

/// Lines that a trailer may have.
const TRAILERS_MAX: usize = 8;

/// Hexadecimal digits of a chunk's size.
const SIZE_DIGITS_MAX: usize = 16;

/// The framing is broken, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body has {what}")]
pub struct Malformed {
    /// Which part of it.
    pub part: Part,
    /// What is there that should not be.
    pub what: &'static str,
}

/// Part of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The line before a chunk.
    Size,
    /// What must follow a chunk, or the whole.
    End,
    /// A line of the trailer.
    Trailer,
}

/// What the next step of decoding found.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A chunk of so many bytes begins; the one of none is the last.
    Chunk(u64),
    /// Content bytes.
    Content(&'a [u8]),
    /// A line of the trailer, name in lower case.
    Trailer(String, String),
    /// The end of the body. What is left of the input does not belong to it; another step with
    /// any input fails.
    End,
    /// All input is used up.
    NeedMore,
}

/// How lines of a trailer may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// With CRLF, as all lines of HTTP.
    Http,
    /// Also with LF before that: Amazon's description has it so, and minio-go sends it.
    Envelope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Content {
        left: u64,
    },
    ContentEnd,
    Trailer {
        seen: usize,
        /// The last line ended with LF; a CRLF that follows it belongs to it.
        after_line_feed: bool,
    },
    End,
}

/// A decoder in the middle of a body.
#[derive(Debug)]
pub struct Decoder {
    dialect: Dialect,
    state: State,
    line: Vec<u8>,
    /// What followed the last size.
    extension: Vec<u8>,
}

impl Decoder {
    /// A decoder of HTTP's transfer coding.
    pub fn http() -> Self {
        Decoder::new(Dialect::Http)
    }

    /// A decoder of S3's envelope.
    pub fn envelope() -> Self {
        Decoder::new(Dialect::Envelope)
    }

    fn new(dialect: Dialect) -> Self {
        Decoder {
            dialect,
            state: State::Size,
            line: Vec::new(),
            extension: Vec::new(),
        }
    }

    /// Decodes from the front of `input`, which shrinks by what was used.
    pub fn step<'a>(&mut self, input: &mut &'a [u8]) -> Result<Step<'a>, Malformed> {
        loop {
            match self.state {
                State::Content { left } if !input.is_empty() => {
                    let count = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let (content, rest) = input.split_at(count);
                    *input = rest;
                    let left = left - count as u64;
                    self.state = if left == 0 {
                        State::ContentEnd
                    } else {
                        State::Content { left }
                    };
                    return Ok(Step::Content(content));
                }
                State::Content { .. } => return Ok(Step::NeedMore),
                State::End if input.is_empty() => return Ok(Step::End),
                State::End => return Err(broken(Part::End, "bytes after its end")),
                State::Size | State::ContentEnd | State::Trailer { .. } => {
                    let Some(ending) = self.take_line(input)? else {
                        return Ok(Step::NeedMore);
                    };
                    let line = std::mem::take(&mut self.line);
                    if let Some(step) = self.end_line(line, ending)? {
                        return Ok(step);
                    }
                }
            }
        }
    }

    /// Moves input into the line until its end; `None` if that is still to come.
    fn take_line(&mut self, input: &mut &[u8]) -> Result<Option<Ending>, Malformed> {
        let part = self.part();
        let may_feed = self.dialect == Dialect::Envelope && part == Part::Trailer;
        while let Some((byte, rest)) = input.split_first() {
            *input = rest;
            match (self.line.last(), *byte) {
                (Some(b'\r'), b'\n') => {
                    self.line.pop();
                    return Ok(Some(Ending::Both));
                }
                (Some(b'\r'), _) => return Err(broken(part, "a bare CR")),
                (Some(_), b'\n') if may_feed => return Ok(Some(Ending::LineFeed)),
                (_, b'\n') => return Err(broken(part, "a bare LF")),
                _ if self.line.len() == LINE_BYTES_MAX => {
                    return Err(broken(part, "a line too long"));
                }
                _ => self.line.push(*byte),
            }
        }
        Ok(None)
    }

    fn end_line(
        &mut self,
        line: Vec<u8>,
        ending: Ending,
    ) -> Result<Option<Step<'static>>, Malformed> {
        match self.state {
            State::Size => {
                let size = self.begin_chunk(&line)?;
                self.state = match size {
                    0 => State::Trailer {
                        seen: 0,
                        after_line_feed: false,
                    },
                    left => State::Content { left },
                };
                Ok(Some(Step::Chunk(size)))
            }
            State::ContentEnd if line.is_empty() => {
                self.state = State::Size;
                Ok(None)
            }
            State::ContentEnd => Err(broken(Part::End, "a chunk longer than its size")),
            State::Trailer {
                seen,
                after_line_feed: true,
            } if line.is_empty() => {
                self.state = State::Trailer {
                    seen,
                    after_line_feed: false,
                };
                Ok(None)
            }
            State::Trailer { .. } if line.is_empty() => {
                self.state = State::End;
                Ok(Some(Step::End))
            }
            State::Trailer { seen, .. } if seen == TRAILERS_MAX => {
                Err(broken(Part::Trailer, "too many trailers"))
            }
            State::Trailer { seen, .. } => {
                self.state = State::Trailer {
                    seen: seen + 1,
                    after_line_feed: ending == Ending::LineFeed,
                };
                parse_trailer(&line).map(Some)
            }
            State::Content { .. } | State::End => unreachable!("no lines in these states"),
        }
    }

    fn begin_chunk(&mut self, line: &[u8]) -> Result<u64, Malformed> {
        let border = line.iter().position(|byte| *byte == b';');
        let (digits, extension) = line.split_at(border.unwrap_or(line.len()));
        self.extension.clear();
        self.extension
            .extend_from_slice(extension.get(1..).unwrap_or_default());
        parse_size(digits)
    }

    /// What followed the size of the chunk that began last, after its semicolon.
    pub fn extension(&self) -> &[u8] {
        &self.extension
    }

    /// Bytes of content that come next, without anything between.
    pub fn content_left(&self) -> u64 {
        match self.state {
            State::Content { left } => left,
            _ => 0,
        }
    }

    /// Whether the end was reached.
    pub fn is_complete(&self) -> bool {
        self.state == State::End
    }

    fn part(&self) -> Part {
        match self.state {
            State::Size => Part::Size,
            State::Trailer { .. } => Part::Trailer,
            State::Content { .. } | State::ContentEnd | State::End => Part::End,
        }
    }
}

/// How a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// With CRLF.
    Both,
    /// With LF alone.
    LineFeed,
}

fn broken(part: Part, what: &'static str) -> Malformed {
    Malformed { part, what }
}

fn parse_size(digits: &[u8]) -> Result<u64, Malformed> {
    let text = std::str::from_utf8(digits).unwrap_or_default();
    let hex = (1..=SIZE_DIGITS_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let size = hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    size.ok_or(broken(Part::Size, "a chunk size that is no number"))
}

fn parse_trailer(line: &[u8]) -> Result<Step<'static>, Malformed> {
    let refuse = |what| broken(Part::Trailer, what);
    let text = std::str::from_utf8(line).map_err(|_| refuse("a trailer that is not text"))?;
    let (name, value) = text
        .split_once(':')
        .ok_or(refuse("a trailer without a colon"))?;
    Ok(Step::Trailer(
        name.trim().to_ascii_lowercase(),
        value.trim().to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Content, trailers, and whether the end was reached.
    type Decoded = (Vec<u8>, Vec<(String, String)>, bool);

    fn decode(body: &[u8], piece: usize) -> Result<Decoded, Malformed> {
        let (mut content, mut trailers) = (Vec::new(), Vec::new());
        let mut decoder = Decoder::envelope();
        for mut input in body.chunks(piece) {
            loop {
                match decoder.step(&mut input)? {
                    Step::Chunk(_) => {}
                    Step::Content(bytes) => content.extend_from_slice(bytes),
                    Step::Trailer(name, value) => trailers.push((name, value)),
                    Step::End if !input.is_empty() => {}
                    Step::End | Step::NeedMore => break,
                }
            }
        }
        Ok((content, trailers, decoder.is_complete()))
    }

    #[test]
    fn an_envelope_never_becomes_content() {
        let body = b"5;chunk-signature=ab\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32: y/Q5Jg==\r\n\r\n";
        for piece in 1..body.len() {
            let (content, trailers, complete) = decode(body, piece).expect("well-formed");
            assert_eq!(content, b"hello world");
            assert_eq!(
                trailers,
                [("x-amz-checksum-crc32".into(), "y/Q5Jg==".into())]
            );
            assert!(complete);
        }
        assert_eq!(decode(b"0\r\n\r\n", 9), Ok((Vec::new(), Vec::new(), true)));
    }

    #[test]
    fn broken_envelopes_are_noticed() {
        for body in [
            &b"5\r\nhello!\r\n0\r\n\r\n"[..],
            b"5\r\nhell\r\n0\r\n\r\n",
            b"x\r\nhello\r\n",
            b"\r\nhello\r\n",
            b"-5\r\nhello\r\n",
            b"11111111111111111\r\n",
            b"5\nhello\r\n",
            b"0\r\n\r\nmore",
            b"0\r\nnocolon\r\n\r\n",
            b"5\r\nhello\n\r\n0\r\n\r\n",
            b"5\n\r\nhello\r\n0\r\n\r\n",
            b"0\r\n\n\r\n\r\n",
            b"0\r\na:1\n\n\r\n\r\n",
            b"0\r\na:1\r\n\n",
            b"0\r\na:1\n\r\n\r\n\r\n",
        ] {
            assert!(
                decode(body, 3).is_err(),
                "{}",
                String::from_utf8_lossy(body)
            );
        }
        assert!(
            !decode(b"5\r\nhello\r\n", 4).expect("so far").2,
            "the last chunk is missing"
        );
    }

    #[test]
    fn trailers_may_end_with_a_line_feed_in_an_envelope_only() {
        for body in [
            &b"0\r\na:1\nb:2\n\r\n\r\n"[..],
            b"0\r\na:1\n\r\nb:2\r\n\r\n",
            b"0\r\na:1\nb:2\r\n\r\n",
        ] {
            for piece in 1..body.len() {
                let (_, trailers, complete) = decode(body, piece).expect("well-formed");
                let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
                assert_eq!(trailers, [pair("a", "1"), pair("b", "2")]);
                assert!(complete);
            }
            let mut decoder = Decoder::http();
            let mut input = body;
            assert_eq!(decoder.step(&mut input), Ok(Step::Chunk(0)));
            assert_eq!(
                decoder.step(&mut input),
                Err(broken(Part::Trailer, "a bare LF"))
            );
        }
    }

    #[test]
    fn lines_are_bounded() {
        for (start, part) in [
            (&b""[..], Part::Size),
            (b"5;", Part::Size),
            (b"0\r\na:", Part::Trailer),
        ] {
            let body = [start, &b"0".repeat(LINE_BYTES_MAX + 1)].concat();
            assert_eq!(decode(&body, 100), Err(broken(part, "a line too long")));
        }
        let many = "a:b\r\n".repeat(TRAILERS_MAX + 1);
        assert_eq!(
            decode(format!("0\r\n{many}\r\n").as_bytes(), 50),
            Err(broken(Part::Trailer, "too many trailers"))
        );
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(content in proptest::collection::vec(any::<u8>(), 0..200), size in 1..50_usize, piece in 1..40_usize) {
            let mut body = Vec::new();
            for chunk in content.chunks(size) {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(decode(&body, piece), Ok((content, Vec::new(), true)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&body, 7);
        }
    }
}
