//! A real pseudo terminal with a program in it, and what somebody in front of it would see.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::Run;

/// Columns and rows.
pub(crate) type Size = (u16, u16);

/// Lines that have scrolled up and can still be looked at.
const SCROLLBACK: usize = 1000;

/// The terminal and the program, which is killed when this is dropped.
pub(crate) struct Terminal {
    keyboard: File,
    seen: Arc<Mutex<Seen>>,
    reader: Option<JoinHandle<()>>,
    child: Child,
}

struct Seen {
    parser: vt100::Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    /// Starts the program in a session of its own, whose terminal this is.
    pub(crate) fn start(run: Run, size: Size) -> Self {
        let master =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        rustix::termios::tcsetwinsize(&master, window(size)).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = File::from(rustix::fs::open(name, flags, Mode::empty()).unwrap());
        let end = || Stdio::from(slave.try_clone().unwrap());
        // `setsid` makes the terminal the session's own, so that Ctrl-C reaches what runs in it; then it becomes the
        // program, with the same process id.
        let program = run.into_command();
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program.get_program()).args(program.get_args()).env_clear();
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(program.get_current_dir().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        drop((command, slave));
        let keyboard = File::from(master);
        let mut screen = keyboard.try_clone().unwrap();
        let (columns, rows) = nonzero(size);
        let parser = vt100::Parser::new(rows, columns, SCROLLBACK);
        let seen = Arc::new(Mutex::new(Seen { parser, bytes: Vec::new() }));
        let reader = std::thread::spawn({
            let seen = Arc::clone(&seen);
            move || {
                let mut buffer = [0; 4096];
                // When the last process that has the terminal open is gone, reading fails.
                while let Ok(count @ 1..) = screen.read(&mut buffer) {
                    let mut seen = seen.lock().unwrap();
                    seen.parser.process(&buffer[..count]);
                    seen.bytes.extend_from_slice(&buffer[..count]);
                }
            }
        });
        Self { keyboard, seen, reader: Some(reader), child }
    }

    /// The process id of the program.
    pub(crate) fn id(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// What the screen shows: its rows without the blanks at their ends.
    pub(crate) fn screen(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let columns = seen.parser.screen().size().1.get();
        seen.parser.screen().rows(0, columns).map(|row| row.trim_end().to_owned()).collect()
    }

    /// Everything that was written to the terminal.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.seen.lock().unwrap().bytes.clone()
    }

    /// Waits until the screen shows what `wanted` asks for; returns that screen.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, what: &str, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
        let started = Instant::now();
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended, {ended:?}, and never showed {what}: {screen:#?}");
            assert!(started.elapsed() < Duration::from_mins(1), "it does not show {what}: {screen:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes it larger or smaller, as a window is.
    pub(crate) fn resize(&self, size: Size) {
        let (columns, rows) = nonzero(size);
        self.seen.lock().unwrap().parser.set_size(rows, columns);
        rustix::termios::tcsetwinsize(&self.keyboard, window(size)).unwrap();
    }

    /// Presses keys.
    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Waits for the end of the program and of what it writes.
    #[track_caller]
    pub(crate) fn end(&mut self, within: Duration) -> ExitStatus {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < within, "does not end: {:#?}", self.screen());
            std::thread::sleep(Duration::from_millis(10));
        };
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status
    }

    /// Whether the program left the cursor visible: whoever hides it has to show it again.
    pub(crate) fn shows_cursor(&self) -> bool {
        !self.seen.lock().unwrap().parser.screen().hide_cursor()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail when it has ended, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn window((columns, rows): Size) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn nonzero((columns, rows): Size) -> (NonZeroU16, NonZeroU16) {
    (columns.try_into().unwrap(), rows.try_into().unwrap())
}
