//! What is refused before anything is sent, and what is shown of what others say.

use super::*;

fn arguments() -> RemoteArguments<'static> {
    RemoteArguments {
        url: None,
        token: None,
        token_file: None,
        config: None,
        ca: None,
        fingerprint: None,
        insecure: false,
        dev: false,
    }
}

fn refusal(arguments: RemoteArguments<'_>) -> String {
    let folder = tempfile::tempdir().expect("temporary folder");
    let environment = Environment {
        home: Some(folder.path().to_owned()),
        working_folder: folder.path().to_owned(),
        ..Environment::default()
    };
    match Remote::new(arguments, &environment) {
        Err(error) if error.is_usage() => error.to_string(),
        Err(error) => panic!("not a usage error: {error}"),
        Ok(_) => panic!("taken"),
    }
}

#[test]
fn only_an_address_is_taken_for_one() {
    for (url, part) in [
        ("localhost:8443", "begins neither with https://"),
        ("ftp://localhost", "begins neither with https://"),
        ("https://", "is no URL"),
        ("https://host/-/drain", "goes on behind host and port"),
        ("https://host/?a=b", "goes on behind host and port"),
        ("https://me:pass@host", "names a user"),
    ] {
        let error = refusal(RemoteArguments {
            url: Some(url),
            ..arguments()
        });
        assert!(error.starts_with("--url: "), "{error}");
        assert!(error.contains(part), "{url}: {error}");
    }
    let url = check_url(Some("http://[::1]:8443"), false).expect("an address");
    assert!(is_loopback(&url));
    assert_eq!(check_url(None, true).expect("dev").port(), Some(8443));
}

#[test]
fn the_token_comes_from_one_place_and_is_one() {
    let token = Secret::new("a-token-of-some-length");
    let short = Secret::new("short");
    let with = |token| RemoteArguments {
        token: Some(token),
        ..arguments()
    };
    let both = RemoteArguments {
        config: Some("c"),
        ..with(&token)
    };
    assert!(refusal(both).contains("more than one of --token"));
    assert!(refusal(arguments()).contains("give --token, --tokenFile, --config"));
    assert!(refusal(with(&short)).contains("at least 16 characters"));
    let missing = RemoteArguments {
        token_file: Some("no-such-file"),
        ..arguments()
    };
    assert!(refusal(missing).contains("there is no such file"));
    let dev = RemoteArguments {
        dev: true,
        ..arguments()
    };
    assert!(refusal(dev).contains("where `forebay start --dev` runs"));
}

#[test]
fn trust_is_one_thing_and_fits_the_address() {
    let token = Secret::new("a-token-of-some-length");
    let with = |change: fn(&mut RemoteArguments<'_>)| {
        let mut arguments = RemoteArguments {
            token: Some(&token),
            ..arguments()
        };
        change(&mut arguments);
        refusal(arguments)
    };
    let error = with(|a| (a.ca, a.insecure) = (Some("f"), true));
    assert!(error.contains("--insecure is given too"), "{error}");
    let error = with(|a| (a.url, a.insecure) = (Some("http://localhost"), true));
    assert!(error.contains("is not https"), "{error}");
    let error = with(|a| a.ca = Some("no-such-file"));
    assert!(
        error.contains("--ca: ") && error.contains("No such file"),
        "{error}"
    );
    let error = with(|a| a.fingerprint = Some("12:34"));
    assert!(error.contains("--fingerprint: "), "{error}");
}

#[test]
fn what_others_say_cannot_play_with_the_terminal() {
    let document = "<Error><Message>a &lt;b&gt; &amp;amp; c\u{1b}[2J\n</Message></Error>";
    assert_eq!(message_of(document), "a <b> &amp; c\\u{1b}[2J\\u{a}");
    assert_eq!(message_of(""), "(it says no more)");
    assert_eq!(message_of(&"x".repeat(9999)).len(), MESSAGE_CHARS_MAX);
    assert_eq!(printable("a\u{202e}b\tю"), "a\\u{202e}b\\u{9}ю");
}
