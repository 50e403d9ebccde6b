//! Whether commands of another platform can run here: by the processor itself, or by an emulator that the kernel starts
//! for them (`binfmt_misc`).
//!
//! There is no other way to find out than to try: the list of emulators is not visible in every container although they
//! work there, and one that is listed may still not work inside another root file system. So a step is run whose only
//! program does nothing but end, as BuildKit does on its own root (`util/archutil`).

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::event::Stream;
use crate::exec::{CancelToken, ExecError, ExecOutcome, ExecStep, Executor, Exit};
use crate::platform::Platform;

/// The architectures that a test program exists for, by Go's names.
pub const ARCHITECTURES: &[&str] =
    &["amd64", "arm64", "arm", "386", "riscv64", "ppc64le", "s390x", "loong64", "mips64le"];

/// As much of what the test prints is kept: its reason for failing is one line.
const OUTPUT_MAX: usize = 4096;

/// How commands of a platform fare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// They run.
    Runs,
    /// The kernel does not know what to do with them.
    NoEmulator,
    /// There is an emulator, but only outside of steps: it was registered without the flag F.
    NotInSteps,
    /// They were started and failed; how, in a few words.
    Fails(String),
    /// There is no test program for the platform.
    Unknown,
}

impl Verdict {
    /// Why commands do not run; `None` if they do, or may.
    pub fn obstacle(&self, platform: &Platform) -> Option<String> {
        match self {
            Self::Unknown if platform.os != "linux" => {
                Some(format!("its platform is {platform}, and steps run on Linux only"))
            }
            Self::Runs | Self::Unknown => None,
            Self::NoEmulator => Some(format!(
                "its platform is {platform}, this machine is {}, and no emulator is registered",
                Platform::host()
            )),
            Self::NotInSteps => Some(format!(
                "its platform is {platform}, and the emulator for it is not available inside of steps"
            )),
            Self::Fails(how) => Some(format!("its platform is {platform}, whose programs fail here: {how}")),
        }
    }

    /// What to do about it.
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::Runs | Self::Unknown => None,
            Self::NoEmulator | Self::Fails(_) => Some(
                "install `qemu-user-static` (Debian, Ubuntu, Fedora), or where there is Docker: \
                 `docker run --privileged --rm tonistiigi/binfmt --install all`; or build on a machine of that platform"
                    .to_owned(),
            ),
            Self::NotInSteps => Some(
                "register it with the flag F (fix binary), as Debian's `qemu-user-static` does".to_owned(),
            ),
        }
    }
}

/// Tries commands of `platform`. `place` is an existing, empty directory that steps may be run in.
pub fn examine(executor: &dyn Executor, platform: &Platform, place: &Path) -> Result<Verdict, ExecError> {
    let Some(step) = prepare(platform, place)? else { return Ok(Verdict::Unknown) };
    let cancel =
        CancelToken::new().map_err(|source| ExecError::Channel { doing: "making a descriptor", source })?;
    let mut output = Vec::new();
    let mut log = |_: Stream, data: &[u8]| {
        output.extend(data.iter().take(OUTPUT_MAX.saturating_sub(output.len())));
    };
    let ExecOutcome { exit, .. } = executor.run(&step, &[], &mut log, &cancel)?;
    Ok(judge(exit, &String::from_utf8_lossy(&output)))
}

/// The step that tries commands of `platform`; `None` if there is no program for it.
pub(super) fn prepare(platform: &Platform, place: &Path) -> Result<Option<ExecStep>, ExecError> {
    let Some(program) = program(&platform.architecture).filter(|_| platform.os == "linux") else {
        return Ok(None);
    };
    let failed = |source: io::Error| ExecError::Channel { doing: "preparing a test", source };
    let at = |name: &str| -> io::Result<_> {
        let path = place.join(name);
        fs_err::create_dir(&path)?;
        fs_err::canonicalize(path)
    };
    let write = || -> io::Result<ExecStep> {
        let base = at("base")?;
        let path = base.join("probe");
        fs_err::write(&path, &program)?;
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        let args = vec!["/probe".to_owned()];
        Ok(ExecStep::new(vec![base], at("upper")?, at("work")?, at("scratch")?, args))
    };
    write().map(Some).map_err(failed)
}

/// What the end of the test says.
pub(super) fn judge(exit: Exit, output: &str) -> Verdict {
    let said = output.trim().lines().last().unwrap_or_default();
    let lower = output.to_lowercase();
    match exit {
        Exit::Code(0) => Verdict::Runs,
        // These words are the C library's; OCI runtimes have exit codes of their own.
        _ if lower.contains("exec format error") => Verdict::NoEmulator,
        Exit::Code(_) if lower.contains("no such file") => Verdict::NotInSteps,
        Exit::Code(code) => Verdict::Fails(format!("exit code {code} {said}").trim().to_owned()),
        Exit::Signal(signal) => Verdict::Fails(format!("signal {signal} {said}").trim().to_owned()),
    }
}

