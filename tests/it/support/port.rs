//! Port on loopback that stays reserved, also while no server listens on it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt};

/// Reserved port. Other tests and clients do not get it before it is dropped.
#[derive(Debug)]
pub struct Port {
    addr: SocketAddr,
    /// Socket that is bound for as long as the port is reserved, and never listens. While it is the only one, connections are
    /// refused.
    _reservation: OwnedFd,
}

impl Port {
    /// Reserves a free port.
    pub fn reserve() -> Self {
        let reservation = bound((Ipv4Addr::LOCALHOST, 0).into());
        let addr = getsockname(&reservation).unwrap().try_into().unwrap();
        Self { addr, _reservation: reservation }
    }

    /// Returns the port with the address of loopback.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Listens on the port. Works again once the listener is closed.
    pub fn listen(&self) -> TcpListener {
        let listener = bound(self.addr);
        listen(&listener, 1024).unwrap();
        listener.into()
    }
}

/// Returns a socket with an address that it shares with other sockets of this function. The kernel gives the port to no other
/// socket while one of them is open.
fn bound(addr: SocketAddr) -> OwnedFd {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    sockopt::set_socket_reuseport(&socket, true).unwrap();
    bind(&socket, &addr).unwrap();
    socket
}
