//! A web server for what is fetched: the directory `www` of a case's build context, at `{server}` in its Dockerfile and
//! its options. Directories `….git` are repositories.

use std::path::PathBuf;

use crate::support::http::{Reply, Server};
use crate::support::oci;
use crate::support::repository::smart_http;

/// When everything was last changed, for those who ask.
const LAST_MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// Serves the files of a directory, which may change. Those called `undated…` have no time.
pub(crate) fn serve(root: PathBuf) -> Server {
    Server::new(move |request| {
        let path = request.path.split('?').next().unwrap_or_default().trim_start_matches('/');
        if path.contains(".git/") {
            return smart_http(&root, request);
        }
        let Ok(body) = std::fs::read(root.join(path)) else { return Reply::new(404, "") };
        let tag = format!("\"{}\"", oci::digest(&body));
        let reply = Reply::ok(body).header("ETag", &tag);
        if path.contains("undated") { reply } else { reply.header("Last-Modified", LAST_MODIFIED) }
    })
}
