//! What opens an Azure storage account: its name and key, or a token that somebody signed with one.
//!
//! Pure. This file owns what such credentials must look like. It never sends them and never repeats
//! a secret in a message.

use super::StoreCredentials;
use crate::settings::secret::Secret;
use base64::Engine;
use percent_encoding::percent_decode_str;

/// What a request to Azure is authorized with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AzureCredentials {
    /// The account's own key; requests are signed.
    Key {
        /// The account's name.
        account: String,
        /// Its key, base64 as Azure shows it.
        key: Secret,
    },
    /// A shared access signature: a query that goes with each request.
    Sas(Secret),
}

impl AzureCredentials {
    /// What a pair of name and secret means: what holds a signature is a token, and needs no name.
    pub fn of_pair(pair: &StoreCredentials) -> Self {
        if pair.secret_key.expose().contains("sig=") {
            return AzureCredentials::Sas(pair.secret_key.clone());
        }
        AzureCredentials::Key {
            account: pair.access_key.clone(),
            key: pair.secret_key.clone(),
        }
    }

    /// Refuses what cannot open anything, in words that follow "they" and repeat no secret.
    pub fn check(&self) -> Result<(), String> {
        match self {
            AzureCredentials::Key { account, key } => {
                check_account(account)?;
                decode_key(key).map(drop)
            }
            AzureCredentials::Sas(token) => check_sas(token.expose()),
        }
    }

    /// When a token expires, seconds since the Unix epoch; none if it does not say.
    pub fn expires(&self) -> Option<i64> {
        let AzureCredentials::Sas(token) = self else {
            return None;
        };
        parse_time(&parameter(token.expose(), "se")?)
    }
}

fn check_account(account: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    match (3..=24).contains(&account.len()) && account.bytes().all(fits) {
        true => Ok(()),
        false => Err(
            "name no storage account: access_key must be its name, 3 to 24 lower-case \
                      letters and digits"
                .to_owned(),
        ),
    }
}

/// The bytes that requests are signed with.
pub fn decode_key(key: &Secret) -> Result<Vec<u8>, String> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(key.expose());
    match decoded {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(
            "hold a key that is not base64; copy one of the account's access keys whole, \
                  with the `=` at its end"
                .to_owned(),
        ),
    }
}

/// A token without the `?` that some tools put before it.
pub fn sas_query(token: &str) -> &str {
    token.strip_prefix('?').unwrap_or(token)
}

fn check_sas(token: &str) -> Result<(), String> {
    let query = sas_query(token);
    if !query.bytes().all(|byte| byte.is_ascii_graphic()) || query.contains(['#', '?']) {
        return Err(
            "hold a SAS token with characters that cannot be in one; give all of what \
                    follows the `?`, percent-encoded as Azure shows it"
                .to_owned(),
        );
    }
    let has = |name: &str| parameter(query, name).is_some_and(|value| !value.is_empty());
    let missing = |part: &str, what: &str| {
        Err(format!(
            "hold a SAS token without `{part}`, {what}; give the whole token"
        ))
    };
    // A stored access policy of the container, `si`, may hold the two.
    let has_policy = has("si");
    let needed = [
        ("sig", "its signature", has("sig")),
        ("sv", "its version", has("sv")),
        ("se", "when it expires", has("se") || has_policy),
        ("sp", "what it allows", has("sp") || has_policy),
    ];
    if let Some((part, what, _)) = needed.iter().find(|needed| !needed.2) {
        return missing(part, what);
    }
    let kind = parameter(query, "sr");
    match (kind.as_deref(), has("ss") && has("srt")) {
        (Some("c" | "d"), _) | (None, true) => {}
        (None, false) => {
            return missing("sr` or `ss` and `srt", "what it is for");
        }
        (Some(_), _) => {
            return Err(
                "hold a SAS token for a single blob; a volume needs one for its \
                        container (sr=c) or account"
                    .to_owned(),
            );
        }
    }
    if let Some(expiry) = parameter(query, "se")
        && parse_time(&expiry).is_none()
    {
        return Err("hold a SAS token whose `se` is no time".to_owned());
    }
    Ok(())
}