/// A program in the executable format of Linux that ends with exit code 0.
fn program(architecture: &str) -> Option<Vec<u8>> {
    // Machine numbers are from `linux/elf-em.h`, system call numbers from each architecture's `asm/unistd.h`.
    let (machine, is_64, is_big, flags, code): (u16, bool, bool, u32, &[u8]) = match architecture {
        // mov eax, 60; xor edi, edi; syscall
        "amd64" => (62, true, false, 0, b"\xb8\x3c\0\0\0\x31\xff\x0f\x05"),
        // mov eax, 1; xor ebx, ebx; int 0x80
        "386" => (3, false, false, 0, b"\xb8\x01\0\0\0\x31\xdb\xcd\x80"),
        // mov x0, #0; mov x8, #93; svc #0
        "arm64" => (183, true, false, 0, b"\0\0\x80\xd2\xa8\x0b\x80\xd2\x01\0\0\xd4"),
        // mov r0, #0; mov r7, #1; svc 0
        "arm" => (40, false, false, 0x0500_0000, b"\0\0\xa0\xe3\x01\x70\xa0\xe3\0\0\0\xef"),
        // li a0, 0; li a7, 93; ecall
        "riscv64" => (243, true, false, 0, b"\x13\x05\0\0\x93\x08\xd0\x05\x73\0\0\0"),
        // li 0, 1; li 3, 0; sc
        "ppc64le" => (21, true, false, 2, b"\x01\0\0\x38\0\0\x60\x38\x02\0\0\x44"),
        // lghi %r2, 0; svc 1
        "s390x" => (22, true, true, 0, b"\xa7\x29\0\0\x0a\x01"),
        // addi.w $a7, $zero, 93; addi.w $a0, $zero, 0; syscall 0
        "loong64" => (258, true, false, 0x43, b"\x0b\x74\x81\x02\x04\0\x80\x02\0\0\x2b\0"),
        // li $v0, 5058; li $a0, 0; syscall
        "mips64le" => (8, true, false, 0x8000_0000, b"\xc2\x13\x02\x24\0\0\x04\x24\x0c\0\0\0"),
        _ => return None,
    };
    /// Where the file is mapped: a multiple of every page size, and above what may not be mapped.
    const ADDRESS: u64 = 0x40_0000;
    const PAGE: u64 = 0x1_0000;
    let (header, entry) = if is_64 { (64_u16, 56_u16) } else { (52, 32) };
    let start = u64::from(header + entry);
    let size = start + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 1 + u8::from(is_64), 1 + u8::from(is_big), 1];
    elf.resize(16, 0);
    // Numbers in the byte order of the architecture: 2, 4, or as many bytes as an address has.
    let mut put = |value: u64, bytes: usize| {
        if is_big {
            elf.extend_from_slice(&value.to_be_bytes()[8 - bytes..]);
        } else {
            elf.extend_from_slice(&value.to_le_bytes()[..bytes]);
        }
    };
    let word = if is_64 { 8 } else { 4 };
    // An executable of version 1; entry point, program headers, no sections; flags; sizes.
    put(2, 2);
    put(machine.into(), 2);
    put(1, 4);
    put(ADDRESS + start, word);
    put(header.into(), word);
    put(0, word);
    put(flags.into(), 4);
    for value in [header, entry, 1, 0, 0, 0] {
        put(value.into(), 2);
    }
    // One segment: the whole file, to be read and executed.
    put(1, 4);
    if is_64 {
        put(5, 4);
    }
    for value in [0, ADDRESS, ADDRESS, size, size] {
        put(value, word);
    }
    if !is_64 {
        put(5, 4);
    }
    put(PAGE, word);
    elf.extend_from_slice(code);
    Some(elf)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program for this machine itself; those for others where an emulator is installed.
    #[test]
    fn programs_end_with_success() {
        let directory = tempfile::tempdir().unwrap();
        let host = Platform::host().architecture;
        for architecture in ARCHITECTURES {
            let path = directory.path().join(architecture);
            fs_err::write(&path, program(architecture).unwrap()).unwrap();
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let emulator = match *architecture {
                "amd64" => "x86_64",
                "arm64" => "aarch64",
                "386" => "i386",
                "loong64" => "loongarch64",
                "mips64le" => "mips64el",
                other => other,
            };
            let mut command = if *architecture == host {
                std::process::Command::new(&path)
            } else {
                let mut command = std::process::Command::new(format!("qemu-{emulator}-static"));
                command.arg(&path);
                command
            };
            match command.status() {
                Ok(status) => assert!(status.success(), "{architecture}: {status}"),
                Err(error) => assert!(*architecture != host, "{architecture}: {error}"),
            }
        }
        assert_eq!(program("pdp11"), None);
        assert_eq!(Verdict::Unknown.obstacle(&Platform::new("linux", "pdp11", None)), None);
        assert!(Verdict::Unknown.obstacle(&Platform::new("windows", "amd64", None)).is_some());
    }

    #[test]
    fn ends_are_judged() {
        for (exit, output, verdict) in [
            (Exit::Code(0), "", Verdict::Runs),
            (Exit::Code(126), "exec /probe: exec format error\n", Verdict::NoEmulator),
            (Exit::Code(1), "runc: exec /probe: Exec format error", Verdict::NoEmulator),
            (Exit::Code(127), "exec /probe: no such file or directory", Verdict::NotInSteps),
            (Exit::Code(1), "qemu: fatal\n", Verdict::Fails("exit code 1 qemu: fatal".to_owned())),
            (Exit::Signal(31), "", Verdict::Fails("signal 31".to_owned())),
        ] {
            let judged = judge(exit, output);
            assert_eq!(judged, verdict);
            let platform = Platform::new("linux", "arm64", None);
            assert_eq!(judged.obstacle(&platform).is_some(), verdict != Verdict::Runs);
            assert_eq!(judged.advice().is_some(), verdict != Verdict::Runs);
        }
    }
}
