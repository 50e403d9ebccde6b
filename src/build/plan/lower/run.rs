//! RUN.

use super::super::env::{argument, proxy_variables};
use super::super::history::run_command;
use super::super::{Input, Op, RunMount, RunOp};
use super::StageLowering;
use crate::dockerfile::{
    Device, DockerfileError, Instruction, Lines, Mount, MountError, Program, Run, Security, Spanned,
};
use crate::exec::Network;
use crate::hint::Hint as _;

/// The comment above a RUN that is not to be traced.
const NO_TRACE: &str = "crossdock:no-trace";

impl StageLowering<'_, '_, '_> {
    pub(super) fn run(
        &mut self,
        instruction: &Spanned<Instruction>,
        run: &Run,
    ) -> Result<(), DockerfileError> {
        let lines = instruction.lines;
        let request = self.all.draft.request;
        let mut script = None;
        let args = match run.program() {
            Program::Exec(args) => args,
            Program::Shell(text) => [self.shell(), vec![text]].concat(),
            Program::Script { name, body } => {
                let path = format!("{}/{name}", Program::SCRIPT_DIRECTORY);
                script = Some((name, body.into_bytes()));
                [self.shell(), vec![path]].concat()
            }
        };
        if args.is_empty() {
            return Err(self.error(lines, "RUN has no command"));
        }
        let network = match run.network {
            crate::dockerfile::Network::Default => request.network,
            crate::dockerfile::Network::None => Network::None,
            crate::dockerfile::Network::Host => Network::Host,
        };
        // `--network host` on the command line is a grant as well, as in buildx.
        if network == Network::Host && request.network != Network::Host {
            self.entitled(lines, "network.host", "--network=host")?;
        }
        if run.security == Security::Insecure {
            self.entitled(lines, "security.insecure", "--security=insecure")?;
        }
        for device in &run.devices {
            self.device(lines, device)?;
        }
        let mut mounts = Vec::new();
        for raw in &run.mounts {
            let mount = raw.resolve(|text| match self.all.draft.lexer.word(text, &self.state.env) {
                Ok(expanded) => {
                    self.check_defined(&expanded.unmatched, lines);
                    Ok(expanded.text)
                }
                Err(cause) => Err(MountFailure { message: cause.to_string(), hint: None }),
            });
            let mount = mount.map_err(|cause| self.mount_error(lines, cause))?;
            match &mount {
                Mount::Secret { id, required, .. } => self.capture.secret(id, *required, lines),
                Mount::Ssh { id, required, .. } => self.capture.ssh(id, *required, lines),
                _ => {}
            }
            mounts.push(self.mount(lines, mount)?);
        }
        let proxy = proxy_variables(&request.build_args);
        let text = run_command(&args, &self.state.declared, &self.state.env);
        let mut env = self.state.env.pairs().to_vec();
        place_agents(&mut mounts, &mut env);
        let op = RunOp {
            args,
            env,
            proxy,
            unkeyed: self.state.unkeyed(),
            cwd: self.state.cwd.clone(),
            user: self.state.user(),
            network,
            security: run.security,
            mounts,
            trace: !self.all.draft.dockerfile.comments_above(lines).iter().any(|line| line == NO_TRACE),
            script,
            hostname: argument(&request.build_args, "BUILDKIT_SANDBOX_HOSTNAME")
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
        };
        self.push(instruction, Op::Run(Box::new(op)));
        self.history(format!("RUN {text} # buildkit"), true);
        Ok(())
    }

    fn mount_error(&self, lines: Lines, cause: MountFailure) -> DockerfileError {
        let error = self.error(lines, cause.message).word("--mount");
        match cause.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    fn mount(&mut self, lines: Lines, mount: Mount) -> Result<RunMount, DockerfileError> {
        let input = match &mount {
            Mount::Bind { from: None, .. } => Input::Source(self.all.context()),
            Mount::Bind { from: Some(from), .. } | Mount::Cache { from: Some(from), .. } => {
                self.input(lines, from)?
            }
            Mount::Cache { from: None, .. }
            | Mount::Tmpfs { .. }
            | Mount::Secret { .. }
            | Mount::Ssh { .. } => Input::Empty,
        };
        let target = mount.target(&self.state.cwd).map_err(|cause| self.mount_error(lines, cause.into()))?;
        Ok(RunMount { mount, target, input })
    }

    /// Whether the build was granted what a step asks for (BuildKit's `util/entitlements`).
    fn entitled(&self, lines: Lines, entitlement: &str, word: &str) -> Result<(), DockerfileError> {
        if self.all.draft.request.allow.iter().any(|granted| granted == entitlement) {
            return Ok(());
        }
        Err(self
            .error(lines, format!("{entitlement} is not allowed"))
            .word(word)
            .with_hint(format!("grant it with `--allow {entitlement}`")))
    }

    /// No device is known here, which is what BuildKit says on a machine without definitions of devices: what a step
    /// requires is an error, what it can do without it does without (`solver/llbsolver/cdidevices`).
    fn device(&self, lines: Lines, text: &str) -> Result<(), DockerfileError> {
        let device = Device::parse(text).map_err(|message| self.error(lines, message).word(text))?;
        if device.required {
            let message = format!("required device {:?} is not registered", device.name);
            return Err(self.error(lines, message).word("--device").with_hint(
                "devices (CDI) are not passed to steps: `RUN --security=insecure` has those that a privileged container has",
            ));
        }
        Ok(())
    }
}

/// Gives the sockets of agents without a target their places, and the command the variable that leads to the first
/// (`client/llb/exec.go`).
fn place_agents(mounts: &mut [RunMount], env: &mut Vec<(String, String)>) {
    const VARIABLE: &str = "SSH_AUTH_SOCK";
    let agents = mounts.iter_mut().filter(|mount| matches!(mount.mount, Mount::Ssh { .. }));
    for (number, mount) in agents.enumerate() {
        let target = mount.target.get_or_insert_with(|| format!("/run/buildkit/ssh_agent.{number}"));
        if !env.iter().any(|(name, _)| name == VARIABLE) {
            env.push((VARIABLE.to_owned(), target.clone()));
        }
    }
}

/// Why a `--mount` is wrong: its own rules, or the expansion of a value.
struct MountFailure {
    message: String,
    hint: Option<String>,
}

impl From<MountError> for MountFailure {
    fn from(error: MountError) -> Self {
        Self { message: error.to_string(), hint: error.hint() }
    }
}
