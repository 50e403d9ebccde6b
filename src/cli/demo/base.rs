//! A base image made of the host's own shell and tools: no network and no registry is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use fs_err as fs;
use serde_json::{Value, json};

use super::elf::{self, Needs};
use crate::digest::Digest;
use crate::platform::Platform;

/// Tools that the sample project calls.
const REQUIRED: &[&str] = &["sh", "cat", "mkdir"];
/// Tools that are nice to have in the image.
const OPTIONAL: &[&str] = &["cp", "echo", "env", "id", "ls", "rm", "sed", "uname", "wc"];
/// A tool or library larger than this is not what we are looking for.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Libraries of all the tools; some dozens are usual.
const LIBRARIES_MAX: usize = 256;

/// What the image was made of.
#[derive(Debug)]
pub(super) struct Base {
    /// The tools, by name.
    pub tools: Vec<String>,
    /// How many libraries came with them.
    pub libraries: usize,
    /// Bytes of the layer.
    pub size: u64,
}

/// Files of the image by path (no leading slash), and the directories that the loader must be told about.
#[derive(Debug, Default)]
struct Files {
    files: BTreeMap<PathBuf, Vec<u8>>,
    search: BTreeSet<PathBuf>,
    libraries: usize,
}

/// Writes the image as an OCI layout (tag `latest`) into the new directory `layout`. `path` is the list of
/// directories with executables.
pub(super) fn assemble(layout: &Path, path: &[PathBuf]) -> anyhow::Result<Base> {
    let mut files = Files::default();
    let mut tools = Vec::new();
    for (name, required) in
        REQUIRED.iter().map(|name| (name, true)).chain(OPTIONAL.iter().map(|name| (name, false)))
    {
        match find_tool(name, path).and_then(|found| files.add_tool(name, &found)) {
            Ok(()) => tools.push((*name).to_owned()),
            Err(error) if required => {
                return Err(error.context(format!("`{name}` is needed for the base image")));
            }
            Err(_) => {}
        }
    }
    let libraries = files.libraries;
    let layer = tar(&files)?;
    let size = layer.len() as u64;
    write_layout(layout, &layer, &files.search)?;
    Ok(Base { tools, libraries, size })
}

fn find_tool(name: &str, path: &[PathBuf]) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let standard = ["/bin", "/usr/bin", "/run/current-system/sw/bin"].map(PathBuf::from);
    path.iter()
        .chain(&standard)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
        })
        .with_context(|| format!("there is no `{name}` on PATH"))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let size = fs::metadata(path)?.len();
    if size > FILE_BYTES_MAX {
        bail!("{} is larger than {FILE_BYTES_MAX} bytes", path.display());
    }
    Ok(fs::read(path)?)
}

impl Files {
    /// Adds an executable as `bin/<name>`, with its loader and libraries.
    fn add_tool(&mut self, name: &str, path: &Path) -> anyhow::Result<()> {
        let content = read(path)?;
        let needs =
            elf::needs(&content).with_context(|| format!("{} is no ELF executable", path.display()))?;
        let mut found: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        if let Some(loader) = &needs.interpreter {
            found.insert(loader.into(), read(Path::new(loader))?);
        }
        let mut search = BTreeSet::new();
        let mut open = vec![(path.to_owned(), needs)];
        while let Some((user, needs)) = open.pop() {
            for library in &needs.libraries {
                let known = |path: &PathBuf| path.file_name().is_some_and(|name| name == library.as_str());
                if found.keys().any(known) {
                    continue;
                }
                if found.len() >= LIBRARIES_MAX {
                    bail!("{} needs more than {LIBRARIES_MAX} libraries", path.display());
                }
                let (file, content, own) = find_library(library, &user, &needs)?;
                if let Some(directory) = file.parent()
                    && !standard_directories(needs.kind.2).contains(&directory.to_owned())
                {
                    search.insert(directory.to_owned());
                }
                found.insert(file.clone(), content);
                open.push((file, own));
            }
        }
        // Only now: a tool is there with everything that it needs, or not at all.
        for (file, content) in found {
            let relative = file.strip_prefix("/").unwrap_or(&file).to_owned();
            if self.files.insert(relative, content).is_none() {
                self.libraries += 1;
            }
        }
        self.search.append(&mut search);
        self.files.insert(Path::new("bin").join(name), content);
        Ok(())
    }
}

/// Where the loader looks without being told, on the distributions that we know.
fn standard_directories(machine: u16) -> Vec<PathBuf> {
    // Debian's names of architectures, by ELF machine.
    let multiarch = match machine {
        3 => "i386-linux-gnu",
        20 => "powerpc-linux-gnu",
        21 => "powerpc64le-linux-gnu",
        22 => "s390x-linux-gnu",
        40 => "arm-linux-gnueabihf",
        62 => "x86_64-linux-gnu",
        183 => "aarch64-linux-gnu",
        243 => "riscv64-linux-gnu",
        _ => "",
    };
    let mut directories = Vec::new();
    if !multiarch.is_empty() {
        directories.push(Path::new("/lib").join(multiarch));
        directories.push(Path::new("/usr/lib").join(multiarch));
    }
    directories.extend(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from));
    directories
}

