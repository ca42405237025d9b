//! The broker's address, which holds a password: how it is checked, and how it never shows.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use lapin::uri::{AMQPScheme, AMQPUri};

use super::keys::BrokerConfig;

/// A value that prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself: to be used, never to be printed.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The checked AMQP URIs of a broker, at least one. They print with `***` in the place of the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUri {
    shown: String,
    addresses: Secret<Vec<Address>>,
}

/// One URI of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub amqp: AMQPUri,
    /// Whether the password, or the user, has an `@` that is not percent-encoded. It is understood, and yet may be a mistake.
    pub has_raw_at: bool,
}

impl BrokerUri {
    /// The URIs of a list, each of which may be several with commas between.
    ///
    /// # Errors
    /// One of them is none, or they differ in more than user, password and host.
    pub fn of_list<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Self, UriError> {
        let texts: Vec<String> = list.into_iter().flat_map(apart).collect();
        let addresses: Vec<Address> = texts.iter().map(|text| address(text)).collect::<Result<_, _>>()?;
        let first = addresses.first().ok_or(UriError::Malformed)?;
        // Alone it is this machine, as ever; in a list it is a comma too many.
        if addresses.len() > 1 && texts.iter().any(|text| host_and_rest(parts(text).0).is_empty()) {
            return Err(UriError::Malformed);
        }
        if addresses.iter().any(|other| other.amqp.scheme != first.amqp.scheme) {
            return Err(UriError::Schemes);
        }
        if addresses.iter().any(|other| other.amqp.vhost != first.amqp.vhost) {
            return Err(UriError::Vhosts);
        }
        let shown: Vec<String> = texts.iter().map(|text| masked(text)).collect();
        Ok(Self {
            shown: shown.join(","),
            addresses: Secret::new(addresses),
        })
    }

    /// The URIs with their passwords, for `lapin::Connection::connect_uri`.
    pub fn expose(&self) -> &[Address] {
        self.addresses.expose()
    }

    /// Whether connections are encrypted.
    pub fn is_tls(&self) -> bool {
        self.expose()
            .iter()
            .all(|address| address.amqp.scheme == AMQPScheme::AMQPS)
    }
}

impl fmt::Display for BrokerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl FromStr for BrokerUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::of_list([text])
    }
}

/// The URIs in a text: whole ones with commas, semicolons or white space between, or one with several hosts.
fn apart(text: &str) -> Vec<String> {
    let mut uris = Vec::new();
    let mut rest = text.trim();
    while let Some(end) = next_uri(rest) {
        uris.extend(hosts_apart(rest[..end].trim_end_matches(is_separator)));
        rest = rest[end..].trim_start_matches(is_separator);
    }
    uris.extend(hosts_apart(rest));
    uris
}

fn is_separator(symbol: char) -> bool {
    symbol == ',' || symbol == ';' || symbol.is_whitespace()
}

/// Where the URI after the one that `text` begins with begins.
fn next_uri(text: &str) -> Option<usize> {
    let begins = |at: &usize| {
        ["amqp://", "amqps://"]
            .iter()
            .any(|scheme| text[*at..].starts_with(scheme))
    };
    text.char_indices()
        .filter(|(_, symbol)| is_separator(*symbol))
        .map(|(at, symbol)| at + symbol.len_utf8())
        .find(begins)
}

/// A URI for each of the hosts of `uri`, such as `amqp://user:password@one:5672,two/vhost`.
fn hosts_apart(uri: &str) -> Vec<String> {
    let (authority, path) = parts(uri);
    let (user, hosts) = authority
        .rfind('@')
        .map_or(("", authority), |at| authority.split_at(at + 1));
    let scheme = &uri[..uri.len() - authority.len() - path.len()];
    let hosts = hosts.split(',').map(|host| host.trim().trim_start_matches('@'));
    hosts.map(|host| format!("{scheme}{user}{host}{path}")).collect()
}

