package follow

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"multihomed/internal/escape"
	"multihomed/internal/watch"
	"multihomed/routing"
)

const (
	// mostPID is PID_MAX_LIMIT of linux/threads.h. A port above it is no process number.
	mostPID = 1 << 22
	// mostAuthors bounds what is remembered of sockets.
	mostAuthors = 256
)

// authors finds the process behind a netlink port. The first socket of a process has the number of the
// process as its port (netlink(7)), but another process may have taken the port, or come from another PID
// namespace. So a process counts only if it holds the socket that has the port (/proc/net/netlink); a
// process that cannot be looked into, or has closed its socket, is a probable one.
type authors struct {
	proc string
	// daemon is the process number of the daemon, 0 if it is not known.
	daemon int
	known  map[uint32]resolved
	// learned are ports that added objects of multihomed, which nobody else does.
	learned map[uint32]bool
	// sockets are those of the burst that is looked at, nil before they were read.
	sockets map[uint32]string
	burst   map[uint32]watch.Author
}

type resolved struct {
	inode  string
	author watch.Author
	at     time.Time
}

// authorLasts is how long a port that has closed still speaks for its process: what it asked for may be
// read after it has ended.
const authorLasts = 5 * time.Second

func newAuthors() *authors {
	return &authors{proc: "/proc", known: map[uint32]resolved{}, learned: map[uint32]bool{}}
}

// name names the authors of a burst. It is called at once, while a process that asked is still there.
func (a *authors) name(heard []routing.Announcement) []watch.Announced {
	a.sockets, a.burst = nil, map[uint32]watch.Author{}
	out := make([]watch.Announced, 0, len(heard))
	for _, h := range heard {
		out = append(out, watch.Announced{Announcement: h, Author: a.of(h)})
	}
	return out
}

func (a *authors) of(h routing.Announcement) watch.Author {
	if h.Port == 0 {
		return watch.Author{Party: watch.Kernel}
	}
	who, looked := a.burst[h.Port]
	if !looked {
		who = a.lookUp(h.Port)
		a.burst[h.Port] = who
	}
	if who.Party != watch.Unknown {
		return who
	}
	if adds := !h.Gone && (h.Kind == routing.AnnouncedRule && h.Rule.Protocol == routing.Multihomed ||
		h.Kind == routing.AnnouncedRoute && h.Routes[0].Protocol == routing.Multihomed); adds && len(a.learned) < mostAuthors {
		a.learned[h.Port] = true
	}
	if a.learned[h.Port] {
		return watch.Author{Party: watch.Multihomed, Probable: true}
	}
	return who
}

func (a *authors) lookUp(port uint32) watch.Author {
	// A program such as ip(8) ends at once: its name first.
	pid, comm := 0, ""
	if port <= mostPID {
		pid = int(port)
		comm = a.comm(pid)
	}
	if a.sockets == nil {
		a.sockets = a.readSockets()
	}
	inode, open := a.sockets[port]
	k, known := a.known[port]
	var who watch.Author
	switch {
	case open && known && k.inode == inode, !open && known && time.Since(k.at) < authorLasts:
		who, inode = k.author, k.inode
	case open:
		who = a.holder(pid, comm, inode)
	case comm != "":
		who = a.author(pid, comm, true)
	default:
		return watch.Author{Party: watch.Unknown, PID: pid}
	}
	if !known && len(a.known) >= mostAuthors {
		clear(a.known)
	}
	a.known[port] = resolved{inode, who, time.Now()}
	return who
}

// holder finds the process that holds a socket, first of all the one that the port speaks for.
func (a *authors) holder(pid int, comm, inode string) watch.Author {
	if comm != "" {
		holds, err := a.holds(pid, inode)
		if holds || errors.Is(err, fs.ErrPermission) {
			return a.author(pid, comm, !holds)
		}
	}
	entries, _ := os.ReadDir(a.proc) // Nobody is found if it cannot be read.
	for _, e := range entries {
		other, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if holds, _ := a.holds(other, inode); holds {
			return a.author(other, a.comm(other), false)
		}
	}
	return watch.Author{Party: watch.Unknown}
}

func (a *authors) holds(pid int, inode string) (bool, error) {
	dir := filepath.Join(a.proc, strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && to == "socket:["+inode+"]" {
			return true, nil
		}
	}
	return false, nil
}

// author names a process.
func (a *authors) author(pid int, comm string, probable bool) watch.Author {
	out := watch.Author{Party: watch.Other, Process: escape.Name(comm), PID: pid, Probable: probable}
	switch {
	case pid == a.daemon && pid != 0, strings.HasPrefix(comm, "multihome"):
		// The kernel cuts names: multihomed-disp.
		out.Party = watch.Multihomed
	case comm == "NetworkManager":
		out.Party = watch.NetworkManager
	}
	return out
}

func (a *authors) comm(pid int) string {
	name, err := os.ReadFile(filepath.Join(a.proc, strconv.Itoa(pid), "comm"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(name), "\n")
}

// readSockets are the inodes of the routing sockets of this network namespace, by port.
func (a *authors) readSockets() map[uint32]string {
	out := map[uint32]string{}
	f, err := os.Open(filepath.Join(a.proc, "net", "netlink"))
	if err != nil {
		return out // Who it is can then be told by its port alone.
	}
	defer f.Close()
	const protocol, port, inode = 1, 2, 9 // columns (netlink_native_seq_show in net/netlink/af_netlink.c)
	for lines := bufio.NewScanner(io.LimitReader(f, mostProc)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) <= inode || fields[protocol] != "0" {
			continue
		}
		if n, err := strconv.ParseUint(fields[port], 10, 32); err == nil && n != 0 {
			out[uint32(n)] = fields[inode]
		}
	}
	return out
}
