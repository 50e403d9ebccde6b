//! Loading an image into an engine on this machine: Docker's by its API, podman's by its program.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use reqwest::Url;
use tokio::io::AsyncReadExt as _;

/// An engine that images are loaded into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageEngine {
    /// An engine that answers Docker's API on this socket.
    DockerSocket(PathBuf),
    /// An engine that answers Docker's API at this address, over plain HTTP.
    DockerAddress(String),
    /// podman's program.
    Podman {
        /// Its path.
        program: PathBuf,
        /// Variables that it needs besides those of this process.
        environment: Vec<(String, String)>,
    },
}

impl std::fmt::Display for ImageEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DockerSocket(path) => write!(f, "the Docker engine at {}", path.display()),
            Self::DockerAddress(address) => write!(f, "the Docker engine at {address}"),
            Self::Podman { .. } => f.write_str("podman"),
        }
    }
}

/// Why an image was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The engine does not take it.
    #[error("{engine} refused the image: {reason}")]
    Refused {
        /// The engine.
        engine: String,
        /// What it says.
        reason: String,
    },
    /// The engine cannot be reached, or ended the connection.
    #[error("{engine} cannot be reached: {reason}")]
    Unreachable {
        /// The engine.
        engine: String,
        /// Why.
        reason: String,
    },
    /// The archive cannot be read.
    #[error("reading the image")]
    Io(#[from] std::io::Error),
}

/// No engine answers with more than this: lines of progress. What comes then is not read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// An engine that is busy unpacking says nothing for a while; one that says nothing for so long has gone.
const IDLE_MAX: Duration = Duration::from_mins(10);

/// Loads the docker archive `archive`.
pub async fn load(archive: &Path, engine: &ImageEngine) -> Result<(), LoadError> {
    match engine {
        ImageEngine::DockerSocket(socket) => {
            let client = reqwest::Client::builder().no_proxy().unix_socket(socket.as_path());
            by_api(archive, engine, client, "http://docker/").await
        }
        ImageEngine::DockerAddress(address) => {
            by_api(archive, engine, reqwest::Client::builder(), &format!("http://{address}/")).await
        }
        ImageEngine::Podman { program, environment } => by_podman(archive, program, environment).await,
    }
}

/// `POST /images/load` of Docker's Engine API.
async fn by_api(
    archive: &Path,
    engine: &ImageEngine,
    client: reqwest::ClientBuilder,
    base: &str,
) -> Result<(), LoadError> {
    let unreachable = |reason: String| LoadError::Unreachable { engine: engine.to_string(), reason };
    let refused = |reason: String| LoadError::Refused { engine: engine.to_string(), reason };
    let url = Url::parse(base).and_then(|base| base.join("images/load?quiet=1"));
    let url = url.map_err(|error| unreachable(error.to_string()))?;
    let failed = |error: reqwest::Error| unreachable(super::redact::chain(&error));
    let client = client
        .redirect(reqwest::redirect::Policy::none())
        .read_timeout(IDLE_MAX)
        .connect_timeout(Duration::from_secs(10))
        .build()
        .map_err(failed)?;
    let file = tokio::fs::File::open(archive).await?;
    let length = file.metadata().await?.len();
    let request = client
        .post(url)
        .header(reqwest::header::CONTENT_TYPE, "application/x-tar")
        .header(reqwest::header::CONTENT_LENGTH, length)
        .body(reqwest::Body::from(file));
    let mut response = request.send().await.map_err(failed)?;
    let status = response.status();
    let mut answer = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        if (answer.len() + piece.len()) as u64 <= ANSWER_BYTES_MAX {
            answer.extend_from_slice(&piece);
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    // An error after the first bytes comes as a line of an answer that began with success.
    let error = answer.lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let text = line.get("error").or_else(|| line.get("message"))?;
        Some(text.as_str()?.trim().to_owned())
    });
    match error {
        Some(reason) => Err(refused(reason)),
        None if status.is_success() => Ok(()),
        None => Err(refused(format!("it answers {status}"))),
    }
}

/// `podman load`.
async fn by_podman(
    archive: &Path,
    program: &Path,
    environment: &[(String, String)],
) -> Result<(), LoadError> {
    let unreachable = |reason: String| LoadError::Unreachable { engine: "podman".to_owned(), reason };
    let mut child = tokio::process::Command::new(program)
        .args(["load", "--quiet", "--input"])
        .arg(archive)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| unreachable(format!("{}: {error}", program.display())))?;
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(ANSWER_BYTES_MAX).read_to_end(&mut said).await?;
    }
    let status = child.wait().await?;
    if status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&said).trim().to_owned();
    let reason = if reason.is_empty() { status.to_string() } else { reason };
    Err(LoadError::Refused { engine: "podman".to_owned(), reason })
}
