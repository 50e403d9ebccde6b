//! `crossdock cache mounts`.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::args::{
    CacheArgs, CacheMountsCommand, Format, MountsExportCommand, MountsImportCommand, MountsInspectCommand,
    MountsRemoveCommand, Progress,
};
use super::backend::{self, Cancel, Machine, Settings, build_error};
use super::cache::{confirm, print_json, table};
use super::environment::Environment;
use super::error::CliError;
use super::report::{self, sanitize};
use crate::build::{CacheMount, CacheMountContent, Engine};
use crate::bytes::ByteSize;
use crate::hint::did_you_mean;
use crate::image::time;
use crate::layer::display_path;
use crate::snapshot::{Entry, EntryKind};

/// Fewer digits of a name name too much.
const DIGITS_MIN: usize = 4;

/// As many digits of a name are shown.
const DIGITS_SHOWN: usize = 12;

/// How long is waited until the shared cache has what was changed.
const GRACE: Duration = Duration::from_mins(10);

/// Runs the command.
pub(super) fn command(
    command: &CacheMountsCommand,
    environment: &Environment,
    runtime: &Runtime,
) -> Result<(), CliError> {
    let cache = match command {
        CacheMountsCommand::Ls(args) => &args.cache,
        CacheMountsCommand::Inspect(args) => &args.cache,
        CacheMountsCommand::Rm(args) => &args.cache,
        CacheMountsCommand::Export(args) => &args.cache,
        CacheMountsCommand::Import(args) => &args.cache,
    };
    runtime.block_on(async {
        let engine = engine(cache, environment).await?;
        match command {
            CacheMountsCommand::Ls(args) => list(&engine.cache_mounts().await, args.format),
            CacheMountsCommand::Inspect(args) => inspect(&engine, args).await,
            CacheMountsCommand::Rm(args) => remove(&engine, args, environment).await,
            CacheMountsCommand::Export(args) => export(&engine, args).await,
            CacheMountsCommand::Import(args) => import(&engine, args).await,
        }
    })
}

async fn engine(cache: &CacheArgs, environment: &Environment) -> Result<Engine, CliError> {
    let settings = Settings::resolve(cache, environment)?;
    let reporter = report::choose(Progress::Quiet, environment);
    backend::engine(Machine::idle(), &settings, reporter, Cancel::new()?).await
}

/// Waits until the shared cache has it too.
async fn flush(engine: &Engine) -> Result<(), CliError> {
    let report = engine.cache.flush(GRACE).await;
    if report.failed + report.pending > 0 {
        let location = engine.cache.remote().unwrap_or_else(|| "the shared cache".to_owned());
        return Err(CliError::message(format!("it is done on this machine, and {location} did not take it")));
    }
    Ok(())
}

fn digits(mount: &CacheMount) -> String {
    mount.name.hex().chars().take(DIGITS_SHOWN).collect()
}

fn place(mount: &CacheMount) -> &'static str {
    match (mount.is_shared, mount.is_here) {
        (true, true) => "shared, here",
        (true, false) => "shared",
        _ => "here",
    }
}

fn to_json(mount: &CacheMount) -> Value {
    json!({
        "id": mount.id,
        "name": mount.name.hex(),
        "scope": mount.scope.as_str(),
        "files": mount.files,
        "bytes": mount.size,
        "changed": time::format(mount.changed),
        "shared": mount.is_shared,
        "here": mount.is_here,
    })
}

fn list(mounts: &[CacheMount], format: Format) -> Result<(), CliError> {
    if let Format::Json = format {
        return print_json(&json!(mounts.iter().map(to_json).collect::<Vec<_>>()));
    }
    let mut rows = vec![["ID", "SIZE", "FILES", "CHANGED", "SCOPE", "WHERE", "NAME"].map(str::to_owned)];
    rows.extend(mounts.iter().map(|mount| {
        [
            sanitize(mount.id.as_bytes(), false),
            ByteSize(mount.size).to_string(),
            mount.files.to_string(),
            time::format(mount.changed),
            mount.scope.to_string(),
            place(mount).to_owned(),
            digits(mount),
        ]
    }));
    super::print(&table(&rows))
}

