//! A web server for ADD: the directory `www` of a case's build context, at `{server}` in its Dockerfile.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use crate::support::oci;

/// When everything was last changed, for those who ask.
const LAST_MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// Serves the files of a directory, which may change; returns `127.0.0.1:port`. It ends with the process.
pub(crate) fn serve(root: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let root = root.clone();
            // One that goes away in the middle has itself to blame.
            std::thread::spawn(move || drop(answer(&root, stream)));
        }
    });
    address
}

fn answer(root: &Path, mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines.by_ref() {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = request.split(' ');
    let is_get = words.next() == Some("GET");
    let path = words.next().unwrap_or_default().split('?').next().unwrap_or_default();
    let file = std::fs::read(root.join(path.trim_start_matches('/')));
    let tag = file.as_ref().map_or_else(|_| String::from("none"), |body| oci::digest(body));
    let (status, body) = file.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"{tag}\"\r\nLast-Modified: {LAST_MODIFIED}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if is_get { stream.write_all(&body) } else { Ok(()) }
}
