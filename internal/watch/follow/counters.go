package follow

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"multihomed/internal/escape"
	"multihomed/internal/watch"
)

// mostProc bounds what is read of a file of proc(5), in bytes: 100,000 interfaces or sockets.
const mostProc = 16 << 20

// Counters reads how many bytes each interface has received and sent, by its escaped name
// (/proc/net/dev, proc_pid_net(5)).
func Counters() (map[string]watch.Counter, error) {
	f, err := os.Open("/proc/net/dev")
	if err != nil {
		return nil, fmt.Errorf("reading the counters of interfaces: %w", err)
	}
	defer f.Close()
	out, err := readCounters(f)
	if err != nil {
		return nil, fmt.Errorf("reading the counters of interfaces: %w", err)
	}
	return out, nil
}

func readCounters(r io.Reader) (map[string]watch.Counter, error) {
	const received, sent = 0, 8 // columns of bytes
	out := map[string]watch.Counter{}
	lines := bufio.NewScanner(io.LimitReader(r, mostProc))
	for lines.Scan() {
		// The kernel takes no colon in a name (dev_valid_name in net/core/dev.c).
		name, rest, found := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(rest)
		if !found || len(fields) <= sent {
			continue // A heading.
		}
		in, err1 := strconv.ParseUint(fields[received], 10, 64)
		back, err2 := strconv.ParseUint(fields[sent], 10, 64)
		if err1 == nil && err2 == nil {
			out[escape.Name(strings.TrimLeft(name, " "))] = watch.Counter{In: in, Out: back}
		}
	}
	return out, lines.Err()
}
