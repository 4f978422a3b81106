package sockdiag

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Query says which sockets a dump is about.
type Query struct {
	// Sources are the source addresses; none means all. The kernel compares up to 256 of them, and
	// Dump compares more than those itself. An IPv4 address matches sockets of AF_INET6 that speak
	// IPv4, too. Zones are ignored: the kernel has none.
	Sources []netip.Addr
	// States are the states, 0 means [Connected].
	States States
}

// Constants of include/uapi/linux/inet_diag.h.
const (
	reqBytecode = 1 // INET_DIAG_REQ_BYTECODE

	opJump   = 1 // INET_DIAG_BC_JMP
	opSource = 7 // INET_DIAG_BC_S_COND

	sizeofOp       = 4 // struct inet_diag_bc_op
	sizeofHostCond = 8 // struct inet_diag_hostcond without the address
	anyPort        = 0xffffffff
)

// maxConditions bounds the program: the kernel checks it in time that grows with the square of its
// length (valid_cc in net/ipv4/inet_diag.c), and runs it for each socket.
const maxConditions = 256

// bytecode is the program that accepts sockets with one of the sources, nil if there is none or if
// there are too many.
//
// An operation jumps by its length in bytes. Whoever arrives at the end exactly is accepted, and
// whoever jumps four bytes further is not (inet_diag_bc_run). A jump of "yes" has one byte only, so
// each condition but the last is followed by a jump to the end, whose "no" has two.
func bytecode(sources []netip.Addr) []byte {
	if len(sources) == 0 || len(sources) > maxConditions {
		return nil
	}
	length := (len(sources) - 1) * sizeofOp
	for _, a := range sources {
		length += sizeofOp + sizeofHostCond + a.Unmap().BitLen()/8
	}
	out := make([]byte, 0, length)
	for i, a := range sources {
		a = a.Unmap()
		own := sizeofOp + sizeofHostCond + a.BitLen()/8
		out = appendOp(out, opSource, own, own+sizeofOp)
		out = append(out, family(a), byte(a.BitLen()), 0, 0) //nolint:gosec // at most 128
		out = binary.NativeEndian.AppendUint32(out, anyPort)
		out = append(out, a.AsSlice()...)
		if i < len(sources)-1 {
			out = appendOp(out, opJump, sizeofOp, length-len(out))
		}
	}
	return out
}

func appendOp(out []byte, code byte, yes, no int) []byte {
	out = append(out, code, byte(yes))                       //nolint:gosec // at most 28
	return binary.NativeEndian.AppendUint16(out, uint16(no)) //nolint:gosec // at most 256 * 32
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