fn find_library(name: &str, user: &Path, needs: &Needs) -> anyhow::Result<(PathBuf, Vec<u8>, Needs)> {
    let origin = fs::canonicalize(user)?.parent().unwrap_or(Path::new("/")).display().to_string();
    let wanted = needs
        .search
        .iter()
        .map(|directory| PathBuf::from(directory.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin)));
    let mut directories: Vec<PathBuf> = wanted.filter(|directory| directory.is_absolute()).collect();
    directories.extend(standard_directories(needs.kind.2));
    directories.extend(configured_directories());
    for directory in directories {
        let file = clean(&directory).join(name);
        let Ok(content) = read(&file) else { continue };
        match elf::needs(&content) {
            Some(own) if own.kind == needs.kind => return Ok((file, content, own)),
            _ => {}
        }
    }
    bail!("the library {name} that {} needs was not found", user.display())
}

/// `path` without `..`: the image has directories where the host may have symbolic links.
fn clean(path: &Path) -> PathBuf {
    if path.components().any(|component| component == std::path::Component::ParentDir) {
        fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
    } else {
        path.to_owned()
    }
}

/// The directories in `/etc/ld.so.conf.d`, where distributions put further ones (`ld.so.conf(5)`).
fn configured_directories() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/etc/ld.so.conf.d") else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>())
        .filter(|line| line.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// The layer: everything owned by root, times zero, so that the same host gives the same image.
fn tar(files: &Files) -> anyhow::Result<Vec<u8>> {
    let mut directories: BTreeMap<PathBuf, u32> =
        ["dev", "etc", "proc", "root", "sys"].map(|name| (PathBuf::from(name), 0o755)).into();
    directories.insert("tmp".into(), 0o1777);
    for file in files.files.keys() {
        for parent in file.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            directories.entry(parent.to_owned()).or_insert(0o755);
        }
    }
    let mut builder = tar::Builder::new(Vec::new());
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    };
    for (directory, mode) in directories {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        builder.append_data(&mut header, directory.join(""), std::io::empty())?;
    }
    let accounts: [(&str, &[u8]); 2] =
        [("etc/group", b"root:x:0:\n"), ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")];
    for (name, content) in accounts {
        let mut header = header(tar::EntryType::Regular, 0o644, content.len() as u64);
        builder.append_data(&mut header, name, content)?;
    }
    for (name, content) in &files.files {
        let mut header = header(tar::EntryType::Regular, 0o755, content.len() as u64);
        builder.append_data(&mut header, name, content.as_slice())?;
    }
    Ok(builder.into_inner()?)
}

fn write_layout(layout: &Path, layer: &[u8], search: &BTreeSet<PathBuf>) -> anyhow::Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let blob = |media_type: &str, content: &[u8]| -> anyhow::Result<Value> {
        let digest = Digest::of(content);
        fs::File::create(blobs.join(digest.hex()))?.write_all(content)?;
        Ok(json!({"mediaType": media_type, "digest": digest.to_string(), "size": content.len()}))
    };
    let diff_id = Digest::of(&layer).to_string();
    let layer = blob("application/vnd.oci.image.layer.v1.tar", &layer)?;
    let mut env = vec!["PATH=/bin:/usr/bin".to_owned()];
    if !search.is_empty() {
        let list: Vec<_> = search.iter().map(|directory| directory.display().to_string()).collect();
        env.push(format!("LD_LIBRARY_PATH={}", list.join(":")));
    }
    let platform = Platform::host();
    let mut config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {"Env": env, "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "the tools of this machine"}],
    });
    if let (Some(variant), Some(config)) = (&platform.variant, config.as_object_mut()) {
        config.insert("variant".into(), variant.as_str().into());
    }
    let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]});
    let mut manifest = blob(media_type, manifest.to_string().as_bytes())?;
    if let Some(manifest) = manifest.as_object_mut() {
        manifest.insert("annotations".into(), json!({"org.opencontainers.image.ref.name": "latest"}));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_has_the_shell_with_all_that_it_needs() {
        let directory = tempfile::tempdir().unwrap();
        let layout = directory.path().join("layout");
        let base = assemble(&layout, &[]).unwrap();
        assert!(base.tools.iter().any(|tool| tool == "sh"));
        let read = |digest: &Value| {
            let digest: Digest = digest.as_str().unwrap().parse().unwrap();
            let content = fs::read(layout.join("blobs/sha256").join(digest.hex())).unwrap();
            assert!(digest.matches(&content));
            content
        };
        let json = |content: Vec<u8>| serde_json::from_slice::<Value>(&content).unwrap();
        let index = json(fs::read(layout.join("index.json")).unwrap());
        let manifest = json(read(&index["manifests"][0]["digest"]));
        let config = json(read(&manifest["config"]["digest"]));
        let layer = read(&manifest["layers"][0]["digest"]);
        assert_eq!(config["rootfs"]["diff_ids"][0], Digest::of(&layer).to_string());
        let mut archive = tar::Archive::new(layer.as_slice());
        let files: BTreeMap<PathBuf, u64> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.path().unwrap().into_owned(), entry.size())
            })
            .collect();
        assert!(files[Path::new("bin/sh")] > 0);
        let shell = fs::read("/bin/sh").unwrap();
        if let Some(loader) = elf::needs(&shell).unwrap().interpreter {
            assert!(files.contains_key(Path::new(loader.trim_start_matches('/'))), "{files:?}");
        }
    }

    #[test]
    fn scripts_are_no_tools() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("sh");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        let error = Files::default().add_tool("sh", &script).unwrap_err();
        assert!(error.to_string().contains("no ELF executable"), "{error}");
    }
}
