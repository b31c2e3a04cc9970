//! What makes a server at the other end of TLS the right one: the roots that its certificate must lead to, and its name.
//!
//! TLS 1.2 and 1.3 by rustls, with HTTP/1.1 as the only protocol that is offered inside.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::Transport;

/// How a server is spoken to in TLS, for all connections to it: sessions are resumed among them.
#[derive(Clone)]
pub struct Tls {
    pub(super) connector: TlsConnector,
    pub(super) name: ServerName<'static>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why there is no way to know the right server.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate stands in the file.
    #[error("{} holds no certificate: it is to be in PEM, with -----BEGIN CERTIFICATE-----", .0.display())]
    Empty(PathBuf),
    /// The file cannot be read, or is no PEM.
    #[error("{} cannot be read as PEM", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: pem::Error,
    },
    /// There is nothing to be the name.
    #[error("no name that the server's certificate must be for: over a Unix socket, write server_name")]
    NameMissing,
    /// No certificate can be for it.
    #[error("{0:?} is no name that a certificate can be for: write server_name as \"app.internal\" or an address")]
    Name(String),
    /// The system has no roots.
    #[error("the system has no root certificates: install them (ca-certificates), or write ca")]
    NoRoots,
    /// A certificate in the file is none.
    #[error("certificate {number} in {} cannot be used", path.display())]
    Unusable {
        /// In which file.
        path: PathBuf,
        /// Counted from 1.
        number: usize,
        /// Why not.
        #[source]
        source: tokio_rustls::rustls::Error,
    },
    /// What rustls was built for and what it was asked for do not fit.
    #[error("TLS cannot be set up")]
    Versions(#[source] tokio_rustls::rustls::Error),
}

impl Tls {
    /// Reads the roots, from the file `ca` or the system's, and what name the server must prove: `server_name`, or the host
    /// that it is connected to by. It reads files, so it is for whoever loads a configuration.
    ///
    /// # Errors
    /// Any of [`TlsError`].
    pub fn new(transport: &Transport, ca: Option<&Path>, server_name: Option<&str>) -> Result<Self, TlsError> {
        let name = match (server_name, transport) {
            (Some(name), _) => name,
            (None, Transport::Tcp { host, .. }) => host,
            (None, Transport::Abstract(_) | Transport::Unix(_)) => return Err(TlsError::NameMissing),
        };
        let parsed = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
        let roots = match ca {
            Some(path) => roots_of(path)?,
            None => system_roots()?,
        };
        // Said by name: another crate could make another provider the process's own.
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name: parsed })
    }
}

fn roots_of(path: &Path) -> Result<RootCertStore, TlsError> {
    let unread = |source| TlsError::File { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for (at, certificate) in CertificateDer::pem_file_iter(path).map_err(unread)?.enumerate() {
        let unusable = |source| TlsError::Unusable { path: path.to_owned(), number: at + 1, source };
        roots.add(certificate.map_err(unread)?).map_err(unusable)?;
    }
    if roots.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(roots) }
}

/// Those that can be used: among the hundreds of a system there is always one that is not for us.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(roots) }
}