/// User, password and host; and what is behind them.
fn parts(uri: &str) -> (&str, &str) {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

fn address(text: &str) -> Result<Address, UriError> {
    let (authority, path) = parts(text);
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    if path.contains('@') {
        return Err(UriError::Unencoded);
    }
    if user.contains('@') && user.contains(',') {
        return Err(UriError::TwoUsers);
    }
    if path.contains(',') {
        return Err(UriError::Comma);
    }
    // The parser's own message is dropped, because it quotes the URI with its password.
    let amqp = text.parse::<AMQPUri>().map_err(|_| UriError::Malformed)?;
    if host_and_rest(text).starts_with('[') {
        return Err(UriError::Ipv6);
    }
    Ok(Address {
        amqp,
        has_raw_at: user.contains('@'),
    })
}

/// Why a text is not the broker's URI. Never quotes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error(
        "is not an AMQP URI (are the special characters of the password percent-encoded: @ is %40, / is %2F, : is %3A, # is %23, \
         ? is %3F, % is %25?)"
    )]
    Malformed,
    /// Everything up to it would be taken for the host, which is shown.
    #[error(
        "has an `@` behind the host, so that a `/`, `?` or `#` before it is not percent-encoded: in a password / is %2F, ? is %3F, \
         # is %23; in the name of a virtual host @ is %40"
    )]
    Unencoded,
    #[error(
        "has several users: each of several addresses is a whole URI (amqp://a:b@one,amqp://c:d@two); in a password @ is %40 and a \
         comma is %2C"
    )]
    TwoUsers,
    #[error(
        "has a comma behind the host: several hosts stand before the virtual host (amqp://one:5672,two:5672/vhost), or each address is \
         a whole URI; in the name of a virtual host a comma is %2C"
    )]
    Comma,
    #[error("asks for encryption at some addresses and not at others")]
    Schemes,
    #[error("names several virtual hosts; the addresses are of one broker, and so is the virtual host")]
    Vhosts,
    /// The AMQP client's parser knows only names and would go to `localhost` instead.
    #[error("has an IPv6 address as its host, which the AMQP client cannot use; give the host by name")]
    Ipv6,
}

impl BrokerConfig {
    /// The URI to connect to now: what `uri_file` holds at this moment, or else `uri`.
    ///
    /// To be asked again at every attempt to connect, because credentials are rotated in the file.
    /// # Errors
    /// `UriFileError` if there is a file and it cannot be read or holds something else.
    pub fn current_uri(&self) -> Result<BrokerUri, UriFileError> {
        let Some(path) = &self.uri_file else {
            return Ok(self.uri.clone());
        };
        let text = std::fs::read_to_string(path).map_err(|source| UriFileError::Unreadable {
            path: path.clone(),
            source,
        })?;
        text.trim().parse().map_err(|source| UriFileError::Refused {
            path: path.clone(),
            source,
        })
    }
}

/// Why `broker.uri_file` gave no URI.
#[derive(Debug, thiserror::Error)]
pub enum UriFileError {
    #[error("broker.uri_file: cannot read {}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("broker.uri_file: what {} holds is not the URI of a broker", path.display())]
    Refused { path: PathBuf, source: UriError },
}

/// The URI with `***` for its password.
///
/// Works on the text, not on the parsed URI: in a password with a bare `/` or `@` the parser sees a host, and would
/// show the rest. What could be part of a password is up to the last `@`, and is masked.
fn masked(uri: &str) -> String {
    let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
    let Some((userinfo, host)) = rest.rsplit_once('@') else {
        return uri.to_owned();
    };
    match userinfo.split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:***@{host}"),
        // An encoded colon is part of the user's name, yet whoever wrote it meant a password to follow.
        None if userinfo.to_ascii_lowercase().contains("%3a") => format!("{scheme}://***@{host}"),
        None => uri.to_owned(),
    }
}

