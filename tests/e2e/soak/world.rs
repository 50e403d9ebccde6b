//! The servers, the links to them, the storage below them, and what goes wrong with them.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::chance::Chance;
use crate::support::lab::Lab;
use crate::support::link::{Link, Speed};
use crate::support::port;
use crate::support::s3::S3;

const SERVERS: usize = 3;

/// Builds at a time.
const BUILDS_MAX: usize = 2;

/// A server that is 20 ms away.
const SPEED: Speed = Speed { round_trip: Duration::from_millis(20), rate: 1e9 };

/// How long a build may take with everything that goes wrong meanwhile. What is tested is that it ends, and well.
const BUILD_MAX: Duration = Duration::from_mins(3);

struct Server {
    address: String,
    child: Option<Child>,
    log: PathBuf,
}

struct Build {
    child: Child,
    number: usize,
    output: PathBuf,
    local: PathBuf,
    started: Instant,
    /// When it is killed, if it is.
    ends: Option<Instant>,
}

pub(super) struct World {
    lab: Lab,
    storage: String,
    s3: Option<S3>,
    servers: Vec<Server>,
    links: Vec<Link>,
    builds: Vec<Build>,
    built: usize,
}

impl World {
    pub(super) fn new(lab: Lab, storage: String, s3: Option<S3>) -> Self {
        let servers = (0..SERVERS).map(|number| {
            let port = port::free();
            let log = lab.context.path(format!("soak-server-{number}.log"));
            Server { address: format!("127.0.0.1:{port}"), child: None, log }
        });
        let servers: Vec<_> = servers.collect();
        let links = servers.iter().map(|server| Link::start(&server.address, SPEED)).collect();
        let mut world = Self { lab, storage, s3, servers, links, builds: Vec::new(), built: 0 };
        world.revive();
        world
    }

    /// Every server, directly and over its link.
    pub(super) fn addresses(&self) -> Vec<String> {
        let near = self.servers.iter().map(|server| server.address.clone());
        near.chain(self.links.iter().map(|link| link.address().to_owned())).collect()
    }

    /// Starts the servers that are dead.
    pub(super) fn revive(&mut self) {
        for number in 0..self.servers.len() {
            let ended = |child: &mut Child| child.try_wait().unwrap().is_some();
            if self.servers[number].child.as_mut().is_none_or(ended) {
                self.start(number);
            }
        }
    }

    fn start(&mut self, number: usize) {
        let server = &self.servers[number];
        let mut run = self.lab.context.crossdock();
        if let Some(s3) = &self.s3 {
            run = s3.with(run);
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&server.log).unwrap();
        let child = run
            .args(["serve", "--insecure-no-auth", "--listen", &server.address, "--storage", &self.storage])
            .into_command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.servers[number].child = Some(child);
    }

    fn signal(&self, number: usize, signal: Signal) {
        if let Some(child) = &self.servers[number].child {
            // Not waited for yet, so the id is its own.
            kill_process(Pid::from_child(child), signal).unwrap();
        }
    }

    fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.servers[number].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Something goes wrong, for as long as this takes or until it is revived. Returns what it was.
    pub(super) fn fault(&mut self, chance: &mut Chance) -> String {
        let number = chance.index(SERVERS);
        let pause = Duration::from_millis(100 + chance.below(1500));
        match chance.below(5) {
            0 | 1 => {
                self.kill(number);
                format!("killed server {number}")
            }
            2 => {
                for number in 0..SERVERS {
                    self.kill(number);
                }
                "killed all servers".to_owned()
            }
            3 => {
                self.signal(number, Signal::STOP);
                std::thread::sleep(pause);
                self.signal(number, Signal::CONT);
                format!("stopped server {number} for {pause:?}")
            }
            _ => self.storage_fault(chance, pause),
        }
    }

    fn storage_fault(&mut self, chance: &mut Chance, pause: Duration) -> String {
        let Some(s3) = &mut self.s3 else { return self.fill(pause) };
        if s3.lasts() && chance.below(2) == 0 {
            s3.kill();
            std::thread::sleep(pause);
            s3.restart_dead();
            return format!("killed the object storage for {pause:?}");
        }
        s3.signal(Signal::STOP);
        std::thread::sleep(pause);
        s3.signal(Signal::CONT);
        format!("stopped the object storage for {pause:?}")
    }

