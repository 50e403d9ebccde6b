//! `s3 ADDRESS DIRECTORY`: an S3 server over a directory, until it is killed. A directory in it is a bucket.
//! `S3_ACCESS_KEY` and `S3_SECRET_KEY` are the only credentials that it knows.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, directory] = &arguments[..] else {
        eprintln!("usage: s3 ADDRESS DIRECTORY");
        std::process::exit(2);
    };
    let setting = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory).unwrap());
    builder.set_auth(SimpleAuth::from_single(setting("S3_ACCESS_KEY"), setting("S3_SECRET_KEY")));
    let service = builder.build();
    // s3s-fs looks whether the condition holds, and then writes: two that expect the same would both find it so.
    let conditional = Arc::new(Mutex::new(()));
    let listener = TcpListener::bind(address).await.unwrap();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (service, conditional) = (service.clone(), Arc::clone(&conditional));
        tokio::spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| {
                let (service, conditional) = (service.clone(), Arc::clone(&conditional));
                async move {
                    let _alone = match is_conditional(request.headers()) {
                        true => Some(conditional.lock().await),
                        false => None,
                    };
                    Service::call(&service, request).await
                }
            });
            // A client that goes away is no failure.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

fn is_conditional(headers: &HeaderMap) -> bool {
    headers.contains_key("if-match") || headers.contains_key("if-none-match")
}
