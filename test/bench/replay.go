package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	fraDst = 1 + iota
	fraSrc
	fraIIFName
	_
	_
	fraPriority
)

const (
	fraSuppressGroup  = 13
	fraSuppressLength = 14
	fraTable          = 15
	fraOIFName        = 17
)

// replay turns announcements into the requests that do the same, for the objects that exist at the
// end, in their order.
func replay(events []event) []message {
	left := standing(events)
	var out []message
	for _, e := range slices.Backward(events) {
		// The last announcement of an object is the one that counts.
		k := e.key()
		if !e.added() || left[k] == 0 {
			continue
		}
		left[k]--
		m := message{kind: e.kind, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, payload: slices.Clone(e.payload)}
		if e.kind == unix.RTM_NEWROUTE {
			// Not the state of the next hop, which is the kernel's to say.
			ne := binary.NativeEndian
			ne.PutUint32(m.payload[8:], ne.Uint32(m.payload[8:])&unix.RTNH_F_ONLINK)
			if m.payload[0] == unix.AF_INET6 {
				m.flags = unix.NLM_F_CREATE
			}
		} else {
			clear(m.payload[8:ruleHeaderSize])
		}
		out = append(out, m)
	}
	slices.Reverse(out)
	return out
}

// undo are the requests that take objects away, rules before routes.
func undo(messages []message) []message {
	var rules, routes []message
	for _, m := range messages {
		m.flags = 0
		m.kind++
		if m.kind == unix.RTM_DELRULE {
			rules = append(rules, m)
		} else {
			routes = append(routes, m)
		}
	}
	slices.Reverse(routes)
	return append(rules, routes...)
}

// batchFile writes what `ip -batch` needs to make the same objects.
func batchFile(path string, messages []message, names map[int]string) error {
	var b strings.Builder
	for _, m := range messages {
		line, err := ipLine(m, names)
		if err != nil {
			return err
		}
		b.WriteString(line)
		b.WriteByte('\n')
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("writing a batch for ip: %w", err)
	}
	return nil
}

func runBatch(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, "ip", "-batch", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip -batch: %w: %s", err, out)
	}
	return nil
}

// ipLine prints a request in the syntax of iproute2.
func ipLine(m message, names map[int]string) (string, error) {
	p := m.payload
	if m.kind == unix.RTM_SETLINK {
		index := int(binary.NativeEndian.Uint32(p[4:]))
		return fmt.Sprintf("link set dev %s group %d", names[index], uplinkGroup), nil
	}
	if len(p) < ruleHeaderSize {
		return "", fmt.Errorf("a request of %d bytes", len(p))
	}
	var words []string
	word := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	number := func(v []byte) uint32 { return binary.NativeEndian.Uint32(v) }
	text := func(v []byte) string { return strings.TrimRight(string(v), "\x00") }
	if m.kind&^3 == unix.RTM_NEWROUTE {
		dst := "default"
		eachAttribute(p[unix.SizeofRtMsg:], func(kind uint16, v []byte) {
			switch kind {
			case unix.RTA_DST:
				dst = prefixText(v, int(p[1]))
			case unix.RTA_GATEWAY:
				word("via %s", addressText(v))
			case unix.RTA_PREFSRC:
				word("src %s", addressText(v))
			case unix.RTA_TABLE:
				word("table %d", number(v))
			case unix.RTA_PRIORITY:
				word("metric %d", number(v))
			case unix.RTA_OIF:
				index := int(number(v))
				if name, ok := names[index]; ok {
					word("dev %s", name)
				} else {
					word("dev if%d", index)
				}
			}
		})
		if p[0] == unix.AF_INET {
			word("scope %d", p[6])
		}
		if binary.NativeEndian.Uint32(p[8:])&unix.RTNH_F_ONLINK != 0 {
			word("onlink")
		}
		word("protocol %d", p[5])
		return "route add " + dst + " " + strings.Join(words, " "), nil
	}
	from := "all"
	eachAttribute(p[ruleHeaderSize:], func(kind uint16, v []byte) {
		switch kind {
		case fraSrc:
			from = prefixText(v, int(p[2]))
		case fraDst:
			word("to %s", prefixText(v, int(p[1])))
		case fraIIFName:
			word("iif %s", text(v))
		case fraOIFName:
			word("oif %s", text(v))
		case fraPriority:
			word("priority %d", number(v))
		case fraTable:
			if p[7] == 1 { // FR_ACT_TO_TBL
				word("lookup %d", number(v))
			}
		case fraSuppressLength:
			if n := int32(number(v)); n >= 0 {
				word("suppress_prefixlength %d", n)
			}
		case fraSuppressGroup:
			word("suppress_ifgroup %d", number(v))
		case fraProtocol:
			word("protocol %d", v[0])
		}
	})
	if p[7] == unix.RTN_UNREACHABLE {
		word("unreachable")
	}
	return "rule add from " + from + " " + strings.Join(words, " "), nil
}

func addressText(v []byte) string {
	a, _ := netip.AddrFromSlice(v)
	return a.String()
}

func prefixText(v []byte, bits int) string { return fmt.Sprintf("%s/%d", addressText(v), bits) }
