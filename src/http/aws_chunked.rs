//! The `aws-chunked` envelope: framed bytes in, object bytes out. Pure. HTTP's own chunked transfer
//! coding has the same grammar and is taken off with the same decoder.
//!
//! ```text
//! hex-size[;chunk-signature=…] CRLF bytes CRLF … 0[;…] CRLF [name:value CRLF]… CRLF
//! ```
//!
//! The decoder is strict and works in place on whatever pieces arrive. It never hands out a byte
//! of the envelope as content: an envelope stored as data is the classic fault of S3 proxies.

/// Longest line of the envelope: a size, a signature of 64 digits, a trailer's name and value.
const LINE_BYTES_MAX: usize = 1024;

/// Lines that a trailer may have.
const TRAILERS_MAX: usize = 8;

/// The envelope is broken; the request is refused with `InvalidChunkSizeError` or the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the aws-chunked body has {0}")]
pub struct Malformed(pub &'static str);

/// What the next step of decoding found.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Content { left: u64 },
    ContentEnd,
    Trailer { seen: usize },
    End,
}

/// A decoder in the middle of a body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    line: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder {
            state: State::Size,
            line: Vec::new(),
        }
    }
}

impl Decoder {
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
                State::End => return Err(Malformed("bytes after its end")),
                State::Size | State::ContentEnd | State::Trailer { .. } => {
                    if !self.take_line(input)? {
                        return Ok(Step::NeedMore);
                    }
                    let line = std::mem::take(&mut self.line);
                    if let Some(step) = self.end_line(&line)? {
                        return Ok(step);
                    }
                }
            }
        }
    }

    /// Moves input into the line until its CRLF; whether it is complete.
    fn take_line(&mut self, input: &mut &[u8]) -> Result<bool, Malformed> {
        while let Some((byte, rest)) = input.split_first() {
            *input = rest;
            match (self.line.last(), *byte) {
                (Some(b'\r'), b'\n') => {
                    self.line.pop();
                    return Ok(true);
                }
                (Some(b'\r'), _) | (_, b'\n') => return Err(Malformed("a bare CR or LF")),
                _ if self.line.len() == LINE_BYTES_MAX => return Err(Malformed("a line too long")),
                _ => self.line.push(*byte),
            }
        }
        Ok(false)
    }

    fn end_line(&mut self, line: &[u8]) -> Result<Option<Step<'static>>, Malformed> {
        match self.state {
            State::Size => {
                self.state = match parse_size(line)? {
                    0 => State::Trailer { seen: 0 },
                    left => State::Content { left },
                };
                Ok(None)
            }
            State::ContentEnd if line.is_empty() => {
                self.state = State::Size;
                Ok(None)
            }
            State::ContentEnd => Err(Malformed("a chunk longer than its size")),
            State::Trailer { .. } if line.is_empty() => {
                self.state = State::End;
                Ok(Some(Step::End))
            }
            State::Trailer { seen } if seen == TRAILERS_MAX => Err(Malformed("too many trailers")),
            State::Trailer { seen } => {
                self.state = State::Trailer { seen: seen + 1 };
                parse_trailer(line).map(Some)
            }
            State::Content { .. } | State::End => unreachable!("no lines in these states"),
        }
    }

    /// Whether the end was reached.
    pub fn is_complete(&self) -> bool {
        self.state == State::End
    }
}

fn parse_size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let text = std::str::from_utf8(digits).unwrap_or_default();
    let hex = !text.is_empty() && text.len() <= 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let size = hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    size.ok_or(Malformed("a chunk size that is no number"))
}

fn parse_trailer(line: &[u8]) -> Result<Step<'static>, Malformed> {
    let text = std::str::from_utf8(line).map_err(|_| Malformed("a trailer that is not text"))?;
    let (name, value) = text
        .split_once(':')
        .ok_or(Malformed("a trailer without a colon"))?;
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
        let mut decoder = Decoder::default();
        for mut input in body.chunks(piece) {
            loop {
                match decoder.step(&mut input)? {
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