    /// Takes all space that the disk has.
    fn fill(&self, pause: Duration) -> String {
        let ballast = self.lab.context.path("disk/ballast");
        let status = self
            .lab
            .context
            .command("dd")
            .args(["if=/dev/zero", "bs=64k"])
            .arg(format!("of={}", ballast.display()))
            // Where there is no disk of its own, it must not fill somebody else's.
            .arg(if self.has_disk() { "count=1000000" } else { "count=0" })
            .output()
            .status;
        std::thread::sleep(pause);
        std::fs::remove_file(&ballast).unwrap();
        if status.success() { "no disk to fill".to_owned() } else { format!("filled the disk for {pause:?}") }
    }

    fn has_disk(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = format!(" {} ", self.lab.context.path("disk").display());
        mounts.lines().any(|line| line.contains(&place))
    }

    /// Starts a build on a runner of its own, with any of the servers; `false` if enough are under way.
    pub(super) fn build(&mut self, chance: &mut Chance) -> bool {
        if self.builds.len() >= BUILDS_MAX {
            return false;
        }
        // Few different ones, so that they find what others have done.
        let number = chance.index(4);
        self.built += 1;
        let output = self.lab.context.path(format!("built-{}", self.built));
        let dockerfile = format!(
            "FROM busybox\nRUN seq {number} 20000 > /one\nRUN sort -r -n /one > /two\nCOPY --from=busybox /bin/busybox /three\n"
        );
        // One of its own: another build may be about to read its.
        let file = format!("{}.Dockerfile", self.built);
        let build = self.lab.build("FROM scratch\n").option_path("--output", "", &output);
        let build = build.option_path("--file", "", self.lab.file(&file, dockerfile).path(&file));
        let build = build.option("--cache", format!("http://{}", chance.of(&self.addresses())));
        let local = self.lab.context.path(format!("runner-{}", self.built));
        let child = build.env("CROSSDOCK_LOCAL", &local).spawn();
        let lives = Duration::from_millis(chance.below(4000));
        let ends = (chance.below(2) == 0).then(|| Instant::now() + lives);
        self.builds.push(Build { child, number, output, local, started: Instant::now(), ends });
        true
    }

    /// Kills those whose time has come, and looks at what the others have made.
    pub(super) fn check_builds(&mut self) {
        let mut under_way = Vec::new();
        for mut build in std::mem::take(&mut self.builds) {
            match build.child.try_wait().unwrap() {
                Some(status) => {
                    assert!(status.success(), "a build has failed: {status}");
                    let made = |name: &str| std::fs::read_to_string(build.output.join(name)).unwrap();
                    let lines: Vec<_> = (build.number..=20_000).map(|line| line.to_string()).collect();
                    assert!(made("one") == lines.join("\n") + "\n", "a wrong image");
                    let reversed: Vec<_> = lines.into_iter().rev().collect();
                    assert!(made("two") == reversed.join("\n") + "\n", "a wrong image");
                    std::fs::remove_dir_all(&build.output).unwrap();
                    std::fs::remove_dir_all(&build.local).unwrap();
                }
                None if build.ends.is_some_and(|ends| Instant::now() > ends) => {
                    build.child.kill().unwrap();
                    build.child.wait().unwrap();
                }
                None => {
                    assert!(build.started.elapsed() < BUILD_MAX, "a build does not end");
                    under_way.push(build);
                }
            }
        }
        self.builds = under_way;
    }

    /// Lets what is under way come to its end, and gives the address of a server that knows nothing yet.
    pub(super) fn rest(&mut self) -> String {
        self.revive();
        while !self.builds.is_empty() {
            self.check_builds();
            std::thread::sleep(Duration::from_millis(50));
        }
        for number in 0..SERVERS {
            self.kill(number);
            let said = std::fs::read_to_string(&self.servers[number].log).unwrap();
            assert!(!said.contains("panicked"), "server {number} panicked:\n{said}");
        }
        self.start(0);
        let started = Instant::now();
        while TcpStream::connect(&self.servers[0].address).is_err() {
            assert!(started.elapsed() < Duration::from_mins(1), "the server does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.servers[0].address.clone()
    }

    /// Everything in the storage is what it says it is.
    pub(super) fn verify(&mut self) {
        let mut run = self.lab.context.crossdock().args(["admin", "verify", "--storage", &self.storage]);
        if let Some(s3) = &self.s3 {
            run = s3.with(run);
        }
        run.success().says(", 0 damaged");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for build in &mut self.builds {
            // Both fail if it has ended by itself.
            let _ = build.child.kill();
            let _ = build.child.wait();
        }
        for server in &mut self.servers {
            if let Some(child) = &mut server.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
