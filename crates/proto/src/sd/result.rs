//! Result codes and the texts users see (spec section 3).

use std::fmt;

use crate::client::ClientError;

/// The `result` of a reply. Codes from 0x80 on are not known to guests' drivers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResultCode(pub u32);

macro_rules! codes {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl ResultCode {
            $(pub const $name: ResultCode = ResultCode($value);)*

            /// What `dog` prints after a colon; `None` for a code nobody defined.
            pub fn text(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($text),)*
                    _ => None,
                }
            }

            /// The code's name in the specification.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// Every code, ascending.
            pub const ALL: &'static [ResultCode] = &[$(ResultCode::$name),*];
        }
    };
}

codes! {
    SUCCESS = 0x00, "Success";
    UNKNOWN = 0x01, "Unknown error";
    NO_OBJ = 0x02, "No object found";
    EIO = 0x03, "I/O error";
    VDI_EXIST = 0x04, "VDI exists already";
    INVALID_PARMS = 0x05, "Invalid parameters";
    SYSTEM_ERROR = 0x06, "System error";
    VDI_LOCKED = 0x07, "VDI is already locked";
    NO_VDI = 0x08, "No VDI found";
    NO_BASE_VDI = 0x09, "No base VDI found";
    VDI_READ = 0x0a, "Failed to read from requested VDI";
    VDI_WRITE = 0x0b, "Failed to write to requested VDI";
    BASE_VDI_READ = 0x0c, "Failed to read from base VDI";
    BASE_VDI_WRITE = 0x0d, "Failed to write to base VDI";
    NO_TAG = 0x0e, "Failed to find requested tag";
    STARTUP = 0x0f, "System is still booting";
    VDI_NOT_LOCKED = 0x10, "VDI is not locked";
    SHUTDOWN = 0x11, "System is shutting down";
    NO_MEM = 0x12, "Out of memory on server";
    FULL_VDI = 0x13, "Maximum number of VDIs reached";
    VER_MISMATCH = 0x14, "Protocol version mismatch";
    NO_SPACE = 0x15, "Server has no space for new objects";
    WAIT_FOR_FORMAT = 0x16, "Waiting for cluster to be formatted";
    WAIT_FOR_JOIN = 0x17, "Waiting for other nodes to join cluster";
    JOIN_FAILED = 0x18, "Node has failed to join cluster";
    HALT = 0x19, "IO has halted as there are not enough living nodes";
    READONLY = 0x1a, "Object is read-only";
    INODE_INVALIDATED = 0x1d, "Inode object is invalidated";
    OLD_NODE_VER = 0x81, "Request has an old epoch";
    NEW_NODE_VER = 0x82, "Request has a new epoch";
    NOT_FORMATTED = 0x83, "Cluster has not been formatted";
    INVALID_CTIME = 0x84, "Creation times differ";
    INVALID_EPOCH = 0x85, "Invalid epoch";
    NETWORK_ERROR = 0x86, "Network error between sheep";
    NO_CACHE = 0x87, "No cache object found";
    BUFFER_SMALL = 0x88, "The buffer is too small";
    FORCE_RECOVER = 0x89, "Cluster is running/halted and cannot be force recovered";
    NO_STORE = 0x8a, "Targeted backend store is not found";
    NO_SUPPORT = 0x8b, "Operation is not supported";
    NODE_IN_RECOVERY = 0x8c, "Targeted node is in recovery";
    KILLED = 0x8d, "Node is killed";
    OID_EXIST = 0x8e, "Object ID exists already";
    AGAIN = 0x8f, "Ask to try again";
    STALE_OBJ = 0x90, "Object may be stale";
    CLUSTER_ERROR = 0x91, "Cluster driver error";
    VDI_NOT_EMPTY = 0x92, "VDI is not empty";
    NOT_FOUND = 0x93, "Cannot find target";
    INCOMPLETE = 0x94, "Object is not complete uploaded";
    COLLECTING_CINFO = 0x95, "Node is collecting cluster wide status just after joining";
    GATEWAY_MODE = 0x97, "Targeted node is gateway mode";
    INVALID_VNODES_STRATEGY = 0x98, "Invalid cluster vnodes strategy";
    NO_CHECKPOINT_ENTRY = 0x99, "No checkpoint entry for this VDI";
}

impl ResultCode {
    pub fn is_success(self) -> bool {
        self == ResultCode::SUCCESS
    }

