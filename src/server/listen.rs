//! Listening sockets: bound here, or inherited from the service manager.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

use crate::config::address::{ListenAddress, ListenAddresses};

/// Number of the first inherited descriptor (`sd_listen_fds(3)`).
const FIRST_DESCRIPTOR: u16 = 3;

/// Mode of a socket file. Owner and group may connect. Clients are not authenticated, so every other user is excluded.
const MODE: u32 = 0o660;

/// Error of opening a listening socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The system refused to bind the address.
    #[error("cannot listen on {address} ({key}); {remedy}")]
    Bind {
        /// The configured address.
        address: ListenAddress,
        /// Configuration key of the address.
        key: &'static str,
        /// Remedy to try.
        remedy: &'static str,
        /// Error of the system.
        source: io::Error,
    },
    /// The path exists and must not be removed.
    #[error("cannot listen on {address} ({key}): {reason}")]
    Occupied {
        /// The configured address.
        address: ListenAddress,
        /// Configuration key of the address.
        key: &'static str,
        /// Reason, with a remedy.
        reason: &'static str,
    },
    /// The service manager has not passed this socket.
    #[error("the service manager did not pass socket {address} ({key}); {passed}")]
    NotPassed {
        /// The configured address.
        address: ListenAddress,
        /// Configuration key of the address.
        key: &'static str,
        /// Sockets that were passed.
        passed: String,
    },
}

/// Sockets inherited from the service manager (`sd_listen_fds(3)`). Opening a listener takes its sockets.
pub struct InheritedSockets {
    sockets: ListenFd,
    /// Names of the sockets, in descriptor order.
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
    /// Returns an empty set.
    pub fn none() -> Self {
        Self { sockets: ListenFd::empty(), names: Vec::new(), taken: BTreeSet::new() }
    }

    /// Takes the sockets named in the environment and removes these variables. Call it before starting any thread.
    pub fn from_environment() -> Self {
        let passed = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let sockets = ListenFd::from_env();
        // Some managers pass no names. systemd calls a socket without a name `unknown`.
        let mut passed = passed.split(':').filter(|name| !name.is_empty());
        let names = (0..sockets.len()).map(|_| passed.next().unwrap_or("unknown").to_owned()).collect();
        Self { sockets, names, taken: BTreeSet::new() }
    }

    /// Returns the sockets that were not taken, as configuration values.
    pub fn remaining(&self) -> Vec<String> {
        let remaining = self.names.iter().enumerate().filter(|(index, _)| !self.taken.contains(index));
        remaining.map(|(_, name)| format!("systemd:{name}")).collect()
    }

    /// Returns the indexes of the sockets that an address refers to.
    fn indexes(&self, address: &ListenAddress) -> Vec<usize> {
        let fits = |index: usize, name: &str| match address {
            ListenAddress::Named(wanted) => name == wanted,
            ListenAddress::Descriptor(number) => {
                usize::from(*number) == index + usize::from(FIRST_DESCRIPTOR)
            }
            ListenAddress::Tcp(_) | ListenAddress::Unix(_) => false,
        };
        let named = self.names.iter().enumerate().filter(|(index, name)| fits(*index, name));
        named.map(|(index, _)| index).filter(|index| !self.taken.contains(index)).collect()
    }

    fn take(&mut self, address: &ListenAddress, key: &'static str) -> Result<Vec<Socket>, ListenError> {
        let indexes = self.indexes(address);
        if indexes.is_empty() {
            let passed = match self.remaining() {
                none if none.is_empty() => "it passed no socket; check that a .socket unit exists".to_owned(),
                remaining => format!("it passed: {}", remaining.join(", ")),
            };
            return Err(ListenError::NotPassed { address: address.clone(), key, passed });
        }
        let sockets = indexes.into_iter().map(|index| {
            self.taken.insert(index);
            self.socket(index).map_err(|source| ListenError::Bind {
                address: address.clone(),
                key,
                remedy: "pass a listening stream socket (ListenStream= and Accept=no)",
                source,
            })
        });
        sockets.collect()
    }

    fn socket(&mut self, index: usize) -> io::Result<Socket> {
        let gone = || io::Error::from(ErrorKind::NotFound);
        if let Ok(listener) = self.sockets.take_tcp_listener(index) {
            let listener = listener.ok_or_else(gone)?;
            listener.set_nonblocking(true)?;
            return Ok(Socket::Tcp(TcpListener::from_std(listener)?));
        }
        let listener = self.sockets.take_unix_listener(index)?.ok_or_else(gone)?;
        listener.set_nonblocking(true)?;
        Ok(Socket::Unix(UnixListener::from_std(listener)?, None))
    }
}

/// Listening socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    /// Unix socket, with its file if this process has created it.
    Unix(UnixListener, Option<SocketFile>),
}

impl Socket {
    /// Returns the TCP address, with the port that the system has chosen if the configured port is 0.
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

/// Opens a socket for each address.
pub(super) async fn open(
    addresses: &ListenAddresses,
    key: &'static str,
    inherited: &mut InheritedSockets,
) -> Result<Vec<Socket>, ListenError> {
    let mut sockets = Vec::new();
    for address in &addresses.0 {
        match address {
            ListenAddress::Tcp(at) => {
                let listener = TcpListener::bind(at).await.map_err(|source| ListenError::Bind {
                    address: address.clone(),
                    key,
                    remedy: "check whether another program uses it, or choose another address",
                    source,
                })?;
                sockets.push(Socket::Tcp(listener));
            }
            ListenAddress::Unix(path) => sockets.push(unix(path, address, key)?),
            ListenAddress::Named(_) | ListenAddress::Descriptor(_) => {
                sockets.extend(inherited.take(address, key)?);
            }
        }
    }
    Ok(sockets)
}

/// Binds a Unix socket. Replaces the socket file of a killed server.
fn unix(path: &Path, address: &ListenAddress, key: &'static str) -> Result<Socket, ListenError> {
    let occupied = |reason| ListenError::Occupied { address: address.clone(), key, reason };
    let remedy = "its directory must exist and be writable";
    let bind = |source| ListenError::Bind { address: address.clone(), key, remedy, source };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(occupied("the path is not a socket; configure another path"));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            // The listening process has ended.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ => {
                return Err(occupied(
                    "another process listens on it; stop that process or configure another path",
                ));
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(bind(error)),
    }
    // Bound under a temporary name and renamed, so that no client can connect before the mode is set.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push("~");
    let temporary = PathBuf::from(temporary);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(bind(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(bind)?;
    let placed = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(MODE))
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| SocketFile::at(path));
    match placed {
        Ok(file) => Ok(Socket::Unix(listener, Some(file))),
        Err(error) => {
            // A leftover file does no harm.
            let _ = std::fs::remove_file(&temporary);
            Err(bind(error))
        }
    }
}

/// Socket file. Dropping it removes the file, unless another process has replaced it.
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
            // A file that cannot be removed is replaced at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
