//! Where clients are served: on the data plane's thread, or on threads of their own (`--io-threads`).
//!
//! With threads of their own a request crosses from one to the other and back, which costs a few microseconds while the sheep is idle. What is gained
//! is that receiving, sending and the protocols take no time from the data plane.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use front::guests::Guests;
use front::native::{self, Desk};
use front::{Service, nbd, vhost};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::crew::Crew;
use crate::remote::Remote;
use crate::shell::Shell;

/// Pause after a failed accept: nothing tells when there are descriptors again.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Something that clients come by. Belongs to no runtime yet.
pub enum Front {
    NbdUnix(StdUnixListener),
    NbdTcp(std::net::TcpListener),
    NativeUnix(StdUnixListener),
    /// A client that has said the first word.
    NativeTcp(std::net::TcpStream),
    /// One VDI's socket, until `ended` comes or its sender is dropped. Then its seat is closed: no guest is cut off.
    Vhost {
        listener: StdUnixListener,
        name: Vec<u8>,
        seat: vhost::Seat,
        ended: oneshot::Receiver<()>,
    },
}

/// What all clients share.
#[derive(Clone, Default)]
struct Common {
    desk: Desk,
    guests: Guests,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Fronts {
    common: Common,
    /// `None`: the data plane's thread serves.
    crew: Option<Rc<(Crew, Remote)>>,
}

impl Fronts {
    /// With so many threads of their own; to be called within the `LocalSet` of the data plane's.
    pub fn start(shell: &Shell, threads: usize, desk: Desk, guests: Guests) -> io::Result<Fronts> {
        let crew = if threads > 0 { Some(Rc::new((Crew::start(threads)?, shell.remote()))) } else { None };
        Ok(Fronts { common: Common { desk, guests }, crew })
    }

    /// Serves what comes by it.
    pub fn begin(&self, shell: &Shell, front: Front) -> io::Result<()> {
        let Some(crew) = &self.crew else {
            serve(front, shell.clone(), self.common.clone());
            return Ok(());
        };
        let (crew, remote) = &**crew;
        let job = |front: Front| {
            let (remote, common) = (remote.clone(), self.common.clone());
            move || serve(front, remote, common)
        };
        // Who listens for many does so everywhere: whoever is idle accepts first.
        match front {
            Front::NbdUnix(listener) => crew.give_each(|| Ok(job(Front::NbdUnix(listener.try_clone()?)))),
            Front::NbdTcp(listener) => crew.give_each(|| Ok(job(Front::NbdTcp(listener.try_clone()?)))),
            Front::NativeUnix(listener) => {
                crew.give_each(|| Ok(job(Front::NativeUnix(listener.try_clone()?))))
            }
            one @ (Front::NativeTcp(_) | Front::Vhost { .. }) => {
                crew.give_next(job(one));
                Ok(())
            }
        }
    }
}

/// Begins serving on this thread.
fn serve<S: Service>(front: Front, svc: S, common: Common) {
    if let Err(error) = try_serve(front, svc, common) {
        tracing::error!("cannot serve clients: {error}");
    }
}

fn try_serve<S: Service>(front: Front, svc: S, common: Common) -> io::Result<()> {
    let Common { desk, guests } = common;
    match front {
        Front::NbdUnix(listener) => {
            let listener = UnixListener::from_std(listener)?;
            spawn_local(nbd::serve_unix(listener, svc, nbd::Limits::default(), guests));
        }
        Front::NbdTcp(listener) => {
            let listener = TcpListener::from_std(listener)?;
            spawn_local(nbd::serve_tcp(listener, svc, nbd::Limits::default(), guests));
        }
        Front::NativeUnix(listener) => {
            spawn_local(accept_native(UnixListener::from_std(listener)?, svc, desk));
        }
        Front::NativeTcp(stream) => {
            let stream = TcpStream::from_std(stream)?;
            spawn_local(async move {
                if let Err(error) = native::serve_tcp(stream, svc, desk, Bytes::new()).await {
                    tracing::debug!("native client: {error}");
                }
            });
        }
        Front::Vhost { listener, name, seat, ended } => {
            let listener = UnixListener::from_std(listener)?;
            let serving = vhost::serve(listener, name, svc, vhost::Limits::default(), guests, seat);
            spawn_local(async move {
                tokio::select! {
                    () = serving => {}
                    _ = ended => {}
                }
            });
        }
    }
    Ok(())
}

async fn accept_native<S: Service>(listener: UnixListener, svc: S, desk: Desk) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (svc, desk) = (svc.clone(), desk.clone());
                spawn_local(async move {
                    if let Err(error) = native::serve_unix_stream(stream, svc, desk).await {
                        tracing::debug!("native client: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
