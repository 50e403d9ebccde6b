//! `crossdock admin`: looking after a server's storage, whether servers run over it or not.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::args::{AdminCommand, AdminGcCommand, AdminStatsCommand, AdminVerifyCommand, Format, StorageArgs};
use super::environment::Environment;
use super::error::{CliError, ExitStatus};
use super::serve::{open, storage, time, wrong};
use crate::bytes::ByteSize;
use crate::server::{self, GcError, GcPolicy, Storage, Tenant, TenantUsage};

/// `[serve.gc]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct GcConfig {
    max_size: Option<String>,
    tenant_max_size: Option<String>,
    tenants: BTreeMap<Tenant, String>,
    max_age: Option<String>,
    grace: Option<String>,
    trash: Option<String>,
    interval: Option<String>,
}

impl GcConfig {
    /// What it says, with the defaults.
    pub(super) fn resolve(&self) -> Result<GcPolicy, CliError> {
        let defaults = GcPolicy::default();
        let size = |key: &str, text: &str| match text.parse::<ByteSize>() {
            Ok(size) => Ok(size.0),
            Err(error) => Err(wrong(&format!("gc.{key}"), &error.to_string())),
        };
        let duration = |key: &str, text: &Option<String>| -> Result<Option<Duration>, CliError> {
            let parse = |text: &String| {
                super::values::duration(text).map_err(|error| wrong(&format!("gc.{key}"), &error))
            };
            text.as_ref().map(parse).transpose()
        };
        let tenants = self.tenants.iter().map(|(tenant, text)| {
            Ok::<_, CliError>((tenant.clone(), size(&format!("tenants.{tenant}"), text)?))
        });
        Ok(GcPolicy {
            max_bytes: self.max_size.as_ref().map(|text| size("max-size", text)).transpose()?,
            tenant_max_bytes: self
                .tenant_max_size
                .as_ref()
                .map(|text| size("tenant-max-size", text))
                .transpose()?,
            tenants: tenants.collect::<Result<_, _>>()?,
            max_age: duration("max-age", &self.max_age)?,
            grace: duration("grace", &self.grace)?.unwrap_or(defaults.grace),
            trash: duration("trash", &self.trash)?.unwrap_or(defaults.trash),
            mirrors: Vec::new(),
            interval: duration("interval", &self.interval)?.unwrap_or(defaults.interval),
        })
    }
}

fn bytes(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

fn failed(error: GcError) -> CliError {
    match error {
        GcError::Open(error) => CliError::hinted(ExitStatus::System, error),
        GcError::Store(error) => CliError::hinted(ExitStatus::System, error),
    }
}

fn opened(args: &StorageArgs, environment: &Environment) -> Result<Storage, CliError> {
    open(storage(args, environment)?, environment)
}

/// `crossdock admin`.
pub(super) fn command(command: &AdminCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    match command {
        AdminCommand::Stats(args) => stats(args, environment),
        AdminCommand::Gc(args) => gc(args, environment),
        AdminCommand::Verify(args) => verify(args, environment),
    }
}

fn stats(args: &AdminStatsCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    let storage = opened(&args.storage, environment)?;
    let usage = super::runtime()?.block_on(server::usage(&storage)).map_err(failed)?;
    match args.format {
        Format::Json => super::print(&format!("{}\n", json!(usage)))?,
        Format::Text => {
            for tenant in &usage {
                super::print(&told(tenant))?;
            }
        }
    }
    Ok(ExitStatus::Success)
}

fn told(usage: &TenantUsage) -> String {
    format!(
        "{}: {} in {} blobs ({} of images), {} records ({}), {} in the trash\n",
        usage.tenant,
        bytes(usage.blob_bytes),
        usage.blobs,
        bytes(usage.image_bytes),
        usage.records,
        bytes(usage.record_bytes),
        bytes(usage.trash_bytes),
    )
}

fn gc(args: &AdminGcCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    let configured = environment.config.serve.gc(&[])?;
    let policy = GcPolicy {
        max_bytes: args.max_size.map(|size| size.0).or(configured.max_bytes),
        tenant_max_bytes: args.tenant_max_size.map(|size| size.0).or(configured.tenant_max_bytes),
        max_age: args.max_age.or(configured.max_age),
        grace: args.grace.unwrap_or(configured.grace),
        trash: args.trash.unwrap_or(configured.trash),
        ..configured
    };
    let storage = opened(&args.storage, environment)?;
    let (report, _) =
        super::runtime()?.block_on(server::collect(&storage, &policy, time())).map_err(failed)?;
    let text = match args.format {
        Format::Json => format!("{}\n", json!(report)),
        Format::Text => {
            let mut text = format!(
                "{} records removed, {} blobs ({}) to the trash, {} blobs ({}) removed for good\n",
                report.records,
                report.discarded_blobs,
                bytes(report.discarded_bytes),
                report.destroyed_blobs,
                bytes(report.destroyed_bytes),
            );
            if report.excess_bytes > 0 {
                text.push_str(&format!(
                    "{} more than allowed stay: they are too new, or images\n",
                    bytes(report.excess_bytes)
                ));
            }
            text
        }
    };
    super::print(&text)?;
    Ok(ExitStatus::Success)
}

fn verify(args: &AdminVerifyCommand, environment: &Environment) -> Result<ExitStatus, CliError> {
    let storage = opened(&args.storage, environment)?;
    let (checked, damage) = super::runtime()?.block_on(server::verify(&storage)).map_err(failed)?;
    for damage in &damage {
        super::print(&format!("{}: {} is damaged and was put aside\n", damage.tenant, damage.what))?;
    }
    super::print(&format!("{checked} checked, {} damaged\n", damage.len()))?;
    Ok(if damage.is_empty() { ExitStatus::Success } else { ExitStatus::Failure })
}
