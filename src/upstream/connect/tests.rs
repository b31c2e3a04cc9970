use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ProtocolVersion, ServerConfig, SupportedProtocolVersion};

use super::super::tls::TlsError;
use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { timeout(PATIENCE, future).await.expect("in time") })
}

fn at(text: &str) -> Address {
    Address::parse(text, Path::new("/")).expect(text)
}

/// Everything that stands in an error, as the log has it.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A byte there and a byte back.
async fn speak(stream: &mut Stream) {
    stream.write_all(b"a").await.expect("written");
    stream.flush().await.expect("flushed");
    assert_eq!(stream.read_u8().await.expect("read"), b'b');
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    assert_eq!(stream.read_u8().await.expect("read"), b'a');
    stream.write_all(b"b").await.expect("written");
    stream.flush().await.expect("flushed");
}

#[test]
fn a_server_over_tcp_sees_the_source_that_was_written() {
    run(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("one").port();
        for (source, seen) in [(None, [127, 0, 0, 1]), (Some([127, 0, 0, 9].into()), [127, 0, 0, 9])] {
            let options = ConnectOptions { source, tls: None };
            let mut stream = connect(&at(&format!("http://127.0.0.1:{port}")), &options).await.expect("connected");
            let (server, peer) = listener.accept().await.expect("accepted");
            assert_eq!(peer.ip(), IpAddr::from(seen));
            let Stream::Tcp(tcp) = &stream else { panic!("{stream:?}") };
            assert!(tcp.nodelay().expect("an option"));
            tokio::join!(answer(server), speak(&mut stream));
        }
    });
}

#[test]
fn a_source_that_cannot_be_is_named() {
    run(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = at(&format!("http://127.0.0.1:{}", listener.local_addr().expect("one").port()));
        let from = |source: IpAddr| ConnectOptions { source: Some(source), tls: None };
        let error = connect(&address, &from([192, 0, 2, 1].into())).await.expect_err("no address of ours");
        assert!(matches!(error, ConnectError::Source(..)) && error.to_string().contains("192.0.2.1"), "{error}");
        let error = connect(&address, &from(Ipv6Addr::LOCALHOST.into())).await.expect_err("the other kind");
        assert!(matches!(error, ConnectError::OtherFamily { .. }), "{error}");
    });
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    run(async {
        // Of localhost's two, ::1 is the first where both are known, and nobody listens there.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("one").port();
        connect(&at(&format!("http://localhost:{port}")), &ConnectOptions::default()).await.expect("connected");
        drop(listener);
        let error = connect(&at(&format!("http://localhost:{port}")), &ConnectOptions::default()).await;
        let told = told(&error.expect_err("nobody"));
        assert!(told.starts_with(&format!("localhost:{port}: ")) && told.contains("refused"), "{told}");
        let error = connect(&at("http://nobody.invalid"), &ConnectOptions::default()).await.expect_err("no name");
        assert!(
            matches!(error, ConnectError::Lookup(..)) && error.to_string().starts_with("nobody.invalid "),
            "{error}"
        );
    });
}

#[test]
fn unix_sockets_are_reached_by_paths_of_any_length_and_by_abstract_names() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let deep = folder.path().join("x".repeat(120));
        std::fs::create_dir(&deep).expect("a folder");
        let short = folder.path().join("s");
        let listener = UnixListener::bind(&short).expect("bound");
        std::os::unix::fs::symlink(&short, deep.join("s")).expect("a link");
        let name = format!("baton-connect-{}", std::process::id());
        let named = UnixListener::bind(format!("\0{name}")).expect("bound");
        for (text, listener) in [
            (format!("unix:{}", short.display()), &listener),
            (format!("+{}:/inside", deep.join("s").display()), &listener),
            (format!("unix:@{name}"), &named),
        ] {
            let mut stream = connect(&at(&text), &ConnectOptions::default()).await.expect(&text);
            let (server, _) = listener.accept().await.expect("accepted");
            tokio::join!(answer(server), speak(&mut stream));
        }
        for nobody in [deep.join("none"), folder.path().join("none")] {
            let error = connect(&at(&format!("unix:{}", nobody.display())), &ConnectOptions::default()).await;
            let told = told(&error.expect_err("nobody"));
            assert!(told.starts_with(&format!("{}: No such file", nobody.display())), "{told}");
        }
    });
}

#[test]
fn a_full_backlog_is_waited_for() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).expect("short")).expect("bound");
        rustix::net::listen(&listener, 0).expect("listening");
        let address = at(&format!("unix:{}", path.display()));
        let options = ConnectOptions::default();
        let soon = Duration::from_millis(100);
        let mut waiting = Vec::new();
        while let Ok(stream) = timeout(soon, connect(&address, &options)).await {
            waiting.push(stream.expect("a place"));
        }
        let accept = async {
            tokio::task::yield_now().await;
            rustix::net::accept(&listener).expect("one that waits")
        };
        let (stream, _first) = tokio::join!(connect(&address, &options), accept);
        stream.expect("the place of the first");
    });
}

