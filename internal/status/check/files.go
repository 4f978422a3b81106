package check

import (
	"io/fs"
	"net/netip"
	"strconv"
	"strings"
)

// files reads the host's files. A file that cannot be read counts as missing.
type files struct{ root fs.FS }

func (f files) exists(path string) bool {
	_, err := fs.Stat(f.root, path)
	return err == nil
}

func (f files) text(path string) (string, bool) {
	data, err := fs.ReadFile(f.root, path)
	return string(data), err == nil
}

// conf4 is a number of /proc/sys/net/ipv4/conf for an interface, as those
// settings work of which the kernel takes the larger of "all" and the
// interface's own (IN_DEV_MAXCONF in include/linux/inetdevice.h).
func (f files) conf4(name, key string) int {
	return max(f.number("proc/sys/net/ipv4/conf/all/"+key), f.number("proc/sys/net/ipv4/conf/"+name+"/"+key))
}

func (f files) number(path string) int {
	text, _ := f.text(path)
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return 0
	}
	return n
}

// neighbours4 returns the hardware addresses of neighbours by interface, as far as the
// kernel has resolved them (arp_format_neigh_entry in net/ipv4/arp.c).
func (f files) neighbours4() map[string]map[netip.Addr]string {
	out := map[string]map[netip.Addr]string{}
	text, _ := f.text("proc/net/arp")
	for line := range strings.Lines(text) {
		// address, hardware type, flags, hardware address, mask, device
		fields := strings.Fields(line)
		const columns, complete = 6, 2
		if len(fields) != columns {
			continue
		}
		ip, err := netip.ParseAddr(fields[0])
		flags, err2 := strconv.ParseUint(strings.TrimPrefix(fields[2], "0x"), 16, 32)
		if err != nil || err2 != nil || flags&complete == 0 {
			continue
		}
		device := fields[5]
		if out[device] == nil {
			out[device] = map[netip.Addr]string{}
		}
		out[device][ip] = fields[3]
	}
	return out
}
