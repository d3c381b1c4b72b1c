//! The suite on Azurite, and what else Azure answers for.

#[path = "../common/azure.rs"]
mod account;

use super::{
    BUCKET, Subject, all_cases, everything_is_denied, everything_lacks_the_bucket,
    objects_of_prefixes_are_apart, run, unique,
};
use forebay::creds::AzureCredentials;
use forebay::settings::secret::Secret;
use forebay::store::{AzureSpec, StoreSpec, build};

/// Azure's rules leave open what becomes of these.
fn open_in_azure(key: &str) -> bool {
    let ends_with_dot = |segment: &str| segment.ends_with('.');
    key.contains('\\') || key.chars().any(char::is_control) || key.split('/').any(ends_with_dot)
}

/// Azurite, which `FOREBAY_TEST_AZURE_ENDPOINT`, `_ACCOUNT` and `_KEY` name, by key and by token.
#[test]
fn azurite() {
    let variable = |part: &str| std::env::var(format!("FOREBAY_TEST_AZURE_{part}")).ok();
    let Some(endpoint) = variable("ENDPOINT") else {
        let is_required =
            std::env::var("FOREBAY_TEST_REQUIRE_SERVERS").is_ok_and(|flag| flag == "1");
        let message = "FOREBAY_TEST_AZURE_ENDPOINT is not set";
        assert!(!is_required, "{message}");
        eprintln!("skipped: {message}");
        return;
    };
    let account = variable("ACCOUNT").expect("set together with ENDPOINT");
    let key = variable("KEY").expect("set together with ENDPOINT");
    let by_key = AzureCredentials::Key {
        account: account.clone(),
        key: Secret::new(&key),
    };
    let by_token = AzureCredentials::Sas(Secret::new(account::account_token(&account, &key)));
    for (name, credentials) in [("key", by_key), ("token", by_token)] {
        eprintln!("Azure by {name}");
        run(async {
            let mut spec = AzureSpec::new(&endpoint, BUCKET, credentials);
            account::create_container(&endpoint, BUCKET, &account::account_token(&account, &key))
                .await;
            spec.prefix = format!("run {}/ü", unique());
            let store = build(&StoreSpec::Azure(spec.clone())).expect("a good spec");
            all_cases(Subject {
                store,
                has_conditional_put: true,
                has_if_match: true,
                may_leave_parts_out: true,
                has_uploads_in_order: true,
                forgets_complete_uploads: true,
                refuses: open_in_azure,
            })
            .await;
            azure_containers_and_credentials(&spec).await;
        });
    }
}

/// What S3's servers are held against as well, of containers and keys.
async fn azure_containers_and_credentials(spec: &AzureSpec) {
    let inner = AzureSpec {
        prefix: format!("{}/deep", spec.prefix),
        ..spec.clone()
    };
    let outer = build(&StoreSpec::Azure(spec.clone())).expect("a good spec");
    let inner = build(&StoreSpec::Azure(inner)).expect("a good spec");
    objects_of_prefixes_are_apart(outer.as_ref(), inner.as_ref()).await;
    let gone = AzureSpec {
        container: format!("forebay-none-{}", unique()),
        ..spec.clone()
    };
    let gone = build(&StoreSpec::Azure(gone)).expect("a good spec");
    everything_lacks_the_bucket(gone.as_ref()).await;
    let credentials = match &spec.credentials {
        AzureCredentials::Key { account, .. } => AzureCredentials::Key {
            account: account.clone(),
            key: Secret::new("bm90IHRoZSBrZXk="),
        },
        AzureCredentials::Sas(token) => {
            let token = token.expose().replace("sig=", "sig=A");
            AzureCredentials::Sas(Secret::new(token))
        }
    };
    let wrong = AzureSpec {
        credentials,
        ..spec.clone()
    };
    let store = build(&StoreSpec::Azure(wrong)).expect("a good spec");
    let error = everything_is_denied(store.as_ref()).await;
    assert!(
        !error.contains("sig=") && !error.contains("SharedKey"),
        "{error}"
    );
}
