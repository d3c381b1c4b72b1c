//! XML as S3 speaks it: a small strict reader, and text for documents that we write.
//!
//! Pure. The reader walks a document that is in memory and tells of each element when it ends. It
//! never follows a document type, never expands an entity but XML's own five and characters by
//! number, and refuses what is too deep: whatever the bytes, it takes time and memory in proportion
//! to them.

use forebay_io::tags::Tags;
use quick_xml::events::{BytesRef, Event};
use quick_xml::name::QName;

/// Elements inside each other at most. S3's documents have four.
const DEPTH_MAX: usize = 16;

/// Not a document of the kind that is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct XmlError(String);

impl XmlError {
    /// Says what is wrong.
    pub fn new(what: impl Into<String>) -> Self {
        XmlError(what.into())
    }
}

/// An element that begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node<'d> {
    /// The innermost element of the path begins.
    Open,
    /// The innermost element of the path ends; the text is its own, with references resolved, and
    /// empty if it holds elements.
    Close(&'d str),
}

/// Reads a document and tells `visit` of each element: the names from the root to it, without their
/// namespace prefixes, and whether it begins or ends.
///
/// # Errors
/// If it is not well-formed, not UTF-8, too deep, declares a document type, holds text beside
/// elements, or `visit` refuses.
pub fn read(
    bytes: &[u8],
    mut visit: impl FnMut(&[String], Node<'_>) -> Result<(), XmlError>,
) -> Result<(), XmlError> {
    let text = std::str::from_utf8(bytes).map_err(|_| XmlError::new("it is not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = quick_xml::Reader::from_str(text);
    let mut walk = Walk::default();
    loop {
        let event = reader.read_event();
        match event.map_err(|error| XmlError::new(error.to_string()))? {
            Event::Start(start) => {
                walk.open(start.name())?;
                visit(&walk.path, Node::Open)?;
            }
            Event::Empty(start) => {
                walk.open(start.name())?;
                visit(&walk.path, Node::Open)?;
                visit(&walk.path, Node::Close(""))?;
                walk.close();
            }
            Event::End(_) => {
                let own = walk.own_text()?;
                visit(&walk.path, Node::Close(&own))?;
                walk.close();
            }
            Event::Text(part) => {
                let part = part.decode().map_err(|e| XmlError::new(e.to_string()))?;
                walk.text(&one_line_end(&part))?;
            }
            Event::CData(part) => {
                let part = part.decode().map_err(|e| XmlError::new(e.to_string()))?;
                walk.text(&one_line_end(&part))?;
            }
            Event::GeneralRef(reference) => walk.text(&resolve(&reference)?)?,
            Event::DocType(_) => return Err(XmlError::new("a document type is not taken")),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            Event::Eof => return walk.end(),
        }
    }
}

/// Where a reader is.
#[derive(Default)]
struct Walk {
    path: Vec<String>,
    /// Of the innermost element; of one that holds elements only blanks.
    text: String,
    /// Whether the innermost element that is open holds an element.
    has_elements: bool,
    is_over: bool,
}

impl Walk {
    fn open(&mut self, name: QName<'_>) -> Result<(), XmlError> {
        if self.is_over {
            return Err(XmlError::new("there is a second root element"));
        }
        if self.path.len() == DEPTH_MAX {
            return Err(XmlError::new("its elements are nested too deep"));
        }
        if !self.text.trim_ascii().is_empty() {
            return Err(XmlError::new("there is text beside elements"));
        }
        let name = String::from_utf8_lossy(name.local_name().into_inner()).into_owned();
        self.path.push(name);
        self.text.clear();
        self.has_elements = false;
        Ok(())
    }

    fn own_text(&mut self) -> Result<String, XmlError> {
        let text = std::mem::take(&mut self.text);
        match (self.has_elements, text.trim_ascii().is_empty()) {
            (false, _) => Ok(text),
            (true, true) => Ok(String::new()),
            (true, false) => Err(XmlError::new("there is text beside elements")),
        }
    }

    fn close(&mut self) {
        self.path.pop();
        self.text.clear();
        self.has_elements = true;
        self.is_over = self.path.is_empty();
    }

    fn text(&mut self, text: &str) -> Result<(), XmlError> {
        if self.path.is_empty() {
            return match text.trim_ascii().is_empty() {
                true => Ok(()),
                false => Err(XmlError::new("there is text outside of the root element")),
            };
        }
        self.text.push_str(text);
        Ok(())
    }

    fn end(self) -> Result<(), XmlError> {
        match self.is_over {
            true => Ok(()),
            false => Err(XmlError::new("it ends before its root element does")),
        }
    }
}

/// Every end of a line as one line feed, as XML wants it. A carriage return that is meant is written
/// as a character reference.
fn one_line_end(text: &str) -> String {
    match text.contains('\r') {
        true => text.replace("\r\n", "\n").replace('\r', "\n"),
        false => text.to_owned(),
    }
}

fn resolve(reference: &BytesRef<'_>) -> Result<String, XmlError> {
    let refuse = || XmlError::new("there is a reference to an entity that XML does not have");
    match reference.resolve_char_ref() {
        Ok(Some(character)) => return Ok(character.to_string()),
        Ok(None) => {}
        Err(_) => return Err(refuse()),
    }
    let name = reference.decode().map_err(|_| refuse())?;
    let resolved = quick_xml::escape::resolve_predefined_entity(&name);
    resolved.map(str::to_owned).ok_or_else(refuse)
}

/// A moment as S3 writes it in documents, from milliseconds since the Unix epoch.
pub fn moment(unix_ms: u64) -> String {
    let ms = i64::try_from(unix_ms).unwrap_or(0);
    let moment = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
    moment.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// A document in the making, as S3 answers.
pub struct Document {
    text: String,
}

/// The namespace of S3's documents.
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

impl Document {
    /// Begins a document with its root element.
    pub fn new(root: &str) -> Self {
        let mut text = String::with_capacity(1024);
        text.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        text.push_str(&format!("<{root} xmlns=\"{NAMESPACE}\">"));
        Document { text }
    }

    /// Opens an element.
    pub fn open(&mut self, name: &str) -> &mut Self {
        self.text.push('<');
        self.text.push_str(name);
        self.text.push('>');
        self
    }

    /// Closes an element.
    pub fn close(&mut self, name: &str) -> &mut Self {
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push('>');
        self
    }

    /// An element with text.
    pub fn element(&mut self, name: &str, text: &str) -> &mut Self {
        self.open(name);
        escape_into(&mut self.text, text);
        self.close(name)
    }

    /// Text in the element that is open.
    pub fn text(&mut self, text: &str) -> &mut Self {
        escape_into(&mut self.text, text);
        self
    }

    /// An element with a name that must not be taken for another one: what XML 1.0 cannot hold is
    /// written as a reference by number, as S3 does. Strict readers refuse it, others read it right.
    pub fn exact_element(&mut self, name: &str, text: &str) -> &mut Self {
        self.open(name);
        for character in text.chars() {
            match character {
                '\t' | '\n' => self.text.push(character),
                '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                    self.text
                        .push_str(&format!("&#x{:X};", u32::from(character)));
                }
                _ => escape_character(&mut self.text, character),
            }
        }
        self.close(name)
    }

    /// An element with a number.
    pub fn number(&mut self, name: &str, number: u64) -> &mut Self {
        self.element(name, &number.to_string())
    }

    /// An element that is true or false.
    pub fn flag(&mut self, name: &str, flag: bool) -> &mut Self {
        self.element(name, if flag { "true" } else { "false" })
    }

    /// The document, its root closed.
    pub fn finish(mut self, root: &str) -> String {
        self.close(root);
        self.text
    }
}

/// The document that tells or sets an object's tags.
pub fn tagging(tags: &Tags) -> String {
    let mut document = Document::new("Tagging");
    document.open("TagSet");
    for (name, value) in tags {
        document.open("Tag");
        document.exact_element("Key", name);
        document.exact_element("Value", value);
        document.close("Tag");
    }
    document.close("TagSet");
    document.finish("Tagging")
}

/// Text as XML character data. Characters that XML 1.0 cannot hold become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    escape_into(&mut escaped, text);
    escaped
}

fn escape_into(escaped: &mut String, text: &str) {
    for character in text.chars() {
        escape_character(escaped, character);
    }
}

fn escape_character(escaped: &mut String, character: char) {
    match character {
        '<' => escaped.push_str("&lt;"),
        '>' => escaped.push_str("&gt;"),
        '&' => escaped.push_str("&amp;"),
        '"' => escaped.push_str("&quot;"),
        '\t' | '\n' => escaped.push(character),
        '\r' => escaped.push_str("&#13;"),
        '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
        _ => escaped.push(character),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `path=text` of each element that holds text.
    fn leaves(document: &str) -> Result<Vec<String>, XmlError> {
        let mut found = Vec::new();
        read(document.as_bytes(), |path, node| {
            if let Node::Close(text) = node {
                found.push(format!("{}={text}", path.join("/")));
            }
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn elements_are_told_with_their_text() {
        let found = leaves(
            "<?xml version=\"1.0\"?>\r\n<a xmlns=\"x\">\n <s:b xmlns:s='y'>1 &lt;&amp;&#13;&#x41;</s:b>\
             <!-- no --><c/><d><![CDATA[<&]]></d> <e>a\r\nb\rc</e></a>\n",
        );
        let expected = ["a/b=1 <&\rA", "a/c=", "a/d=<&", "a/e=a\nb\nc", "a="];
        assert_eq!(found.expect("well-formed"), expected);
    }

    #[test]
    fn what_is_not_a_document_or_a_bomb_is_refused() {
        let deep = "<a>".repeat(DEPTH_MAX + 1);
        let bomb = "<!DOCTYPE a [<!ENTITY b \"ha\"><!ENTITY c \"&b;&b;\">]><a>&c;</a>";
        for (document, part) in [
            ("", "ends before"),
            ("text", "outside"),
            ("<a>", "ends before"),
            ("<a></b>", "expected"),
            ("<a/><b/>", "second root"),
            ("<a/>x", "outside"),
            ("<a>x<b/></a>", "beside"),
            ("<a><b/>x</a>", "beside"),
            ("<a>&b;</a>", "entity"),
            ("<a>&#0;</a>", "entity"),
            ("<a>&#xD800;</a>", "entity"),
            ("<a>&#99999999;</a>", "entity"),
            ("<!DOCTYPE a><a/>", "document type"),
            (&deep, "too deep"),
            (bomb, "document type"),
        ] {
            let error = leaves(document).expect_err(document).to_string();
            assert!(error.contains(part), "{document}: {error}");
        }
        assert!(read(b"<a>\xff</a>", |_, _| Ok(())).is_err());
    }

    proptest! {
        #[test]
        fn any_text_comes_back_unless_xml_cannot_hold_it(text in any::<String>()) {
            let document = format!("<a>{}</a>", escape(&text));
            let lost = |c| matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}');
            let expected: String = text.chars().map(|c| if lost(c) { '\u{fffd}' } else { c }).collect();
            prop_assert_eq!(leaves(&document).expect("well-formed"), [format!("a={expected}")]);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, |_, _| Ok(()));
        }
    }
}