    /// `Ok` for success, so that a client can use `?`.
    pub fn ok(self) -> Result<(), ResultCode> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => f.write_str(text),
            None => write!(f, "Unknown result code {:#04x}", self.0),
        }
    }
}

impl fmt::Debug for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "ResultCode({:#04x})", self.0),
        }
    }
}

impl std::error::Error for ResultCode {}

/// What a refused request looks like on the wire. A place where another code is customary maps it before.
impl From<&ClientError> for ResultCode {
    fn from(error: &ClientError) -> ResultCode {
        match error {
            ClientError::NoVdi => ResultCode::NO_VDI,
            ClientError::NoTag => ResultCode::NO_TAG,
            ClientError::VdiExists => ResultCode::VDI_EXIST,
            ClientError::NoFreeVid => ResultCode::FULL_VDI,
            ClientError::Locked | ClientError::InUse(_) => ResultCode::VDI_LOCKED,
            ClientError::TagExists | ClientError::AttributeExists | ClientError::NameClash => {
                ResultCode::VDI_EXIST
            }
            ClientError::NoAttribute => ResultCode::NO_OBJ,
            ClientError::Busy => ResultCode::AGAIN,
            ClientError::NotASnapshot => ResultCode::INVALID_PARMS,
            ClientError::NoObject => ResultCode::NO_OBJ,
            ClientError::ReadOnly => ResultCode::READONLY,
            ClientError::StaleInode => ResultCode::INODE_INVALIDATED,
            ClientError::InvalidParameters | ClientError::OutOfRange => ResultCode::INVALID_PARMS,
            ClientError::NoSpace => ResultCode::NO_SPACE,
            ClientError::WaitForFormat => ResultCode::WAIT_FOR_FORMAT,
            ClientError::WaitForJoin => ResultCode::WAIT_FOR_JOIN,
            ClientError::ShuttingDown => ResultCode::SHUTDOWN,
            ClientError::NoStorage => ResultCode::HALT,
            ClientError::Unsupported(_) => ResultCode::NO_SUPPORT,
            ClientError::NoNode => ResultCode::INVALID_PARMS,
            ClientError::NotStuck => ResultCode::FORCE_RECOVER,
            ClientError::Io => ResultCode::EIO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_other_programs_compare_are_exact() {
        for (code, text) in [
            (0x00, "Success"),
            (0x04, "VDI exists already"),
            (0x07, "VDI is already locked"),
            (0x08, "No VDI found"),
            (0x0b, "Failed to write to requested VDI"),
            (0x0e, "Failed to find requested tag"),
            (0x15, "Server has no space for new objects"),
            (0x16, "Waiting for cluster to be formatted"),
            (0x17, "Waiting for other nodes to join cluster"),
            (0x19, "IO has halted as there are not enough living nodes"),
            (0x89, "Cluster is running/halted and cannot be force recovered"),
            (0x8a, "Targeted backend store is not found"),
        ] {
            assert_eq!(ResultCode(code).to_string(), text);
        }
        assert_eq!(ResultCode(0x7f).to_string(), "Unknown result code 0x7f");
    }

    #[test]
    fn codes_are_ascending_and_each_has_a_text() {
        assert!(ResultCode::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ResultCode::ALL.iter().all(|code| code.text().is_some()));
    }

    #[test]
    fn every_refusal_has_a_code_that_is_not_success() {
        use ClientError::*;
        for (error, code) in [
            (NoVdi, 0x08),
            (NoTag, 0x0e),
            (VdiExists, 0x04),
            (NoFreeVid, 0x13),
            (Locked, 0x07),
            (InUse(crate::NodeId { addr: [0; 16], port: 1 }), 0x07),
            (TagExists, 0x04),
            (NameClash, 0x04),
            (AttributeExists, 0x04),
            (NoAttribute, 0x02),
            (Busy, 0x8f),
            (NotASnapshot, 0x05),
            (NoObject, 0x02),
            (ReadOnly, 0x1a),
            (InvalidParameters, 0x05),
            (OutOfRange, 0x05),
            (NoSpace, 0x15),
            (WaitForFormat, 0x16),
            (WaitForJoin, 0x17),
            (ShuttingDown, 0x11),
            (NoStorage, 0x19),
            (Unsupported("x".into()), 0x8b),
            (Io, 0x03),
        ] {
            assert_eq!(ResultCode::from(&error), ResultCode(code), "{error:?}");
        }
    }
}
