//! The operations of the protocol, by number (spec sections 2.2 to 2.4), and ours (0xe0 and up).

use super::{INTERNAL_VERSION, PUBLIC_VERSION};

macro_rules! opcodes {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal;)*) => {
        /// An operation that the protocol defines. Any other number is answered INVALID_PARMS.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Opcode {
            $($(#[$doc])* $variant = $value,)*
        }

        impl Opcode {
            pub const ALL: &'static [Opcode] = &[$(Opcode::$variant),*];

            pub fn from_u8(value: u8) -> Option<Opcode> {
                match value {
                    $($value => Some(Opcode::$variant),)*
                    _ => None,
                }
            }

            /// The name in the specification and in logs.
            pub fn name(self) -> &'static str {
                match self {
                    $(Opcode::$variant => $name,)*
                }
            }
        }
    };
}

opcodes! {
    CreateAndWriteObj = 0x01, "CREATE_AND_WRITE_OBJ";
    ReadObj = 0x02, "READ_OBJ";
    WriteObj = 0x03, "WRITE_OBJ";
    RemoveObj = 0x04, "REMOVE_OBJ";
    DiscardObj = 0x05, "DISCARD_OBJ";
    NewVdi = 0x11, "NEW_VDI";
    LockVdi = 0x12, "LOCK_VDI";
    ReleaseVdi = 0x13, "RELEASE_VDI";
    GetVdiInfo = 0x14, "GET_VDI_INFO";
    ReadVdis = 0x15, "READ_VDIS";
    FlushVdi = 0x16, "FLUSH_VDI";
    DelVdi = 0x17, "DEL_VDI";
    GetClusterDefault = 0x18, "GET_CLUSTER_DEFAULT";
    GetNodeList = 0x82, "GET_NODE_LIST";
    MakeFs = 0x84, "MAKE_FS";
    Shutdown = 0x85, "SHUTDOWN";
    StatSheep = 0x86, "STAT_SHEEP";
    StatCluster = 0x87, "STAT_CLUSTER";
    GetVdiAttr = 0x89, "GET_VDI_ATTR";
    ForceRecover = 0x8a, "FORCE_RECOVER";
    GetStoreList = 0x90, "GET_STORE_LIST";
    Snapshot = 0x91, "SNAPSHOT";
    Restore = 0x92, "RESTORE";
    GetSnapFile = 0x93, "GET_SNAP_FILE";
    Cleanup = 0x94, "CLEANUP";
    TraceStatus = 0x95, "TRACE_STATUS";
    TraceReadBuf = 0x96, "TRACE_READ_BUF";
    StatRecovery = 0x97, "STAT_RECOVERY";
    FlushDelCache = 0x98, "FLUSH_DEL_CACHE";
    NotifyVdiDel = 0x99, "NOTIFY_VDI_DEL";
    KillNode = 0x9a, "KILL_NODE";
    TraceEnable = 0x9b, "TRACE_ENABLE";
    TraceDisable = 0x9c, "TRACE_DISABLE";
    GetObjList = 0xa1, "GET_OBJ_LIST";
    GetEpoch = 0xa2, "GET_EPOCH";
    CreateAndWritePeer = 0xa3, "CREATE_AND_WRITE_PEER";
    ReadPeer = 0xa4, "READ_PEER";
    WritePeer = 0xa5, "WRITE_PEER";
    RemovePeer = 0xa6, "REMOVE_PEER";
    EnableRecover = 0xa8, "ENABLE_RECOVER";
    DisableRecover = 0xa9, "DISABLE_RECOVER";
    GetVdiCopies = 0xab, "GET_VDI_COPIES";
    CompleteRecovery = 0xac, "COMPLETE_RECOVERY";
    FlushNodes = 0xad, "FLUSH_NODES";
    FlushPeer = 0xae, "FLUSH_PEER";
    NotifyVdiAdd = 0xaf, "NOTIFY_VDI_ADD";
    DeleteCache = 0xb0, "DELETE_CACHE";
    MdInfo = 0xb1, "MD_INFO";
    MdPlug = 0xb2, "MD_PLUG";
    MdUnplug = 0xb3, "MD_UNPLUG";
    GetHash = 0xb4, "GET_HASH";
    Reweight = 0xb5, "REWEIGHT";
    GetCacheInfo = 0xb6, "GET_CACHE_INFO";
    CachePurge = 0xb7, "CACHE_PURGE";
    Stat = 0xb8, "STAT";
    GetLogLevel = 0xb9, "GET_LOGLEVEL";
    SetLogLevel = 0xba, "SET_LOGLEVEL";
    NfsCreate = 0xbb, "NFS_CREATE";
    NfsDelete = 0xbc, "NFS_DELETE";
    Exist = 0xbd, "EXIST";
    ClusterInfo = 0xbe, "CLUSTER_INFO";
    AlterClusterCopy = 0xbf, "ALTER_CLUSTER_COPY";
    AlterVdiCopy = 0xc0, "ALTER_VDI_COPY";
    DecrefObj = 0xc1, "DECREF_OBJ";
    DecrefPeer = 0xc2, "DECREF_PEER";
    PreventInodeUpdate = 0xc3, "PREVENT_INODE_UPDATE";
    AllowInodeUpdate = 0xc4, "ALLOW_INODE_UPDATE";
    RepairReplica = 0xc5, "REPAIR_REPLICA";
    OidsExist = 0xc6, "OIDS_EXIST";
    VdiStateCheckpointCtl = 0xc7, "VDI_STATE_CHECKPOINT_CTL";
    InodeCoherence = 0xc8, "INODE_COHERENCE";
    ReadDelVdis = 0xc9, "READ_DEL_VDIS";
    GetRecovery = 0xca, "GET_RECOVERY";
    SetRecovery = 0xcb, "SET_RECOVERY";
    SetVnodes = 0xcc, "SET_VNODES";
    GetVnodes = 0xcd, "GET_VNODES";
    /// Ours, as all below: bytes of a VDI.
    VolumeRead = 0xe0, "VOLUME_READ";
    VolumeWrite = 0xe1, "VOLUME_WRITE";
    CheckObject = 0xe2, "CHECK_OBJECT";
    ResizeVdi = 0xe3, "RESIZE_VDI";
    VdiList = 0xe4, "VDI_LIST";
    VdiUsage = 0xe5, "VDI_USAGE";
    Locate = 0xe6, "LOCATE";
    ClusterInfoEx = 0xe7, "CLUSTER_INFO_EX";
    VdiDiscard = 0xe8, "VDI_DISCARD";
    /// Any question or order about VDIs, as it is (`proto::client`).
    Ask = 0xe9, "ASK";
}

