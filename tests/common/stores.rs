//! The real S3 servers that `scripts/stores up` starts, as the environment names them.

use std::sync::atomic::{AtomicU32, Ordering};

use super::azure;
use super::proxy::StoreSpec;

/// Made by `scripts/probe-s3`, which `scripts/stores up` waits for.
const BUCKET: &str = "forebay-test";

/// An S3 server and how to get in.
#[derive(Clone)]
pub struct S3Server {
    pub name: &'static str,
    pub endpoint: String,
    pub region: String,
    pub bucket: String,
    pub key: String,
    pub secret: String,
}

impl S3Server {
    /// Ceph RADOS Gateway, if it is up.
    pub fn rgw() -> Option<S3Server> {
        S3Server::from_environment("RGW")
    }

    /// Every server that is up.
    pub fn all() -> Vec<S3Server> {
        ["RGW", "SWIFT"]
            .into_iter()
            .filter_map(S3Server::from_environment)
            .collect()
    }

    fn from_environment(name: &'static str) -> Option<S3Server> {
        let value = |part: &str| std::env::var(format!("FOREBAY_TEST_S3_{name}_{part}")).ok();
        let Some(endpoint) = value("ENDPOINT") else {
            super::skip(&format!(
                "FOREBAY_TEST_S3_{name}_ENDPOINT is not set; see scripts/stores"
            ));
            return None;
        };
        Some(S3Server {
            name,
            endpoint,
            region: value("REGION").expect("set together with ENDPOINT"),
            bucket: BUCKET.to_string(),
            key: value("KEY").expect("set together with ENDPOINT"),
            secret: value("SECRET").expect("set together with ENDPOINT"),
        })
    }

    /// The server's `host:port`.
    pub fn authority(&self) -> &str {
        self.endpoint
            .trim_start_matches("http://")
            .trim_end_matches('/')
    }

    /// This server with a prefix that no other test and no earlier run uses.
    pub fn own_prefix(&self) -> StoreSpec {
        StoreSpec::S3 {
            server: self.clone(),
            prefix: new_prefix(),
        }
    }
}

fn new_prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("test-{}-{}-{count}", now.as_millis(), std::process::id())
}

/// Azurite and how to get in.
#[derive(Clone)]
pub struct AzureServer {
    pub endpoint: String,
    pub container: String,
    pub account: String,
    pub key: String,
}

impl AzureServer {
    /// Azurite, if it is up; makes the container.
    pub fn azurite() -> Option<AzureServer> {
        let value = |part: &str| std::env::var(format!("FOREBAY_TEST_AZURE_{part}")).ok();
        let Some(endpoint) = value("ENDPOINT") else {
            super::skip("FOREBAY_TEST_AZURE_ENDPOINT is not set; see scripts/stores");
            return None;
        };
        let server = AzureServer {
            endpoint,
            container: BUCKET.to_string(),
            account: value("ACCOUNT").expect("set together with ENDPOINT"),
            key: value("KEY").expect("set together with ENDPOINT"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let token = server.token();
        runtime
            .expect("a runtime")
            .block_on(azure::create_container(&server.endpoint, BUCKET, &token));
        Some(server)
    }

    /// A token for all of the account.
    pub fn token(&self) -> String {
        azure::account_token(&self.account, &self.key)
    }

    /// This server with a prefix that no other test and no earlier run uses; `credentials` are lines of
    /// the settings file.
    pub fn own_prefix(&self, credentials: String) -> StoreSpec {
        StoreSpec::Azure {
            server: self.clone(),
            prefix: new_prefix(),
            credentials,
        }
    }
}
