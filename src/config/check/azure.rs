//! What a config file may say of a volume in Azure.

use super::super::VolumeStore;
use super::super::names;
use super::super::written::{WrittenCredentials, WrittenVolume};
use super::{Checked, Checker, is_loopback};
use crate::creds::{AzureCredentials, StoreCredentials};
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};
use toml::Spanned;

impl Checker<'_> {
    pub(super) fn check_azure(
        &mut self,
        written: &mut WrittenVolume,
        volume: Range<usize>,
    ) -> Checked<VolumeStore> {
        let missing = |key: &str, what: &str| {
            let problem = format!("it is missing; store = \"azure\" needs {what}");
            self.error(volume.clone(), key, problem)
        };
        let Some(endpoint) = &written.endpoint else {
            let what = "the account's URL, as https://ACCOUNT.blob.core.windows.net";
            return Err(missing("endpoint", what));
        };
        let Some(container) = &written.container else {
            return Err(missing("container", "the name of a container"));
        };
        names::check_container(container.get_ref())
            .map_err(|problem| self.error(container.span(), "container", problem))?;
        let endpoint = self.check_endpoint(endpoint)?;
        self.check_prefix_and_region(written)?;
        let ca_file = match &written.ca_file {
            Some(named) => Some(self.check_ca_file(named, &endpoint)?),
            None => None,
        };
        let (own, span) = match written.credentials.take() {
            Some(credentials) => {
                let span = credentials.span();
                (Some(self.azure_credentials(credentials)?), span)
            }
            None => (None, volume.clone()),
        };
        let Some(credentials) = self.sources.choose_azure(own) else {
            let problem = "there are none for this volume; give --blockUser (the account) and \
                           --blockPass (its key or a SAS token), a creds file (`forebay init creds`), \
                           [volume.credentials], or AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, or \
                           AZURE_STORAGE_SAS_TOKEN";
            return Err(self.error(volume, "credentials", problem));
        };
        credentials
            .check()
            .map_err(|problem| self.error(span, "credentials", format!("they {problem}")))?;
        self.warn_of_expiry(written.name.get_ref(), &credentials);
        if endpoint.scheme() == "http" && !is_loopback(&endpoint) {
            self.warnings.push(format!(
                "volume {}: its endpoint is plain http, so objects travel unencrypted; use https",
                written.name.get_ref()
            ));
        }
        let prefix = written.prefix.as_ref();
        Ok(VolumeStore::Azure {
            endpoint,
            container: container.get_ref().clone(),
            prefix: prefix.map_or_else(String::new, |prefix| prefix.get_ref().clone()),
            ca_file,
            credentials,
        })
    }

    /// A token that has expired is no reason to keep what is cached and acknowledged from being
    /// served: the store will refuse us until there is a new one, as with credentials of S3's.
    fn warn_of_expiry(&mut self, volume: &str, credentials: &AzureCredentials) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = i64::try_from(now.unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
        if let Some(end) = credentials.expires().filter(|end| *end <= now) {
            let end = jiff::Timestamp::from_second(end).unwrap_or_default();
            self.warnings.push(format!(
                "volume {volume}: its SAS token expired at {end}; the store refuses it until there \
                 is a new one"
            ));
        }
    }

    fn azure_credentials(&self, written: Spanned<WrittenCredentials>) -> Checked<AzureCredentials> {
        let span = written.span();
        let written = written.into_inner();
        if let Some(token) = written.session_token {
            let problem = "belongs to store = \"s3\" only";
            return Err(self.error(token.span(), "credentials.session_token", problem));
        }
        match (written.access_key, written.secret_key, written.sas_token) {
            (None, None, Some(token)) => {
                let sas = AzureCredentials::Sas(token.get_ref().clone());
                sas.check().map_err(|problem| {
                    let problem = format!("they {problem}");
                    self.error(token.span(), "credentials.sas_token", problem)
                })?;
                Ok(sas)
            }
            (Some(account), Some(key), None) => {
                let pair = StoreCredentials {
                    access_key: account.into_inner(),
                    secret_key: key.into_inner(),
                    session_token: None,
                };
                Ok(AzureCredentials::of_pair(&pair))
            }
            (_, _, Some(token)) => {
                let problem =
                    "access_key or secret_key is given too; give either them or the token";
                Err(self.error(token.span(), "credentials.sas_token", problem))
            }
            (_, _, None) => {
                let problem = "give access_key (the account's name) and secret_key (its key), or \
                               sas_token";
                Err(self.error(span, "credentials", problem))
            }
        }
    }
}