/// A parameter of a query, decoded; the first of its name.
fn parameter(query: &str, name: &str) -> Option<String> {
    sas_query(query).split('&').find_map(|pair| {
        let (found, value) = pair.split_once('=')?;
        let decoded = percent_decode_str(value).decode_utf8().ok()?;
        (found == name).then(|| decoded.into_owned())
    })
}

/// The forms of time that Azure takes: to the second, to the minute, and days.
fn parse_time(text: &str) -> Option<i64> {
    let full = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        17 => format!("{}:00Z", text.strip_suffix('Z')?),
        _ => text.to_owned(),
    };
    let moment: jiff::Timestamp = full.parse().ok()?;
    Some(moment.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, secret: &str) -> AzureCredentials {
        AzureCredentials::of_pair(&StoreCredentials {
            access_key: name.to_owned(),
            secret_key: Secret::new(secret),
            session_token: None,
        })
    }

    #[test]
    fn keys_are_base64_and_belong_to_a_name() {
        pair("account1", "c2VjcmV0LTEyMw==")
            .check()
            .expect("a good key");
        for (name, secret, part) in [
            ("account1", "c2VjcmV0LTEyMw", "base64"),
            ("account1", "secret-123!", "base64"),
            ("account1", "", "base64"),
            ("Account1", "c2VjcmV0LTEyMw==", "account"),
            ("a", "c2VjcmV0LTEyMw==", "account"),
            ("", "c2VjcmV0LTEyMw==", "account"),
        ] {
            let problem = pair(name, secret).check().expect_err(secret);
            assert!(problem.contains(part), "{problem}");
            assert!(secret.is_empty() || !problem.contains(secret), "{problem}");
        }
    }

    #[test]
    fn tokens_have_all_their_parts() {
        let good = "sv=2024-11-04&sr=c&sp=rwdl&se=2030-01-01T00%3A00%3A00Z&sig=hush%3D";
        for token in [
            good,
            "?sv=2024-11-04&ss=b&srt=co&sp=rwdlac&se=2030-01-01&sig=hush%3D",
            "sv=2024-11-04&sr=c&si=policy&sig=hush%3D",
        ] {
            pair("", token).check().expect(token);
        }
        for (gone, part) in [
            ("sv=2024-11-04&", "`sv`"),
            ("sr=c&", "`sr`"),
            ("sp=rwdl&", "`sp`"),
            ("se=2030-01-01T00%3A00%3A00Z&", "`se`"),
        ] {
            let problem = pair("", &good.replace(gone, ""))
                .check()
                .expect_err("a part is gone");
            assert!(
                problem.contains(part) && !problem.contains("hush"),
                "{problem}"
            );
        }
        let unsigned = AzureCredentials::Sas(Secret::new(good.replace("sig=hush%3D", "")));
        assert!(unsigned.check().expect_err("unsigned").contains("`sig`"));
        for (text, other) in [
            ("sr=c", "sr=b"),
            ("2030-01-01T00%3A00%3A00Z", "soon"),
            ("sr=c", "sr=c x"),
        ] {
            pair("", &good.replace(text, other))
                .check()
                .expect_err(other);
        }
    }

    #[test]
    fn expiry_is_read_in_each_of_its_forms() {
        for (text, expected) in [
            ("2030-01-01T00%3A00%3A00Z", Some(1_893_456_000)),
            ("2030-01-01T00:01Z", Some(1_893_456_060)),
            ("2030-01-01", Some(1_893_456_000)),
            ("later", None),
        ] {
            let token = AzureCredentials::Sas(Secret::new(format!("se={text}&sig=x")));
            assert_eq!(token.expires(), expected, "{text}");
        }
        assert_eq!(pair("account1", "c2VjcmV0LTEyMw==").expires(), None);
    }
}
