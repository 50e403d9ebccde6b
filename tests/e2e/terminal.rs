//! The program in front of somebody: live progress in a real pseudo terminal, and the keys that stop it.

use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::support::aftermath::{
    assert_empty, assert_no_mounts_below, assert_no_processes, marked_processes,
};
use crate::support::hostile::{Answer, Hostile};
use crate::support::lab::Lab;
use crate::support::terminal::Terminal;
use crate::support::{Run, text};

/// How long a build with nothing slow in it may take to end.
const SOON: Duration = Duration::from_mins(1);

fn live(lab: &Lab, dockerfile: &str) -> Run {
    lab.build_showing("tty", dockerfile).env("TERM", "xterm-256color")
}

fn has(screen: &[String], part: &str) -> bool {
    screen.iter().any(|line| line.contains(part))
}

/// A line that begins with the name of a step and ends with the seconds that it takes.
fn running(screen: &[String], name: &str) -> bool {
    screen.iter().any(|line| line.contains(name) && seconds(line).is_some())
}

/// The time at the end of a line: `3.5s`.
fn seconds(line: &str) -> Option<f64> {
    line.rsplit(' ').next()?.strip_suffix('s')?.parse().ok()
}

/// Escape sequences that colour: `ESC [ … m` with anything but a reset in it.
fn colours(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.split("\x1b[").skip(1).any(|rest| {
        let end = rest.find(|char: char| !char.is_ascii_digit() && char != ';').unwrap_or(rest.len());
        rest[end..].starts_with('m') && !matches!(&rest[..end], "" | "0")
    })
}

#[test]
fn a_terminal_shows_the_running_step_and_at_the_end_a_line_for_each() {
    let lab = Lab::new();
    let dockerfile = "FROM busybox\nRUN echo quick\nRUN seq 1 20; printf 'half a line'; sleep 4\n";
    let mut terminal = Terminal::start(live(&lab, dockerfile), (100, 30));
    let screen = terminal.wait_for("the end of the log", |screen| {
        running(screen, "RUN seq 1 20") && has(screen, "| half a line")
    });
    assert!(has(&screen, "[2/3] steps"), "{screen:#?}");
    // The last lines of the log, and only these.
    assert!(screen.iter().any(|line| line.trim() == "| 20"), "{screen:#?}");
    assert!(!screen.iter().any(|line| line.trim() == "| 10"), "{screen:#?}");
    // The time runs although the step says nothing.
    let time = |screen: &[String]| {
        screen.iter().find(|line| line.contains("RUN seq")).and_then(|line| seconds(line))
    };
    let earlier = time(&screen).unwrap();
    terminal.wait_for("a later time", |screen| time(screen).is_some_and(|later| later > earlier));
    assert!(terminal.end(SOON).success());
    let screen = terminal.screen();
    for step in ["FROM busybox", "RUN echo quick", "RUN seq 1 20"] {
        let lines: Vec<_> = screen.iter().filter(|line| line.contains(step)).collect();
        assert!(matches!(lines[..], [line] if line.contains("DONE")), "one line for {step}: {screen:#?}");
    }
    assert!(has(&screen, "2 steps: 0 cached, 2 run, in "), "{screen:#?}");
    // Nothing of the live part is left, and the cursor is back.
    assert!(!has(&screen, "] steps") && !has(&screen, "| "), "{screen:#?}");
    assert!(terminal.shows_cursor());
    assert!(!colours(&terminal.bytes()), "NO_COLOR is set");

    // Once more: all of it is cached, and in colours, as NO_COLOR is not set.
    let mut again = Terminal::start(live(&lab, dockerfile).without_env("NO_COLOR"), (100, 30));
    assert!(again.end(SOON).success());
    let screen = again.screen();
    assert!(has(&screen, "RUN seq") && has(&screen, "CACHED (local cache"), "{screen:#?}");
    assert!(colours(&again.bytes()));
}

#[test]
fn a_terminal_shows_the_bytes_of_a_download() {
    let server =
        Hostile::start(|_, _| Answer::Dripping(Duration::from_millis(20), Vec::new(), vec![b'x'; 300]));
    let lab = Lab::new();
    let dockerfile = format!("FROM busybox\nADD http://{}/file /file\n", server.address());
    let mut terminal = Terminal::start(live(&lab, &dockerfile), (120, 30));
    let received = |screen: &[String]| -> Option<u64> {
        let line = screen.iter().find(|line| line.contains(" B / 300 B "))?;
        assert!(seconds(line).is_some(), "{line}");
        line.split(" B / 300 B").next()?.rsplit(' ').next()?.parse().ok()
    };
    let screen = terminal.wait_for("bytes", |screen| received(screen).is_some());
    let earlier = received(&screen);
    terminal.wait_for("more bytes", |screen| received(screen) > earlier);
    assert!(terminal.end(SOON).success());
    assert!(has(&terminal.screen(), "DONE"), "{:#?}", terminal.screen());
}

