//! What all TCP connections of clients have in common.

use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Lets small replies leave at once, and notices a host that died without a word: it must not keep its VDI open for
/// ever, nor have its requests held. A client that is merely idle stays.
///
/// None of this is worth refusing a client for.
pub(crate) fn prepare(stream: &TcpStream) {
    let set = stream
        .set_nodelay(true)
        .and_then(|()| Ok(sockopt::set_socket_keepalive(stream, true)?))
        .and_then(|()| Ok(sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?))
        .and_then(|()| Ok(sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?))
        .and_then(|()| Ok(sockopt::set_tcp_keepcnt(stream, 4)?));
    if let Err(error) = set {
        tracing::debug!(%error, "setting socket options");
    }
}