/// The mount with this id, or whose name begins with these digits: that of the most trusted scope. `None` if there is none.
fn find<'m>(mounts: &'m [CacheMount], id: &str) -> Result<Option<&'m CacheMount>, CliError> {
    let is_named = |mount: &&CacheMount| {
        mount.id == id || id.len() >= DIGITS_MIN && mount.name.hex().starts_with(&id.to_ascii_lowercase())
    };
    let found: Vec<&CacheMount> = mounts.iter().filter(is_named).collect();
    if found.iter().any(|mount| mount.name != found[0].name) {
        let mut names: Vec<String> = found.iter().map(|mount| digits(mount)).collect();
        names.dedup();
        let message =
            format!("there are {} cache mounts `{id}`, which began with different files", names.len());
        return Err(CliError::message(message).hint(format!("name one of them: {}", names.join(", "))));
    }
    Ok(found.first().copied())
}

fn existing<'m>(mounts: &'m [CacheMount], id: &str) -> Result<&'m CacheMount, CliError> {
    if let Some(mount) = find(mounts, id)? {
        return Ok(mount);
    }
    let hint = match did_you_mean(id, mounts.iter().map(|mount| mount.id.as_str())) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "`crossdock cache mounts ls` lists them".to_owned(),
    };
    Err(CliError::message(format!("there is no cache mount `{id}`")).hint(hint))
}

async fn content(engine: &Engine, mount: &CacheMount) -> Result<CacheMountContent, CliError> {
    engine.cache_mount(&mount.name).await.ok_or_else(|| {
        CliError::message(format!("what was in the cache mount `{}` is gone", mount.id))
            .hint("the next step that uses it finds it empty")
    })
}

fn kind(entry: &Entry) -> (&'static str, String) {
    let link = |target: &[u8]| format!(" -> {}", sanitize(target, false));
    match &entry.kind {
        EntryKind::Directory => ("directory", String::new()),
        EntryKind::File { .. } => ("file", String::new()),
        EntryKind::HardLink { target } => ("link", format!(" = {}", display_path(target))),
        EntryKind::Symlink { target } => ("symlink", link(target)),
        EntryKind::CharDevice { major, minor } => ("character device", format!(" {major}:{minor}")),
        EntryKind::BlockDevice { major, minor } => ("block device", format!(" {major}:{minor}")),
        EntryKind::Fifo => ("pipe", String::new()),
    }
}

fn size(entry: &Entry) -> u64 {
    match entry.kind {
        EntryKind::File { size, .. } => size,
        _ => 0,
    }
}

async fn inspect(engine: &Engine, args: &MountsInspectCommand) -> Result<(), CliError> {
    let mounts = engine.cache_mounts().await;
    let mount = existing(&mounts, &args.id)?;
    let content = content(engine, mount).await?;
    let used = |entry: &Entry| {
        time::format(crate::layer::Timestamp { seconds: i64::from(entry.used) * 3600, nanos: 0 })
    };
    if let Format::Json = args.format {
        let mut value = to_json(mount);
        value["packs"] = json!(content.packs);
        value["stored_bytes"] = json!(content.stored);
        value["remembered_paths"] = json!(content.remembered);
        value["entries"] = json!(content.entries.len());
        if args.files {
            let entry = |entry: &Entry| {
                let (kind, _) = kind(entry);
                json!({
                    "path": display_path(&entry.path), "kind": kind, "bytes": size(entry),
                    "mode": format!("{:04o}", entry.metadata.mode),
                    "uid": entry.metadata.uid, "gid": entry.metadata.gid,
                    "mtime": time::format(entry.metadata.mtime), "used": used(entry),
                })
            };
            value["files"] = json!(content.entries.iter().map(entry).collect::<Vec<_>>());
        }
        return print_json(&value);
    }
    let mut text = table(&[
        ["id".to_owned(), sanitize(mount.id.as_bytes(), false)],
        ["name".to_owned(), mount.name.hex()],
        ["scope".to_owned(), mount.scope.to_string()],
        ["where".to_owned(), place(mount).to_owned()],
        ["changed".to_owned(), time::format(mount.changed)],
        ["files".to_owned(), format!("{} of {} entries", mount.files, content.entries.len())],
        ["size".to_owned(), ByteSize(mount.size).to_string()],
        ["stored".to_owned(), format!("{} in {} packs", ByteSize(content.stored), content.packs)],
        ["remembered".to_owned(), format!("{} paths that steps looked at", content.remembered)],
    ]);
    if args.files {
        let mut rows = vec![["MODE", "OWNER", "SIZE", "MODIFIED", "USED", "PATH"].map(str::to_owned)];
        rows.extend(content.entries.iter().map(|entry| {
            let (_, more) = kind(entry);
            let path = if entry.path.is_empty() { ".".to_owned() } else { display_path(&entry.path) };
            [
                format!("{:04o}", entry.metadata.mode),
                format!("{}:{}", entry.metadata.uid, entry.metadata.gid),
                ByteSize(size(entry)).to_string(),
                time::format(entry.metadata.mtime),
                used(entry),
                format!("{path}{more}"),
            ]
        }));
        text += "\n";
        text += &table(&rows);
    }
    super::print(&text)
}

