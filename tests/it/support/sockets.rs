//! The sockets of a process, as the kernel lists them: proof of whom it talks to that does not rest on its own word.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// One line of `/proc/net/tcp` and its sisters.
struct Socket {
    near: SocketAddr,
    far: SocketAddr,
    inode: String,
}

/// The far ends of all sockets that the process has open.
pub fn peers(pid: i32) -> BTreeSet<SocketAddr> {
    let far = sockets(pid).into_iter().map(|socket| socket.far);
    far.filter(|far| far.port() != 0).collect()
}

/// Where the process accepts connections.
pub fn listening(pid: i32) -> Option<SocketAddr> {
    let listening = sockets(pid).into_iter().find(|socket| socket.far.port() == 0)?;
    Some(listening.near)
}

fn sockets(pid: i32) -> Vec<Socket> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let own: BTreeSet<String> = links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let tables = ["tcp", "tcp6", "udp", "udp6"].map(|name| process.join("net").join(name));
    let tables: Vec<String> = tables.iter().flat_map(std::fs::read_to_string).collect();
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    lines
        .filter_map(socket)
        .filter(|socket| own.contains(&socket.inode))
        .collect()
}

fn socket(line: &str) -> Option<Socket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let inode = (*fields.get(9)?).to_owned();
    Some(Socket {
        near: address(fields.get(1)?)?,
        far: address(fields.get(2)?)?,
        inode,
    })
}

/// Four or sixteen bytes in words of the machine's order; of an IPv6 address the last word is enough for us.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = u32::from_str_radix(address.get(address.len().checked_sub(8)?..)?, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some(SocketAddr::from((Ipv4Addr::from(word.to_ne_bytes()), port)))
}
