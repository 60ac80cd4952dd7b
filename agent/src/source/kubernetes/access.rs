//! How the API server is reached: where it is, who we are, and a client that notices when the server is no more.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Builder, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::ConfigExt,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::{ServiceBuilder, timeout::TimeoutLayer};

use super::{super::Status, observe::Observe};

/// Where a pod finds the credentials of its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Who asks, as audit logs show it.
const USER_AGENT: &str = concat!("hypha/", env!("CARGO_PKG_VERSION"));
/// How long connecting may take, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a server may take to begin its answer. Watches are answered at once, too, and then go on.
const ANSWER: Duration = Duration::from_secs(30);
/// How long an answer may pause. Servers send bookmarks every minute; a watch ends after five.
const SILENCE: Duration = Duration::from_secs(300);
/// After this silence the kernel asks the other end for a sign of life.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How often it asks, and how many questions may stay open: a host that vanished is noticed within half a minute.
const KEEPALIVE_PROBE: (Duration, u32) = (Duration::from_secs(5), 3);

/// Who we are for which API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The service account of the pod that the agent runs in.
    InCluster {
        /// Where the API server is, when it is not where the pod's environment says.
        api: Option<String>,
    },
    /// What a file says.
    Kubeconfig(PathBuf),
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The pod's service account.
    #[error(
        "cannot use the service account in {SERVICE_ACCOUNT}: {0}; run the agent in a pod that mounts one, or give it a --kubeconfig"
    )]
    InCluster(#[source] Box<InClusterError>),
    /// The environment lacks the server's address.
    #[error(
        "the environment does not say where the API server is ({0}): give its address with --kubernetes-api https://HOST:PORT"
    )]
    NoServer(env::VarError),
    /// The file is not there or not readable.
    #[error("cannot read the kubeconfig {}: {source}; check --kubeconfig", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// An address that is none.
    #[error("--kubernetes-api {api:?} is no address of a server, such as https://192.0.2.1:6443")]
    Address {
        /// What was given.
        api: String,
    },
    /// Certificates or keys.
    #[error("cannot make a client for the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InCluster { .. } => f.write_str("the pod's service account"),
            Self::Kubeconfig(path) => write!(f, "the kubeconfig {}", path.display()),
        }
    }
}

impl Access {
    /// Whether this process runs in a pod with a service account.
    pub fn is_in_cluster() -> bool {
        Path::new(SERVICE_ACCOUNT).join("token").exists()
    }

    /// What is configured, read anew: certificates and keys of a kubeconfig are, too. The token and the CA of a service
    /// account are files that the client follows by itself.
    pub async fn config(&self) -> Result<Config, AccessError> {
        let mut config = match self {
            Self::InCluster { api } => in_cluster(api.as_deref())?,
            Self::Kubeconfig(path) => kubeconfig(path).await?,
        };
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(USER_AGENT)));
        Ok(config)
    }

    /// A client that tells `status` what the server says.
    pub async fn client(&self, status: &Status) -> Result<Client, AccessError> {
        let config = self.config().await?;
        client(&config, status).map_err(|error| AccessError::Client(Box::new(error)))
    }
}

fn in_cluster(api: Option<&str>) -> Result<Config, AccessError> {
    let failed = |error| AccessError::InCluster(Box::new(error));
    let Some(api) = api else {
        env::var("KUBERNETES_SERVICE_HOST").map_err(AccessError::NoServer)?;
        return Config::incluster_env().map_err(failed);
    };
    let mut config = Config::incluster_dns().map_err(failed)?;
    config.cluster_url = address(api)?;
    Ok(config)
}

/// An address of the API server, checked.
pub fn address(api: &str) -> Result<http::Uri, AccessError> {
    let uri: Option<http::Uri> = api.parse().ok();
    uri.filter(|uri| matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some())
        .ok_or_else(|| AccessError::Address { api: api.to_owned() })
}

async fn kubeconfig(path: &Path) -> Result<Config, AccessError> {
    let failed = |error| AccessError::Kubeconfig { path: path.to_owned(), source: Box::new(error) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)
}

/// Kube's own stack with three differences: the kernel watches over idle connections, an answer must begin in time, and
/// what is asked and answered is counted. Nothing is retried in here: those who ask know best when to ask again.
fn client(config: &Config, status: &Status) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_PROBE.0));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBE.1));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let http = Builder::new(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(Observe::layer(status))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .layer(TimeoutLayer::new(ANSWER))
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// An error with its causes, without what libraries repeat in between.
pub fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        match causes.last() {
            // Most of kube's errors end with the text of their source, which then says it better alone.
            Some(last) if last.ends_with(&text) => {
                let outer = last.strip_suffix(&text).unwrap_or_default();
                let outer = outer.trim_end_matches([':', ' ']).to_owned();
                causes.pop();
                if !outer.is_empty() {
                    causes.push(outer);
                }
                causes.push(text);
            }
            _ => causes.push(text),
        }
        next = error.source();
    }
    causes.join(": ")
}