fn host_and_rest(uri: &str) -> &str {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    rest.rsplit_once('@').map_or(rest, |(_, host)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_password_is_masked_whatever_is_in_it() {
        let uris = [
            ("amqp://user:pass@host:5672/v", "amqp://user:***@host:5672/v"),
            ("amqp://user:p%40s%2Fs%23@host/v", "amqp://user:***@host/v"),
            ("amqp://user:p@ss:w@host/v", "amqp://user:***@host/v"),
            ("amqp://user%3Apass@host/v", "amqp://***@host/v"),
            ("amqps://user:@host", "amqps://user:***@host"),
            (
                "amqps://user@host:5671?heartbeat=5",
                "amqps://user@host:5671?heartbeat=5",
            ),
            ("amqp://host:5672", "amqp://host:5672"),
        ];
        for (given, shown) in uris {
            let uri: BrokerUri = given.parse().unwrap();

            assert_eq!(uri.to_string(), shown);
            assert_eq!(
                format!("{uri:?}"),
                format!("BrokerUri {{ shown: {shown:?}, addresses: *** }}")
            );
        }
    }

    #[test]
    fn the_exposed_uri_holds_the_decoded_password() {
        let uri: BrokerUri = "amqps://user:p%40ss@host/v".parse().unwrap();

        assert_eq!(uri.expose()[0].amqp.authority.userinfo.password, "p@ss");
        assert!(uri.is_tls());
    }

    fn hosts(uri: &BrokerUri) -> Vec<String> {
        let addresses = uri.expose().iter();
        addresses
            .map(|Address { amqp, .. }| {
                let (user, host) = (&amqp.authority.userinfo, &amqp.authority.host);
                format!(
                    "{}:{}@{host}:{}{}",
                    user.username, user.password, amqp.authority.port, amqp.vhost
                )
            })
            .collect()
    }

    #[test]
    fn several_addresses_stand_as_whole_uris_or_as_several_hosts() {
        for (text, expected, shown) in [
            (
                "amqp://u:p@h1:5673,amqp://x:y@h2",
                ["u:p@h1:5673/", "x:y@h2:5672/"],
                "amqp://u:***@h1:5673,amqp://x:***@h2",
            ),
            (
                "amqp://u:p@h1:5673,h2/v?heartbeat=5",
                ["u:p@h1:5673v", "u:p@h2:5672v"],
                "amqp://u:***@h1:5673/v?heartbeat=5,amqp://u:***@h2/v?heartbeat=5",
            ),
            (
                "amqp://u:p@h1/v , amqp://u:p@h2/v",
                ["u:p@h1:5672v", "u:p@h2:5672v"],
                "amqp://u:***@h1/v,amqp://u:***@h2/v",
            ),
            (
                "amqp://u:p@h1/v\namqp://u:p@h2/v\n",
                ["u:p@h1:5672v", "u:p@h2:5672v"],
                "amqp://u:***@h1/v,amqp://u:***@h2/v",
            ),
            (
                "amqps://u:a,b@h1;amqps://u:a,b@h2",
                ["u:a,b@h1:5671/", "u:a,b@h2:5671/"],
                "amqps://u:***@h1,amqps://u:***@h2",
            ),
            (
                "amqp://h1,h2:1",
                ["guest:guest@h1:5672/", "guest:guest@h2:1/"],
                "amqp://h1,amqp://h2:1",
            ),
        ] {
            let uri: BrokerUri = text.parse().unwrap();

            assert_eq!(hosts(&uri), expected, "{text}");
            assert_eq!(uri.to_string(), shown);
            assert_eq!(uri.to_string().parse::<BrokerUri>().unwrap().expose().len(), 2);
        }
        let list = BrokerUri::of_list(["amqp://u:a,b@h1/v", "amqp://u:p@h2,h3/v"]).unwrap();
        assert_eq!(hosts(&list), ["u:a,b@h1:5672v", "u:p@h2:5672v", "u:p@h3:5672v"]);
    }

    #[test]
    fn addresses_of_several_brokers_and_unencoded_passwords_are_refused() {
        for (text, refusal) in [
            ("amqp://h1/a,amqp://h2/b", UriError::Vhosts),
            ("amqp://h1,amqps://h2", UriError::Schemes),
            ("amqp://u:p@h1/v,h2/v", UriError::Comma),
            ("amqp://u:p@h1,x:y@h2/v", UriError::TwoUsers),
            ("amqp://user:12/34@host/v", UriError::Unencoded),
            ("amqp://user:p@ss/w@host/v", UriError::Unencoded),
            ("amqp://user:12#34@host/v", UriError::Unencoded),
            ("amqp://user:12?34@host/v", UriError::Unencoded),
            ("amqp://user:p#w@host/v", UriError::Unencoded),
            ("amqp://h1,,h2", UriError::Malformed),
            ("amqp://h1,", UriError::Malformed),
            ("amqp://u:p@h1,:5672", UriError::Malformed),
            ("", UriError::Malformed),
            ("amqp://h1,h2,[fd00::5]", UriError::Ipv6),
        ] {
            assert_eq!(text.parse::<BrokerUri>(), Err(refusal), "{text}");
        }
        assert_eq!(BrokerUri::of_list([]), Err(UriError::Malformed));
        let raw: BrokerUri = "amqp://user:p@ss@host/v".parse().unwrap();
        assert!(raw.expose()[0].has_raw_at);
        assert_eq!(raw.to_string(), "amqp://user:***@host/v");
    }

    #[test]
    fn a_secret_prints_as_stars() {
        let secret = Secret::new("hidden");

        assert_eq!(format!("{secret} {secret:?} {}", secret.expose()), "*** *** hidden");
    }

    #[test]
    fn an_ipv6_host_is_refused_because_the_client_would_go_elsewhere() {
        let taken_for: AMQPUri = "amqp://user:pass@[fd00::5]/".parse().unwrap();
        assert_eq!(taken_for.authority.host, "localhost");

        let refused = "amqp://user:pass@[fd00::5]/".parse::<BrokerUri>();

        assert_eq!(refused, Err(UriError::Ipv6));
    }

    #[test]
    fn the_file_is_read_again_every_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display().to_string();
        let broker = Config::from_overrides(&[("broker.uri_file", path)]).unwrap().broker;

        std::fs::write(file.path(), "amqp://first\n").unwrap();
        let first = broker.current_uri().unwrap();
        std::fs::write(file.path(), "amqp://user:other@second").unwrap();
        let second = broker.current_uri().unwrap();
        std::fs::write(file.path(), "hunter2").unwrap();
        let refused = broker.current_uri().unwrap_err();
        file.close().unwrap();
        let gone = broker.current_uri().unwrap_err();

        assert_eq!(first.to_string(), "amqp://first");
        assert_eq!(second.to_string(), "amqp://user:***@second");
        assert!(matches!(refused, UriFileError::Refused { .. }));
        assert!(!format!("{refused} {refused:?}").contains("hunter2"));
        assert!(matches!(gone, UriFileError::Unreadable { .. }));
    }
}