impl Opcode {
    /// The version a client puts into its requests.
    pub fn version(self) -> u8 {
        if self as u8 >= 0x80 { INTERNAL_VERSION } else { PUBLIC_VERSION }
    }

    /// Does the server answer a request with this version, or with VER_MISMATCH (spec section 1.3)?
    /// The rule holds for unknown opcodes too: it is checked first.
    pub fn accepts_version(opcode: u8, version: u8) -> bool {
        if opcode >= 0x80 { version == INTERNAL_VERSION } else { version <= PUBLIC_VERSION }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_variants_are_one_to_one() {
        for value in 0..=255u8 {
            if let Some(opcode) = Opcode::from_u8(value) {
                assert_eq!(opcode as u8, value);
            }
        }
        assert!(Opcode::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(Opcode::from_u8(0x00), None);
        assert_eq!(
            Opcode::from_u8(0xff),
            None,
            "the first byte of a peer link is no opcode's version either"
        );
    }

    #[test]
    fn versions_follow_the_rule_of_the_specification() {
        for version in 0..=2 {
            assert!(Opcode::accepts_version(0x02, version));
        }
        assert!(!Opcode::accepts_version(0x02, 3));
        assert!(Opcode::accepts_version(0xbe, 0x0a));
        assert!(!Opcode::accepts_version(0xbe, 0x02));
        assert!(!Opcode::accepts_version(0xbe, 0));
    }
}
