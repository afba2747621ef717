//! The network: this host's addresses, and waits for several streams.

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::Result;
use std::net::{IpAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Returns the addresses of this host, those of IPv4 first: of these interfaces, whose names are separated by commas, or of
/// all but the loop-back.
pub(crate) fn addresses(interfaces: &str) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for interface in getifaddrs()? {
        let is_wanted = match interfaces {
            "" => !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK),
            names => names.split(',').any(|name| name.trim() == interface.interface_name),
        };
        let Some(address) = interface.address.filter(|_| is_wanted) else { continue };
        if !interface.flags.contains(InterfaceFlags::IFF_UP) {
            continue;
        }
        if let Some(four) = address.as_sockaddr_in() {
            addresses.push(IpAddr::from(four.ip()));
        } else if let Some(six) = address.as_sockaddr_in6()
            && !six.ip().is_unicast_link_local()
        {
            addresses.push(IpAddr::from(six.ip()));
        }
    }
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

/// Lets the kernel ask a host that is silent for so many seconds whether it is there, three times at such intervals.
pub(crate) fn keep_alive(stream: &TcpStream, seconds: u32) -> Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &seconds)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &seconds)?;
    Ok(setsockopt(stream, sockopt::TcpKeepCount, &3)?)
}

/// Waits until one of these can be read, or also be written if it says so; returns which. After so long none may be.
pub(crate) fn ready(streams: &[(BorrowedFd<'_>, bool)], within: Duration) -> Vec<bool> {
    let wanted =
        |writes: bool| if writes { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
    let mut polled: Vec<PollFd<'_>> =
        streams.iter().map(|&(stream, writes)| PollFd::new(stream, wanted(writes))).collect();
    match poll(&mut polled, PollTimeout::try_from(within).unwrap_or(PollTimeout::ZERO)) {
        Ok(_) => polled.iter().map(|stream| stream.any().unwrap_or(true)).collect(),
        // A read will find the error.
        Err(_) => vec![true; polled.len()],
    }
}