#[test]
fn live_progress_keeps_to_a_terminal_that_is_narrow_and_to_one_that_changes() {
    let lab = Lab::new();
    let long = "a-line-of-the-log-that-is-much-longer-than-the-terminal-is-wide";
    let dockerfile = format!("FROM busybox\nRUN for i in 1 2 3; do echo {long}; done; sleep 6\n");
    let mut terminal = Terminal::start(live(&lab, &dockerfile), (30, 8));
    // What runs is one row for each line, cut and not wrapped, and the time is in it.
    let fits = |screen: &[String], columns: usize| {
        let rows: Vec<_> = screen.iter().filter(|line| line.contains("| a-line")).collect();
        rows.len() == 3
            && rows.iter().all(|row| row.chars().count() < columns)
            && screen.iter().any(|line| line.contains("RUN") && seconds(line).is_some())
            && !has(screen, "terminal-is-wide")
    };
    terminal.wait_for("lines that fit 30 columns", |screen| fits(screen, 30));
    terminal.resize((60, 20));
    terminal.wait_for("lines that use 60 columns", |screen| {
        fits(screen, 60)
            && screen.iter().any(|line| line.contains("| a-line") && line.chars().count() > 50)
            && screen.iter().any(|line| line.chars().count() == 59 && seconds(line).is_some())
    });
    terminal.resize((40, 10));
    terminal.wait_for("lines that fit 40 columns", |screen| fits(screen, 40));
    assert!(terminal.end(SOON).success());
    assert!(has(&terminal.screen(), "image sha256:"), "{:#?}", terminal.screen());
}

#[test]
fn a_failed_step_leaves_its_last_lines_on_the_terminal() {
    let lab = Lab::new();
    let mut terminal =
        Terminal::start(live(&lab, "FROM busybox\nRUN echo the reason; sleep 1; exit 7\n"), (100, 30));
    let status = terminal.end(SOON);
    let screen = terminal.screen();
    assert!(!status.success());
    assert!(has(&screen, "| the reason") && has(&screen, "FAILED after"), "{screen:#?}");
    assert!(has(&screen, "Dockerfile:2") && has(&screen, "7"), "{screen:#?}");
    assert!(terminal.shows_cursor());
}

/// A build in a terminal that sits in its second step; the mark is in the environment of whatever it starts.
fn sitting(lab: &Lab, mark: &str, command: &str) -> Terminal {
    let output = lab.context.path("image.tar");
    let dockerfile = format!("FROM busybox\nENV MARK={mark}\nRUN echo done > /done\nRUN {command}\n");
    let run = live(lab, &dockerfile).option_path("--output", "type=oci,dest=", &output);
    let mut terminal = Terminal::start(run, (100, 30));
    terminal.wait_for("the step", |screen| running(screen, "RUN") && has(screen, "| sitting"));
    assert!(!marked_processes(mark).is_empty());
    terminal
}

/// What no other process on this machine has in its environment.
fn mark(what: &str) -> String {
    format!("{what}-mark-{}", std::process::id())
}

#[track_caller]
fn assert_gone(lab: &Lab, mark: &str) {
    assert_no_processes(mark);
    assert_no_processes(text(&lab.context.path("home")));
    assert_no_mounts_below(&lab.context.path("."));
    assert!(!lab.context.path("image.tar").exists());
}

#[test]
fn one_ctrl_c_stops_and_cleans_up() {
    let lab = Lab::new();
    let mark = mark("ctrl-c");
    // Ctrl-C reaches every process of the terminal, and this step does not care.
    let mut terminal = sitting(&lab, &mark, "trap : INT TERM; echo sitting; while :; do sleep 1; done");
    terminal.press(b"\x03");
    let status = terminal.end(Duration::from_secs(20));
    assert_eq!(status.code(), Some(130), "{:#?}", terminal.screen());
    assert!(has(&terminal.screen(), "stopping and cleaning up"), "{:#?}", terminal.screen());
    assert!(terminal.shows_cursor());
    assert_gone(&lab, &mark);
    assert_empty(&lab.context.path("tmp"));
    assert_empty(&lab.context.path("xdg/crossdock/v1/tmp"));
}

#[test]
fn sigterm_stops_and_cleans_up_in_a_terminal_too() {
    let lab = Lab::new();
    let mark = mark("sigterm");
    let mut terminal = sitting(&lab, &mark, "echo sitting; sleep 600");
    kill_process(terminal.id(), Signal::TERM).unwrap();
    let status = terminal.end(Duration::from_secs(20));
    assert_eq!(status.code(), Some(143), "{:#?}", terminal.screen());
    assert!(terminal.shows_cursor());
    assert_gone(&lab, &mark);
    assert_empty(&lab.context.path("tmp"));
    assert_empty(&lab.context.path("xdg/crossdock/v1/tmp"));
}

#[test]
fn a_second_ctrl_c_ends_it_at_once_and_the_next_start_cleans_up() {
    let lab = Lab::new();
    let mark = mark("twice");
    let mut terminal = sitting(&lab, &mark, "trap : INT TERM; echo sitting; while :; do sleep 1; done");
    // Both are there before the first can have been acted upon to the end.
    terminal.press(b"\x03");
    terminal.press(b"\x03");
    let status = terminal.end(Duration::from_secs(20));
    assert_eq!(status.code(), Some(130), "{:#?}", terminal.screen());
    assert!(terminal.shows_cursor());
    assert_gone(&lab, &mark);
    // Whatever it left unfinished goes when the program starts again, and what was finished is used.
    let finished = format!("FROM busybox\nENV MARK={mark}\nRUN echo done > /done\n");
    lab.build(&finished).arg("--dry-run").success();
    for round in 0..5 {
        lab.build(&format!("FROM busybox\nRUN : {round}\n")).success();
        let unfinished = lab.context.path("xdg/crossdock/v1/tmp");
        if walkdir::WalkDir::new(unfinished).min_depth(1).into_iter().next().is_none() {
            break;
        }
        assert!(round < 4, "the leftovers of the build that was ended at once are still there");
    }
    assert_empty(&lab.context.path("tmp"));
    lab.context.crossdock().args(["cache", "verify"]).success();
}
