package inspect

import (
	"io/fs"
	"strconv"
	"strings"
)

// files reads the host's files; what cannot be read is not there.
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