/// Somebody who signs, and the file with their certificate.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
        let file = folder.join(format!("{name}.pem"));
        std::fs::write(&file, issuer.pem()).expect("written");
        Self { issuer, file }
    }

    /// A server with a certificate for that name.
    fn server(&self, name: &str, until: i32, version: &'static SupportedProtocolVersion) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What becomes of a connection over TCP to that server, by the version that it was made with.
async fn try_tls(server: &TlsAcceptor, tls: Tls) -> Result<ProtocolVersion, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = at(&format!("https://127.0.0.1:{}", listener.local_addr().expect("one").port()));
    let options = ConnectOptions { source: None, tls: Some(Arc::new(tls)) };
    let serve = async { server.accept(listener.accept().await.expect("accepted").0).await };
    let (client, server) = tokio::join!(connect(&address, &options), serve);
    let mut stream = client.map_err(|error| told(&error))?;
    let server = server.expect("the client is content");
    assert_eq!(server.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let version = server.get_ref().1.protocol_version().expect("one");
    tokio::join!(answer(server), speak(&mut stream));
    Ok(version)
}

#[test]
fn a_server_in_tls_proves_who_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = Authority::new(folder.path(), "ours");
    let other = Authority::new(folder.path(), "other");
    let tls =
        |ca: &Authority, name| Tls::new(&at("https://127.0.0.1").transport, Some(&ca.file), name).expect("set up");
    run(async {
        for (version, expected) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
            let server = ours.server("app.internal", 2100, version);
            assert_eq!(try_tls(&server, tls(&ours, Some("app.internal"))).await, Ok(expected));
            let by_address = ours.server("127.0.0.1", 2100, version);
            assert_eq!(try_tls(&by_address, tls(&ours, None)).await, Ok(expected));
            let expired = ours.server("app.internal", 2021, version);
            for (server, tls, reason) in [
                (&server, tls(&other, Some("app.internal")), "UnknownIssuer"),
                (&server, tls(&ours, Some("other.internal")), "not valid for name \"other.internal\""),
                (&server, tls(&ours, None), "not valid for name"),
                (&expired, tls(&ours, Some("app.internal")), "expired"),
            ] {
                let told = try_tls(server, tls).await.expect_err(reason);
                assert!(told.starts_with("no TLS with 127.0.0.1:") && told.contains(reason), "{told}");
            }
        }
    });
}

#[test]
fn tls_goes_over_unix_sockets_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = Authority::new(folder.path(), "ours");
    let server = ours.server("app.internal", 2100, &TLS13);
    run(async {
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("bound");
        let address = at(&format!("https+unix:{}:/inside", path.display()));
        let missing = Tls::new(&address.transport, Some(&ours.file), None);
        assert!(matches!(missing, Err(TlsError::NameMissing)), "{missing:?}");
        let tls = Tls::new(&address.transport, Some(&ours.file), Some("app.internal")).expect("set up");
        let options = ConnectOptions { source: None, tls: Some(Arc::new(tls)) };
        let serve = async { server.accept(listener.accept().await.expect("accepted").0).await.expect("content") };
        let (client, server) = tokio::join!(connect(&address, &options), serve);
        let mut stream = client.expect("connected");
        tokio::join!(answer(server), speak(&mut stream));
        let error = connect(&address, &ConnectOptions::default()).await.expect_err("nothing to know it by");
        assert!(matches!(error, ConnectError::WithoutTls(_)), "{error}");
    });
}

#[test]
fn a_server_that_speaks_no_tls_is_found_out() {
    run(async {
        let folder = tempfile::tempdir().expect("a folder");
        let ours = Authority::new(folder.path(), "ours");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = at(&format!("https://127.0.0.1:{}", listener.local_addr().expect("one").port()));
        let tls = Tls::new(&address.transport, Some(&ours.file), None).expect("set up");
        let options = ConnectOptions { source: None, tls: Some(Arc::new(tls)) };
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("written");
            stream
        };
        let (client, _server) = tokio::join!(connect(&address, &options), serve);
        let told = told(&client.expect_err("no TLS"));
        assert!(told.starts_with("no TLS with 127.0.0.1:"), "{told}");
    });
}

#[test]
fn what_says_who_is_right_is_read_or_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let transport = at("https://app.internal").transport;
    let fault = |file: &str, content: &str| {
        let path = folder.path().join(file);
        std::fs::write(&path, content).expect("written");
        let told = told(&Tls::new(&transport, Some(&path), None).expect_err(file));
        assert!(told.contains(&path.display().to_string()), "{told}");
        told
    };
    assert!(fault("empty.pem", "").contains("holds no certificate"));
    let key = KeyPair::generate().expect("a key").serialize_pem();
    assert!(fault("key.pem", &key).contains("holds no certificate"));
    assert!(fault("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n").contains("cannot be read as PEM"));
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(fault("garbage.pem", garbage).contains("certificate 1 in "));
    let none = folder.path().join("none.pem");
    let told = told(&Tls::new(&transport, Some(&none), None).expect_err("no file"));
    assert!(told.contains("none.pem") && told.contains("No such file"), "{told}");
    let error = Tls::new(&transport, None, Some("a b")).expect_err("no name");
    assert!(matches!(error, TlsError::Name(_)) && error.to_string().contains("\"a b\""), "{error}");
}
