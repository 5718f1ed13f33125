//! Where a named volume is: through which sheep, and where that sheep serves NBD.

use std::ffi::OsString;
use std::path::PathBuf;

use super::name::{Name, Server};
use crate::failure::{Failure, Outcome};
use crate::nbd::{self, Nbd};
use crate::sheep::{CallError, Selector, Sheep};
use crate::target::Target;
use crate::vdi::image;
use crate::vdi::names::{open, open_failure};

/// So many seconds QEMU holds a guest's requests while its sheep is away, and comes back to it when it is started again. Without that the first
/// request after a restart would be an I/O error, and all later ones.
pub const RECONNECT: (&str, u32) = ("reconnect-delay", 600);

/// A volume as QEMU reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub nbd: Nbd,
    pub export: String,
    pub is_snapshot: bool,
}

impl Place {
    /// The fields of `driver=nbd`, but for [`RECONNECT`].
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("driver", "nbd".to_string()), ("export", self.export.clone())];
        match &self.nbd {
            Nbd::Unix(path) => {
                fields.extend([("server.type", "unix".to_string()), ("server.path", path.clone())]);
            }
            Nbd::Tcp { host, port } => fields.extend([
                ("server.type", "inet".to_string()),
                ("server.host", host.clone()),
                ("server.port", port.clone()),
            ]),
        }
        fields
    }
}

/// What the rewriting of arguments has to ask.
pub trait Finder {
    /// The place of a volume, whether it exists or not.
    fn place(&mut self, name: &Name) -> Outcome<Place>;

    fn exists(&mut self, name: &Name) -> Outcome<bool>;

    /// The place of a volume that exists.
    fn find(&mut self, name: &Name) -> Outcome<Place>;

    /// Bytes of the disk in an image; the words are those of `qemu-img info`.
    fn virtual_size(&mut self, words: &[Vec<u8>]) -> Outcome<u64>;

    /// Something the user should know, once.
    fn tell(&mut self, text: &str);
}

/// Asks sheep. Connections and answers are kept.
pub struct Flock {
    chosen: Target,
    /// As the environment says, of the chosen one.
    chosen_nbd: Option<OsString>,
    known: Vec<(Server, Sheep, Option<Nbd>)>,
}

impl Flock {
    pub fn new(chosen: Target, chosen_nbd: Option<OsString>) -> Flock {
        Flock { chosen, chosen_nbd, known: Vec::new() }
    }

    pub fn target(&self, server: &Server) -> Outcome<Target> {
        match server {
            Server::Chosen => Ok(self.chosen.clone()),
            Server::Unix(path) => Ok(Target::Unix(PathBuf::from(path))),
            Server::Tcp { host, port } => {
                let mut target = Target::default();
                target.set_address(host.as_bytes())?;
                target.set_port(port.to_string().as_bytes())?;
                Ok(target)
            }
        }
    }

    pub fn sheep(&mut self, server: &Server) -> Outcome<&mut Sheep> {
        let at = self.position(server)?;
        Ok(&mut self.known[at].1)
    }

    fn position(&mut self, server: &Server) -> Outcome<usize> {
        if let Some(at) = self.known.iter().position(|(known, ..)| known == server) {
            return Ok(at);
        }
        let sheep = Sheep::connect(&self.target(server)?)?;
        self.known.push((server.clone(), sheep, None));
        Ok(self.known.len() - 1)
    }

    fn nbd(&mut self, server: &Server) -> Outcome<Nbd> {
        let at = self.position(server)?;
        if self.known[at].2.is_none() {
            let target = self.target(server)?;
            let found = match (server, &self.chosen_nbd) {
                (Server::Chosen, Some(text)) => nbd::parse(&text.to_string_lossy()),
                _ => nbd::ask(&mut self.known[at].1, &target),
            };
            self.known[at].2 = Some(found?);
        }
        Ok(self.known[at].2.clone().expect("just found"))
    }
}

impl Finder for Flock {
    fn place(&mut self, name: &Name) -> Outcome<Place> {
        let nbd = self.nbd(&name.server)?;
        Ok(Place { nbd, export: name.export(), is_snapshot: name.is_snapshot() })
    }

    fn exists(&mut self, name: &Name) -> Outcome<bool> {
        let selector = name.selector()?;
        match self.sheep(&name.server)?.lookup(name.vdi.as_bytes(), &selector) {
            Ok(_) => Ok(true),
            Err(CallError::Broken(failure)) => Err(failure),
            Err(error) => match error.code() {
                Ok(proto::sd::ResultCode::NO_VDI | proto::sd::ResultCode::NO_TAG) => Ok(false),
                Ok(code) => Err(open_failure(name.vdi.as_bytes(), &selector, CallError::Refused(code))),
                Err(failure) => Err(failure),
            },
        }
    }

    fn find(&mut self, name: &Name) -> Outcome<Place> {
        let selector = name.selector()?;
        let sheep = self.sheep(&name.server)?;
        open(sheep, name.vdi.as_bytes(), &selector)?;
        let export = name.export();
        // NBD's names of snapshots are names of volumes as well, and those come first.
        if name.is_snapshot() && sheep.lookup(export.as_bytes(), &Selector::default()).is_ok() {
            return Err(Failure::refused(format!(
                "There is a VDI named {export}, which hides the snapshot from NBD: make a clone of it and use that"
            )));
        }
        self.place(name)
    }

    fn virtual_size(&mut self, words: &[Vec<u8>]) -> Outcome<u64> {
        image::virtual_size_of(words)
    }

    fn tell(&mut self, text: &str) {
        crate::context::notice(text);
    }
}

#[cfg(test)]
pub mod testing {
    use super::*;
    use crate::vdi::names::lossy;

    /// One sheep with the volumes Alice (with snapshots) and Bob; hosts serve NBD by TCP.
    #[derive(Default)]
    pub struct Canned {
        pub told: Vec<String>,
        /// Words of `qemu-img info`, for each size that was asked for.
        pub measured: Vec<String>,
    }

    impl Canned {
        /// Makes the fields of the local server short.
        pub fn abbreviated(text: &str) -> String {
            let mut text = text.to_string();
            for prefix in ["backing.file.", "file.", ""] {
                let server = format!(
                    "{prefix}server.type=unix,{prefix}server.path=/store/nbd.sock,{prefix}reconnect-delay=600"
                );
                text = text.replace(&server, &format!("SERVER({prefix})"));
            }
            text.replace(
                r#""reconnect-delay":600,"server":{"path":"/store/nbd.sock","type":"unix"}"#,
                "SERVER",
            )
        }
    }

    impl Finder for Canned {
        fn place(&mut self, name: &Name) -> Outcome<Place> {
            let nbd = match &name.server {
                Server::Tcp { host, .. } => Nbd::Tcp { host: host.clone(), port: "10809".into() },
                _ => Nbd::Unix("/store/nbd.sock".into()),
            };
            Ok(Place { nbd, export: name.export(), is_snapshot: name.is_snapshot() })
        }

        fn exists(&mut self, name: &Name) -> Outcome<bool> {
            Ok(["Alice", "Bob"].contains(&name.vdi.as_str()))
        }

        fn find(&mut self, name: &Name) -> Outcome<Place> {
            if self.exists(name)? { self.place(name) } else { Err(Failure::refused("no such volume")) }
        }

        fn virtual_size(&mut self, words: &[Vec<u8>]) -> Outcome<u64> {
            self.measured.push(lossy(&words.join(&b' ')));
            Ok(1 << 20)
        }

        fn tell(&mut self, text: &str) {
            self.told.push(text.to_string());
        }
    }
}