async fn remove(
    engine: &Engine,
    args: &MountsRemoveCommand,
    environment: &Environment,
) -> Result<(), CliError> {
    let mounts = engine.cache_mounts().await;
    let mut chosen: Vec<&CacheMount> = Vec::new();
    if args.all {
        chosen.extend(&mounts);
    }
    for id in &args.ids {
        chosen.push(existing(&mounts, id)?);
    }
    chosen.sort_by_key(|mount| mount.name.hex());
    chosen.dedup_by_key(|mount| mount.name);
    if !args.force && !chosen.is_empty() {
        let ids: Vec<String> = chosen.iter().map(|mount| sanitize(mount.id.as_bytes(), false)).collect();
        if !environment.stdin_is_terminal {
            return Err(CliError::usage("there is no terminal to ask for confirmation")
                .hint("give `--force` to remove without asking"));
        }
        if !confirm(&format!("Empty {}? [y/N] ", ids.join(", ")))? {
            return Err(CliError::message("nothing was removed"));
        }
    }
    for mount in &chosen {
        engine.remove_cache_mount(mount).await.map_err(build_error)?;
        // One after the other: the shared list is changed by each.
        flush(engine).await?;
    }
    super::print(&format!("emptied {} cache mounts\n", chosen.len()))
}

async fn export(engine: &Engine, args: &MountsExportCommand) -> Result<(), CliError> {
    let mounts = engine.cache_mounts().await;
    let mount = existing(&mounts, &args.id)?;
    let content = content(engine, mount).await?;
    if args.output == Path::new("-") {
        return engine.export_cache_mount(content, std::io::stdout()).await.map_err(build_error);
    }
    let failed = |error: std::io::Error| unreadable(&args.output, &error);
    // It is there as a whole, or not at all.
    let directory = args.output.parent().filter(|parent| !parent.as_os_str().is_empty());
    let file = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new("."))).map_err(failed)?;
    let (file, path) = file.into_parts();
    let out = compressed(file, &args.output).map_err(failed)?;
    engine.export_cache_mount(content, out).await.map_err(build_error)?;
    fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(failed)?;
    path.persist(&args.output).map_err(|error| failed(error.error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::message(format!("{}: {error}", path.display()))
}

/// What compresses as a file's name says.
fn compressed(file: File, name: &Path) -> std::io::Result<Box<dyn Write + Send>> {
    let out = BufWriter::new(file);
    Ok(match name.extension().and_then(std::ffi::OsStr::to_str) {
        Some("gz" | "tgz") => Box::new(flate2::write::GzEncoder::new(out, flate2::Compression::default())),
        Some("zst" | "zstd") => Box::new(zstd::Encoder::new(out, 3)?.auto_finish()),
        _ => Box::new(out),
    })
}

async fn import(engine: &Engine, args: &MountsImportCommand) -> Result<(), CliError> {
    let mounts = engine.cache_mounts().await;
    let known = find(&mounts, &args.id)?;
    let input: Box<dyn Read + Send> = if args.file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(&args.file).map_err(|error| unreadable(&args.file, &error))?)
    };
    let (files, size) = engine.import_cache_mount(&args.id, known, input).await.map_err(build_error)?;
    flush(engine).await?;
    super::print(&format!("{}: {files} files, {}\n", args.id, ByteSize(size)))
}
