//! What a request wants its answer to say instead of what the object says: `response-*`. Pure.
//!
//! It is for those only who proved who they are: else a link that anybody can make would serve an
//! object as something that it is not, under the name of this server.

use super::reply::ErrorReply;

/// Query parameters, and the headers that they replace.
const PARAMETERS: [(&str, &str); 6] = [
    ("response-cache-control", "cache-control"),
    ("response-content-disposition", "content-disposition"),
    ("response-content-encoding", "content-encoding"),
    ("response-content-language", "content-language"),
    ("response-content-type", "content-type"),
    ("response-expires", "expires"),
];

/// Headers that an answer says in place of the object's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    headers: Vec<(&'static str, String)>,
}

/// Whether a query parameter is one of these.
pub fn is_override(name: &str) -> bool {
    PARAMETERS.iter().any(|(parameter, _)| *parameter == name)
}

impl Overrides {
    /// What a query asks for. `is_anonymous` says that nobody proved anything.
    pub fn of(query: &[(String, String)], is_anonymous: bool) -> Result<Overrides, ErrorReply> {
        let mut headers: Vec<(&'static str, String)> = Vec::new();
        for (name, value) in query {
            let found = PARAMETERS.iter().find(|(parameter, _)| parameter == name);
            let Some((_, header)) = found else {
                continue;
            };
            if is_anonymous {
                let message = format!("{name} is not for anonymous requests");
                return Err(ErrorReply::new(400, "InvalidRequest", message));
            }
            let is_twice = headers.iter().any(|(known, _)| known == header);
            if is_twice || value.is_empty() || value.chars().any(char::is_control) {
                let message = format!("{name} must stand there once, with the value of a header");
                return Err(ErrorReply::new(400, "InvalidArgument", message));
            }
            headers.push((header, value.clone()));
        }
        Ok(Overrides { headers })
    }

    /// Whether a header of the object is not told.
    pub fn replaces(&self, name: &str) -> bool {
        self.headers.iter().any(|(header, _)| *header == name)
    }

    /// What is told instead.
    pub fn headers(&self) -> &[(&'static str, String)] {
        &self.headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str, is_anonymous: bool) -> Result<Overrides, &'static str> {
        let target = format!("/v/k?{query}");
        let query = crate::http::target::parse(&target).expect("good").query;
        Overrides::of(&query, is_anonymous).map_err(|error| error.code)
    }

    #[test]
    fn each_parameter_replaces_its_header() {
        let all = PARAMETERS
            .map(|(name, _)| format!("{name}=a%20%C3%BC"))
            .join("&");
        let found = of(&format!("x-id=GetObject&{all}"), false).expect("good");
        assert_eq!(found.headers().len(), PARAMETERS.len());
        for (name, header) in PARAMETERS {
            assert_eq!(name.strip_prefix("response-"), Some(header));
            assert!(is_override(name) && found.replaces(header) && !found.replaces(name));
            assert!(found.headers().contains(&(header, "a ü".to_owned())));
        }
        assert!(!is_override("response-etag"));
        assert_eq!(of("x-id=GetObject", true), Ok(Overrides::default()));
    }

    #[test]
    fn strangers_and_broken_lines_are_refused() {
        let one = "response-content-type=text/html";
        assert_eq!(of(one, true), Err("InvalidRequest"));
        for query in [
            "response-content-type=",
            "response-content-type",
            "response-content-type=a%0d%0aset-cookie:b",
            "response-content-type=a%00",
            "response-content-type=a&response-content-type=a",
        ] {
            assert_eq!(of(query, false), Err("InvalidArgument"), "{query}");
        }
    }
}
