//! Azurite as the tests find it: a token for its account, and a container.
//!
//! The token is signed here, from the documents and apart from what is tested.

#![allow(dead_code, reason = "each test file uses its part of it")]

use aws_lc_rs::hmac;
use base64::Engine;

/// Of the tokens' form, not of the requests.
const TOKEN_VERSION: &str = "2022-11-02";

/// A token that allows everything in the account's containers, for years.
pub fn account_token(account: &str, key: &str) -> String {
    let base64 = base64::engine::general_purpose::STANDARD;
    let (permissions, services, kinds) = ("rwdlacup", "b", "sco");
    let (start, expiry, address, protocol) = ("", "2099-01-01T00:00:00Z", "", "https,http");
    let text = [
        account,
        permissions,
        services,
        kinds,
        start,
        expiry,
        address,
        protocol,
        TOKEN_VERSION,
        "",
        "",
    ]
    .join("\n");
    let key = base64.decode(key).expect("base64");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signature = base64.encode(hmac::sign(&key, text.as_bytes()));
    let escaped: String = signature
        .chars()
        .map(|c| match c {
            '+' => "%2B".to_owned(),
            '/' => "%2F".to_owned(),
            '=' => "%3D".to_owned(),
            other => other.to_string(),
        })
        .collect();
    format!(
        "sv={TOKEN_VERSION}&ss={services}&srt={kinds}&sp={permissions}&se=2099-01-01T00%3A00%3A00Z\
         &spr={protocol}&sig={escaped}"
    )
}

/// Makes a container, if it is not there.
pub async fn create_container(endpoint: &str, container: &str, token: &str) {
    // This client, unlike the store's own, takes the process-wide provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build();
    let url = format!("{endpoint}/{container}?restype=container&{token}");
    let request = client.expect("a client").put(url);
    let request = request.header("x-ms-version", TOKEN_VERSION);
    let answer = request.header("content-length", "0").send().await;
    let answer = answer.expect("the server answers");
    let status = answer.status().as_u16();
    assert!(
        matches!(status, 201 | 409),
        "making {container} gave {status}: {}",
        answer.text().await.unwrap_or_default()
    );
}
