package nftables

import "golang.org/x/sys/unix"

// Numbers of include/uapi/linux/netfilter/nf_tables.h that x/sys/unix lacks.
const (
	tableOwner    = 7  // NFTA_TABLE_OWNER
	setHandle     = 16 // NFTA_SET_HANDLE
	elemKeyEnd    = 10 // NFTA_SET_ELEM_KEY_END
	elemExprs     = 11 // NFTA_SET_ELEM_EXPRESSIONS
	bitwiseOp     = 6  // NFTA_BITWISE_OP
	bitwiseData   = 7  // NFTA_BITWISE_DATA
	setExpr       = 17 // NFTA_SET_EXPR
	setExprs      = 18 // NFTA_SET_EXPRESSIONS
	verdictType   = 0xffffff00
	networkHeader = 1 // NFT_PAYLOAD_NETWORK_HEADER

	flagMap    = unix.NFT_SET_MAP
	flagConcat = 0x80 // NFT_SET_CONCAT
)

// Verdicts on the wire (enum nft_verdicts; include/uapi/linux/netfilter.h).
const (
	wireDrop     = 0
	wireAccept   = 1
	wireContinue = -1
	wireJump     = -3
	wireGoto     = -4
	wireReturn   = -5
)

// Limits of the kernel.
const (
	maxName    = unix.NFT_TABLE_MAXNAMELEN - 1
	maxComment = 127 // NFTNL_UDATA_COMMENT_MAXLEN of nft(8), without the NUL
	maxExprs   = 128 // NFT_RULE_MAXEXPRS
	maxValue   = 64  // NFT_DATA_VALUE_MAXLEN
)

// commentType is the type of a comment in the user data of a rule: NFTNL_UDATA_RULE_COMMENT of
// libnftnl's udata.h. Then come the length in one byte, the text and a NUL.
const commentType = 0

// message is the type of a message of nf_tables.
func message(kind uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | kind }

// sizeofGenMsg is the length of struct nfgenmsg (include/uapi/linux/netfilter/nfnetlink.h).
const sizeofGenMsg = 4
