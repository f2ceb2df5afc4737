//! Sockets that are listened at: opened here, or passed by the service manager.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

use crate::config::address::{ListenAddress, ListenAddresses};

/// The first descriptor that is passed (`sd_listen_fds(3)`).
const FIRST: u16 = 3;

/// Owner and group may connect: there is no client authentication, and whoever connects may pull.
const MODE: u32 = 0o660;

/// Why nothing is listened at.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The system says no.
    #[error("cannot listen on {address} ({key}); {remedy}")]
    Bind {
        /// What was asked for.
        address: ListenAddress,
        /// The configuration's key.
        key: &'static str,
        /// What may help.
        remedy: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Something else is there, and it is not ours to remove.
    #[error("cannot listen on {address} ({key}): {reason}")]
    Occupied {
        /// What was asked for.
        address: ListenAddress,
        /// The configuration's key.
        key: &'static str,
        /// What is there, and what to do.
        reason: &'static str,
    },
    /// No such socket was passed.
    #[error("{address} ({key}) was not passed to this process; {passed}")]
    NotPassed {
        /// What was asked for.
        address: ListenAddress,
        /// The configuration's key.
        key: &'static str,
        /// What was.
        passed: String,
    },
}

/// Sockets passed by the service manager (`sd_listen_fds(3)`), until they are taken.
pub struct InheritedSockets {
    sockets: ListenFd,
    /// The name of each, in their order.
    names: Vec<String>,
    taken: BTreeSet<usize>,
}

impl fmt::Debug for InheritedSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InheritedSockets")
            .field("names", &self.names)
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}

impl InheritedSockets {
    /// None at all.
    pub fn none() -> Self {
        Self { sockets: ListenFd::empty(), names: Vec::new(), taken: BTreeSet::new() }
    }

    /// Takes over what the environment tells of, and takes it out of there, so this belongs before any thread.
    pub fn from_environment() -> Self {
        let told = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let sockets = ListenFd::from_env();
        // Not every manager passes names; systemd's word for a socket without one is `unknown`.
        let mut told = told.split(':').filter(|name| !name.is_empty());
        let names = (0..sockets.len()).map(|_| told.next().unwrap_or("unknown").to_owned()).collect();
        Self { sockets, names, taken: BTreeSet::new() }
    }

    /// The sockets that nobody has taken, as they would be written in the configuration.
    pub fn left(&self) -> Vec<String> {
        let left = self.names.iter().enumerate().filter(|(place, _)| !self.taken.contains(place));
        left.map(|(_, name)| format!("systemd:{name}")).collect()
    }

    /// The places of the sockets that an address stands for.
    fn places(&self, address: &ListenAddress) -> Vec<usize> {
        let fits = |place: usize, name: &str| match address {
            ListenAddress::Named(wanted) => name == wanted,
            ListenAddress::Descriptor(number) => usize::from(*number) == place + usize::from(FIRST),
            ListenAddress::Tcp(_) | ListenAddress::Unix(_) => false,
        };
        let named = self.names.iter().enumerate().filter(|(place, name)| fits(*place, name));
        named.map(|(place, _)| place).filter(|place| !self.taken.contains(place)).collect()
    }

    fn take(&mut self, address: &ListenAddress, key: &'static str) -> Result<Vec<Socket>, ListenError> {
        let places = self.places(address);
        if places.is_empty() {
            let passed = match self.left() {
                left if left.is_empty() => "no socket was; is there a .socket unit?".to_owned(),
                left => format!("what was: {}", left.join(", ")),
            };
            return Err(ListenError::NotPassed { address: address.clone(), key, passed });
        }
        let sockets = places.into_iter().map(|place| {
            self.taken.insert(place);
            self.socket(place).map_err(|source| ListenError::Bind {
                address: address.clone(),
                key,
                remedy: "a stream socket that listens is wanted (ListenStream= and Accept=no)",
                source,
            })
        });
        sockets.collect()
    }

    fn socket(&mut self, place: usize) -> io::Result<Socket> {
        let gone = || io::Error::from(ErrorKind::NotFound);
        if let Ok(listener) = self.sockets.take_tcp_listener(place) {
            let listener = listener.ok_or_else(gone)?;
            listener.set_nonblocking(true)?;
            return Ok(Socket::Tcp(TcpListener::from_std(listener)?));
        }
        let listener = self.sockets.take_unix_listener(place)?.ok_or_else(gone)?;
        listener.set_nonblocking(true)?;
        Ok(Socket::Unix(UnixListener::from_std(listener)?, None))
    }
}

/// A socket that is listened at.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    /// With the file that is ours to remove.
    Unix(UnixListener, Option<SocketFile>),
}

impl Socket {
    /// Where it listens; with the real port where the system chose it.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("tcp"),
            },
            Self::Unix(_, Some(file)) => write!(f, "unix:{}", file.path.display()),
            Self::Unix(listener, None) => {
                let address = listener.local_addr().ok();
                match address.as_ref().and_then(|address| address.as_pathname()) {
                    Some(path) => write!(f, "unix:{}", path.display()),
                    None => f.write_str("unix"),
                }
            }
        }
    }
}

/// Listens at all of these places.
pub(super) async fn open(
    addresses: &ListenAddresses,
    key: &'static str,
    passed: &mut InheritedSockets,
) -> Result<Vec<Socket>, ListenError> {
    let mut sockets = Vec::new();
    for address in &addresses.0 {
        match address {
            ListenAddress::Tcp(at) => {
                let listener = TcpListener::bind(at).await.map_err(|source| ListenError::Bind {
                    address: address.clone(),
                    key,
                    remedy: "is something else using it? choose another address",
                    source,
                })?;
                sockets.push(Socket::Tcp(listener));
            }
            ListenAddress::Unix(path) => sockets.push(unix(path, address, key)?),
            ListenAddress::Named(_) | ListenAddress::Descriptor(_) => {
                sockets.extend(passed.take(address, key)?);
            }
        }
    }
    Ok(sockets)
}

/// A socket in the file system. One that a larder left behind when it was killed is replaced.
fn unix(path: &Path, address: &ListenAddress, key: &'static str) -> Result<Socket, ListenError> {
    let occupied = |reason| ListenError::Occupied { address: address.clone(), key, reason };
    let remedy = "its folder must exist and be writable";
    let bind = |source| ListenError::Bind { address: address.clone(), key, remedy, source };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(occupied("there is a file that is no socket; name another path"));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            // Nobody listens any more.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ => return Err(occupied("somebody listens there already; stop it, or name another path")),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(bind(error)),
    }
    // Made under another name, so that nobody can connect before its mode is right, and then put in place in one step.
    let mut making = path.as_os_str().to_owned();
    making.push("~");
    let making = PathBuf::from(making);
    match std::fs::remove_file(&making) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(bind(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&making).map_err(bind)?;
    let placed = std::fs::set_permissions(&making, std::fs::Permissions::from_mode(MODE))
        .and_then(|()| std::fs::rename(&making, path))
        .and_then(|()| SocketFile::at(path));
    match placed {
        Ok(file) => Ok(Socket::Unix(listener, Some(file))),
        Err(error) => {
            // What is left of the attempt is in nobody's way.
            let _ = std::fs::remove_file(&making);
            Err(bind(error))
        }
    }
}

/// A socket's file. Dropping it removes the file, unless another has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // One that cannot be removed is replaced at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
