//! `crossdock cache mounts`.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
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
use crate::build::{CacheMount, CacheMountContent, Destination, Engine};
use crate::bytes::ByteSize;
use crate::hint::did_you_mean;
use crate::image::time;
use crate::layer::{Encoding, display_path};
use crate::record::Scope;
use crate::snapshot::{Entry, EntryKind};

/// As many digits of a name are shown, and must be given.
const DIGITS: usize = 12;

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
        let changes = matches!(command, CacheMountsCommand::Rm(_) | CacheMountsCommand::Import(_));
        let engine = engine(cache, changes, environment).await?;
        match command {
            CacheMountsCommand::Ls(args) => list(&engine.cache_mounts().await, args.format),
            CacheMountsCommand::Inspect(args) => inspect(&engine, args).await,
            CacheMountsCommand::Rm(args) => remove(&engine, args, environment).await,
            CacheMountsCommand::Export(args) => export(&engine, args, environment).await,
            CacheMountsCommand::Import(args) => import(&engine, args, environment).await,
        }
    })
}

/// With a shared cache that cannot be used, only what is here can be shown, and nothing is changed.
async fn engine(cache: &CacheArgs, changes: bool, environment: &Environment) -> Result<Engine, CliError> {
    let settings = Settings::resolve(cache, environment)?;
    let reporter = report::choose(Progress::Plain, environment);
    let engine = backend::engine(Machine::idle(), &settings, reporter, Cancel::new()?).await?;
    match &settings.shared {
        Some(_) if changes && engine.cache.remote().is_none() => {
            Err(CliError::system(anyhow::Error::msg("the shared cache cannot be used"))
                .hint("give `--cache ''` to change only what is on this machine"))
        }
        _ => Ok(engine),
    }
}

/// Waits until the shared cache has it too.
async fn flush(engine: &Engine) -> Result<(), CliError> {
    let report = engine.cache.flush(GRACE).await;
    if report.failed + report.pending > 0 {
        let location = engine.cache.remote().unwrap_or_else(|| "the shared cache".to_owned());
        let message = format!("it is done on this machine, and {location} did not take it");
        return Err(CliError::system(anyhow::Error::msg(message)));
    }
    Ok(())
}

fn digits(mount: &CacheMount) -> String {
    mount.name.hex().chars().take(DIGITS).collect()
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

/// The mount with this id or, if there is none, whose name begins with these digits; of several scopes that have it, that of
/// the one that steps look into first. `None` if there is none.
fn find<'m>(
    mounts: &'m [CacheMount],
    id: &str,
    scopes: &[Scope],
) -> Result<Option<&'m CacheMount>, CliError> {
    let mut found: Vec<&CacheMount> = mounts.iter().filter(|mount| mount.id == id).collect();
    if found.is_empty() && id.len() >= DIGITS {
        let given = id.to_ascii_lowercase();
        found.extend(mounts.iter().filter(|mount| mount.name.hex().starts_with(&given)));
    }
    let names: BTreeSet<String> = found.iter().map(|mount| digits(mount)).collect();
    if names.len() > 1 {
        let message =
            format!("there are {} cache mounts `{id}`, which began with different files", names.len());
        let names: Vec<String> = names.into_iter().collect();
        return Err(CliError::message(message).hint(format!("name one of them: {}", names.join(", "))));
    }
    let place = |mount: &&CacheMount| scopes.iter().position(|scope| *scope == mount.scope);
    Ok(found.into_iter().min_by_key(|mount| place(mount).unwrap_or(scopes.len())))
}

