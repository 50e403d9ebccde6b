//! ADD: sources that are files of the context, and those that are fetched.

use super::super::{Input, RemoteAdd, SourceSpec};
use super::{Common, StageLowering};
use crate::build::remotes::RemoteSpec;
use crate::context::git_ref::{GitRef, check_checksum};
use crate::context::remote::{RemoteSource, file_name};
use crate::digest::Digest;
use crate::dockerfile::{Add, Copy, DockerfileError, Instruction, Lines, Spanned};

/// The longest name that a file can have.
const NAME_MAX: usize = 255;

impl StageLowering<'_, '_, '_> {
    /// What `source` names, if it is fetched.
    fn remote(&self, lines: Lines, source: &str) -> Result<Option<RemoteSource>, DockerfileError> {
        RemoteSource::of_add(source).map_err(|error| self.error(lines, error.to_string()).word(source))
    }

    /// COPY takes only what is there.
    pub(super) fn refuse_remote(&self, lines: Lines, copy: &Copy) -> Result<(), DockerfileError> {
        for source in &copy.sources {
            let source = self.peek(lines, source)?;
            let message = match self.remote(lines, &source)? {
                None => continue,
                Some(RemoteSource::Git(_)) => "source can't be a git ref for COPY",
                Some(RemoteSource::Http(_)) => "source can't be a URL for COPY",
            };
            return Err(self.error(lines, message).word(&source).with_hint("use ADD for it"));
        }
        Ok(())
    }

    pub(super) fn add(
        &mut self,
        instruction: &Spanned<Instruction>,
        add: &Add,
    ) -> Result<(), DockerfileError> {
        let lines = instruction.lines;
        let checksum = self.expand_option(lines, add.checksum.as_ref())?;
        if checksum.is_some() && add.sources.len() != 1 {
            let message = "checksum can't be specified for multiple sources";
            return Err(self.error(lines, message).word("--checksum"));
        }
        let mut remotes = Vec::new();
        for (number, source) in add.sources.iter().enumerate() {
            let source = self.peek(lines, source)?;
            let Some(remote) = self.remote(lines, &source)? else { continue };
            let (spec, name, unpack) = match remote {
                RemoteSource::Git(git) => {
                    (self.git_source(lines, add, git, checksum.as_deref())?, String::new(), false)
                }
                RemoteSource::Http(url) => {
                    let name = file_name(&url);
                    if name.len() > NAME_MAX || name.contains('\0') {
                        let message = "the last element of the URL's path cannot be a file's name";
                        return Err(self.error(lines, message).word(&source));
                    }
                    let checksum =
                        checksum.as_deref().map(|text| self.file_checksum(lines, text)).transpose()?;
                    let spec = RemoteSpec::Http { url, name: name.clone(), checksum };
                    (spec, name, add.unpack.unwrap_or(false))
                }
            };
            let input = Input::Source(self.all.source(SourceSpec::Remote(spec)));
            let after = number - remotes.len();
            remotes.push((number, RemoteAdd { input, name, after, unpack }));
        }
        if checksum.is_some() && remotes.is_empty() {
            let message = "checksum requires HTTP(S) or Git sources";
            return Err(self.error(lines, message).word("--checksum"));
        }
        let has_files = add.sources.len() > remotes.len();
        let input = if has_files { Input::Source(self.all.context()) } else { Input::Empty };
        let common = Common {
            sources: &add.sources,
            heredocs: &add.heredocs,
            destination: &add.dest,
            owner: add.chown.as_ref(),
            chmod: add.chmod.as_ref(),
            exclude: &add.exclude,
            parents: false,
            link: add.link,
            unpack: has_files && add.unpack.unwrap_or(true),
            remotes,
        };
        self.copy_files(instruction, "ADD", input, &common)?;
        self.check_copied(instruction, "Add", true);
        Ok(())
    }

    fn file_checksum(&self, lines: Lines, text: &str) -> Result<Digest, DockerfileError> {
        text.parse().map_err(|error| {
            let error = self.error(lines, format!("invalid checksum {text}: {error}")).word(text);
            error.with_hint("give it as sha256:… (`sha256sum FILE` prints it)")
        })
    }

    fn git_source(
        &self,
        lines: Lines,
        add: &Add,
        git: GitRef,
        checksum: Option<&str>,
    ) -> Result<RemoteSpec, DockerfileError> {
        if let (Some(flag), Some(name)) = (add.keep_git_dir, git.keep_git_dir)
            && flag != name
        {
            return Err(self.error(lines, "inconsistent keep-git-dir configuration").word("--keep-git-dir"));
        }
        if let (Some(flag), Some(name)) = (checksum, &git.checksum)
            && flag != name
        {
            let message = format!("checksum mismatch {flag:?} != {name:?}");
            return Err(self.error(lines, message).word("--checksum"));
        }
        if let Some(checksum) = checksum {
            check_checksum(checksum)
                .map_err(|error| self.error(lines, error.to_string()).word("--checksum"))?;
        }
        Ok(RemoteSpec::Git(GitRef {
            keep_git_dir: git.keep_git_dir.or(add.keep_git_dir),
            checksum: git.checksum.clone().or_else(|| checksum.map(str::to_owned)),
            ..git
        }))
    }
}
