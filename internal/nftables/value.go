package nftables

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// A Value is the content of registers, or of a key: bytes, in the byte order that their type has in
// the kernel. It is a string so that it can be compared.
type Value string

// String is the value in hexadecimal digits.
func (v Value) String() string { return "0x" + hex.EncodeToString([]byte(v)) }

// Uint8 is the value of a direction, an nfproto or an l4proto.
func Uint8(v uint8) Value { return Value([]byte{v}) }

// Uint32 is the value of a mark, a group of interfaces or a uid, in the byte order of the host.
func Uint32(v uint32) Value { return Value(binary.NativeEndian.AppendUint32(nil, v)) }

// Addr is the value of an address, 4 or 16 bytes.
func Addr(a netip.Addr) Value { return Value(a.Unmap().AsSlice()) }

// IfName is the value of the name of an interface: 16 bytes, as the kernel loads it. A longer name is
// cut, and is the name of no interface.
func IfName(name string) Value {
	name = name[:min(len(name), unix.IFNAMSIZ-1)]
	return Value(name + strings.Repeat("\x00", unix.IFNAMSIZ-len(name)))
}

// IfNamePrefix is the value with which names are compared that begin so (`"wan*"`).
func IfNamePrefix(prefix string) Value { return Value(prefix) }

// Key is a concatenation of values, each on the next boundary of 32 bits, as the kernel loads them
// into its registers one after the other.
func Key(values ...Value) Value {
	var b strings.Builder
	for _, v := range values {
		b.WriteString(string(v))
		for b.Len()%registerSize != 0 {
			b.WriteByte(0)
		}
	}
	return Value(b.String())
}

// registerSize is NFT_REG32_SIZE.
const registerSize = 4