fn existing<'m>(mounts: &'m [CacheMount], id: &str, scopes: &[Scope]) -> Result<&'m CacheMount, CliError> {
    if let Some(mount) = find(mounts, id, scopes)? {
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
    let mount = existing(&mounts, &args.id, engine.cache.scopes())?;
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
    let scope = engine.cache.write_scope();
    let mut chosen: Vec<&CacheMount> = Vec::new();
    if args.all {
        chosen.extend(mounts.iter().filter(|mount| mount.scope == *scope));
    }
    for id in &args.ids {
        let mount = existing(&mounts, id, engine.cache.scopes())?;
        if mount.scope != *scope {
            let message = format!("the cache mount `{id}` belongs to the scope {}", mount.scope);
            let hint = format!("this would write {scope}; give `--cache-scope {}`", mount.scope);
            return Err(CliError::message(message).hint(hint));
        }
        chosen.push(mount);
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

async fn export(
    engine: &Engine,
    args: &MountsExportCommand,
    environment: &Environment,
) -> Result<(), CliError> {
    let destination = if args.output == Path::new("-") {
        if environment.stdout_is_terminal {
            return Err(CliError::usage("a tar is not written to a terminal")
                .hint("name a file with `--output`, or send standard output into one"));
        }
        Destination::Stdout
    } else {
        Destination::Path(environment.absolute(&args.output))
    };
    let mounts = engine.cache_mounts().await;
    let mount = existing(&mounts, &args.id, engine.cache.scopes())?;
    let content = content(engine, mount).await?;
    let exported = engine.export_cache_mount(content, &destination, encoding(&args.output)).await;
    exported.map_err(build_error)
}

/// How a file is compressed whose name ends so.
fn encoding(name: &Path) -> Encoding {
    match name.extension().and_then(OsStr::to_str) {
        Some("gz" | "tgz") => Encoding::Gzip,
        Some("zst" | "zstd") => Encoding::Zstd,
        _ => Encoding::Plain,
    }
}

async fn import(
    engine: &Engine,
    args: &MountsImportCommand,
    environment: &Environment,
) -> Result<(), CliError> {
    let input: Box<dyn Read + Send> = if args.file == Path::new("-") {
        if environment.stdin_is_terminal {
            return Err(CliError::usage("a tar is not read from a terminal")
                .hint("name a file, or send one to standard input"));
        }
        Box::new(std::io::stdin())
    } else {
        let file = fs_err::File::open(environment.absolute(&args.file));
        Box::new(file.map_err(CliError::failure)?)
    };
    let mounts = engine.cache_mounts().await;
    let known = find(&mounts, &args.id, engine.cache.scopes())?;
    let (files, size) = engine.import_cache_mount(&args.id, known, input).await.map_err(build_error)?;
    flush(engine).await?;
    let id = sanitize(known.map_or(&args.id, |known| &known.id).as_bytes(), false);
    super::print(&format!("{id}: {files} files, {}\n", ByteSize(size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::layer::Timestamp;

    fn mount(id: &str, name: &str, scope: &str, seconds: i64) -> CacheMount {
        CacheMount {
            id: id.to_owned(),
            name: Digest::of(name),
            scope: scope.parse().unwrap(),
            files: 1,
            size: 1,
            changed: Timestamp { seconds, nanos: 0 },
            is_shared: true,
            is_here: false,
        }
    }

    #[test]
    fn mounts_are_found_by_id_and_by_name() {
        let scopes: Vec<Scope> = ["pr/1", "main"].map(|scope| scope.parse().unwrap()).to_vec();
        let digits = Digest::of("b").hex();
        let mounts = [
            mount("a", "a", "main", 9),
            mount("a", "a", "pr/1", 1),
            mount("b", "b", "main", 2),
            mount("b", "b-from", "main", 3),
            mount("b", "b", "pr/1", 4),
            mount(&digits[..12], "named as another", "main", 5),
        ];
        let find = |id: &str| find(&mounts, id, &scopes);
        // What a step of the first scope finds, not what is the latest.
        assert_eq!(find("a").unwrap().unwrap().scope.as_str(), "pr/1");
        assert_eq!(find("c").unwrap(), None);
        let error = find("b").unwrap_err();
        assert!(error.error.to_string().contains("2 cache mounts"), "{error:?}");
        assert!(error.hint.unwrap().contains(&digits[..12]));
        // An id counts before a name, and few digits are none.
        assert_eq!(find(&digits[..12]).unwrap().unwrap().name, Digest::of("named as another"));
        assert_eq!(find(&digits[..13]).unwrap().unwrap().id, "b");
        assert_eq!(find(&digits[..11]).unwrap(), None);
    }

    #[test]
    fn names_say_how_a_tar_is_compressed() {
        for (name, expected) in [
            ("a.tar", Encoding::Plain),
            ("a.tar.gz", Encoding::Gzip),
            ("a.tgz", Encoding::Gzip),
            ("a.tar.zst", Encoding::Zstd),
            ("a.zstd", Encoding::Zstd),
            ("-", Encoding::Plain),
        ] {
            assert_eq!(encoding(Path::new(name)), expected, "{name}");
        }
    }
}
