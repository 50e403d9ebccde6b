//! The files of results, without an image around them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::chain::Chain;
use super::super::copy::Opener as _;
use super::super::copy::view::join;
use super::super::engine::Engine;
use super::super::error::BuildError;
use super::super::inputs::InputTree;
use super::super::layers::{InputFiles, Layers, Reads};
use super::super::materialise::copy_out;
use super::super::options::Destination;
use super::super::stop::UntilCancelled;
use super::{Built, describe};
use crate::layer::{self, Compression, EntryKind, LayerOptions, LayerWriter, Metadata};
use crate::registry::BoxError;
use crate::store::replace_file;
use crate::tree::{NodeKind, Tree};

/// `type=local`: the files of the result, owned by the user.
pub(super) async fn local(
    engine: &Engine,
    layers: &Layers,
    chain: &Arc<Chain>,
    destination: &Path,
) -> Result<(), BuildError> {
    let tree = layers.tree(engine, chain).await?;
    let files = layers.opener(engine, &InputTree::Chain(Arc::clone(chain)), Reads::All).await?;
    let target = destination.to_owned();
    let result = engine
        .blocking(move || {
            let write = || {
                fs_err::create_dir_all(&target)?;
                copy_out(&tree, &files, b"", &target, false)
            };
            let written = write();
            // A loss is no fault of the destination's.
            files.failure().map_or(Ok(written), Err)
        })
        .await?;
    let destination = format!("`{}`", destination.display());
    result.map_err(|error| BuildError::Export { destination, source: Box::new(error), hint: None })
}

/// Files of several platforms in one directory must not be the same ones: none may overwrite another.
pub(super) async fn check_distinct(
    engine: &Engine,
    layers: &Layers,
    built: &[Built<'_>],
    destination: &Path,
) -> Result<(), BuildError> {
    let mut seen: HashMap<Vec<u8>, String> = HashMap::new();
    if built.len() < 2 {
        return Ok(());
    }
    for built in built {
        let tree = layers.tree(engine, &built.chain).await?;
        let files = tree.walk(b"").filter(|(_, node)| !matches!(node.kind, NodeKind::Directory));
        for (path, _) in files {
            if let Some(other) = seen.insert(path.clone(), built.directory()) {
                let path = String::from_utf8_lossy(&path).into_owned();
                let reason = format!("`{path}` of {} would overwrite that of {other}", built.directory());
                return Err(BuildError::Export {
                    destination: format!("`{}`", destination.display()),
                    source: reason.into(),
                    hint: Some("leave `platform-split=false` out".to_owned()),
                });
            }
        }
    }
    Ok(())
}

/// `type=tar`: the files of the results as one tar, those of each platform in a directory of its own where there are several.
pub(super) async fn tar(
    engine: &Engine,
    layers: &Layers,
    built: &[Built<'_>],
    is_split: bool,
    destination: &Destination,
) -> Result<(), BuildError> {
    let mut parts = Vec::with_capacity(built.len());
    for built in built {
        let tree = layers.tree(engine, &built.chain).await?;
        let files = layers.opener(engine, &InputTree::Chain(Arc::clone(&built.chain)), Reads::All).await?;
        parts.push((is_split.then(|| built.directory()), tree, files));
    }
    let name = describe(destination);
    let (destination, cancel) = (destination.clone(), engine.cancel.clone());
    let result = engine
        .blocking(move || {
            let write = |out: &mut dyn Write| -> Result<(), BoxError> {
                let options = LayerOptions { compression: Compression::None, ..LayerOptions::default() };
                let mut writer = LayerWriter::new(UntilCancelled::new(out, &cancel), options)?;
                for (directory, tree, files) in &parts {
                    write_tree(&mut writer, directory.as_deref(), tree, files)?;
                }
                writer.finish()?;
                Ok(())
            };
            let written = write_to(&destination, write);
            parts.iter().find_map(|(_, _, files)| files.failure()).map_or(Ok(written), Err)
        })
        .await?;
    result.map_err(|source| BuildError::Export { destination: name, source, hint: None })
}

/// Writes the files of a tree below `directory`, or at the top.
fn write_tree<W: Write>(
    writer: &mut LayerWriter<W>,
    directory: Option<&str>,
    tree: &Tree,
    files: &InputFiles,
) -> Result<(), BoxError> {
    let placed = |path: &[u8]| match directory {
        Some(directory) => join(directory.as_bytes(), path),
        None => path.to_vec(),
    };
    if let Some(directory) = directory {
        let metadata = Metadata { mode: 0o755, ..Metadata::default() };
        let kind = EntryKind::Directory { opaque: false, implied: false };
        writer.entry(&layer::Entry { path: directory.as_bytes().to_vec(), metadata, kind }, None)?;
    }
    let mut first_names = HashMap::new();
    for (path, node) in tree.walk(b"").filter(|(path, _)| !path.is_empty()) {
        let kind = match (&node.kind, node.group.and_then(|group| first_names.get(&group))) {
            (_, Some(target)) => EntryKind::HardLink { target: Vec::clone(target) },
            (NodeKind::Directory, _) => EntryKind::Directory { opaque: false, implied: false },
            (NodeKind::File { size, content }, _) => {
                EntryKind::File { size: *size, content: *content, offset: 0 }
            }
            (NodeKind::Symlink { target }, _) => EntryKind::Symlink { target: target.clone() },
            (NodeKind::CharDevice { major, minor }, _) => {
                EntryKind::CharDevice { major: *major, minor: *minor }
            }
            (NodeKind::BlockDevice { major, minor }, _) => {
                EntryKind::BlockDevice { major: *major, minor: *minor }
            }
            (NodeKind::Fifo, _) => EntryKind::Fifo,
        };
        if let Some(group) = node.group {
            first_names.entry(group).or_insert_with(|| placed(&path));
        }
        let needs_content = matches!(kind, EntryKind::File { size, .. } if size > 0);
        let mut content: Box<dyn Read + Send> =
            if needs_content { files.open(&path)? } else { Box::new(std::io::empty()) };
        let entry = layer::Entry { path: placed(&path), metadata: node.metadata.clone(), kind };
        writer.entry(&entry, Some(&mut *content))?;
    }
    Ok(())
}

/// Writes a file completely or not at all, with the directories that it needs, or standard output.
pub(in crate::build) fn write_to(
    destination: &Destination,
    write: impl FnOnce(&mut dyn Write) -> Result<(), BoxError>,
) -> Result<(), BoxError> {
    let path: &PathBuf = match destination {
        Destination::Stdout => return write(&mut std::io::stdout().lock()),
        Destination::Path(path) => path,
    };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(directory)?;
    replace_file(path, write)
}
