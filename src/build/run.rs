//! The work of steps that are in no record: running commands, copying files, making directories.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::caches::Caches;
use super::chain::Chain;
use super::copy::copier::Rules;
use super::copy::staging::{Content, Staged};
use super::copy::{Opener, step as copy_step, view};
use super::error::{BuildError, StepFailure};
use super::inputs::InputTree;
use super::layers::{InputFiles, Reads, write_layer, write_staged};
use super::log::Log;
use super::mounts::{CacheMountOptions, Ending, Use};
use super::plan::{CopyOp, Op, PlannedStage, PlannedStep, RunMount, RunOp, WorkdirOp};
use super::room::Room;
use super::served::Served;
use super::solve::{Made, Solver};
use super::ssh::{Access, Forwarding, SshError};
use crate::dockerfile::Mount;
use crate::event::Event;
use crate::exec::{self, ExecError, ExecStep, Exit, ResolvedUser, StepMount, resolve_owner, resolve_user};
use crate::hint::Hint as _;
use crate::layer::{Compression, DiffOptions, Timestamp, diff_upper};
use crate::record::Shape;
use crate::store::Lock;
use crate::tree::Tree;

impl Solver<'_> {
    /// Does what a step says. `last` is what it looked at the last time. What is in its cache mounts is kept as `caches` says.
    pub(super) async fn work(
        &self,
        stage: &PlannedStage,
        step: &PlannedStep,
        base: &Arc<Chain>,
        inputs: &[InputTree],
        last: Option<&Shape>,
        caches: CacheMountOptions,
    ) -> Result<Made, BuildError> {
        match &step.op {
            Op::Run(op) => self.run(stage, step, op, base, inputs, last, caches).await,
            Op::Copy(op) => self.copy(step, op, base, inputs).await,
            Op::Workdir(op) => self.workdir(step, op, base).await,
        }
    }

    async fn workdir(
        &self,
        step: &PlannedStep,
        op: &WorkdirOp,
        base: &Arc<Chain>,
    ) -> Result<Made, BuildError> {
        let tree = self.layers.tree(self.engine, base).await?;
        let owner = match op.user.as_str() {
            "" => None,
            user => Some(self.owner(step, base, user).await?),
        };
        let now = self.request.source_date_epoch.unwrap_or_else(|| self.engine.now());
        let entries = copy_step::workdir(&*tree, op, owner, now)
            .map_err(|error| self.step_error(step, format!("WORKDIR failed: {error}")))?;
        self.staged(base, &tree, entries, Vec::new()).await
    }

    fn step_error(&self, step: &PlannedStep, message: String) -> BuildError {
        crate::dockerfile::DockerfileError::at(&self.dockerfile.source, step.lines, message).into()
    }

    async fn copy(
        &self,
        step: &PlannedStep,
        op: &CopyOp,
        base: &Arc<Chain>,
        inputs: &[InputTree],
    ) -> Result<Made, BuildError> {
        let tree = self.layers.tree(self.engine, base).await?;
        let owner = match &op.owner {
            None => None,
            Some(owner) => Some(self.owner(step, base, owner).await?),
        };
        let rules = Rules {
            owner,
            chmod: op.chmod.as_ref().map(|(_, chmod)| chmod.clone()),
            now: self.engine.now(),
            epoch: self.request.source_date_epoch,
        };
        let input = inputs.first().cloned().unwrap_or(InputTree::Empty);
        let spool = self.engine.cache.local().tmp_dir();
        let spool = spool.map_err(|error| BuildError::cache("making a temporary directory", error))?;
        let has_source = !op.sources.is_empty();
        // Only an archive is opened while it is worked out what is copied; what is copied then says what is fetched.
        let unpack = std::iter::once(op.unpack).chain(op.remotes.iter().map(|remote| remote.unpack));
        let mut sources = Vec::with_capacity(inputs.len());
        for (input, unpack) in inputs.iter().zip(unpack) {
            let source = self.layers.input_tree(self.engine, input).await?;
            let early = if unpack { Reads::Few } else { Reads::These(&[]) };
            sources.push((source, self.layers.opener(self.engine, input, early).await?));
        }
        let staged = {
            let (tree, op) = (Arc::clone(&tree), op.clone());
            let spool = spool.path().to_owned();
            self.engine
                .blocking(move || {
                    let sources: Vec<(&Tree, &dyn Opener)> =
                        sources.iter().map(|(source, opener)| (&**source, opener as &dyn Opener)).collect();
                    let from = sources.first().copied().filter(|_| has_source);
                    // What --link adds knows nothing of what it is put on.
                    let onto = if op.link { Arc::new(Tree::empty()) } else { tree };
                    let remotes = sources.get(1..).unwrap_or_default();
                    Ok(copy_step::copy(&*onto, from, remotes, &op, &rules, &spool))
                })
                .await?
        };
        let mut entries = staged.map_err(|error| self.copy_error(step, Some(&input), &error))?;
        // What the step starts from is one more source, of files that an archive gives another name.
        let mut inputs = inputs.to_vec();
        for (_, staged) in &mut entries {
            if let Content::Base { path } = &mut staged.content {
                let path = std::mem::take(path);
                staged.content = Content::Source { origin: inputs.len(), path };
            }
        }
        inputs.push(InputTree::Chain(Arc::clone(base)));
        let mut needed: Vec<Vec<Vec<u8>>> = vec![Vec::new(); inputs.len()];
        for (_, staged) in &entries {
            if let Content::Source { origin, path } = &staged.content
                && let Some(paths) = needed.get_mut(*origin)
            {
                paths.push(path.clone());
            }
        }
        let mut openers = Vec::with_capacity(inputs.len());
        for (input, paths) in inputs.iter().zip(&needed) {
            openers.push(self.layers.opener(self.engine, input, Reads::These(paths)).await?);
        }
        let made = self.staged(base, &tree, entries, openers).await;
        drop(spool);
        made
    }

    /// Writes staged entries as a layer on top of `base`.
    async fn staged(
        &self,
        base: &Arc<Chain>,
        tree: &Arc<Tree>,
        entries: Vec<(Vec<u8>, Staged)>,
        openers: Vec<InputFiles>,
    ) -> Result<Made, BuildError> {
        let number = layer_number(base);
        let engine = self.engine.clone();
        let tree = Arc::clone(tree);
        self.engine
            .blocking(move || {
                let openers: Vec<&dyn Opener> = openers.iter().map(|opener| opener as &dyn Opener).collect();
                let finished = write_staged(&engine, &entries, &openers)?;
                let mut merged = (*tree).clone();
                merged
                    .apply(number, &finished.toc)
                    .map_err(|error| BuildError::cache("merging a new layer", error))?;
                Ok(Made {
                    descriptor: finished.descriptor(),
                    tree: Arc::new(merged),
                    log: None,
                    reads: None,
                    shown: Vec::new(),
                })
            })
            .await
    }

    /// The owner that a step gives to files.
    async fn owner(
        &self,
        step: &PlannedStep,
        base: &Arc<Chain>,
        spec: &str,
    ) -> Result<(u32, u32), BuildError> {
        let (passwd, group) = self.user_files(base, spec).await?;
        // A name that an image does not have is root, but where there is no image BuildKit fails.
        if base.layers().is_empty() && super::plan::is_named_owner(spec) {
            let error = exec::UserError::NoUser { name: spec.to_owned() };
            return Err(self.user_error(step, "", &error));
        }
        let mut unknown = |error: exec::UserError| {
            let place = format!("{}:{}", self.dockerfile.name, step.lines);
            let instead = match error {
                exec::UserError::NoGroup { .. } => "the user's own group",
                _ => "root",
            };
            self.emit(Event::Warning {
                message: format!(
                    "{place}: {error}; the owner `{spec}` means {instead} here, as with BuildKit"
                ),
            });
        };
        resolve_owner(spec, &passwd, &group, &mut unknown).map_err(|error| self.user_error(step, "", &error))
    }

    /// `/etc/passwd` and `/etc/group`, if `spec` needs them: numbers do not.
    async fn user_files(&self, base: &Arc<Chain>, spec: &str) -> Result<(Vec<u8>, Vec<u8>), BuildError> {
        if spec.bytes().all(|byte| byte.is_ascii_digit() || byte == b':') {
            return Ok((Vec::new(), Vec::new()));
        }
        let passwd = self.layers.read_small(self.engine, base, "/etc/passwd").await?;
        let group = self.layers.read_small(self.engine, base, "/etc/group").await?;
        Ok((passwd, group))
    }

    fn user_error(&self, step: &PlannedStep, word: &str, error: &exec::UserError) -> BuildError {
        let place =
            crate::dockerfile::DockerfileError::at(&self.dockerfile.source, step.lines, error.to_string())
                .word(word);
        match error.hint() {
            Some(hint) => place.with_hint(hint),
            None => place,
        }
        .into()
    }

    /// The user that a step runs as.
    async fn user(
        &self,
        step: &PlannedStep,
        base: &Arc<Chain>,
        user: &str,
    ) -> Result<ResolvedUser, BuildError> {
        // Also numbers are looked up, for groups and home.
        let passwd = self.layers.read_small(self.engine, base, "/etc/passwd").await?;
        let group = self.layers.read_small(self.engine, base, "/etc/group").await?;
        resolve_user(user, &passwd, &group).map_err(|error| self.user_error(step, "", &error))
    }

    #[expect(clippy::too_many_arguments, reason = "what is known of one step")]
    async fn run(
        &self,
        stage: &PlannedStage,
        step: &PlannedStep,
        op: &RunOp,
        base: &Arc<Chain>,
        inputs: &[InputTree],
        last: Option<&Shape>,
        caches: CacheMountOptions,
    ) -> Result<Made, BuildError> {
        let place = format!("{}:{}", self.dockerfile.name, step.lines);
        let executor = self.engine.executor.clone().map_err(|reason| BuildError::Execute {
            place: place.clone(),
            instruction: step.instruction.clone(),
            source: reason.into(),
            hint: Some(
                "`crossdock doctor` says what this machine allows and what to do about the rest".into(),
            ),
        })?;
        let verdict = self.foreign.verdict(self.engine, &executor, &stage.platform).await?;
        if let Some(obstacle) = verdict.obstacle(&stage.platform) {
            return Err(BuildError::Execute {
                place,
                instruction: step.instruction.clone(),
                source: obstacle.into(),
                hint: verdict.advice(),
            });
        }
        let store = |error| BuildError::cache("making a temporary directory", error);
        let directory = self.engine.cache.local().tmp_dir().map_err(store)?;
        let paths: Vec<PathBuf> =
            ["upper", "work", "scratch", "served"].iter().map(|name| directory.path().join(name)).collect();
        for path in &paths {
            fs_err::create_dir(path)
                .map_err(|error| BuildError::cache("making a temporary directory", error))?;
        }
        let [upper, work, scratch] = [&paths[0], &paths[1], &paths[2]];
        let is_traced = self.is_traced(step);
        let uses_caches = op.mounts.iter().any(|mount| matches!(mount.mount, Mount::Cache { .. }));
        let is_served = is_traced || uses_caches && self.engine.serves_files();
        let mut mounts = Mounts {
            served: is_served.then(|| Served::new(paths[3].clone())),
            env: op.env.clone(),
            ..Mounts::default()
        };
        let lowers = match &mut mounts.served {
            Some(served) => {
                let start = InputTree::Chain(Arc::clone(base));
                if uses_caches {
                    served.follow_times();
                    mounts.caches = self.open_caches(step, op, inputs, caches).await?;
                }
                vec![served.add(self.engine, self.layers, &start, "", "").await?]
            }
            None => {
                self.tell_untraced(op);
                self.layers.lowers(self.engine, base).await?
            }
        };
        let tree = self.layers.tree(self.engine, base).await?;
        self.be_root(&tree, upper)?;
        let user = self.user(step, base, &op.user).await?;
        for (name, value) in &op.proxy {
            match mounts.env.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => known.clone_from(value),
                None => mounts.env.push((name.clone(), value.clone())),
            }
        }
        if let Some((name, body)) = &op.script {
            let target = format!("{}/{name}", crate::dockerfile::Program::SCRIPT_DIRECTORY);
            mounts.list.push(StepMount::File { target, data: body.clone(), mode: 0o755 });
        }
        for (number, (mount, input)) in op.mounts.iter().zip(inputs).enumerate() {
            let scratch = scratch.join(format!("mount-{number}"));
            self.mount(step, number, mount, input, &scratch, &mut mounts).await?;
        }
        let Mounts { list, mut env, locks, agents, served, caches: used } = mounts;
        let times = match &served {
            Some(served) if uses_caches && caches.content_times => {
                Some(self.show_times(step, served, &used).await)
            }
            _ => None,
        };
        if let (Some(served), Some(last)) = (&served, last) {
            served.read_ahead(last);
        }
        // As runc does it, where the image or the Dockerfile does not say.
        if !env.iter().any(|(name, _)| name == "HOME") {
            let home = user.home.clone().filter(|home| !home.is_empty());
            let home = home.unwrap_or_else(|| if user.uid == 0 { "/root" } else { "/" }.to_owned());
            env.push(("HOME".to_owned(), home));
        }
        let mut spec = ExecStep::new(lowers, upper.clone(), work.clone(), scratch.clone(), op.args.clone());
        spec.served = served.as_ref().map(Served::places).unwrap_or_default();
        let trees = served.as_ref().map(Served::trees).unwrap_or_default();
        let shown = served.as_ref().map(Served::traced).unwrap_or_default();
        spec.env = env;
        spec.cwd.clone_from(&op.cwd);
        spec.user = user;
        spec.network = op.network;
        spec.hostname.clone_from(&op.hostname);
        spec.extra_hosts.clone_from(&self.request.extra_hosts);
        spec.mounts = list;
        spec.shm_size = self.request.shm_size;
        spec.rlimits.clone_from(&self.request.ulimits);
        if op.security == crate::dockerfile::Security::Insecure {
            spec.security = exec::Security::Insecure;
        }
        let secrets: Vec<Vec<u8>> = self.request.secrets.iter().map(|secret| secret.value.clone()).collect();
        let (events, id) = (Arc::clone(&self.engine.events), step.id);
        let unkeyed = op.unkeyed.clone();
        let started = self.engine.now();
        let room = Room::watch(upper);
        let cancel = self.engine.cancel.clone();
        // They are there as long as the command is, whatever becomes of the build.
        let open: Vec<_> = used.uses().iter().map(|used| Arc::clone(used.live())).collect();
        let outcome = self
            .engine
            .blocking(move || {
                let mut log = Log::new(events, id, &secrets, &unkeyed);
                let outcome =
                    executor.run(&spec, &trees, &mut |stream, data| log.take(stream, data), &cancel);
                log.end();
                for tree in &shown {
                    tree.settle();
                }
                drop(open);
                Ok((outcome, log))
            })
            .await?;
        let (result, log) = outcome;
        // The command has seen errors then that are not its own, whatever it made of them.
        if let Some((failure, reason)) = served.as_ref().and_then(Served::failure) {
            if self.engine.cancel.is_cancelled() {
                return Err(BuildError::Cancelled);
            }
            if let Some(reason) = reason {
                self.emit(Event::Warning { message: format!("{place}: {reason}") });
            }
            return Err(failure);
        }
        if let Some((failure, reason)) = used.uses().iter().find_map(Use::failure) {
            if let Some(reason) = reason {
                self.emit(Event::Warning { message: format!("{place}: {reason}") });
            }
            return Err(failure.into());
        }
        let outcome = result.map_err(|error| match error {
            ExecError::Cancelled => BuildError::Cancelled,
            error => {
                let hint = error.hint();
                BuildError::Execute {
                    place: place.clone(),
                    instruction: step.instruction.clone(),
                    source: Box::new(error),
                    hint,
                }
            }
        })?;
        for note in &outcome.notes {
            self.emit(Event::Warning { message: format!("{place}: {note}") });
        }
        if !outcome.exit.is_success() {
            if self.engine.cancel.is_cancelled() {
                return Err(BuildError::Cancelled);
            }
            self.end_caches(step, used, Ending::Failed, served.as_ref(), times.as_ref());
            return Err(failure(place, step, outcome.exit, log.tail()).into());
        }
        if room.was_full() {
            let disk = self.engine.cache.local().root().display();
            return Err(BuildError::Execute {
                place,
                instruction: step.instruction.clone(),
                source: format!(
                    "the disk of {disk} was full while it ran, so what it wrote may not be whole"
                )
                .into(),
                hint: Some("make room there, or have the cache elsewhere with `--local-cache`".into()),
            });
        }
        drop((locks, agents));
        self.end_caches(step, used, Ending::Done, served.as_ref(), times.as_ref());
        let reads = match &served {
            Some(served) if is_traced => served.looks(&["etc/passwd", "etc/group"])?,
            _ => None,
        };
        #[cfg(debug_assertions)]
        let reads = match (reads, &served, &self.request.blind) {
            (Some(reads), Some(served), Some(rule)) => Some(served.blinded(reads.shape, rule)),
            (reads, ..) => reads,
        };
        let left = Left {
            upper: upper.clone(),
            started,
            mountpoints: outcome.created_mountpoints,
            log,
            is_served: served.is_some(),
            unkeyed: op.unkeyed.clone(),
        };
        let made = self.keep(base, &tree, left).await;
        let made = made.map(|made| Made { reads, ..made });
        drop(directory);
        made
    }

    /// Says once why commands are not traced, if that is this machine's fault.
    fn tell_untraced(&self, op: &RunOp) {
        if let (Some(reason), true, true) = (&self.engine.unserved, self.request.trace, op.trace)
            && !self.progress.told_untraced.swap(true, std::sync::atomic::Ordering::Relaxed)
        {
            let message = format!(
                "what commands read is not traced ({reason}): they start from unpacked layers, run again when anything in them has changed, and have cache mounts of this machine only"
            );
            self.emit(Event::Warning { message });
        }
    }

    /// Gives the upper directory the mode and owner of the tree's root: they are what the step sees of `/`.
    fn be_root(&self, tree: &Tree, upper: &Path) -> Result<(), BuildError> {
        let io = |error: std::io::Error| BuildError::cache("preparing a root directory", error);
        let Some(root) = tree.get(b"") else { return Ok(()) };
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(root.metadata.mode);
        if !self.engine.ownership.single_id {
            let (uid, gid) = (Some(root.metadata.uid), Some(root.metadata.gid));
            std::os::unix::fs::chown(upper, uid, gid).map_err(io)?;
        }
        fs_err::set_permissions(upper, permissions).map_err(io)
    }

    /// Turns the upper directory of a command into a layer, and keeps it as that layer's unpacked form where others start
    /// from such.
    async fn keep(&self, base: &Arc<Chain>, tree: &Arc<Tree>, left: Left) -> Result<Made, BuildError> {
        let engine = self.engine.clone();
        let tree = Arc::clone(tree);
        let number = layer_number(base);
        let options = DiffOptions {
            whiteouts: super::layers::whiteouts(self.engine.ownership),
            exclude: left.mountpoints.into_iter().collect(),
            clamp: self.request.source_date_epoch,
            started: Some(left.started),
            single_id: self.engine.ownership.single_id,
            every_directory: false,
        };
        let unpacked = self.layers.unpacked_root();
        self.engine
            .blocking(move || {
                let finished = write_layer(&engine, Compression::default(), |writer| {
                    let failed = "turning what the command changed into a layer";
                    let directory =
                        fs_err::File::open(&left.upper).map_err(|error| BuildError::cache(failed, error))?;
                    let lower: &Tree = &tree;
                    diff_upper(directory.file(), lower, &options, writer)
                        .map_err(|error| BuildError::cache(failed, error))?;
                    Ok(())
                })?;
                let mut merged = (*tree).clone();
                merged
                    .apply(number, &finished.toc)
                    .map_err(|error| BuildError::cache("merging a new layer", error))?;
                let mut shown = super::shown::in_layer(&engine, &finished, &left.unkeyed)?;
                shown.extend(left.log.shown().map(str::to_owned));
                let log = left.log.store(&engine)?;
                // The directory is the layer already; unpacking it again would cost time and space. Left-over mount
                // points and clamped times make it another one.
                if options.exclude.is_empty() && options.clamp.is_none() && !left.is_served {
                    let _ = super::layers::keep_unpacked(&left.upper, &unpacked, &finished.diff_id);
                }
                Ok(Made {
                    descriptor: finished.descriptor(),
                    tree: Arc::new(merged),
                    log,
                    reads: None,
                    shown,
                })
            })
            .await
    }

    async fn mount(
        &self,
        step: &PlannedStep,
        number: usize,
        mount: &RunMount,
        input: &InputTree,
        scratch: &Path,
        mounts: &mut Mounts,
    ) -> Result<(), BuildError> {
        let target = mount.target.clone().unwrap_or_default();
        match &mount.mount {
            Mount::Bind { source, writable, .. } => {
                let bind = self.bind(input, source, target, !writable, scratch, mounts.served.as_mut());
                let bind = bind.await?;
                mounts.list.push(bind);
            }
            Mount::Cache { read_only, .. } => {
                let dir = match mounts.caches.path(number) {
                    Some(path) => path,
                    None => self.plain_cache(step, mount, input, mounts).await?,
                };
                mounts.list.push(StepMount::Cache { dir, target, read_only: *read_only });
            }
            Mount::Tmpfs { size, .. } => {
                mounts.list.push(StepMount::Tmpfs { target, size: size.map(|size| size.0) });
            }
            Mount::Secret { id, target, env: variable, required, mode, uid, gid } => {
                let Some(secret) = self.request.secrets.iter().find(|secret| secret.id == *id) else {
                    if *required {
                        let error = crate::dockerfile::DockerfileError::at(
                            &self.dockerfile.source,
                            step.lines,
                            format!("the secret `{id}` is required and was not given"),
                        );
                        return Err(error
                            .word(id)
                            .with_hint(format!("pass it with `--secret id={id},src=FILE`"))
                            .into());
                    }
                    // As in BuildKit, the variable is there, and empty.
                    if let Some(name) = variable {
                        mounts.set(name, String::new());
                    }
                    return Ok(());
                };
                if let Some(name) = variable {
                    mounts.set(name, String::from_utf8_lossy(&secret.value).into_owned());
                }
                if let Some(target) = target {
                    let target = target.clone();
                    let (data, mode, uid, gid) = (secret.value.clone(), *mode, *uid, *gid);
                    mounts.list.push(StepMount::Secret { target, data, mode, uid, gid });
                }
            }
            Mount::Ssh { id, required, mode, uid, gid, .. } => {
                let owner = (!self.engine.ownership.single_id).then_some((*uid, *gid));
                let access = Access { mode: *mode, owner };
                let forwarding = self.agents.forward(id, access).await;
                match forwarding.map_err(|error| self.ssh_error(step, error))? {
                    Some(forwarding) => {
                        let source = forwarding.path();
                        mounts.list.push(StepMount::Socket { source, target });
                        mounts.agents.push(forwarding);
                    }
                    None if *required => {
                        let error = crate::dockerfile::DockerfileError::at(
                            &self.dockerfile.source,
                            step.lines,
                            format!("no SSH key `{id}` is forwarded, and the step requires it"),
                        );
                        return Err(error.with_hint(format!("forward an agent with `--ssh {id}`")).into());
                    }
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn ssh_error(&self, step: &PlannedStep, error: SshError) -> BuildError {
        BuildError::Execute {
            place: format!("{}:{}", self.dockerfile.name, step.lines),
            instruction: step.instruction.clone(),
            hint: error.hint(),
            source: Box::new(error),
        }
    }

    /// What shows `source` of an input at `target`.
    async fn bind(
        &self,
        input: &InputTree,
        source: &str,
        target: String,
        read_only: bool,
        scratch: &Path,
        served: Option<&mut Served>,
    ) -> Result<StepMount, BuildError> {
        let io = |error: std::io::Error| BuildError::cache("preparing a mount", error);
        if let (false, Some(served)) = (input.is_empty(), served) {
            let lowers = vec![served.add(self.engine, self.layers, input, source, &target).await?];
            let source = format!("/{}", view::display(&view::clean(source.as_bytes())));
            return Ok(StepMount::BindOverlay { lowers, source, target, read_only });
        }
        Ok(match input {
            InputTree::Empty => {
                fs_err::create_dir(scratch).map_err(io)?;
                StepMount::Bind { source: scratch.to_owned(), target, read_only }
            }
            InputTree::Chain(chain) => {
                let lowers = self.layers.lowers(self.engine, chain).await?;
                let source = format!("/{}", view::display(&view::clean(source.as_bytes())));
                StepMount::BindOverlay { lowers, source, target, read_only }
            }
            // The context on disk has what is ignored, and the user's own owners: the step gets a copy of what counts.
            InputTree::Directory(context) => {
                let (context, source) = (Arc::clone(context), source.to_owned());
                let copy = scratch.to_owned();
                self.engine
                    .blocking(move || {
                        let path = view::resolve(&*context.tree, b"", source.as_bytes(), true)
                            .map_err(|error| BuildError::cache("preparing a mount", error))?;
                        super::materialise::materialise(&context, &path, &copy).map_err(|error| {
                            let hint = Some(crate::context::scan::LEAVE_ALONE.to_owned());
                            let action = format!(
                                "copying `{}` of the build context for a mount",
                                view::display(&path)
                            );
                            BuildError::Context { action, source: Box::new(error), hint }
                        })
                    })
                    .await?;
                StepMount::Bind { source: scratch.to_owned(), target, read_only }
            }
        })
    }
}

/// What is left of a command.
struct Left {
    /// What it changed.
    upper: PathBuf,
    started: Timestamp,
    /// Made for its mounts.
    mountpoints: Vec<Vec<u8>>,
    log: Log,
    is_served: bool,
    /// Build arguments that it is not to be keyed on.
    unkeyed: Vec<(String, String)>,
}

/// The mounts of a command, and what goes with them: locks, agents, variables, and what is served.
#[derive(Default)]
pub(super) struct Mounts {
    list: Vec<StepMount>,
    pub(super) locks: Vec<Lock>,
    agents: Vec<Forwarding>,
    env: Vec<(String, String)>,
    served: Option<Served>,
    caches: Caches,
}

impl Mounts {
    /// Sets a variable of the command.
    fn set(&mut self, name: &str, value: String) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value));
    }
}

/// The number that the next layer on top of `base` has in its tree.
fn layer_number(base: &Chain) -> u32 {
    u32::try_from(base.layers().len()).unwrap_or(u32::MAX)
}

fn failure(place: String, step: &PlannedStep, exit: Exit, tail: Vec<String>) -> StepFailure {
    let (outcome, exit_code) = match exit {
        Exit::Code(code) => (format!("exit code {code}"), Some(code)),
        Exit::Signal(signal) => (format!("killed by signal {signal}{}", signal_name(signal)), None),
    };
    StepFailure { place, instruction: step.instruction.clone(), outcome, exit_code, tail }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        14 => " (SIGALRM)",
        15 => " (SIGTERM)",
        31 => " (SIGSYS)",
        _ => "",
    }
}
