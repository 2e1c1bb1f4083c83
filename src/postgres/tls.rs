//! Whom we believe to be the database.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::login::LoginError;

/// Amazon RDS has certificate authorities of its own, one set for each region. RDS Proxy and other providers have
/// certificates from public ones, which sqlx brings along.
const RDS_ROOTS: &str = include_str!("rds-roots.pem");

/// What of TLS is settled before the host is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Wishes {
    /// The URL names the mode. `PGSSLMODE` is in the options as well, and its `prefer` is nothing but the default.
    pub(super) names_mode: bool,
    /// Further roots.
    pub(super) root_cert: Option<PathBuf>,
    /// What is sent must not be seen by anybody else.
    pub(super) must_be_secret: bool,
}

/// Settles the mode, and whose certificates to accept: unless somebody says otherwise, the server has to prove who it
/// is wherever others could listen in.
pub(super) fn settle(options: PgConnectOptions, wishes: &Wishes) -> Result<PgConnectOptions, LoginError> {
    let mode = match options.get_ssl_mode() {
        PgSslMode::Prefer if !wishes.names_mode && (wishes.must_be_secret || !is_here(&options)) => {
            PgSslMode::VerifyFull
        }
        mode => mode,
    };
    let options = options.ssl_mode(mode);
    match mode {
        PgSslMode::VerifyFull | PgSslMode::VerifyCa => {
            let roots = roots(wishes.root_cert.as_deref())?;
            Ok(options.ssl_root_cert_from_pem(roots))
        }
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer if wishes.must_be_secret => {
            Err(LoginError::for_good(
                "DATABASE_AUTH=iam needs TLS, so that nobody else sees the token: leave out sslmode, or write sslmode=verify-full",
            ))
        }
        _ => Ok(options),
    }
}

/// Whether the server is on this machine.
pub(super) fn is_here(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let loopback = host == "localhost" || host == "::1" || host == "[::1]" || host.starts_with("127.");
    loopback || host.starts_with('/') || options.get_socket().is_some()
}

/// What to do about it, if the server and we cannot agree on TLS. Waiting does not help then.
pub(super) fn advice(error: &sqlx::Error) -> Option<&'static str> {
    use rustls::{CertificateError as Wrong, Error};
    let certificate = match error {
        // The only reason that sqlx itself gives.
        sqlx::Error::Tls(e) if e.to_string().contains("does not support TLS") => {
            return Some("switch it on there, or add ?sslmode=disable to DATABASE_URL if the network is trusted");
        }
        sqlx::Error::Tls(_) => return Some("see sslmode, sslrootcert, sslcert and sslkey in DATABASE_URL"),
        sqlx::Error::Io(e) => match e.get_ref()?.downcast_ref()? {
            Error::InvalidCertificate(wrong) => wrong,
            Error::PeerIncompatible(_) => return Some("the server needs TLS 1.2 or newer"),
            _ => return None,
        },
        _ => return None,
    };
    Some(match certificate {
        Wrong::UnknownIssuer => "name the certificate of the authority behind it: ?sslrootcert=FILE in DATABASE_URL",
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
            "use the name in its certificate as the host; or add ?sslmode=require to DATABASE_URL, which does not look at \
             it, if the network is trusted"
        }
        _ => "the server needs another certificate, or DATABASE_URL another sslrootcert",
    })
}

fn roots(more: Option<&Path>) -> Result<Vec<u8>, LoginError> {
    let mut roots = RDS_ROOTS.as_bytes().to_vec();
    if let Some(file) = more {
        let unreadable = |e| LoginError::for_good(format!("cannot read sslrootcert {}: {e}", file.display()));
        roots.push(b'\n');
        roots.extend(fs::read(file).map_err(unreadable)?);
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use rustls::{
        RootCertStore,
        pki_types::{CertificateDer, pem::PemObject as _},
    };

    use super::*;

    fn mode(url: &str, wishes: &Wishes) -> Result<PgSslMode, LoginError> {
        let options = url.parse().expect("the URL is good");
        settle(options, wishes).map(|options| options.get_ssl_mode())
    }

    fn agreed(url: &str) -> String {
        let wishes = Wishes { names_mode: url.contains("sslmode"), ..Wishes::default() };
        format!("{:?}", mode(url, &wishes).expect("nothing is wrong with it"))
    }

    #[test]
    fn a_server_elsewhere_has_to_prove_who_it_is() {
        for elsewhere in ["db.example.com", "10.0.0.1", "localhost.example.com", "[2001:db8::1]", "128.0.0.1"] {
            assert_eq!(agreed(&format!("postgres://u:p@{elsewhere}/d")), "VerifyFull", "{elsewhere}");
        }
        for here in ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "%2Ftmp"] {
            assert_eq!(agreed(&format!("postgres://u:p@{here}/d")), "Prefer", "{here}");
        }
        assert_eq!(agreed("postgres:///d?user=u&host=/tmp"), "Prefer");
        assert_eq!(agreed("postgres:///d?user=u&host=db.example.com"), "VerifyFull");
    }

    #[test]
    fn what_the_url_says_counts() {
        let modes = [("disable", "Disable"), ("prefer", "Prefer"), ("require", "Require"), ("verify-ca", "VerifyCa")];
        for (said, agreed_on) in modes {
            assert_eq!(agreed(&format!("postgres://u:p@db.example.com/d?sslmode={said}")), agreed_on);
        }
        assert_eq!(agreed("postgres://u:p@localhost/d?sslmode=verify-full"), "VerifyFull");
    }

    #[test]
    fn a_token_is_never_sent_in_the_open() {
        let secret = |names_mode| Wishes { must_be_secret: true, names_mode, ..Wishes::default() };
        assert!(matches!(mode("postgres://u@localhost/d", &secret(false)), Ok(PgSslMode::VerifyFull)));
        assert!(matches!(mode("postgres://u@localhost/d?sslmode=require", &secret(true)), Ok(PgSslMode::Require)));
        for open in ["disable", "allow", "prefer"] {
            let refused = mode(&format!("postgres://u@localhost/d?sslmode={open}"), &secret(true));
            assert!(refused.is_err_and(|e| e.is_final && e.to_string().contains("needs TLS")), "{open}");
        }
    }

    #[test]
    fn every_root_of_rds_can_be_used() {
        let mut store = RootCertStore::empty();
        let mut regions = std::collections::BTreeSet::new();
        for name in RDS_ROOTS.lines().filter_map(|line| line.strip_prefix("Amazon RDS ")) {
            let (region, kind) = name.split_once(" Root CA ").expect("a region and a kind of key");
            assert!(["RSA2048 G1", "RSA4096 G1", "ECC384 G1"].contains(&kind), "{name}");
            regions.insert(region);
        }
        for root in CertificateDer::pem_slice_iter(RDS_ROOTS.as_bytes()) {
            store.add(root.expect("it is PEM")).expect("it is a certificate of an authority");
        }
        assert_eq!(store.len(), 3 * regions.len(), "three kinds of key for each region");
        assert!(["us-east-1", "eu-west-1", "eu-central-1", "ap-southeast-2"].iter().all(|name| regions.contains(name)));
    }

    #[test]
    fn a_file_of_roots_that_cannot_be_read_is_named() {
        let wishes = Wishes { root_cert: Some("/no/such/roots.pem".into()), ..Wishes::default() };
        let error = mode("postgres://u@db.example.com/d", &wishes).expect_err("there is no such file");
        assert!(error.is_final && error.to_string().contains("/no/such/roots.pem"), "{error}");
    }
}
