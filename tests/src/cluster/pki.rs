//! Certificates of a cluster: one authority, and what it signs. Elliptic keys, made in milliseconds.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Names by which pods and we call the API server.
const API_NAMES: [&str; 5] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
];

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its private key (PKCS #8).
    pub key: String,
}

/// The authority that all of a cluster's certificates come from, and the directory that holds them.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority and writes `ca.crt`, and the key that signs service accounts' tokens to `sa.key`.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "cluster authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params.self_signed(&key).context("cannot sign the authority's certificate")?.pem();
        let tokens = KeyPair::generate().context("cannot make the key for tokens")?;
        // Controllers sign certificate requests with it, too.
        for (name, text) in [
            ("ca.crt", certificate.clone()),
            ("ca.key", key.serialize_pem()),
            ("sa.key", tokens.serialize_pem()),
            ("sa.pub", tokens.public_key_pem()),
        ] {
            replace(&dir.join(name), &text)?;
        }
        Ok(Self { dir: dir.to_path_buf(), certificate, issuer: Issuer::new(params, key) })
    }

    /// Its own certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The file with its certificate.
    pub fn certificate_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// A file of the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A certificate by which `user`, of `group`, proves who it is.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<Pair> {
        let params = named(Vec::new(), user, group)?;
        self.sign(params, &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// A certificate for a server reached by these addresses and names.
    pub fn server(&self, name: &str, addresses: &[IpAddr], names: &[&str]) -> Result<Pair> {
        let addresses = addresses.iter().map(ToString::to_string);
        let all = addresses.chain(names.iter().map(|name| (*name).to_owned())).collect();
        self.sign(named(all, name, None)?, &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// A certificate for the API server.
    pub fn api_server(&self, addresses: &[IpAddr]) -> Result<Pair> {
        self.server("kube-apiserver", addresses, &API_NAMES)
    }

    /// Writes a pair to `<name>.crt` and `<name>.key`.
    pub fn store(&self, name: &str, pair: &Pair) -> Result<()> {
        replace(&self.dir.join(format!("{name}.key")), &pair.key)?;
        replace(&self.dir.join(format!("{name}.crt")), &pair.certificate)
    }

    fn sign(&self, mut params: CertificateParams, uses: &[ExtendedKeyUsagePurpose]) -> Result<Pair> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = uses.to_vec();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate: Certificate =
            params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn named(alternative: Vec<String>, name: &str, group: Option<&str>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(alternative).context("not a name for a certificate")?;
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    Ok(params)
}

/// Programs watch these files: they never see half of one.
pub(super) fn replace(path: &Path, text: &str) -> Result<()> {
    let fresh = path.with_added_extension("fresh");
    fs::write(&fresh, text).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("cannot put {} in place", path.display()))
}
