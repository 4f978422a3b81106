package kernel

import (
	"context"
	"net/netip"

	"golang.org/x/sys/unix"

	"multihomed/internal/nlmsg"
	"multihomed/routing"
)

// Addresses reads the addresses of this host in a family, by the index of their interface and in
// the kernel's order, each with the length of its prefix.
func (r *Reader) Addresses(ctx context.Context, f routing.Family) (map[int][]netip.Prefix, error) {
	out := map[int][]netip.Prefix{}
	err := r.loader.requests.dump(ctx, dump{
		what: "addresses", kind: unix.RTM_GETADDR,
		body:    func(m *nlmsg.Builder) { m.Bytes(byte(f), 0, 0, 0, 0, 0, 0, 0) },
		restart: func() { clear(out) },
		each: func(payload []byte) bool {
			if a, err := decodeAddress(payload); err == nil && a.family == f {
				out[a.index] = append(out[a.index], a.address.Prefix)
			}
			return true
		},
	})
	return out, err
}
