//! Connections: taken up to a bound, with or without TLS, and ended in order.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::error::ServeError;
use super::outlet::{Outlet, Plain};
use super::settings::Tls;
use super::{Server, gc, health, machine, traces};

/// The head of a request: more is no request of any protocol here. A token of an OIDC provider has some 2 KiB.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// A handshake takes two round trips.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;

/// How long nothing is accepted after accepting failed, which is when there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the last traces may take to be sent.
const FAREWELL: Duration = Duration::from_secs(5);

/// What the outside asks of a running server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Nothing: it serves.
    Run,
    /// To read certificates and tokens again; the number makes every request for it a new one.
    Reload(u64),
    /// To finish what it is doing, and end.
    Drain,
}

/// Serves until it is told to end. `listening` is called with the address when requests are taken.
///
/// # Errors
/// If it cannot start.
pub async fn serve(
    server: Arc<Server>,
    mut control: watch::Receiver<Shutdown>,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let settings = &server.settings;
    if settings.no_auth && !settings.listen.ip().is_loopback() {
        return Err(ServeError::Open { address: settings.listen });
    }
    let mut acceptor = settings.tls.as_ref().map(acceptor).transpose()?;
    let failed = |source| ServeError::Listen { address: settings.listen, source };
    let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
    listening(listener.local_addr().map_err(failed)?);
    let probe = tokio::spawn(health::probe(Arc::clone(&server)));
    let collector = tokio::spawn(gc::run(Arc::clone(&server)));
    let disks = tokio::spawn(machine::watch_disks(Arc::clone(&server)));
    let exporter = tokio::spawn(traces::run(Arc::clone(&server)));
    let places = Arc::new(Semaphore::new(settings.limits.connections_max));
    let graceful = GracefulShutdown::new();
    let service = Service { inner: TowerToHyperService::new(server.router()), outlet: None };
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = tokio::select! {
            changed = control.changed() => {
                let state = *control.borrow_and_update();
                match state {
                    Shutdown::Reload(_) => reload(&server, &mut acceptor),
                    Shutdown::Run if changed.is_ok() => {}
                    // Nobody is left who could ask for anything.
                    Shutdown::Run | Shutdown::Drain => break,
                }
                continue;
            }
            accepted = async { (place.await, listener.accept().await) } => accepted,
        };
        let (place, (stream, _)) = match accepted {
            (Ok(place), Ok(accepted)) => (place, accepted),
            (_, Err(error)) => {
                server.metrics.connection_failed("accept");
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            (Err(_), _) => break,
        };
        let (service, watcher) = (service.clone(), graceful.watcher());
        let (acceptor, server) = (acceptor.clone(), Arc::clone(&server));
        tokio::spawn(async move {
            let _place = place;
            server.metrics.connections.inc();
            connection(&server, stream, acceptor, service, watcher).await;
            server.metrics.connections.dec();
        });
    }
    drop(listener);
    server.health.drain();
    tracing::info!("finishing what is under way");
    let rest = pin!(graceful.shutdown());
    if tokio::time::timeout(settings.limits.drain, rest).await.is_err() {
        tracing::warn!("some requests were cut off");
    }
    probe.abort();
    collector.abort();
    disks.abort();
    server.traces.end();
    if tokio::time::timeout(FAREWELL, exporter).await.is_err() {
        tracing::warn!("some traces were not sent");
    }
    Ok(())
}

/// New certificates for new connections. What cannot be read leaves the old ones.
fn reload(server: &Server, acceptor: &mut Option<TlsAcceptor>) {
    server.tokens.forget();
    match server.settings.tls.as_ref().map(self::acceptor).transpose() {
        Ok(read) => {
            *acceptor = read;
            tracing::info!("read certificates and tokens again");
        }
        Err(error) => {
            tracing::error!(error = crate::hint::with_causes(&error), "the old certificates stay");
        }
    }
}

/// Answers the requests of one connection.
#[derive(Clone)]
struct Service {
    inner: TowerToHyperService<axum::Router>,
    /// Where the connection can send files by itself.
    outlet: Option<Outlet>,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = axum::response::Response;
    type Error = std::convert::Infallible;
    type Future = <TowerToHyperService<axum::Router> as hyper::service::Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if let Some(outlet) = &self.outlet
            && request.version() <= Version::HTTP_11
        {
            request.extensions_mut().insert(outlet.clone());
        }
        self.inner.call(request)
    }
}

async fn connection(
    server: &Server,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    service: Service,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let idle = server.settings.limits.idle;
    // Answers are written whole; waiting for more of them helps nobody.
    let _ = stream.set_nodelay(true);
    match acceptor {
        None => {
            let stream = Plain::new(stream);
            let service = Service { outlet: Some(stream.outlet()), ..service };
            exchange(stream, service, watcher, idle).await;
        }
        Some(acceptor) => {
            // Whoever does not speak TLS is no client.
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => exchange(stream, service, watcher, idle).await,
                _ => server.metrics.connection_failed("tls"),
            }
        }
    }
}

fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: Service,
    watcher: hyper_util::server::graceful::Watcher,
    idle: Duration,
) -> impl Future<Output = ()> + Send {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_BYTES_MAX)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(idle)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32);
    async move {
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        // A client that goes away is no failure of the server's.
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(error, "a connection ended early");
        }
    }
}

/// What speaks TLS with the certificate of these files.
fn acceptor(tls: &Tls) -> Result<TlsAcceptor, ServeError> {
    let wrong =
        |path: &std::path::Path, reason: String| ServeError::Certificate { path: path.to_owned(), reason };
    let read = |path: &std::path::Path| fs_err::read(path).map_err(|error| wrong(path, error.to_string()));
    let chain = CertificateDer::pem_slice_iter(&read(&tls.certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(&tls.certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(&tls.certificate, "there is no certificate in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&tls.key)?);
    let key = key.map_err(|error| wrong(&tls.key, error.to_string()))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&tls.certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
