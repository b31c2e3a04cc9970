//! Applications that speak HTTPS, over TCP and over a Unix socket.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use support::Gateway;

use crate::{app, asked, support};

/// The files `ca.pem`, `cert.pem` and `key.pem` in a folder, for a server of that name.
fn certificates(folder: &std::path::Path, name: &str) -> [PathBuf; 3] {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let texts = [issuer.pem(), certificate.pem(), key.serialize_pem()];
    let paths = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.join(name));
    for (path, text) in paths.iter().zip(texts) {
        std::fs::write(path, text).unwrap();
    }
    paths
}

fn gateway(address: &str, more: &str) -> Gateway {
    Gateway::start(&format!(
        "LISTEN\n[upstream.app]\naddress = \"{address}\"\n{more}\n[[route]]\npath = \"/app\"\ndefault = {{ proxy = \"app\" }}\n"
    ))
}

#[test]
fn an_application_that_speaks_https_is_believed_by_its_certificate_only() {
    let folder = support::folder();
    let [ca, certificate, key] = certificates(folder.path(), "app.internal");
    let socket = folder.path().join("app.sock");
    let (_unix, _) = app(socket.to_str().unwrap(), &[&certificate, &key]);
    let (_tcp, port) = app("127.0.0.1:0", &[&certificate, &key]);
    let trusting = format!("ca = \"{}\"\nserver_name = \"app.internal\"", ca.display());
    for address in [format!("https+unix:{}:/inside", socket.display()), format!("https://127.0.0.1:{port}/inside")] {
        let gateway = gateway(&address, &trusting);
        assert_eq!(asked(gateway.address(), "GET", "/app/x?q", "", "")["target"], "/inside/x?q", "{address}");
        // Another name, and nobody's word for it: there is nobody to talk to.
        for more in [
            format!("ca = \"{}\"\nserver_name = \"other.internal\"", ca.display()),
            "server_name = \"app.internal\"".to_owned(),
        ] {
            let gateway = self::gateway(&address, &more);
            assert_eq!(gateway.status("/app/x"), 503, "{address} {more}");
            let error = gateway.log_line(1)["error"].as_str().unwrap().to_owned();
            assert!(error.contains("certificate"), "{error}");
        }
    }
}

/// What `openssl req -x509` makes by itself is the certificate of an authority, and no server's: it is refused, and the log
/// says why. With one more option it is a server's.
#[test]
fn a_certificate_of_openssl_req_needs_one_more_option() {
    let folder = support::folder();
    let make = |name: &str, more: &[&str]| {
        let paths = [format!("{name}.pem"), format!("{name}.key")].map(|file| folder.path().join(file));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=app.internal"]);
        openssl.args(["-addext", "subjectAltName=DNS:app.internal"]).args(more);
        openssl.arg("-out").arg(&paths[0]).arg("-keyout").arg(&paths[1]).stderr(Stdio::null());
        assert!(openssl.status().expect("openssl").success());
        paths
    };
    for (name, more, status) in
        [("authority", &[][..], 503), ("server", &["-addext", "basicConstraints=critical,CA:FALSE"][..], 200)]
    {
        let [certificate, key] = make(name, more);
        let socket = folder.path().join(name).with_extension("sock");
        let (_app, _) = app(socket.to_str().unwrap(), &[&certificate, &key]);
        let trusting = format!("ca = \"{}\"\nserver_name = \"app.internal\"", certificate.display());
        let gateway = gateway(&format!("https+unix:{}", socket.display()), &trusting);
        assert_eq!(gateway.status("/app/x"), status, "{name}: {:?}", gateway.log());
        if status == 503 {
            let error = gateway.log_line(1)["error"].as_str().unwrap().to_owned();
            assert!(error.contains("CaUsedAsEndEntity"), "{error}");
        }
    }
}
