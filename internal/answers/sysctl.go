package answers

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"multihomed/internal/fsutil"
	"multihomed/routing/answers"
)

// conf are the parameters of IPv4 by interface (ip-sysctl.rst of the kernel), those of the network
// namespace of the thread that reads.
const conf = "/proc/sys/net/ipv4/conf"

// maxParameter bounds the text of a number.
const maxParameter = 64

// strict is rp_filter=1 of RFC 3704, section 2.2.
const strict = 1

// SourceCheck reads how the kernel checks the sources of IPv4 packets that come in by an interface: the
// greater rp_filter of the interface and of all, and whether either has src_valid_mark
// (IN_DEV_RPFILTER and IN_DEV_SRC_VMARK in include/linux/inetdevice.h). The error is fs.ErrNotExist if the
// interface does not exist, or has no IPv4.
func SourceCheck(name string) (answers.SourceCheck, error) {
	filter, err := greater(name, "rp_filter")
	if err != nil || filter != strict {
		return answers.CheckLoose, err
	}
	byMark, err := greater(name, "src_valid_mark")
	if err != nil || byMark == 0 {
		return answers.CheckStrict, err
	}
	return answers.CheckByMark, nil
}

// greater is the greater value of a parameter, of an interface and of all.
func greater(name, parameter string) (int, error) {
	// A name of an interface has no slash and is no dot (dev_valid_name in net/core/dev.c).
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return 0, fmt.Errorf("%q is no name of an interface", name)
	}
	out := 0
	for _, of := range []string{"all", name} {
		path := filepath.Join(conf, of, parameter)
		text, err := fsutil.ReadFile(path, maxParameter)
		if err != nil {
			return 0, fmt.Errorf("reading how sources are checked: %w", err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", path, err)
		}
		out = max(out, n)
	}
	return out, nil
}
